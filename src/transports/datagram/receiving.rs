//! Datagrams that arrive.

use std::cell::Cell;
use std::io;

use pyo3::exceptions::{PyBlockingIOError, PyInterruptedError, PyOSError};
use pyo3::prelude::*;

use super::addresses::Family;
use super::{Datagram, Incoming, ThisDatagram};
use crate::core::{RECEIVE_BUFFER, ReadyEntry};
use crate::cpython::bound_method::BoundMethod;
use crate::cpython::errors::os_error;
use crate::cpython::object::Object;
use crate::intern;
use crate::reactor::clock;
use crate::reactor::datagram::{Batch, Slots};
use crate::reactor::socket;
use crate::transports::endpoint;

const RECEIVE_FAILED: &str = "Fatal read error on datagram transport";

/// Batches received before other callbacks have their turn.
const BATCHES: usize = 4;

/// How long datagrams are delivered before others have their turn, in seconds. A protocol that works for long on each would
/// delay them by a multiple of that otherwise, and whoever sends many of them would decide by how much.
const TURN: f64 = 200e-6;

/// The deliveries that follow each other in one turn.
#[derive(Default)]
struct CallbackRun {
    /// When the first was over: that of a single one need not be known.
    began: Cell<Option<f64>>,
}

impl CallbackRun {
    /// Whether others are to have their turn. To be asked between two deliveries.
    fn is_over(&self) -> bool {
        let now = clock::now();
        match self.began.get() {
            Some(began) => now - began >= TURN,
            None => {
                self.began.set(Some(now));
                false
            }
        }
    }
}

impl Datagram {
    /// Whether the next datagram is wanted at once.
    fn is_wanted(&self) -> bool {
        self.wants_read.get() && !self.core.stopping.get()
    }

    /// Receives and delivers what waits.
    pub(super) fn receive(this: ThisDatagram<'_, '_>) -> PyResult<()> {
        // What was kept comes first, with a step of its own.
        if !this.undelivered.borrow().is_empty() {
            return Ok(());
        }
        let turn = CallbackRun::default();
        let slots = match this.addresses.family {
            Family::V4 | Family::V6 => Slots::Many,
            Family::Unix => Slots::One,
            Family::Other => return Datagram::receive_by_method(this, &turn),
        };
        let core = std::rc::Rc::clone(&this.core);
        let received = core.with_batch(this.py(), |batch| {
            for batches in 0..BATCHES {
                if !this.is_wanted() || (batches > 0 && turn.is_over()) {
                    break;
                }
                let count = match batch.receive(this.file.descriptor(), slots) {
                    Ok(count) => count,
                    Err(error) => return Datagram::receive_failed(this, error),
                };
                Datagram::deliver_batch(this, batch, count, &turn)?;
            }
            Ok(())
        });
        received.unwrap_or_else(|error| endpoint::fatal_error(this, error, RECEIVE_FAILED))
    }

    /// The same, by the socket's recvfrom(): only that knows how such a sender's address looks in Python.
    #[cold]
    fn receive_by_method(this: ThisDatagram<'_, '_>, turn: &CallbackRun) -> PyResult<()> {
        let py = this.py();
        let size = Object::from_size(py, RECEIVE_BUFFER)?;
        while this.is_wanted() {
            let socket = this.file.python_socket(py)?;
            let received = match socket.call_method1(py, intern!(py, "recvfrom"), &size) {
                Ok(received) => received,
                Err(error)
                    if error.is_instance_of::<PyBlockingIOError>(py)
                        || error.is_instance_of::<PyInterruptedError>(py) =>
                {
                    return Ok(());
                }
                Err(error) if error.is_instance_of::<PyOSError>(py) => {
                    return Datagram::tell_error(this, error);
                }
                Err(error) => return endpoint::fatal_error(this, error, RECEIVE_FAILED),
            };
            let (data, sender): (Bound<'_, PyAny>, Bound<'_, PyAny>) = received.bind(py).extract()?;
            this.core.metrics.counts.bytes_read.add(data.len()?);
            Datagram::hand_over(this, &Incoming { data: data.into(), sender: sender.into() })?;
            if turn.is_over() {
                break;
            }
        }
        Ok(())
    }

