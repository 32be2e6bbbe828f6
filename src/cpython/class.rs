//! Classes whose instances hold a Rust value behind the layout of a Python base class.
//!
//! An instance is laid out as: the base's part, whose size is known only when the base is there; the Rust value; the
//! pointers for `__dict__` and weak references, where the class has them. The offset of the value is kept in the
//! class's static, so that reaching it costs one addition.

use std::ffi::{CStr, c_int, c_void};
use std::marker::PhantomData;
use std::mem::{align_of, size_of};
use std::ops::Deref;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::Relaxed};

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyType;
use pyo3::{Borrowed, ffi};

use super::errors::{fetch, new_error};
use super::free_list::FreeList;
use super::methods::{claim, guard};
use super::object::{Object, ObjectCell};
use super::ownership::Owner;
use super::trashcan;
use super::ways_in::enter;

/// A Rust type whose values live in instances of a Python class.
pub trait Native: Sized + 'static {
    /// The static of the class, in [`super::statics`].
    fn class() -> &'static Class;

    /// Shows every reference that the value owns to the garbage collector. Must not run Python code.
    fn traverse(&self, visitor: &mut Visitor);

    /// Drops the references that could be part of a cycle.
    fn clear(&self);

    /// The owner of the event loop that the value belongs to, for whom its methods are. None if they are for any thread.
    fn owner(&self) -> Option<&Owner> {
        None
    }

    /// Whether [`Native::finalize`] is to be called before an instance is destroyed.
    const FINALIZES: bool = false;

    /// Whether it has anything to do now: asked when the last reference goes.
    fn needs_finalizer(&self) -> bool {
        true
    }

    /// What `__del__` is to Python classes. The instance may be resurrected.
    fn finalize(_this: This<'_, '_, Self>) {}

    /// Has the owner of the event loop call [`Native::finalize`]: the calling thread is not.
    fn finalize_elsewhere(_this: This<'_, '_, Self>) {}
}

/// Shows references to the garbage collector.
pub struct Visitor {
    visit: ffi::visitproc,
    arg: *mut c_void,
    result: c_int,
}

impl Visitor {
    pub fn object(&mut self, object: &Object) {
        self.pointer(object.as_ptr());
    }

    pub fn optional(&mut self, object: &Option<Object>) {
        if let Some(object) = object {
            self.object(object);
        }
    }

    pub fn cell(&mut self, cell: &ObjectCell) {
        if let Some(pointer) = cell.as_ptr() {
            self.pointer(pointer);
        }
    }

    pub(super) fn pointer(&mut self, pointer: *mut ffi::PyObject) {
        if self.result == 0 {
            // SAFETY: the pointers passed in belong to live references; `visit` and `arg` come from the collector.
            self.result = unsafe { (self.visit)(pointer, self.arg) };
        }
    }
}

/// A class once it is made, and memory of its instances kept for the next ones.
pub struct Class {
    class: AtomicPtr<ffi::PyTypeObject>,
    offset: AtomicUsize,
    free: FreeList,
}

impl Class {
    /// Whether the class has been made: some exist only where the running Python has their base.
    pub fn exists(&self) -> bool {
        !self.class.load(Relaxed).is_null()
    }

    /// `keep`: how many dead instances are kept to be used again.
    pub const fn new(keep: usize) -> Class {
        Class {
            class: AtomicPtr::new(std::ptr::null_mut()),
            offset: AtomicUsize::new(0),
            free: FreeList::new(keep),
        }
    }
}

/// [`Native::class`], for a class of which this many dead instances are kept to be used again.
#[macro_export]
macro_rules! class_static {
    ($keep:expr) => {
        fn class() -> &'static $crate::cpython::class::Class {
            static CLASS: $crate::cpython::class::Class = $crate::cpython::class::Class::new($keep);
            &CLASS
        }
    };
}

