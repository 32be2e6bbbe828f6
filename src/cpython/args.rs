//! A method's parameters, and the arguments that it was called with.
//!
//! - It is for vectorcalls only: no tuple and no dict is made of the arguments.
//! - Comparing a keyword that is a subclass of str can run Python code, and so can making an error.
//! - [`super::methods`] makes [`Args`]; the methods parse them.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::ptr::null_mut;
use std::sync::atomic::Ordering::Relaxed;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyString;
use pyo3::{Borrowed, ffi};

use super::errors::new_error;
use super::object::Object;
use super::statics::CALL_SOON_KWNAMES;
use crate::intern;

/// A method's name and parameters: `inspect` shows them, and [`Args`] are parsed by them.
pub struct Signature {
    method: &'static str,
    /// In Python's notation, without self: `"fd, callback, *args, context=None"`.
    parameters: &'static str,
    /// The number of parameters without a default, which come first.
    required: usize,
    /// The number of parameters that can be given by position.
    positional: usize,
}

impl Signature {
    pub const fn new(method: &'static str, parameters: &'static str) -> Signature {
        let text = parameters.as_bytes();
        let (mut required, mut positional) = (0, 0);
        let mut keyword_only = false;
        let mut index = 0;
        while index < text.len() {
            let is_parameter = !matches!(text[index], b'*' | b'/');
            keyword_only |= text[index] == b'*';
            let mut has_default = false;
            while index < text.len() && text[index] != b',' {
                has_default |= text[index] == b'=';
                index += 1;
            }
            index += ", ".len();
            required += (is_parameter && !has_default) as usize;
            positional += (is_parameter && !keyword_only) as usize;
        }
        Signature { method, parameters, required, positional }
    }

    /// The names of the parameters, without `*args` and `**kwargs`.
    fn names(&self) -> impl Iterator<Item = &'static str> {
        let parameters = self.parameters.split(", ").filter(|parameter| !parameter.starts_with(['*', '/']));
        parameters.map(|parameter| parameter.split('=').next().unwrap_or(parameter))
    }

    /// Which parameter has a name, of those in [`Signature::names`].
    fn position(&self, name: &str) -> Option<usize> {
        let mut rest = self.parameters.as_bytes();
        let mut index = 0;
        while !rest.is_empty() {
            let end = rest.iter().position(|byte| *byte == b',').unwrap_or(rest.len());
            let parameter = &rest[..end];
            if !matches!(parameter, [b'*' | b'/', ..]) {
                if let Some(default) = parameter.strip_prefix(name.as_bytes())
                    && matches!(default, [] | [b'=', ..])
                {
                    return Some(index);
                }
                index += 1;
            }
            rest = rest.get(end + ", ".len()..).unwrap_or_default();
        }
        None
    }

    #[cold]
    fn missing(&self, py: Python<'_>, index: usize) -> PyErr {
        let name = self.names().nth(index).unwrap_or_default();
        self.error(py, &format!("missing 1 required positional argument: '{name}'"))
    }

    #[cold]
    fn error(&self, py: Python<'_>, problem: &str) -> PyErr {
        new_error::<PyTypeError>(py, format!("{}() {problem}", self.method))
    }
}

