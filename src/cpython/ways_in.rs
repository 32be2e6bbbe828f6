//! What happens around each call of the interpreter that can run Python code, or give up the GIL.
//!
//! - **A thread that the interpreter ends stays where it is.** Until 3.14, a daemon thread that wants the GIL back when the
//!   interpreter is ending gets pthread_exit() instead. glibc then unwinds its stack, and would run the destructors of
//!   Rust's frames, without the GIL, or end the process where a frame says that it cannot unwind. Here is the first of
//!   Rust's frames on the way, and it waits for the end of the process, as the interpreter has it from 3.14 on.
//! - **Debug builds check that nothing of the core is borrowed**: see [`super::borrowing`].
//!
//! PyO3 calls the interpreter, too, so that it is the linker that puts these functions around the interpreter's (`--wrap`,
//! in build.rs), where either is wanted. The others call [`enter`].

/// Waits for the end of the process when it is dropped, which only an unwinding stack does.
struct Stay;

impl Drop for Stay {
    #[cold]
    fn drop(&mut self) {
        loop {
            // SAFETY: a call without arguments.
            unsafe { libc::pause() };
        }
    }
}

/// Calls something that may run Python code through a pointer, which the linker does not see. It must be of the "C-unwind"
/// ABI: of others the compiler believes that nothing comes out of them but a result.
pub fn enter<R>(call: impl FnOnce() -> R) -> R {
    super::borrowing::check();
    let stay = Stay;
    let result = call();
    std::mem::forget(stay);
    result
}

#[cfg(guards_ways_in)]
mod wrappers {
    use std::ffi::{c_double, c_int, c_void};

    use pyo3::ffi;

    use super::enter;

    type P = *mut c_void;