/// A strong reference to an instance that holds a `T`.
pub struct Obj<T: Native> {
    object: Object,
    native: PhantomData<T>,
}

impl<T: Native> Obj<T> {
    /// Makes an instance.
    #[inline(always)]
    pub fn new(py: Python<'_>, value: T) -> PyResult<Obj<T>> {
        let class = T::class();
        let pointer = class.class.load(Relaxed);
        // SAFETY: the class has been made; the memory of an instance is either fresh from its allocator or was kept
        // by `dealloc`. The value is written before anything else can see the instance.
        unsafe {
            let kept = class.free.take(pointer);
            let instance = match kept {
                Some(instance) => instance,
                None => allocate(pointer),
            };
            if instance.is_null() {
                return Err(fetch(py));
            }
            std::ptr::write(instance.byte_add(class.offset.load(Relaxed)).cast::<T>(), value);
            if kept.is_some() {
                ffi::PyObject_GC_Track(instance.cast());
            }
            Ok(Obj { object: Object::from_owned(py, instance)?, native: PhantomData })
        }
    }

    /// None if the object is not an instance of the class.
    pub fn downcast(object: &Object) -> Option<Obj<T>> {
        let class = T::class().class.load(Relaxed);
        // SAFETY: the object lives, and so does the class if it has been made.
        let is_instance = !class.is_null() && unsafe { ffi::PyObject_TypeCheck(object.as_ptr(), class) != 0 };
        is_instance.then(|| Obj { object: object.clone(), native: PhantomData })
    }

    /// TypeError if the object is not an instance of the class.
    pub fn of(object: Borrowed<'_, '_, PyAny>) -> PyResult<Obj<T>> {
        let py = object.py();
        Obj::downcast(&Object::from(object))
            .ok_or_else(|| new_error::<PyTypeError>(py, "an object of another class"))
    }

    /// Whether nobody else has a reference to it, nor a weak one.
    pub fn is_ours_alone(&self) -> bool {
        // SAFETY: the object lives.
        self.object.is_unique() && !unsafe { has_weak_references(self.object.as_ptr()) }
    }

    /// The value, if nobody else has a reference to the instance, nor a weak one. None without the GIL: another thread may get one.
    #[inline(always)]
    pub fn get_mut(&mut self) -> Option<&mut T> {
        let is_ours = cfg!(not(Py_GIL_DISABLED)) && self.is_ours_alone();
        // SAFETY: an Obj refers to an instance of T's class, and this reference to it, the only one, is borrowed as long as the value.
        is_ours.then(|| unsafe { &mut *value_pointer::<T>(self.object.as_ptr()) })
    }

    pub fn as_object(&self) -> &Object {
        &self.object
    }

    pub fn into_object(self) -> Object {
        self.object
    }

    pub fn this<'a, 'py>(&'a self, py: Python<'py>) -> This<'a, 'py, T> {
        This { object: self.object.bind(py), value: self }
    }
}

impl<T: Native> Clone for Obj<T> {
    fn clone(&self) -> Obj<T> {
        Obj { object: self.object.clone(), native: PhantomData }
    }
}

impl<T: Native> Deref for Obj<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: an Obj refers to an instance of T's class, and keeps it alive.
        unsafe { value(self.object.as_ptr()) }
    }
}

/// `self` in a method: a borrowed reference to an instance, through which its `T` is reached.
pub struct This<'a, 'py, T: Native> {
    object: Borrowed<'a, 'py, PyAny>,
    value: &'a T,
}

impl<T: Native> Clone for This<'_, '_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: Native> Copy for This<'_, '_, T> {}

impl<'a, 'py, T: Native> This<'a, 'py, T> {
    /// # Safety
    /// `object` is an instance of T's class.
    pub unsafe fn new(object: Borrowed<'a, 'py, PyAny>) -> Self {
        // SAFETY: as the caller says; the instance lives for 'a.
        This { object, value: unsafe { value(object.as_ptr()) } }
    }

