//! `hotloop.Limit`: the limit of a server, and what belongs to the server's gate of Python's side.
//!
//! A server has one object of this class, in its attribute [`ATTRIBUTE`], from the time when it begins to serve or is first limited:
//! connections are counted whether or not they are limited. When a gate is paused nothing is done at once: each listener asks it
//! before it accepts, and then waits here until the gate opens ([`Listener::hold`]).
//!
//! `core/gates.rs` decides when that is.

use pyo3::exceptions::{PyAttributeError, PyTypeError};
use pyo3::prelude::*;

use super::listener::{Listener, ThisListener};
use super::stream::call_server;
use crate::core::{Admitted, Core, Gate};
use crate::cpython::args::Args;
use crate::cpython::borrowing::StateCell;
use crate::cpython::bound_method::BoundMethod;
use crate::cpython::class::{self, Class, Definition, Native, Obj, This, Visitor};
use crate::cpython::errors::no_memory;
use crate::cpython::module::add;
use crate::cpython::object::{Object, ObjectCell, boolean};
use crate::cpython::ownership::{Owner, Shared};
use crate::cpython::statics;
use crate::intern;
use crate::{attribute, method, method0, repr_slot};
use std::cell::Cell;

/// The name of a server's attribute.
macro_rules! attribute_name {
    ($py:expr) => {
        intern!($py, "_hotloop_limit")
    };
}

pub struct Limit {
    core: Shared<Core>,
    event_loop: Object,
    pub gate: Shared<Gate>,
    /// The server's listeners that have not been stopped.
    listeners: StateCell<Vec<Obj<Listener>>>,
}

pub type ThisLimit<'a, 'py> = This<'a, 'py, Limit>;

impl Limit {
    /// The object of a server, which is made if there is none yet. None for a server that takes no attributes, or that has one for
    /// another loop.
    #[cfg_attr(
        Py_GIL_DISABLED,
        allow(clippy::arc_with_non_send_sync, reason = "the owner alone touches what is not")
    )]
    pub fn of(
        py: Python<'_>,
        core: &Shared<Core>,
        event_loop: &Object,
        server: &Object,
    ) -> PyResult<Option<Obj<Limit>>> {
        let name = attribute_name!(py);
        let known = server.bind(py).getattr_opt(name)?.map(Object::from);
        if let Some(limit) = known.as_ref().and_then(Obj::<Limit>::downcast) {
            return Ok(Shared::ptr_eq(&limit.core, core).then_some(limit));
        }
        let limit = Limit {
            core: Shared::clone(core),
            event_loop: event_loop.clone(),
            gate: Shared::new(Gate::new(Shared::clone(core))),
            listeners: StateCell::default(),
        };
        let limit = Obj::new(py, limit)?;
        match server.bind(py).setattr(name, limit.as_object().bind(py)) {
            Ok(()) => Ok(Some(limit)),
            Err(error)
                if error.is_instance_of::<PyAttributeError>(py)
                    || error.is_instance_of::<PyTypeError>(py) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Replaces the limit by one of connections, of the delay in seconds, both or none.
    pub fn set(this: ThisLimit<'_, '_>, connections: Option<usize>, delay: Option<f64>) -> PyResult<()> {
        let py = this.py();
        this.event_loop.call_method(py, intern!(py, "_check_thread"), &[])?;
        this.gate.set(connections, delay);
        Limit::engage(this)
    }

    /// Compares with the limit from now on, if there is one and the server has begun to serve.
    fn engage(this: ThisLimit<'_, '_>) -> PyResult<()> {
        if this.listeners.borrow().is_empty() || !this.gate.is_limited() {
            this.core.disengage(this.py(), &this.gate);
        } else if !this.core.engage(&this.gate, BoundMethod::new(this, Limit::resume)) {
            return Err(no_memory(this.py()));
        }
        Limit::resume(this)
    }

    /// Has listeners that are held accept again, unless the gate is paused.
    fn resume(this: ThisLimit<'_, '_>) -> PyResult<()> {
        if this.gate.is_paused() {
            return Ok(());
        }
        let held: Vec<Obj<Listener>> =
            this.listeners.borrow().iter().filter(|listener| listener.is_held()).cloned().collect();
        // The first error is the one to return.
        let mut result = Ok(());
        for listener in &held {
            result = result.and(Listener::release(listener.this(this.py())));
        }
        result
    }

    /// A listener of the server is about to accept.
    pub fn add(this: ThisLimit<'_, '_>, listener: Obj<Listener>) -> PyResult<()> {
        let mut listeners = this.listeners.borrow_mut();
        if listeners.try_reserve(1).is_err() {
            drop(listeners);
            drop(listener);
            return Err(no_memory(this.py()));
        }
        listeners.push(listener);
        drop(listeners);
        Limit::engage(this)
    }

    /// A listener has been stopped.
    pub fn remove(this: ThisLimit<'_, '_>, listener: ThisListener<'_, '_>) {
        let mut listeners = this.listeners.borrow_mut();
        let position = listeners.iter().position(|known| known.as_object().is(&listener.object()));
        let removed = position.map(|position| listeners.swap_remove(position));
        let is_last = listeners.is_empty();
        drop(listeners);
        drop(removed);
        if is_last {
            this.core.disengage(this.py(), &this.gate);
        }
    }

    /// The listener of a socket, also if it does not wait for connections at present.
    pub fn listener_of(&self, socket: &Object) -> Option<Obj<Listener>> {
        self.listeners.borrow().iter().find(|listener| listener.is_of(socket)).cloned()
    }
}

impl Native for Limit {
    fn class() -> &'static Class {
        &statics::LIMIT
    }

    fn traverse(&self, visitor: &mut Visitor) {
        visitor.object(&self.event_loop);
        if let Ok(listeners) = self.listeners.try_borrow() {
            listeners.iter().for_each(|listener| visitor.object(listener.as_object()));
        }
    }

    fn clear(&self) {
        let listeners = self.listeners.try_borrow_mut().map(|mut listeners| std::mem::take(&mut *listeners));
        drop(listeners);
    }

    fn owner(&self) -> Option<&Owner> {
        Some(&self.core.owner)
    }
}

