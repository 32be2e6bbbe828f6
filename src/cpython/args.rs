//! What a method was called with.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyString;
use pyo3::{Borrowed, ffi};

use super::errors::new_error;
use super::object::Object;

/// The names of asyncio's C code when it calls call_soon(), a tuple that lives as long as the process, with a string that
/// is not interned...
static SPELLED: AtomicPtr<ffi::PyObject> = AtomicPtr::new(std::ptr::null_mut());
/// ...and the interned string that it is equal to.
static SPELLING: AtomicPtr<ffi::PyObject> = AtomicPtr::new(std::ptr::null_mut());

/// The arguments of a vectorcall: first the positional ones, then the values of keywords.
#[derive(Clone, Copy)]
pub struct Args<'a, 'py> {
    pub(super) py: Python<'py>,
    pub(super) values: *const *mut ffi::PyObject,
    pub(super) positional: usize,
    pub(super) names: *mut ffi::PyObject,
    call: PhantomData<&'a Object>,
}

impl<'a, 'py> Args<'a, 'py> {
    /// # Safety
    /// `values` and `names` are the arguments of a vectorcall that lasts at least for 'a.
    pub(super) unsafe fn new(
        py: Python<'py>,
        values: *const *mut ffi::PyObject,
        positional: usize,
        names: *mut ffi::PyObject,
    ) -> Args<'a, 'py> {
        Args { py, values, positional, names, call: PhantomData }
    }

    /// The number of positional arguments.
    pub fn len(&self) -> usize {
        self.positional
    }

    /// A positional argument.
    pub fn get(&self, index: usize) -> Option<Borrowed<'a, 'py, PyAny>> {
        (index < self.positional).then(|| self.value(index))
    }

    fn value(&self, index: usize) -> Borrowed<'a, 'py, PyAny> {
        // SAFETY: the callers keep to the number of values; the caller of the method keeps them alive.
        unsafe { Borrowed::from_ptr(self.py, *self.values.add(index)) }
    }

    /// A positional argument as a reference of our own.
    pub fn object(&self, index: usize) -> Option<Object> {
        self.get(index).map(Object::from)
    }

    /// The positional arguments from `index` on.
    pub fn rest(&self, index: usize) -> impl ExactSizeIterator<Item = Object> {
        let args = *self;
        (index.min(self.positional)..self.positional).map(move |index| {
            // SAFETY: `index` is below the number of positional arguments, which live through the call.
            unsafe { Object::from_borrowed(NonNull::new_unchecked(*args.values.add(index))) }
        })
    }

    /// The keyword arguments, name and value.
    pub fn keywords(
        &self,
    ) -> impl ExactSizeIterator<Item = (Borrowed<'a, 'py, PyAny>, Borrowed<'a, 'py, PyAny>)> {
        let args = *self;
        let count = if self.names.is_null() {
            0
        } else {
            // SAFETY: vectorcall passes a tuple of names.
            unsafe { ffi::PyTuple_GET_SIZE(self.names) as usize }
        };
        (0..count).map(move |index| {
            // SAFETY: `index` is below the tuple's length; the tuple lives through the call.
            let name =
                unsafe { Borrowed::from_ptr(args.py, ffi::PyTuple_GET_ITEM(args.names, index as isize)) };
            (name, args.value(args.positional + index))
        })
    }

    /// The parameters that a method's other arguments follow, by position or by name, and the value of its keyword,
    /// whose name the interpreter has interned; None stands for None and for not given.
    pub fn leading<const N: usize>(
        &self,
        method: &str,
        names: [&str; N],
        keyword: &Bound<'py, PyAny>,
    ) -> PyResult<([Object; N], Option<Object>)> {
        if self.positional >= N
            && let Some(option) = self.only_keyword(keyword)
        {
            return Ok((std::array::from_fn(|index| Object::from(self.value(index))), option));
        }
        self.leading_by_name(method, names, keyword)
    }

    /// The value of the only keyword that is given, if any is. None if there are others.
    fn only_keyword(&self, keyword: &Bound<'py, PyAny>) -> Option<Option<Object>> {
        if self.names.is_null() {
            return Some(None);
        }
        // SAFETY: vectorcall passes a tuple of names.
        let is_it = unsafe {
            ffi::PyTuple_GET_SIZE(self.names) == 1
                && (ffi::PyTuple_GET_ITEM(self.names, 0) == keyword.as_ptr()
                    || self.names == SPELLED.load(Relaxed) && keyword.as_ptr() == SPELLING.load(Relaxed)
                    || self.is_spelled(keyword))
        };
        let value = is_it.then(|| self.value(self.positional))?;
        Some((!value.is_none()).then(|| Object::from(value)))
    }