    fn receive_failed(this: ThisDatagram<'_, '_>, error: io::Error) -> PyResult<()> {
        if socket::is_not_ready(&error) {
            return Ok(());
        }
        Datagram::tell_error(this, os_error(this.py(), error))
    }

    fn tell_error(this: ThisDatagram<'_, '_>, error: PyErr) -> PyResult<()> {
        let py = this.py();
        let error = Object::from(error.value(py));
        endpoint::call_protocol(this, intern!(py, "error_received"), &[&error])
    }

    fn deliver_batch(
        this: ThisDatagram<'_, '_>,
        batch: &Batch,
        count: usize,
        turn: &CallbackRun,
    ) -> PyResult<()> {
        for index in 0..count {
            let incoming = Datagram::incoming(this, batch, index)?;
            if let Err(error) = Datagram::hand_over(this, &incoming) {
                Datagram::keep(this, batch, index + 1, count)?;
                return Err(error);
            }
            if this.is_closing() {
                return Ok(());
            }
            if !this.is_wanted() || (index + 1 < count && turn.is_over()) {
                return Datagram::keep(this, batch, index + 1, count);
            }
        }
        Ok(())
    }

    /// Keeps what was received and is not wanted now.
    fn keep(this: ThisDatagram<'_, '_>, batch: &Batch, first: usize, count: usize) -> PyResult<()> {
        let kept = (first..count).try_for_each(|index| {
            let incoming = Datagram::incoming(this, batch, index)?;
            this.undelivered.borrow_mut().push_back(incoming);
            Ok(())
        });
        Datagram::deliver_later(this);
        kept
    }

    fn incoming(this: ThisDatagram<'_, '_>, batch: &Batch, index: usize) -> PyResult<Incoming> {
        let py = this.py();
        let (data, sender) = batch.get(index);
        this.core.metrics.counts.bytes_read.add(data.len());
        let data = this.core.bytes_of(py, data)?;
        let sender = match sender {
            Some(sender) => this.addresses.for_python(py, sender)?,
            None => None,
        };
        // One that sent from a socket without an address has none.
        Ok(Incoming { data, sender: sender.unwrap_or_else(|| Object::none(py)) })
    }

    fn hand_over(this: ThisDatagram<'_, '_>, incoming: &Incoming) -> PyResult<()> {
        let method = intern!(this.py(), "datagram_received");
        endpoint::call_protocol(this, method, &[&incoming.data, &incoming.sender])
    }

    /// Delivers what was kept, in the next iteration.
    pub(super) fn deliver_later(this: ThisDatagram<'_, '_>) {
        if !this.undelivered.borrow().is_empty() {
            this.core.push(ReadyEntry::Step(BoundMethod::new(this, deliver_step)));
        }
    }

    /// Delivers what was kept, as long as it is wanted, for a turn.
    fn deliver(this: ThisDatagram<'_, '_>) -> PyResult<()> {
        let turn = CallbackRun::default();
        while this.is_wanted() && !turn.is_over() {
            let Some(incoming) = this.undelivered.borrow_mut().pop_front() else { break };
            if let Err(error) = Datagram::hand_over(this, &incoming) {
                Datagram::deliver_later(this);
                return Err(error);
            }
        }
        Ok(())
    }
}

fn deliver_step(this: ThisDatagram<'_, '_>) -> PyResult<()> {
    endpoint::in_read_context(this, || Datagram::deliver(this))?;
    if this.wants_read.get() {
        // The turn is over, or the event loop was stopped meanwhile.
        Datagram::deliver_later(this);
    }
    Ok(())
}