/// A server as asyncio's own functions see it that make the transport of one connection, which counts meanwhile. If they fail, this
/// is dropped, and the connection counts no longer.
pub struct AdmittedServer {
    core: Shared<Core>,
    server: ObjectCell,
    admitted: Cell<Option<Admitted>>,
}

impl AdmittedServer {
    pub fn make(py: Python<'_>, core: &Shared<Core>, server: Object, admitted: Admitted) -> PyResult<Object> {
        let admitted = AdmittedServer {
            core: Shared::clone(core),
            server: ObjectCell::new(Some(server)),
            admitted: Cell::new(Some(admitted)),
        };
        Ok(Obj::new(py, admitted)?.into_object())
    }

    /// The server itself, and what counts its connection: a transport does so from now on.
    pub fn split(server: Option<Object>) -> (Option<Object>, Option<Admitted>) {
        match server.as_ref().and_then(Obj::<AdmittedServer>::downcast) {
            Some(admitted) => (admitted.server.get(), admitted.admitted.take()),
            None => (server, None),
        }
    }
}

type ThisServer<'a, 'py> = This<'a, 'py, AdmittedServer>;

fn attach(this: ThisServer<'_, '_>, args: Args<'_, '_>) -> PyResult<Object> {
    let py = this.py();
    let ([], [transport]) = args.parse()?;
    let transport = transport.unwrap_or_else(|| Object::none(py));
    if let Some(server) = this.server.get() {
        call_server(py, &server, intern!(py, "_attach"), &transport)?;
    }
    Ok(Object::none(py))
}

fn detach(this: ThisServer<'_, '_>, args: Args<'_, '_>) -> PyResult<Object> {
    let py = this.py();
    let ([], [transport]) = args.parse()?;
    let transport = transport.unwrap_or_else(|| Object::none(py));
    drop(this.admitted.take());
    if let Some(server) = this.server.get() {
        call_server(py, &server, intern!(py, "_detach"), &transport)?;
    }
    Ok(Object::none(py))
}

impl Native for AdmittedServer {
    fn class() -> &'static Class {
        &statics::ADMITTED_SERVER
    }

    fn traverse(&self, visitor: &mut Visitor) {
        visitor.cell(&self.server);
    }

    fn clear(&self) {
        self.server.set(None);
    }

    fn owner(&self) -> Option<&Owner> {
        Some(&self.core.owner)
    }
}

fn optional_size(py: Python<'_>, size: Option<usize>) -> PyResult<Object> {
    size.map_or_else(|| Ok(Object::none(py)), |size| Object::from_size(py, size))
}

fn repr(this: ThisLimit<'_, '_>) -> PyResult<Object> {
    let gate = &this.gate;
    let most = gate.most().map(|most| format!(" connections={most}"));
    let latest = gate.latest().map(|latest| format!(" delay={latest}"));
    let state = if gate.is_paused() { "paused" } else { "accepting" };
    let limits = most.unwrap_or_default() + &latest.unwrap_or_default();
    Object::from_str(this.py(), &format!("<Limit{limits} open={} {state}>", gate.connections()))
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let definition = Definition {
        name: c"hotloop._core.Limit",
        doc: c"What a server accepts: see hotloop.limit().\n\n\
            paused says whether accepting is paused now, open how many connections there are, and connections and\n\
            delay what limits them, or None.",
        base: module.py().get_type::<PyAny>(),
        methods: vec![method0!(
            Limit,
            "remove",
            |this| {
                Limit::set(this, None, None)?;
                Ok(Object::none(this.py()))
            },
            "Accept without a limit from now on.\n\n\
             Raise RuntimeError in another thread than the one that runs the server's loop."
        )],
        attributes: vec![
            attribute!(any_thread Limit, "connections", |this| optional_size(this.py(), this.gate.most())),
            attribute!(any_thread Limit, "delay", |this| match this.gate.latest() {
                Some(delay) => Object::from_float(this.py(), delay),
                None => Ok(Object::none(this.py())),
            }),
            attribute!(any_thread Limit, "open", |this| Object::from_size(this.py(), this.gate.connections())),
            attribute!(any_thread Limit, "paused", |this| Ok(boolean(this.py(), this.gate.is_paused()))),
        ],
        slots: vec![repr_slot!(Limit, repr)],
        open: false,
    };
    add(module, "Limit", class::make::<Limit>(definition)?)?;
    let definition = Definition {
        name: c"hotloop._core.AdmittedServer",
        doc: c"A server, for one connection that it counts.",
        base: module.py().get_type::<PyAny>(),
        methods: vec![
            method!(
                AdmittedServer,
                "_attach",
                "transport=None",
                attach,
                "Have the server count a transport."
            ),
            method!(
                AdmittedServer,
                "_detach",
                "transport=None",
                detach,
                "Have the server count a transport no longer."
            ),
        ],
        attributes: Vec::new(),
        slots: Vec::new(),
        open: false,
    };
    add(module, "AdmittedServer", class::make::<AdmittedServer>(definition)?)
}