    /// Whether the only name is equal to the keyword. The first tuple found so is kept, to be known again.
    #[cold]
    fn is_spelled(&self, keyword: &Bound<'py, PyAny>) -> bool {
        // SAFETY: `names` is a tuple, here of one string.
        let name = unsafe { Borrowed::from_ptr(self.py, ffi::PyTuple_GET_ITEM(self.names, 0)) };
        let is_it = name.eq(keyword).unwrap_or(false);
        if is_it && SPELLED.load(Relaxed).is_null() {
            // GIL: nobody else stores meanwhile. The reference is never given back.
            // SAFETY: the tuple lives.
            unsafe { ffi::Py_INCREF(self.names) };
            SPELLED.store(self.names, Relaxed);
            SPELLING.store(keyword.as_ptr(), Relaxed);
        }
        is_it
    }

    #[cold]
    fn leading_by_name<const N: usize>(
        &self,
        method: &str,
        names: [&str; N],
        keyword: &Bound<'py, PyAny>,
    ) -> PyResult<([Object; N], Option<Object>)> {
        let mut found: [Option<Object>; N] = std::array::from_fn(|index| self.object(index));
        let mut option = None;
        for (name, value) in self.keywords() {
            if name.as_ptr() == keyword.as_ptr() || name.eq(keyword)? {
                option = (!value.is_none()).then(|| Object::from(value));
            } else {
                assign(method, &names, &mut found, &name, &value)?;
            }
        }
        Ok((all(self.py, method, &names, found)?, option))
    }

    /// The only argument of a method, by position or by name.
    pub(super) fn only(&self, method: &str, name: &str) -> PyResult<Borrowed<'a, 'py, PyAny>> {
        if self.positional == 1 && self.names.is_null() {
            Ok(self.value(0))
        } else {
            self.only_by_name(method, name)
        }
    }

    #[cold]
    fn only_by_name(&self, method: &str, name: &str) -> PyResult<Borrowed<'a, 'py, PyAny>> {
        self.parse(method, [name], 1, 1)?;
        // Given once: it is the first of the values, whichever way.
        Ok(self.value(0))
    }

    /// Matches the arguments with a method's parameters: of `names`, the first `required` must be given, and those
    /// from `keyword_only` on only by name.
    pub fn parse<const N: usize>(
        &self,
        method: &str,
        names: [&str; N],
        required: usize,
        keyword_only: usize,
    ) -> PyResult<[Option<Object>; N]> {
        if self.positional > keyword_only {
            return Err(new_error::<PyTypeError>(
                self.py,
                format!(
                    "{method}() takes {keyword_only} positional arguments but {} were given",
                    self.positional
                ),
            ));
        }
        let mut found: [Option<Object>; N] = std::array::from_fn(|index| self.object(index));
        for (name, value) in self.keywords() {
            assign(method, &names, &mut found, &name, &value)?;
        }
        if let Some(missing) = (0..required).find(|index| found[*index].is_none()) {
            return Err(missing_argument(self.py, method, names[missing]));
        }
        Ok(found)
    }
}

/// Puts the value of a keyword in its place.
#[cold]
fn assign(
    method: &str,
    names: &[&str],
    found: &mut [Option<Object>],
    name: &Bound<'_, PyAny>,
    value: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let py = name.py();
    let name = name.cast::<PyString>()?;
    // A name with surrogates has no other spelling, and is nobody's.
    let known = name.to_str().ok();
    let Some(index) = names.iter().position(|candidate| Some(*candidate) == known) else {
        let name = name.to_string_lossy();
        return Err(new_error::<PyTypeError>(
            py,
            format!("{method}() got an unexpected keyword argument '{name}'"),
        ));
    };
    if found[index].replace(Object::from(value)).is_some() {
        return Err(new_error::<PyTypeError>(
            py,
            format!("{method}() got multiple values for argument '{name}'"),
        ));
    }
    Ok(())
}

/// The arguments, if none is missing.
pub fn all<const N: usize>(
    py: Python<'_>,
    method: &str,
    names: &[&str; N],
    found: [Option<Object>; N],
) -> PyResult<[Object; N]> {
    if let Some(missing) = found.iter().position(Option::is_none) {
        return Err(missing_argument(py, method, names[missing]));
    }
    Ok(found.map(|argument| argument.unwrap_or_else(|| unreachable!("none is missing"))))
}

#[cold]
fn missing_argument(py: Python<'_>, method: &str, name: &str) -> PyErr {
    new_error::<PyTypeError>(py, format!("{method}() missing 1 required positional argument: '{name}'"))
}