    pub fn py(self) -> Python<'py> {
        self.object.py()
    }

    pub fn as_any(self) -> Borrowed<'a, 'py, PyAny> {
        self.object
    }

    pub fn object(self) -> Object {
        Object::from(self.object)
    }

    pub fn obj(self) -> Obj<T> {
        Obj { object: self.object(), native: PhantomData }
    }

    /// The value, for as long as the reference to the instance is good.
    pub fn get(self) -> &'a T {
        self.value
    }
}

impl<T: Native> Deref for This<'_, '_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.get()
    }
}

/// # Safety
/// `instance` is a live instance of T's class, whose value has been written.
unsafe fn value<'a, T: Native>(instance: *mut ffi::PyObject) -> &'a T {
    // SAFETY: as the caller says.
    unsafe { &*value_pointer::<T>(instance) }
}

/// # Safety
/// `instance` is an instance of T's class.
unsafe fn value_pointer<T: Native>(instance: *mut ffi::PyObject) -> *mut T {
    // SAFETY: as the caller says.
    unsafe { instance.byte_add(T::class().offset.load(Relaxed)).cast() }
}

/// The class of `T`, which has been made.
pub fn class_of<T: Native>(py: Python<'_>) -> Borrowed<'static, '_, PyAny> {
    // SAFETY: the static keeps the class alive for good.
    unsafe { Borrowed::from_ptr(py, T::class().class.load(Relaxed).cast()) }
}

/// What the class of `T` derives from, which is a class of Python's.
pub fn base_of<T: Native>(py: Python<'_>) -> Borrowed<'static, '_, PyAny> {
    // SAFETY: the class lives for good, and its base with it.
    unsafe {
        let class = T::class().class.load(Relaxed).cast::<ffi::PyTypeObject>();
        Borrowed::from_ptr(py, (*class).tp_base.cast())
    }
}

/// What a class is made of, besides its value.
pub struct Definition<'py> {
    pub name: &'static CStr,
    /// Empty if `__doc__` is among the attributes.
    pub doc: &'static CStr,
    pub base: Bound<'py, PyType>,
    pub methods: Vec<ffi::PyMethodDef>,
    pub attributes: Vec<ffi::PyGetSetDef>,
    pub slots: Vec<ffi::PyType_Slot>,
    /// Whether instances take attributes and weak references.
    pub open: bool,
}

/// Two pointers behind the value of an open class.
#[repr(C)]
struct Tail {
    dict: *mut ffi::PyObject,
    weak: *mut ffi::PyObject,
}

/// Makes the class of `T`; instances come from Rust only.
pub fn make<'py, T: Native>(definition: Definition<'py>) -> PyResult<Bound<'py, PyType>> {
    make_with::<T>(definition, ffi::Py_TPFLAGS_DISALLOW_INSTANTIATION, None, None)
}

/// Makes the class of `T`, whose instances are methods; `vectorcall` is where in `T` the function is that calls them.
pub fn make_method<'py, T: Native>(
    definition: Definition<'py>,
    vectorcall: usize,
) -> PyResult<Bound<'py, PyType>> {
    // The interpreter remembers where it found a method only if the method's class cannot change.
    let flags = ffi::Py_TPFLAGS_DISALLOW_INSTANTIATION
        | ffi::Py_TPFLAGS_IMMUTABLETYPE
        | ffi::Py_TPFLAGS_HAVE_VECTORCALL
        | ffi::Py_TPFLAGS_METHOD_DESCRIPTOR;
    make_with::<T>(definition, flags, None, Some(vectorcall))
}

/// Makes the class of `T`, which Python can subclass and call without arguments.
pub fn make_subclassable<'py, T: Native>(
    definition: Definition<'py>,
    new: ffi::newfunc,
) -> PyResult<Bound<'py, PyType>> {
    make_with::<T>(definition, ffi::Py_TPFLAGS_BASETYPE, Some(new), None)
}

