//! Datagrams that arrive.

use std::io;

use pyo3::prelude::*;

use super::addresses::Family;
use super::{Datagram, Incoming, ThisDatagram};
use crate::core::Ready;
use crate::cpython::errors::os_error;
use crate::cpython::object::Object;
use crate::intern;
use crate::reactor::datagram::{Batch, Slots};
use crate::reactor::socket;
use crate::transports::endpoint;

/// Batches received before other callbacks have their turn.
const BATCHES: usize = 4;

impl Datagram {
    /// Whether the next datagram is wanted at once.
    fn is_wanted(&self) -> bool {
        self.wants_read.get() && !self.core.stopping()
    }

    /// Receives and delivers what waits.
    pub(super) fn receive(this: ThisDatagram<'_, '_>) -> PyResult<()> {
        Datagram::deliver(this)?;
        // What was kept comes first.
        if !this.undelivered.borrow().is_empty() {
            return Ok(());
        }
        let slots = if this.addresses.family == Family::Other { Slots::One } else { Slots::Many };
        let core = std::rc::Rc::clone(&this.core);
        let received = core.with_batch(this.py(), |batch| {
            for _ in 0..BATCHES {
                if !this.is_wanted() {
                    break;
                }
                let count = match batch.receive(this.file.descriptor(), slots) {
                    Ok(count) => count,
                    Err(error) => return Datagram::receive_failed(this, error),
                };
                Datagram::deliver_batch(this, batch, count)?;
            }
            Ok(())
        });
        received.unwrap_or_else(|error| endpoint::fail(this, error, "Fatal read error on datagram transport"))
    }

    fn receive_failed(this: ThisDatagram<'_, '_>, error: io::Error) -> PyResult<()> {
        if socket::is_not_ready(&error) {
            return Ok(());
        }
        let py = this.py();
        let error = Object::from(os_error(py, error).value(py));
        endpoint::tell(this, intern!(py, "error_received"), &[&error])
    }

    fn deliver_batch(this: ThisDatagram<'_, '_>, batch: &Batch, count: usize) -> PyResult<()> {
        for index in 0..count {
            let incoming = Datagram::incoming(this, batch, index)?;
            if let Err(error) = Datagram::hand_over(this, &incoming) {
                Datagram::keep(this, batch, index + 1, count)?;
                return Err(error);
            }
            if this.is_closing() {
                return Ok(());
            }
            if !this.is_wanted() {
                return Datagram::keep(this, batch, index + 1, count);
            }
        }
        Ok(())
    }

    /// Keeps what was received and is not wanted now.
    fn keep(this: ThisDatagram<'_, '_>, batch: &Batch, first: usize, count: usize) -> PyResult<()> {
        for index in first..count {
            let incoming = Datagram::incoming(this, batch, index)?;
            this.undelivered.borrow_mut().push_back(incoming);
        }
        Datagram::deliver_later(this);
        Ok(())
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
        // An address of a family that is not known here is as good as none.
        Ok(Incoming { data, sender: sender.unwrap_or_else(|| Object::none(py)) })
    }

    fn hand_over(this: ThisDatagram<'_, '_>, incoming: &Incoming) -> PyResult<()> {
        let method = intern!(this.py(), "datagram_received");
        endpoint::tell(this, method, &[&incoming.data, &incoming.sender])
    }

    /// Delivers what was kept, in the next iteration.
    pub(super) fn deliver_later(this: ThisDatagram<'_, '_>) {
        if !this.undelivered.borrow().is_empty() {
            this.core.push(Ready::Step(this.object(), deliver_step));
        }
    }

    /// Delivers what was kept, as long as it is wanted.
    fn deliver(this: ThisDatagram<'_, '_>) -> PyResult<()> {
        while this.is_wanted() {
            let Some(incoming) = this.undelivered.borrow_mut().pop_front() else { break };
            if let Err(error) = Datagram::hand_over(this, &incoming) {
                Datagram::deliver_later(this);
                return Err(error);
            }
        }
        Ok(())
    }
}

fn deliver_step(py: Python<'_>, object: &Object) -> PyResult<()> {
    let this = endpoint::transport::<Datagram>(py, object)?;
    endpoint::in_read_context(this, || Datagram::deliver(this))?;
    if this.wants_read.get() {
        // The event loop was stopped meanwhile.
        Datagram::deliver_later(this);
    }
    Ok(())
}