    macro_rules! ways_in {
        ($(fn $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
            $(
                #[allow(non_snake_case, reason = "the interpreter's name")]
                mod $name {
                    use super::*;

                    unsafe extern "C-unwind" {
                        #[link_name = concat!("__real_", stringify!($name))]
                        fn real($($argument: $type),*) $(-> $result)?;
                        #[allow(clashing_extern_declarations, reason = "only its name is used")]
                        #[link_name = stringify!($name)]
                        fn wrapped();
                    }

                    /// The linker knows what is real only of names that are used.
                    #[used]
                    static USED: unsafe extern "C-unwind" fn() = wrapped;

                    #[unsafe(export_name = concat!("__wrap_", stringify!($name)))]
                    unsafe extern "C-unwind" fn wrapper($($argument: $type),*) $(-> $result)? {
                        // SAFETY: the arguments are those that the interpreter's function was called with.
                        enter(|| unsafe { real($($argument),*) })
                    }
                }
            )*
        };
    }

    // In the order of the alphabet. build.rs reads these lines.
    ways_in! {
    fn PyBuffer_Release(a: P);
    fn PyBytes_FromObject(a: P) -> P;
    fn PyContext_Copy(a: P) -> P;
    fn PyContext_CopyCurrent() -> P;
    fn PyDict_Contains(a: P, b: P) -> c_int;
    fn PyDict_GetItemWithError(a: P, b: P) -> P;
    fn PyDict_New() -> P;
    fn PyDict_SetItem(a: P, b: P, c: P) -> c_int;
    fn PyErr_CheckSignals() -> c_int;
    fn PyErr_NewExceptionWithDoc(a: P, b: P, c: P, d: P) -> P;
    fn PyErr_NormalizeException(a: P, b: P, c: P);
    fn PyErr_PrintEx(a: c_int);
    fn PyErr_Restore(a: P, b: P, c: P);
    fn PyErr_SetNone(a: P);
    fn PyErr_SetObject(a: P, b: P);
    fn PyErr_SetString(a: P, b: P);
    fn PyErr_WriteUnraisable(a: P);
    fn PyEval_RestoreThread(a: P);
    fn PyException_SetTraceback(a: P, b: P) -> c_int;
    fn PyFloat_AsDouble(a: P) -> c_double;
    fn PyGILState_Ensure() -> c_int;
    fn PyGILState_Release(a: c_int);
    fn PyImport_Import(a: P) -> P;
    fn PyIter_Next(a: P) -> P;
    fn PyIter_Send(a: P, b: P, c: P) -> c_int;
    fn PyList_Append(a: P, b: P) -> c_int;
    fn PyList_New(a: isize) -> P;
    fn PyLong_AsLong(a: P) -> isize;
    fn PyLong_AsUnsignedLongLong(a: P) -> u64;
    fn PyModule_GetNameObject(a: P) -> P;
    fn PyNumber_Add(a: P, b: P) -> P;
    fn PyNumber_FloorDivide(a: P, b: P) -> P;
    fn PyNumber_Index(a: P) -> P;
    fn PyNumber_Multiply(a: P, b: P) -> P;
    fn PyObject_Call(a: P, b: P, c: P) -> P;
    fn PyObject_CallFinalizerFromDealloc(a: P) -> c_int;
    fn PyObject_CallNoArgs(a: P) -> P;
    fn PyObject_CallOneArg(a: P, b: P) -> P;
    fn PyObject_ClearWeakRefs(a: P);
    fn PyObject_GenericSetAttr(a: P, b: P, c: P) -> c_int;
    fn PyObject_GetAttr(a: P, b: P) -> P;
    fn PyObject_GetBuffer(a: P, b: P, c: c_int) -> c_int;
    fn PyObject_GetItem(a: P, b: P) -> P;
    fn PyObject_GetIter(a: P) -> P;
    fn PyObject_IsInstance(a: P, b: P) -> c_int;
    fn PyObject_IsTrue(a: P) -> c_int;
    fn PyObject_Repr(a: P) -> P;
    fn PyObject_RichCompare(a: P, b: P, c: c_int) -> P;
    fn PyObject_SetAttr(a: P, b: P, c: P) -> c_int;
    fn PyObject_SetItem(a: P, b: P, c: P) -> c_int;
    fn PyObject_Size(a: P) -> isize;
    fn PyObject_Str(a: P) -> P;
    fn PyObject_Vectorcall(a: P, b: P, c: usize, d: P) -> P;
    fn PyObject_VectorcallDict(a: P, b: P, c: usize, d: P) -> P;
    fn PyObject_VectorcallMethod(a: P, b: P, c: usize, d: P) -> P;
    fn PySequence_Contains(a: P, b: P) -> c_int;
    fn PySys_Audit(a: P, b: P, c: P, d: P, e: P, f: P) -> c_int;
    fn PyTraceBack_Print(a: P, b: P) -> c_int;
    fn PyTuple_New(a: isize) -> P;
    fn PyType_FromSpecWithBases(a: P, b: P) -> P;
    fn PyUnicode_AsEncodedString(a: P, b: P, c: P) -> P;
    fn PyUnicode_DecodeFSDefaultAndSize(a: P, b: isize) -> P;
    fn PyWeakref_NewRef(a: P, b: P) -> P;
    }

    /// Destroying an object of one of these types runs no Python code.
    fn is_plain(object: *mut ffi::PyObject) -> bool {
        // SAFETY: the object's type is there until the object is destroyed.
        unsafe {
            let kind = ffi::Py_TYPE(object);
            kind == &raw mut ffi::PyBytes_Type
                || kind == &raw mut ffi::PyUnicode_Type
                || kind == &raw mut ffi::PyLong_Type
                || kind == &raw mut ffi::PyFloat_Type
        }
    }

    /// The two functions that destroy objects: Rust's code calls the first when it dropped the last reference, or has the
    /// second drop references, where the interpreter counts them all (`Py_REF_DEBUG`).
    mod dealloc {
        use super::*;

        unsafe extern "C-unwind" {
            #[link_name = "__real__Py_Dealloc"]
            fn real_dealloc(object: *mut ffi::PyObject);
            #[link_name = "__real__Py_DecRef"]
            fn real_decref(object: *mut ffi::PyObject);
            #[allow(clashing_extern_declarations, reason = "only its name is used")]
            #[link_name = "_Py_Dealloc"]
            fn wrapped_dealloc();
            #[allow(clashing_extern_declarations, reason = "only its name is used")]
            #[link_name = "_Py_DecRef"]
            fn wrapped_decref();
        }

        /// The linker knows what is real only of names that are used.
        #[used]
        static USED: [unsafe extern "C-unwind" fn(); 2] = [wrapped_dealloc, wrapped_decref];

        #[unsafe(export_name = "__wrap__Py_Dealloc")]
        unsafe extern "C-unwind" fn dealloc(object: *mut ffi::PyObject) {
            // SAFETY: the object is the one that the interpreter's function was called with.
            unsafe {
                if cfg!(debug_assertions) && is_plain(object) {
                    real_dealloc(object);
                } else {
                    enter(|| real_dealloc(object));
                }
            }
        }

        #[unsafe(export_name = "__wrap__Py_DecRef")]
        unsafe extern "C-unwind" fn decref(object: *mut ffi::PyObject) {
            // SAFETY: the object is the one that the interpreter's function was called with, and is there until its last
            // reference is dropped.
            unsafe {
                if ffi::Py_REFCNT(object) > 1 || cfg!(debug_assertions) && is_plain(object) {
                    real_decref(object);
                } else {
                    enter(|| real_decref(object));
                }
            }
        }
    }

    /// PyO3 calls what this returns by itself. Without a function, it calls the object through the interpreter.
    #[cfg(not(Py_3_12))]
    #[unsafe(export_name = "__wrap_PyVectorcall_Function")]
    unsafe extern "C-unwind" fn vectorcall_function(_callable: P) -> P {
        std::ptr::null_mut()
    }

    // What PyO3 calls in 3.11 where later versions have one function.
    #[cfg(not(Py_3_12))]
    ways_in! {
    fn _PyObject_MakeTpCall(a: P, b: P, c: P, d: isize, e: P) -> P;
    fn _Py_CheckFunctionResult(a: P, b: P, c: P, d: P) -> P;
    }

    #[cfg(Py_3_12)]
    ways_in! {
    fn PyErr_SetRaisedException(a: P);
    }

    #[cfg(Py_3_13)]
    ways_in! {
    fn PyDict_GetItemRef(a: P, b: P, c: P) -> c_int;
    }
}