fn make_with<'py, T: Native>(
    definition: Definition<'py>,
    flags: std::ffi::c_ulong,
    new: Option<ffi::newfunc>,
    vectorcall: Option<usize>,
) -> PyResult<Bound<'py, PyType>> {
    let py = definition.base.py();
    if let Some(class) = existing::<T>(py) {
        // The module is imported a second time.
        return Ok(class);
    }
    // SAFETY: the base is a type object.
    let (base_size, base_dict) = unsafe {
        let base = definition.base.as_type_ptr();
        ((*base).tp_basicsize as usize, (*base).tp_dictoffset)
    };
    if base_dict != 0 {
        // `traverse` and `clear` would not reach its instances' dicts.
        return Err(new_error::<PyTypeError>(py, "a base whose instances have a __dict__"));
    }
    let offset = base_size.next_multiple_of(align_of::<T>().max(align_of::<usize>()));
    let tail = (offset + size_of::<T>()).next_multiple_of(align_of::<Tail>());
    let size = if definition.open { tail + size_of::<Tail>() } else { tail };

    let mut slots = definition.slots;
    let mut slot = |slot: c_int, pfunc: *mut c_void| slots.push(ffi::PyType_Slot { slot, pfunc });
    if !definition.doc.is_empty() {
        slot(ffi::Py_tp_doc, definition.doc.as_ptr().cast_mut().cast());
    }
    slot(ffi::Py_tp_dealloc, dealloc::<T> as *mut c_void);
    if definition.open {
        slot(ffi::Py_tp_traverse, traverse::<T, true> as *mut c_void);
        slot(ffi::Py_tp_clear, clear::<T, true> as *mut c_void);
    } else {
        slot(ffi::Py_tp_traverse, traverse::<T, false> as *mut c_void);
        slot(ffi::Py_tp_clear, clear::<T, false> as *mut c_void);
    }
    if T::FINALIZES {
        slot(ffi::Py_tp_finalize, finalize::<T> as *mut c_void);
    }
    if let Some(new) = new {
        slot(ffi::Py_tp_new, new as *mut c_void);
    }
    let mut methods = definition.methods;
    methods.push(ffi::PyMethodDef::zeroed());
    slot(ffi::Py_tp_methods, Box::leak(methods.into_boxed_slice()).as_mut_ptr().cast());
    let mut attributes = definition.attributes;
    if definition.open {
        attributes.push(dict_attribute());
    }
    // SAFETY: all zeroes ends the list.
    attributes.push(unsafe { std::mem::zeroed() });
    slot(ffi::Py_tp_getset, Box::leak(attributes.into_boxed_slice()).as_mut_ptr().cast());
    let mut members = Vec::new();
    if let Some(vectorcall) = vectorcall {
        members.push(offset_member(c"__vectorcalloffset__", offset + vectorcall));
    }
    if definition.open {
        members.push(offset_member(c"__dictoffset__", tail + std::mem::offset_of!(Tail, dict)));
        members.push(offset_member(c"__weaklistoffset__", tail + std::mem::offset_of!(Tail, weak)));
    }
    // SAFETY: all zeroes ends the list.
    members.push(unsafe { std::mem::zeroed() });
    slot(ffi::Py_tp_members, members.as_mut_ptr().cast());
    slot(0, std::ptr::null_mut());

    let mut spec = ffi::PyType_Spec {
        name: definition.name.as_ptr(),
        basicsize: size as c_int,
        itemsize: 0,
        flags: (ffi::Py_TPFLAGS_DEFAULT | ffi::Py_TPFLAGS_HAVE_GC | flags) as _,
        slots: slots.as_mut_ptr(),
    };
    // SAFETY: the spec is complete and ends where it must. The class keeps pointers to the methods and the attributes, which
    // were leaked above, and to static strings; it has a copy of the members.
    let class: Bound<'py, PyType> = unsafe {
        let class = ffi::PyType_FromSpecWithBases(&mut spec, definition.base.as_ptr());
        Bound::from_owned_ptr_or_err(py, class)?.cast_into_unchecked()
    };
    let made = T::class();
    made.offset.store(offset, Relaxed);
    // The class lives as long as the process: instances are made of the static.
    made.class.store(class.clone().into_ptr().cast(), Relaxed);
    Ok(class)
}

