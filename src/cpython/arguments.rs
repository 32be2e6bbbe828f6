//! Positional arguments of a callback, kept until it is called.

use std::cell::Cell;

use pyo3::prelude::*;

use super::args::Args;
use super::call::check_result;
use super::class::Visitor;
use super::errors::no_memory;
use super::object::{Object, tuple};
use super::ownership::Shared;
use crate::reserve::has_room;

/// Most callbacks have at most two. A clone shares more than that, and is for one call only.
#[derive(Clone)]
#[repr(u64)]
pub enum Arguments {
    None,
    One(Object),
    Two(Object, Object),
    Many(Shared<[Object]>),
}

impl Arguments {
    /// The positional arguments of a call from `first` on.
    #[inline(always)]
    pub fn of_call(py: Python<'_>, args: Args<'_, '_>, first: usize) -> PyResult<Arguments> {
        Ok(match (args.object(first), args.object(first + 1)) {
            (None, _) => Arguments::None,
            (Some(argument), None) => Arguments::One(argument),
            (Some(argument), Some(next)) if args.len() == first + 2 => Arguments::Two(argument, next),
            _ => Arguments::many(py, args.rest(first))?,
        })
    }

    pub fn of_objects(py: Python<'_>, objects: &[&Object]) -> PyResult<Arguments> {
        Ok(match objects {
            [] => Arguments::None,
            [argument] => Arguments::One((*argument).clone()),
            more => Arguments::many(py, more.iter().map(|argument| (*argument).clone()))?,
        })
    }

    fn many(py: Python<'_>, all: impl ExactSizeIterator<Item = Object>) -> PyResult<Arguments> {
        // With the counts before them.
        if !has_room((all.len() + 2) * size_of::<Object>()) {
            return Err(no_memory(py));
        }
        Ok(Arguments::Many(all.collect()))
    }

    fn each<'a>(&'a self, mut visit: impl FnMut(&'a Object)) {
        match self {
            Arguments::None => {}
            Arguments::One(first) => visit(first),
            Arguments::Two(first, second) => {
                visit(first);
                visit(second);
            }
            Arguments::Many(all) => all.iter().for_each(visit),
        }
    }

    #[inline(always)]
    pub fn call(&self, py: Python<'_>, callback: &Object) -> PyResult<Object> {
        let result = match self {
            Arguments::None => callback.call(py, &[]),
            Arguments::One(first) => callback.call(py, &[first]),
            Arguments::Two(first, second) => callback.call(py, &[first, second]),
            Arguments::Many(all) => callback.call_list(py, all, None),
        };
        check_result(py, callback, result?)
    }

    pub fn to_tuple(&self, py: Python<'_>) -> PyResult<Object> {
        let mut items = Vec::new();
        self.each(|argument| items.push(argument));
        tuple(py, &items)
    }
}

/// Arguments that can be replaced through a shared reference.
pub struct ArgumentsCell(Cell<Arguments>);

impl ArgumentsCell {
    pub fn new(arguments: Arguments) -> ArgumentsCell {
        ArgumentsCell(Cell::new(arguments))
    }

    /// Looks inside for the time of one expression that runs no Python code.
    fn peek(&self) -> &Arguments {
        // SAFETY: the reference is used up (cloned, visited) before anything can replace the content: this type is not Sync, and
        // the callers of this private method run no Python code meanwhile.
        unsafe { &*self.0.as_ptr() }
    }

    #[inline(always)]
    pub fn get(&self) -> Arguments {
        self.peek().clone()
    }

    /// A copy that shares nothing: the garbage collector is not shown shared arguments.
    pub fn copy(&self) -> Arguments {
        match self.peek() {
            Arguments::Many(all) => Arguments::Many(all.iter().cloned().collect()),
            few => few.clone(),
        }
    }

    pub fn is_one_at_most(&self) -> bool {
        matches!(self.peek(), Arguments::None | Arguments::One(_))
    }

    pub fn replace(&self, arguments: Arguments) -> Arguments {
        self.0.replace(arguments)
    }

    pub fn take(&self) -> Arguments {
        self.replace(Arguments::None)
    }

    pub fn traverse(&self, visitor: &mut Visitor) {
        match self.peek() {
            // A call that is under way owns them, too, and is not traversed.
            Arguments::Many(all) if Shared::strong_count(all) > 1 => {}
            arguments => arguments.each(|argument| visitor.object(argument)),
        }
    }
}
