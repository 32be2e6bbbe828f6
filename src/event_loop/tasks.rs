//! create_task() and create_future(): they call asyncio's C classes without Python code in between.

use pyo3::ffi::PyMethodDef;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::{Loop, ThisLoop};
use crate::cpython::args::Args;
use crate::cpython::object::{Object, tuple_of};
use crate::imports::imports;
use crate::intern;
use crate::{method, method0};

fn create_future(this: ThisLoop<'_, '_>) -> PyResult<Object> {
    let py = this.py();
    let class = imports(py)?.future(py)?;
    let event_loop = this.object();
    if imports(py)?.finds_loop(py, &class, &event_loop)? {
        return class.call(py, &[]);
    }
    class.call_list(py, &[event_loop], Some(&imports(py)?.loop_names))
}

fn create_task<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    let py = this.py();
    this.check_closed(this.py())?;
    this.core.metrics.counts.tasks_created.add(1);
    if args.len() == 1 && !this.has_task_factory.get() && !this.debug() && takes_keywords(args)? {
        let class = imports(py)?.task(py)?;
        let event_loop = this.object();
        return if imports(py)?.finds_loop(py, &class, &event_loop)? {
            class.forward(args)
        } else {
            create_task_for(py, &event_loop, &class, args)
        };
    }
    create_task_as_asyncio_does(this, args)
}

/// Whether asyncio's create_task() passes all of the keyword arguments to the class.
fn takes_keywords(args: Args<'_, '_>) -> PyResult<bool> {
    for (key, _) in args.keywords() {
        let py = key.py();
        let is = |name: &Bound<'_, PyString>| key.as_ptr() == name.as_ptr();
        let taken = is(intern!(py, "name"))
            || is(intern!(py, "context"))
            || is(intern!(py, "eager_start")) && imports(py)?.create_task_takes_all;
        if !taken {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes a task with `loop=` as an argument.
fn create_task_for<'py>(
    py: Python<'py>,
    event_loop: &Object,
    class: &Object,
    args: Args<'_, 'py>,
) -> PyResult<Object> {
    let mut all: Vec<Object> = args.rest(0).collect();
    all.extend(args.keywords().map(|(_, value)| Object::from(value)));
    all.push(event_loop.clone());
    let mut names: Vec<_> = args.keywords().map(|(name, _)| Object::from(name)).collect();
    names.push(Object::from(intern!(py, "loop")));
    let names = tuple_of(py, names.iter())?;
    class.call_list(py, &all, Some(&names))
}

/// Calls asyncio's create_task(), which handles task factories, debug mode, and keywords that only some versions take.
#[cold]
fn create_task_as_asyncio_does<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    let py = this.py();
    let mut all = vec![this.object()];
    all.extend(args.rest(0));
    all.extend(args.keywords().map(|(_, value)| Object::from(value)));
    let names: Vec<_> = args.keywords().map(|(name, _)| Object::from(name)).collect();
    let names = tuple_of(py, names.iter())?;
    imports(py)?.base_create_task.call_list(py, &all, Some(&names))
}

pub fn methods() -> Vec<PyMethodDef> {
    vec![
        method0!(any_thread Loop, "create_future",
            create_future,
            "Return an asyncio.Future attached to the event loop."
        ),
        method!(any_thread Loop, "create_task",
            "coro, **kwargs",
            create_task,
            "Schedule a coroutine and return the asyncio.Task that runs it, or what the task factory makes of it.\n\n\
             The keyword arguments are those of asyncio.BaseEventLoop.create_task() of the running Python."
        ),
    ]
}
