//! References to Python objects, and calls of them.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr::NonNull;

use pyo3::exceptions::{PyKeyError, PySystemError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use pyo3::{Borrowed, ffi};

use super::errors::{fetch, new_error};
use super::ways_in::enter;

/// A strong reference.
///
/// Like `Py<PyAny>`, without its check at each drop whether the thread is attached to the interpreter: it is bound to
/// threads that are.
#[repr(transparent)]
pub struct Object {
    pointer: NonNull<ffi::PyObject>,
    /// Neither Send nor Sync.
    bound: PhantomData<*mut ()>,
}

impl Object {
    /// Takes over a reference that a C function returned; null stands for the exception that it has set.
    ///
    /// # Safety
    /// `pointer` is null, or a strong reference that nobody else will release.
    pub unsafe fn from_owned(py: Python<'_>, pointer: *mut ffi::PyObject) -> PyResult<Object> {
        match NonNull::new(pointer) {
            Some(pointer) => Ok(Object { pointer, bound: PhantomData }),
            None => Err(fetch(py)),
        }
    }

    /// Takes over a reference; None for null.
    ///
    /// # Safety
    /// As for [`Object::from_owned`].
    pub unsafe fn from_nullable(pointer: *mut ffi::PyObject) -> Option<Object> {
        NonNull::new(pointer).map(|pointer| Object { pointer, bound: PhantomData })
    }

    /// Makes a strong reference of a borrowed one.
    ///
    /// # Safety
    /// `pointer` points to a live object.
    pub unsafe fn from_borrowed(pointer: NonNull<ffi::PyObject>) -> Object {
        // SAFETY: the object lives.
        unsafe { ffi::Py_INCREF(pointer.as_ptr()) };
        Object { pointer, bound: PhantomData }
    }

    pub fn none(py: Python<'_>) -> Object {
        py.None().into_bound(py).into()
    }

    /// An int.
    pub fn from_int(py: Python<'_>, number: impl Into<i64>) -> PyResult<Object> {
        // SAFETY: returns a new reference or null with an exception.
        unsafe { Object::from_owned(py, ffi::PyLong_FromLongLong(number.into())) }
    }

    /// An int.
    pub fn from_size(py: Python<'_>, size: usize) -> PyResult<Object> {
        // SAFETY: as above.
        unsafe { Object::from_owned(py, ffi::PyLong_FromSize_t(size)) }
    }

    /// A float.
    pub fn from_float(py: Python<'_>, number: f64) -> PyResult<Object> {
        // SAFETY: as above.
        unsafe { Object::from_owned(py, ffi::PyFloat_FromDouble(number)) }
    }

    /// A str.
    pub fn from_str(py: Python<'_>, text: &str) -> PyResult<Object> {
        // SAFETY: as above; the text is valid for its length.
        unsafe {
            let length = text.len() as ffi::Py_ssize_t;
            Object::from_owned(py, ffi::PyUnicode_FromStringAndSize(text.as_ptr().cast(), length))
        }
    }

    /// A str of a path, decoded as the interpreter decodes those.
    pub fn from_path(py: Python<'_>, path: &[u8]) -> PyResult<Object> {
        // SAFETY: as above; the path is valid for its length.
        unsafe {
            let length = path.len() as ffi::Py_ssize_t;
            Object::from_owned(py, ffi::PyUnicode_DecodeFSDefaultAndSize(path.as_ptr().cast(), length))
        }
    }

    pub fn as_ptr(&self) -> *mut ffi::PyObject {
        self.pointer.as_ptr()
    }

    pub fn into_ptr(self) -> *mut ffi::PyObject {
        let pointer = self.pointer.as_ptr();
        std::mem::forget(self);
        pointer
    }

    pub fn bind<'a, 'py>(&'a self, py: Python<'py>) -> Borrowed<'a, 'py, PyAny> {
        // SAFETY: self keeps the object alive for 'a.
        unsafe { Borrowed::from_ptr(py, self.as_ptr()) }
    }

    pub fn into_bound(self, py: Python<'_>) -> Bound<'_, PyAny> {
        // SAFETY: the reference is ours to give away.
        unsafe { Bound::from_owned_ptr(py, self.into_ptr()) }
    }

    pub fn is(&self, other: &Object) -> bool {
        self.pointer == other.pointer
    }

    /// Whether this is the only reference to the object.
    pub fn is_unique(&self) -> bool {
        // GIL: nobody can make another meanwhile.
        // SAFETY: the object lives.
        (unsafe { ffi::Py_REFCNT(self.as_ptr()) }) == 1
    }

    /// Whether the object's class is memoryview or bytearray, whose length says whether their buffer is empty.
    pub fn is_plain_buffer(&self) -> bool {
        // SAFETY: the object lives.
        unsafe {
            ffi::Py_TYPE(self.as_ptr()) == &raw mut ffi::PyMemoryView_Type
                || ffi::PyByteArray_CheckExact(self.as_ptr()) != 0
        }
    }

    pub fn is_tuple(&self) -> bool {
        // SAFETY: the object lives.
        (unsafe { ffi::PyTuple_Check(self.as_ptr()) }) != 0
    }

    pub fn is_none(&self) -> bool {
        // SAFETY: None is immortal or at least never freed.
        self.as_ptr() == unsafe { ffi::Py_None() }
    }

    /// Calls with no argument.
    pub fn call0(&self, py: Python<'_>) -> PyResult<Object> {
        let mut place = [std::ptr::null_mut::<ffi::PyObject>()];
        // SAFETY: no argument behind a free place.
        unsafe { Object::from_owned(py, vectorcall(self, place.as_mut_ptr().add(1), 0)) }
    }

    /// Calls with one argument.
    pub fn call1(&self, py: Python<'_>, arg: &Object) -> PyResult<Object> {
        let mut args = [std::ptr::null_mut(), arg.as_ptr()];
        // SAFETY: one live argument behind a free place.
        unsafe { Object::from_owned(py, vectorcall(self, args.as_mut_ptr().add(1), 1)) }
    }

    pub fn call(&self, py: Python<'_>, args: &[&Object]) -> PyResult<Object> {
        let mut stack = Stack::new();
        args.iter().for_each(|arg| stack.push(arg));
        stack.call(py, self)
    }

    /// Calls a method with any arguments.
    pub fn call_method(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyString>,
        args: &[&Object],
    ) -> PyResult<Object> {
        let mut stack = Stack::new();
        stack.push(self);
        args.iter().for_each(|arg| stack.push(arg));
        stack.call_method(py, name)
    }

    /// Calls a method with no argument.
    pub fn call_method0(&self, py: Python<'_>, name: &Bound<'_, PyAny>) -> PyResult<Object> {
        let args = [self.as_ptr()];
        // SAFETY: one live argument, which stands for self.
        unsafe {
            let result =
                ffi::PyObject_VectorcallMethod(name.as_ptr(), args.as_ptr(), 1, std::ptr::null_mut());
            Object::from_owned(py, result)
        }
    }

    /// Calls a method with one argument.
    pub fn call_method1(&self, py: Python<'_>, name: &Bound<'_, PyAny>, arg: &Object) -> PyResult<Object> {
        let args = [self.as_ptr(), arg.as_ptr()];
        // SAFETY: two live arguments, of which the first stands for self.
        unsafe {
            let result =
                ffi::PyObject_VectorcallMethod(name.as_ptr(), args.as_ptr(), 2, std::ptr::null_mut());
            Object::from_owned(py, result)
        }
    }
}

impl Clone for Object {
    fn clone(&self) -> Object {
        // SAFETY: self keeps the object alive.
        unsafe { Object::from_borrowed(self.pointer) }
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: the reference is ours, and the GIL is held (see the module's documentation).
        unsafe { ffi::Py_DECREF(self.as_ptr()) }
    }
}

impl<T> From<Bound<'_, T>> for Object {
    fn from(bound: Bound<'_, T>) -> Object {
        // SAFETY: a Bound is a non-null strong reference.
        let pointer = unsafe { NonNull::new_unchecked(bound.into_ptr()) };
        Object { pointer, bound: PhantomData }
    }
}

impl<T> From<&Bound<'_, T>> for Object {
    fn from(bound: &Bound<'_, T>) -> Object {
        // SAFETY: the Bound keeps its object alive.
        unsafe { Object::from_borrowed(NonNull::new_unchecked(bound.as_ptr())) }
    }
}

impl From<Borrowed<'_, '_, PyAny>> for Object {
    fn from(borrowed: Borrowed<'_, '_, PyAny>) -> Object {
        Object::from(&*borrowed)
    }
}

/// An optional strong reference that can be replaced through a shared reference.
#[derive(Default)]
pub struct ObjectCell(Cell<Option<Object>>);

impl ObjectCell {
    pub fn new(object: Option<Object>) -> ObjectCell {
        ObjectCell(Cell::new(object))
    }

    pub fn get(&self) -> Option<Object> {
        self.peek().cloned()
    }

    /// Looks inside for the time of one expression that runs no Python code.
    fn peek(&self) -> Option<&Object> {
        // SAFETY: the reference is used up (cloned, compared, visited) before anything can replace the content:
        // this type is not Sync, and the callers of this private method run no foreign code meanwhile.
        unsafe { (*self.0.as_ptr()).as_ref() }
    }

    pub fn is_some(&self) -> bool {
        self.peek().is_some()
    }

    /// Replaces the content; the old one is dropped, which may run Python code, when the new one is in place.
    pub fn set(&self, object: Option<Object>) {
        drop(self.0.replace(object));
    }

    pub fn take(&self) -> Option<Object> {
        self.0.take()
    }

    pub(super) fn as_ptr(&self) -> Option<*mut ffi::PyObject> {
        self.peek().map(Object::as_ptr)
    }
}

/// Arguments of a call, laid out as vectorcall wants them: on the stack unless there are many.
pub struct Stack<'a> {
    /// The first place is free for the callee (PY_VECTORCALL_ARGUMENTS_OFFSET).
    near: [*mut ffi::PyObject; Stack::NEAR + 1],
    far: Vec<*mut ffi::PyObject>,
    length: usize,
    objects: PhantomData<&'a Object>,
}

