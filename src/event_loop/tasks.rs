//! Making tasks and futures: asyncio's own, without a detour through Python code.

use pyo3::ffi::PyMethodDef;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyString, PyTuple};

use super::{Loop, ThisLoop};
use crate::cpython::args::Args;
use crate::cpython::object::{Object, call_with_names};
use crate::imports::imports;
use crate::{method, method0};

/// The names of the keyword argument that the classes are called with: `(loop=...)`.
fn names_of_loop(py: Python<'_>) -> Object {
    static NAMES: PyOnceLock<Py<PyTuple>> = PyOnceLock::new();
    let names = NAMES.get_or_init(py, || {
        PyTuple::new(py, [PyString::intern(py, "loop")]).expect("one string fits into a tuple").unbind()
    });
    Object::from(names.bind(py))
}

fn create_future(this: ThisLoop<'_, '_>) -> PyResult<Object> {
    let py = this.py();
    call_with_names(py, &imports(py)?.future(py)?, &[&this.object()], &names_of_loop(py))
}

fn create_task<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    let py = this.py();
    this.check_closed()?;
    if let Some(coroutine) = args.object(0)
        && args.len() == 1
        && !this.has_task_factory.get()
        && !this.debug()
    {
        if !args.has_keywords() {
            return call_with_names(
                py,
                &imports(py)?.task(py)?,
                &[&coroutine, &this.object()],
                &names_of_loop(py),
            );
        }
        let (name, context) = (intern!(py, "name"), intern!(py, "context"));
        let is_common =
            |key: &Bound<'py, PyAny>| key.as_ptr() == name.as_ptr() || key.as_ptr() == context.as_ptr();
        if args.keywords().all(|(key, _)| is_common(&key)) {
            let mut keys: Vec<Object> = args.keywords().map(|(key, _)| Object::from(key)).collect();
            keys.push(Object::from(intern!(py, "loop")));
            let names = PyTuple::new(py, keys.iter().map(|key| key.bind(py)))?.into();
            let values: Vec<Object> = args.keywords().map(|(_, value)| Object::from(value)).collect();
            let event_loop = this.object();
            let mut all = vec![&coroutine];
            all.extend(&values);
            all.push(&event_loop);
            return call_with_names(py, &imports(py)?.task(py)?, &all, &names);
        }
    }
    create_task_as_asyncio_does(this, args)
}

/// Task factories, debug mode, and keywords that only some versions take.
#[cold]
fn create_task_as_asyncio_does<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    let py = this.py();
    let mut all = vec![this.object()];
    all.extend(args.rest(0));
    all.extend(args.keywords().map(|(_, value)| Object::from(value)));
    let names = PyTuple::new(py, args.keywords().map(|(key, _)| key))?.into();
    call_with_names(py, &imports(py)?.base_create_task, &all.iter().collect::<Vec<_>>(), &names)
}

pub fn methods() -> Vec<PyMethodDef> {
    vec![
        method0!(
            Loop,
            "create_future",
            create_future,
            "create_future($self, /)\n--\n\nReturn an asyncio.Future attached to the event loop."
        ),
        method!(
            Loop,
            "create_task",
            create_task,
            "create_task($self, coro, **kwargs)\n--\n\n\
             Schedule a coroutine and return the asyncio.Task that runs it, or what the task factory makes of it.\n\n\
             The keyword arguments are those of asyncio.BaseEventLoop.create_task() of the running Python."
        ),
    ]
}