/// The arguments of a vectorcall: first the positional ones, then the values of keywords.
#[derive(Clone, Copy)]
pub struct Args<'a, 'py> {
    pub(super) py: Python<'py>,
    pub(super) values: *const *mut ffi::PyObject,
    pub(super) positional: usize,
    pub(super) names: *mut ffi::PyObject,
    signature: &'static Signature,
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
        signature: &'static Signature,
    ) -> Args<'a, 'py> {
        Args { py, values, positional, names, signature, call: PhantomData }
    }

    /// The name of the method that was called.
    pub fn method(&self) -> &'static str {
        self.signature.method
    }

    /// The number of positional arguments.
    pub fn len(&self) -> usize {
        self.positional
    }

    fn value(&self, index: usize) -> Borrowed<'a, 'py, PyAny> {
        // SAFETY: the callers keep to the number of values; the caller of the method keeps them alive.
        unsafe { Borrowed::from_ptr(self.py, *self.values.add(index)) }
    }

    /// A positional argument.
    pub fn object(&self, index: usize) -> Option<Object> {
        (index < self.positional).then(|| Object::from(self.value(index)))
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

    /// Parses `method(p1, ..., pN, *args, context=None)`. The context is None where None was given.
    #[inline(always)]
    pub fn leading<const N: usize>(&self) -> PyResult<([Object; N], Option<Object>)> {
        let keyword = intern!(self.py, "context");
        if self.positional >= N
            && let Some(context) = self.only_keyword(keyword)
        {
            return Ok((std::array::from_fn(|index| Object::from(self.value(index))), context));
        }
        self.leading_by_name(keyword)
    }

    /// The value of `keyword`, if it is the only one that is given or if none is. None if there are others.
    fn only_keyword(&self, keyword: &Bound<'py, PyString>) -> Option<Option<Object>> {
        if self.names.is_null() {
            return Some(None);
        }
        // SAFETY: vectorcall passes a tuple of names.
        let is_it = unsafe {
            ffi::PyTuple_GET_SIZE(self.names) == 1
                && (ffi::PyTuple_GET_ITEM(self.names, 0) == keyword.as_ptr()
                    || self.names == CALL_SOON_KWNAMES.load(Relaxed)
                    || self.is_equal_name(keyword))
        };
        let value = is_it.then(|| self.value(self.positional))?;
        Some((!value.is_none()).then(|| Object::from(value)))
    }

    /// Whether the only name is equal to the keyword. The first tuple of such a name is kept in [`CALL_SOON_KWNAMES`].
    #[cold]
    fn is_equal_name(&self, keyword: &Bound<'py, PyString>) -> bool {
        // SAFETY: `names` is a tuple, here of one string.
        let name = unsafe { Borrowed::from_ptr(self.py, ffi::PyTuple_GET_ITEM(self.names, 0)) };
        let is_it = name.eq(keyword).unwrap_or(false);
        let known = &CALL_SOON_KWNAMES;
        if is_it && known.compare_exchange(null_mut(), self.names, Relaxed, Relaxed).is_ok() {
            // The reference is never given back.
            // SAFETY: the tuple lives.
            unsafe { ffi::Py_INCREF(self.names) };
        }
        is_it
    }

    #[cold]
    fn leading_by_name<const N: usize>(
        &self,
        keyword: &Bound<'py, PyString>,
    ) -> PyResult<([Object; N], Option<Object>)> {
        let mut found: [Option<Object>; N] = std::array::from_fn(|index| self.object(index));
        let mut context = None;
        for (name, value) in self.keywords() {
            if name.as_ptr() == keyword.as_ptr() || name.eq(keyword)? {
                context = (!value.is_none()).then(|| Object::from(value));
            } else {
                self.assign(found.iter_mut(), &name, &value)?;
            }
        }
        Ok((self.all(found)?, context))
    }

    /// The only argument, by position or by name.
    pub(super) fn only(&self) -> PyResult<Borrowed<'a, 'py, PyAny>> {
        if self.positional == 1 && self.names.is_null() { Ok(self.value(0)) } else { self.only_by_name() }
    }

    #[cold]
    fn only_by_name(&self) -> PyResult<Borrowed<'a, 'py, PyAny>> {
        let ([_], []) = self.parse()?;
        // Given once: it is the first of the values, whichever way.
        Ok(self.value(0))
    }

    /// The arguments of the parameters without a default, and of those with one.
    pub fn parse<const R: usize, const O: usize>(&self) -> PyResult<([Object; R], [Option<Object>; O])> {
        let Signature { required, positional, .. } = *self.signature;
        debug_assert_eq!((required, self.signature.names().count()), (R, R + O), "{}", self.method());
        if self.positional > positional {
            let given = self.positional;
            let problem = format!("takes {positional} positional arguments but {given} were given");
            return Err(self.signature.error(self.py, &problem));
        }
        let mut first: [Option<Object>; R] = std::array::from_fn(|index| self.object(index));
        let mut others: [Option<Object>; O] = std::array::from_fn(|index| self.object(R + index));
        for (name, value) in self.keywords() {
            self.assign(first.iter_mut().chain(&mut others), &name, &value)?;
        }
        Ok((self.all(first)?, others))
    }

    /// Puts the value of a keyword into its parameter's place.
    #[cold]
    fn assign<'p>(
        &self,
        mut places: impl Iterator<Item = &'p mut Option<Object>>,
        name: &Bound<'_, PyAny>,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let name = name.cast::<PyString>()?;
        // A name with surrogates is not UTF-8, and no parameter's.
        let index = name.to_str().ok().and_then(|text| self.signature.position(text));
        let problem = match index.and_then(|index| places.nth(index)) {
            Some(place @ None) => {
                *place = Some(Object::from(value));
                return Ok(());
            }
            Some(_) => "multiple values for argument",
            None => "an unexpected keyword argument",
        };
        Err(self.signature.error(self.py, &format!("got {problem} '{}'", name.to_string_lossy())))
    }

    /// The arguments, if none is missing.
    fn all<const N: usize>(&self, found: [Option<Object>; N]) -> PyResult<[Object; N]> {
        if let Some(missing) = found.iter().position(Option::is_none) {
            return Err(self.signature.missing(self.py, missing));
        }
        Ok(found.map(|argument| argument.unwrap_or_else(|| unreachable!("none is missing"))))
    }
}