impl<'a> Stack<'a> {
    const NEAR: usize = 5;

    pub fn new() -> Stack<'a> {
        Stack {
            near: [std::ptr::null_mut(); Stack::NEAR + 1],
            far: Vec::new(),
            length: 0,
            objects: PhantomData,
        }
    }

    pub fn push(&mut self, object: &'a Object) {
        self.length += 1;
        if self.length <= Stack::NEAR {
            self.near[self.length] = object.as_ptr();
            return;
        }
        if self.far.is_empty() {
            self.far.extend_from_slice(&self.near);
        }
        self.far.push(object.as_ptr());
    }

    pub fn call(&mut self, py: Python<'_>, callable: &Object) -> PyResult<Object> {
        let arguments = if self.far.is_empty() { self.near.as_mut_ptr() } else { self.far.as_mut_ptr() };
        // SAFETY: behind the free first place are `length` objects that live for 'a, longer than the call.
        unsafe { Object::from_owned(py, vectorcall(callable, arguments.add(1), self.length)) }
    }
}

/// The function of a callable: an ffi::vectorcallfunc of which the compiler knows that a stack is unwound through it.
type Vectorcall = unsafe extern "C-unwind" fn(
    *mut ffi::PyObject,
    *const *mut ffi::PyObject,
    usize,
    *mut ffi::PyObject,
) -> *mut ffi::PyObject;