/// The class of `T`, if it was made before.
fn existing<T: Native>(py: Python<'_>) -> Option<Bound<'_, PyType>> {
    let class = T::class().class.load(Relaxed);
    // SAFETY: the static keeps the class alive for good.
    (!class.is_null()).then(|| unsafe { PyType::from_borrowed_type_ptr(py, class) })
}

/// Makes an instance of a subclass, for the `tp_new` of a class made by [`make_subclassable`].
///
/// # Safety
/// Called with the arguments of tp_new.
pub unsafe fn new_instance<T: Native>(
    class: *mut ffi::PyTypeObject,
    make: impl FnOnce(Python<'_>) -> PyResult<T>,
) -> *mut ffi::PyObject {
    // SAFETY: tp_new is called with the GIL held.
    unsafe {
        guard(std::ptr::null_mut(), |py| {
            let value = make(py)?;
            let instance = allocate(class);
            if instance.is_null() {
                return Err(fetch(py));
            }
            std::ptr::write(instance.byte_add(T::class().offset.load(Relaxed)).cast::<T>(), value);
            Ok(instance)
        })
    }
}

/// Allocates an instance, which may run the garbage collector. Null if there is no memory.
///
/// # Safety
/// The class is ready, as classes are that were made or that instances are asked of.
unsafe fn allocate(class: *mut ffi::PyTypeObject) -> *mut ffi::PyObject {
    type Allocate =
        unsafe extern "C-unwind" fn(*mut ffi::PyTypeObject, ffi::Py_ssize_t) -> *mut ffi::PyObject;

    // SAFETY: a class that is ready has an allocator; the two types differ in what the compiler makes of unwinding.
    unsafe {
        let allocate: Allocate = std::mem::transmute((*class).tp_alloc.unwrap_unchecked());
        enter(|| allocate(class, 0))
    }
}

fn offset_member(name: &'static CStr, offset: usize) -> ffi::PyMemberDef {
    ffi::PyMemberDef {
        name: name.as_ptr(),
        type_code: ffi::Py_T_PYSSIZET,
        offset: offset as ffi::Py_ssize_t,
        flags: ffi::Py_READONLY,
        doc: std::ptr::null(),
    }
}

fn dict_attribute() -> ffi::PyGetSetDef {
    ffi::PyGetSetDef {
        name: c"__dict__".as_ptr(),
        get: Some(ffi::PyObject_GenericGetDict),
        set: Some(ffi::PyObject_GenericSetDict),
        doc: std::ptr::null(),
        closure: std::ptr::null_mut(),
    }
}

/// # Safety
/// `instance` is an instance of T's class, which is open.
unsafe fn tail<T: Native>(instance: *mut ffi::PyObject) -> *mut Tail {
    let end = T::class().offset.load(Relaxed) + size_of::<T>();
    // SAFETY: the tail of an open class is where `make_with` put it.
    unsafe { instance.byte_add(end.next_multiple_of(align_of::<Tail>())).cast() }
}

unsafe extern "C" fn traverse<T: Native, const OPEN: bool>(
    instance: *mut ffi::PyObject,
    visit: ffi::visitproc,
    arg: *mut c_void,
) -> c_int {
    let mut visitor = Visitor { visit, arg, result: 0 };
    // SAFETY: called by the collector for a live instance; instances of classes made here own a reference to them.
    unsafe {
        visitor.pointer(ffi::Py_TYPE(instance).cast());
        value::<T>(instance).traverse(&mut visitor);
        if OPEN {
            let dict = (*tail::<T>(instance)).dict;
            if !dict.is_null() {
                visitor.pointer(dict);
            }
        }
    }
    visitor.result
}

unsafe extern "C" fn clear<T: Native, const OPEN: bool>(instance: *mut ffi::PyObject) -> c_int {
    // SAFETY: called by the collector, with the GIL, for a live instance.
    unsafe {
        value::<T>(instance).clear();
        if OPEN {
            ffi::Py_CLEAR(&raw mut (*tail::<T>(instance)).dict);
        }
    }
    0
}

unsafe extern "C" fn finalize<T: Native>(instance: *mut ffi::PyObject) {
    // SAFETY: called with the GIL for a live instance; an exception that is being raised is kept apart.
    unsafe {
        let py = Python::assume_attached();
        let raised = PyErr::take(py);
        guard((), |py| {
            let this = This::new(Borrowed::from_ptr(py, instance));
            match claim::<T, false>(this) {
                Ok(_entered) => T::finalize(this),
                Err(_) => T::finalize_elsewhere(this),
            }
            Ok(())
        });
        if let Some(raised) = raised {
            raised.restore(py);
        }
    }
}

unsafe extern "C" fn dealloc<T: Native>(instance: *mut ffi::PyObject) {
    // SAFETY: the last reference is gone. What dropping the value runs can no longer reach the instance, except in a
    // finalizer, which is asked first.
    unsafe {
        if T::FINALIZES
            && value::<T>(instance).needs_finalizer()
            && ffi::PyObject_CallFinalizerFromDealloc(instance) < 0
        {
            return;
        }
        ffi::PyObject_GC_UnTrack(instance.cast());
        if !trashcan::begin() {
            trashcan::run_deep(instance, destroy_deep::<T>);
            return;
        }
        destroy::<T>(instance);
        trashcan::end();
    }
}

/// # Safety
/// As for [`destroy`].
#[cold]
unsafe fn destroy_deep<T: Native>(instance: *mut ffi::PyObject) {
    // SAFETY: as the caller says.
    unsafe { destroy::<T>(instance) };
}

/// # Safety
/// The object has not been destroyed.
#[inline(always)]
unsafe fn has_weak_references(object: *mut ffi::PyObject) -> bool {
    // SAFETY: as the caller says. If its class has weak references, the head of their list is there.
    unsafe {
        // Negative where the interpreter keeps them before the object: since 3.12, for classes written in Python.
        let weak = (*ffi::Py_TYPE(object)).tp_weaklistoffset;
        weak != 0 && !(*object.byte_offset(weak).cast::<*mut ffi::PyObject>()).is_null()
    }
}

/// # Safety
/// The instance has no references, is not tracked by the collector, and is destroyed once.
#[inline(always)]
unsafe fn destroy<T: Native>(instance: *mut ffi::PyObject) {
    // SAFETY: as the caller says; the layout is that of `make_with`.
    unsafe {
        let class = ffi::Py_TYPE(instance);
        if has_weak_references(instance) {
            ffi::PyObject_ClearWeakRefs(instance);
        }
        let made = T::class();
        std::ptr::drop_in_place(instance.byte_add(made.offset.load(Relaxed)).cast::<T>());
        let is_exact = class == made.class.load(Relaxed);
        if (*class).tp_dictoffset > 0 && is_exact {
            ffi::Py_CLEAR(&raw mut (*tail::<T>(instance)).dict);
        }
        // One that was finalized would never be again: the collector notes it in the memory.
        let is_fresh = !T::FINALIZES || ffi::PyObject_GC_IsFinalized(instance) == 0;
        if is_exact {
            made.free.put(instance, class, is_fresh);
            return;
        }
        if let Some(release) = (*class).tp_free {
            release(instance.cast());
        }
        ffi::Py_DECREF(class.cast());
    }
}
