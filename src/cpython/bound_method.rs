//! An instance together with a function for it, for callers that do not know its class: the core, which is below transports,
//! listeners and socket operations.

use pyo3::ffi::{self, compat};
use pyo3::prelude::*;

use super::class::{Native, This};
use super::object::Object;

/// A function for instances of T's class that takes `A`, a tuple, besides.
pub trait InstanceFn<T: Native, A>: Copy + 'static {
    fn call(self, this: This<'_, '_, T>, arguments: A) -> PyResult<()>;
}

impl<T: Native, F> InstanceFn<T, ()> for F
where
    F: for<'a, 'py> Fn(This<'a, 'py, T>) -> PyResult<()> + Copy + 'static,
{
    #[inline(always)]
    fn call(self, this: This<'_, '_, T>, (): ()) -> PyResult<()> {
        self(this)
    }
}

impl<T: Native, A, F> InstanceFn<T, (A,)> for F
where
    F: for<'a, 'py> Fn(This<'a, 'py, T>, A) -> PyResult<()> + Copy + 'static,
{
    #[inline(always)]
    fn call(self, this: This<'_, '_, T>, (argument,): (A,)) -> PyResult<()> {
        self(this, argument)
    }
}

/// Calls a function with an object, which must be an instance of the class that the function is for.
type Call<A> = unsafe fn(Python<'_>, &Object, A) -> PyResult<()>;

/// A strong reference to an instance, and a function that takes it and `A`.
///
/// Invariant: `call` is for the class of `instance`. It is checked by the signature of [`BoundMethod::new`], and neither is ever
/// replaced.
pub struct BoundMethod<A = ()> {
    instance: Object,
    call: Call<A>,
}

impl<A> BoundMethod<A> {
    #[inline(always)]
    pub fn new<T: Native>(this: This<'_, '_, T>, function: impl InstanceFn<T, A>) -> BoundMethod<A> {
        BoundMethod { instance: this.object(), call: erase(function) }
    }

    #[inline(always)]
    pub fn call(&self, py: Python<'_>, arguments: A) -> PyResult<()> {
        // SAFETY: the type's invariant.
        unsafe { (self.call)(py, &self.instance, arguments) }
    }

    pub fn instance(&self) -> &Object {
        &self.instance
    }
}

impl<A> Clone for BoundMethod<A> {
    fn clone(&self) -> BoundMethod<A> {
        BoundMethod { instance: self.instance.clone(), call: self.call }
    }
}

/// A [`BoundMethod`] that does not keep its instance alive.
pub struct WeakMethod<A> {
    /// A weakref.ref to the instance. The invariant is that of [`BoundMethod`].
    reference: Object,
    call: Call<A>,
}

impl<A> WeakMethod<A> {
    pub fn new<T: Native>(this: This<'_, '_, T>, function: impl InstanceFn<T, A>) -> PyResult<WeakMethod<A>> {
        // SAFETY: returns a new reference, or null with an exception.
        let reference = unsafe {
            let reference = ffi::PyWeakref_NewRef(this.as_any().as_ptr(), std::ptr::null_mut());
            Object::from_owned(this.py(), reference)?
        };
        Ok(WeakMethod { reference, call: erase(function) })
    }

    /// None if the instance is being destroyed. Runs no Python code.
    pub fn upgrade(&self) -> Option<BoundMethod<A>> {
        let mut instance = std::ptr::null_mut();
        // SAFETY: a weakref.ref, of which this cannot fail, is asked for a new reference to the instance.
        unsafe { compat::PyWeakref_GetRef(self.reference.as_ptr(), &mut instance) };
        // SAFETY: the new reference is ours; null stands for none.
        let instance = unsafe { Object::from_nullable(instance) }?;
        Some(BoundMethod { instance, call: self.call })
    }
}

/// Returns a function that calls `function`: the name of a function, or a closure that captures nothing, which is a value without
/// bytes.
fn erase<T: Native, A, F: InstanceFn<T, A>>(_function: F) -> Call<A> {
    /// # Safety
    /// The object is an instance of T's class, and there was a value of type `F`.
    unsafe fn call<T: Native, A, F: InstanceFn<T, A>>(
        py: Python<'_>,
        instance: &Object,
        arguments: A,
    ) -> PyResult<()> {
        // SAFETY: as the caller says. A value without bytes that can be copied can be read from anywhere.
        unsafe {
            let function = std::ptr::NonNull::<F>::dangling().read();
            function.call(This::new(instance.bind(py)), arguments)
        }
    }

    const { assert!(size_of::<F>() == 0) };
    call::<T, A, F>
}