/// What PyObject_Vectorcall does, without its function calls and its check that the callee has kept to the protocol:
/// [`check_result`] does that for what the program gives us to call.
///
/// # Safety
/// `args` points to `count` live objects, behind a place that the callee may use.
unsafe fn vectorcall(callable: &Object, args: *const *mut ffi::PyObject, count: usize) -> *mut ffi::PyObject {
    let callable = callable.as_ptr();
    let count = count | ffi::PY_VECTORCALL_ARGUMENTS_OFFSET;
    // SAFETY: a type with the flag has the function, or null, at its offset in each instance.
    unsafe {
        let kind = ffi::Py_TYPE(callable);
        if (*kind).tp_flags & ffi::Py_TPFLAGS_HAVE_VECTORCALL != 0 {
            let place = callable.byte_offset((*kind).tp_vectorcall_offset);
            if let Some(function) = *place.cast::<Option<Vectorcall>>() {
                return enter(|| function(callable, args, count, std::ptr::null_mut()));
            }
        }
        ffi::PyObject_Vectorcall(callable, args, count, std::ptr::null_mut())
    }
}

unsafe extern "C" {
    /// The type of bound methods.
    static mut PyMethod_Type: ffi::PyTypeObject;
}

/// What a callable of the program's returned, or SystemError if it has left an exception behind with that, which would be
/// taken for somebody else's. What is written in Python does not.
#[inline(always)]
pub fn check_result(py: Python<'_>, callable: &Object, result: Object) -> PyResult<Object> {
    // SAFETY: the callable lives; asking whether there is an exception cannot fail.
    unsafe {
        let kind = ffi::Py_TYPE(callable.as_ptr());
        let is_python = kind == &raw mut ffi::PyFunction_Type || kind == &raw mut PyMethod_Type;
        if is_python || ffi::PyErr_Occurred().is_null() {
            return Ok(result);
        }
    }
    Err(exception_with_result(py, callable, result))
}

#[cold]
fn exception_with_result(py: Python<'_>, callable: &Object, result: Object) -> PyErr {
    // It is set aside before anything else is called.
    let raised = fetch(py);
    drop(result);
    let name = callable.bind(py).repr().and_then(|name| Ok(name.to_str()?.to_owned()));
    let name = name.unwrap_or_else(|_| "a callable".to_owned());
    let error = new_error::<PySystemError>(py, format!("{name} returned a result with an exception set"));
    error.set_cause(py, Some(raised));
    error
}

impl Stack<'_> {
    /// Calls a method of the first object with the others.
    pub fn call_method(&mut self, py: Python<'_>, name: &Bound<'_, PyString>) -> PyResult<Object> {
        let arguments = if self.far.is_empty() { self.near.as_mut_ptr() } else { self.far.as_mut_ptr() };
        assert!(self.length > 0);
        // SAFETY: as in `call`; the first object is there.
        unsafe {
            let result = ffi::PyObject_VectorcallMethod(
                name.as_ptr(),
                arguments.add(1),
                self.length | ffi::PY_VECTORCALL_ARGUMENTS_OFFSET,
                std::ptr::null_mut(),
            );
            Object::from_owned(py, result)
        }
    }
}

/// Calls with keyword arguments: the last `names` of `args` belong to the names.
pub fn call_with_names(
    py: Python<'_>,
    callable: &Object,
    args: &[&Object],
    names: &Object,
) -> PyResult<Object> {
    // SAFETY: `names` is checked to be a tuple before it is used as one.
    let count = unsafe {
        if ffi::PyTuple_Check(names.as_ptr()) == 0 {
            return Err(new_error::<PyTypeError>(py, "keyword names must be a tuple"));
        }
        ffi::PyTuple_GET_SIZE(names.as_ptr()) as usize
    };
    assert!(count <= args.len());
    // SAFETY: Object is a transparent pointer, so a slice of references to Objects is not an array of pointers; the
    // array is made here, and its objects live through the call.
    unsafe {
        let pointers: Vec<_> = args.iter().map(|arg| arg.as_ptr()).collect();
        let positional = args.len() - count;
        let result =
            ffi::PyObject_Vectorcall(callable.as_ptr(), pointers.as_ptr(), positional, names.as_ptr());
        Object::from_owned(py, result)
    }
}

/// Calls a method with keyword arguments.
pub fn call_method_with_keywords(
    py: Python<'_>,
    object: &Object,
    name: &Bound<'_, PyString>,
    args: &[&Object],
    keywords: &Bound<'_, PyDict>,
) -> PyResult<Object> {
    let args = tuple(py, args)?;
    // SAFETY: all live, and are what they must be: a tuple and a dict.
    unsafe {
        let method = Object::from_owned(py, ffi::PyObject_GetAttr(object.as_ptr(), name.as_ptr()))?;
        Object::from_owned(py, ffi::PyObject_Call(method.as_ptr(), args.as_ptr(), keywords.as_ptr()))
    }
}

/// True or False.
pub fn boolean(py: Python<'_>, value: bool) -> Object {
    value.into_pyobject(py).map(|value| Object::from(&*value)).unwrap_or_else(|never| match never {})
}

/// A tuple.
pub fn tuple(py: Python<'_>, items: &[&Object]) -> PyResult<Object> {
    // SAFETY: the tuple is new, and filled in before anybody sees it.
    unsafe {
        let tuple = Object::from_owned(py, ffi::PyTuple_New(items.len() as ffi::Py_ssize_t))?;
        for (index, item) in items.iter().enumerate() {
            ffi::PyTuple_SET_ITEM(tuple.as_ptr(), index as ffi::Py_ssize_t, (*item).clone().into_ptr());
        }
        Ok(tuple)
    }
}

/// An empty dict.
pub fn dict(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    // SAFETY: returns a new reference or null with an exception.
    let dict = unsafe { Object::from_owned(py, ffi::PyDict_New())? };
    Ok(dict.into_bound(py).cast_into::<PyDict>()?)
}

/// A copy of the current context, as contextvars.copy_context() makes it.
pub fn copy_context(py: Python<'_>) -> PyResult<Object> {
    // SAFETY: returns a new reference or null with an exception.
    unsafe { Object::from_owned(py, ffi::PyContext_CopyCurrent()) }
}

/// A copy of a context.
pub fn copy_of_context(py: Python<'_>, context: &Object) -> PyResult<Object> {
    // SAFETY: PyContext_Copy checks that it is given a context.
    unsafe { Object::from_owned(py, ffi::PyContext_Copy(context.as_ptr())) }
}

/// Runs `f` in `context`, as Context.run() does.
#[inline(always)]
pub fn run_in_context<R>(py: Python<'_>, context: &Object, f: impl FnOnce() -> PyResult<R>) -> PyResult<R> {
    // SAFETY: PyContext_Enter checks that it is given a context; it is left below in any case but a panic, which
    // ends the run of the event loop.
    unsafe {
        if ffi::PyContext_Enter(context.as_ptr()) < 0 {
            return Err(fetch(py));
        }
        let result = f();
        if ffi::PyContext_Exit(context.as_ptr()) < 0 {
            return Err(fetch(py));
        }
        result
    }
}

/// What a generator or coroutine answers when it is resumed.
pub enum Resumed {
    Yielded(Object),
    Returned(Object),
}

/// Resumes an iterator with a value, as its send() would.
pub fn resume(py: Python<'_>, iterator: &Object, value: &Object) -> PyResult<Resumed> {
    let mut result = std::ptr::null_mut();
    // SAFETY: both objects live; `result` is filled in with a new reference, or left null with an exception set.
    unsafe {
        let sent = ffi::PyIter_Send(iterator.as_ptr(), value.as_ptr(), &mut result);
        let result = Object::from_owned(py, result)?;
        Ok(match sent {
            ffi::PySendResult::PYGEN_NEXT => Resumed::Yielded(result),
            _ => Resumed::Returned(result),
        })
    }
}

/// An item of a dict under a string; KeyError if there is none.
pub fn dict_item(py: Python<'_>, dict: &Object, key: &Bound<'_, PyString>) -> PyResult<Object> {
    // SAFETY: PyDict_GetItemWithError checks that it is given a dict, and returns a borrowed reference or null.
    let item = unsafe { ffi::PyDict_GetItemWithError(dict.as_ptr(), key.as_ptr()) };
    match NonNull::new(item) {
        // GIL: no other thread can replace the item meanwhile.
        // SAFETY: the dict keeps the item alive until here.
        Some(item) => Ok(unsafe { Object::from_borrowed(item) }),
        None => Err(PyErr::take(py).unwrap_or_else(|| new_error::<PyKeyError>(py, key.to_string()))),
    }
}

/// The identifier of the calling thread, as threading.get_ident() has it.
pub fn thread_ident() -> u64 {
    // SAFETY: a call without arguments that needs no GIL.
    unsafe { ffi::PyThread_get_thread_ident() as u64 }
}

/// Whether the interpreter knows of another thread than the calling one.
pub fn has_other_threads(_py: Python<'_>) -> bool {
    // GIL: threads leave the interpreter's list only while they hold it.
    // SAFETY: the head of the list of a living interpreter's threads, of which the calling one is a member.
    unsafe {
        let head = PyInterpreterState_ThreadHead(ffi::PyInterpreterState_Get());
        !PyThreadState_Next(head).is_null()
    }
}

unsafe extern "C" {
    fn PyInterpreterState_ThreadHead(interpreter: *mut ffi::PyInterpreterState) -> *mut ffi::PyThreadState;
    fn PyThreadState_Next(thread: *mut ffi::PyThreadState) -> *mut ffi::PyThreadState;
}

/// Runs Python's signal handlers, if signals have arrived and this is the main thread.
pub fn check_signals(py: Python<'_>) -> PyResult<()> {
    py.check_signals()
}
