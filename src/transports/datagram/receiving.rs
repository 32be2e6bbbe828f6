//! Datagrams that arrive.
//!
//! A transport delivers for one time slice per event; the rest waits in the socket, or is kept and delivered in later iterations.

use std::cell::Cell;
use std::io;

use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;

use super::addresses::Family;
use super::{Datagram, Incoming, ThisDatagram, is_not_ready};
use crate::core::{RECEIVE_BUFFER, ReadyEntry};
use crate::cpython::bound_method::BoundMethod;
use crate::cpython::errors::{no_memory, os_error};
use crate::cpython::object::Object;
use crate::cpython::ownership::Shared;
use crate::intern;
use crate::reactor::clock;
use crate::reactor::datagram::{Batch, SLOTS, Slots};
use crate::reactor::socket;
use crate::reserve::{has_room, try_grow};
use crate::transports::endpoint;

const RECEIVE_FAILED: &str = "Fatal read error on datagram transport";

/// Bytes of the queue for what is kept of a batch.
const ROOM: usize = SLOTS * size_of::<Incoming>();
/// The most batches received per event.
const MAX_BATCHES: usize = 4;

/// How long datagrams are delivered in one iteration, in seconds. Without it a peer that sends many of them could delay all other
/// callbacks.
const TIME_SLICE: f64 = 200e-6;

/// Measures the deliveries of one event.
#[derive(Default)]
struct TimeSlice {
    /// When the first delivery ended: if there is only one, the clock is not read.
    began: Cell<Option<f64>>,
}

impl TimeSlice {
    /// To be called between two deliveries.
    fn is_over(&self) -> bool {
        let now = clock::now();
        match self.began.get() {
            Some(began) => now - began >= TIME_SLICE,
            None => {
                self.began.set(Some(now));
                false
            }
        }
    }
}

impl Datagram {
    /// Whether the next datagram is wanted at once. An iteration after which the event loop stops delivers one, as in asyncio: a
    /// program can run the loop by such iterations only.
    fn is_wanted(&self) -> bool {
        let may_deliver =
            || !self.core.stopping.get() || self.delivered_in.get() != Some(self.core.iteration.get());
        self.registration.wants_read() && may_deliver()
    }

    /// Receives and delivers what waits.
    pub(super) fn receive(this: ThisDatagram<'_, '_>) -> PyResult<()> {
        // What was kept comes first: a step for it is queued.
        if !this.undelivered.borrow().is_empty() {
            return Ok(());
        }
        let slice = TimeSlice::default();
        let slots = match this.addresses.family {
            // What cannot be delivered at once must be kept.
            Family::V4 | Family::V6 if has_room(ROOM) => Slots::Many,
            Family::V4 | Family::V6 | Family::Unix => Slots::One,
            Family::Other => return Datagram::receive_by_method(this, &slice),
        };
        let core = Shared::clone(&this.core);
        let received = core.with_batch(this.py(), |batch| {
            for batches in 0..MAX_BATCHES {
                if !this.is_wanted() || (batches > 0 && slice.is_over()) {
                    break;
                }
                let count = match batch.receive(this.file.descriptor(), slots) {
                    Ok(count) => count,
                    Err(error) => return Datagram::receive_failed(this, error),
                };
                Datagram::deliver_batch(this, batch, count, &slice)?;
                if !Batch::may_have_more(count, slots) {
                    break;
                }
            }
            Ok(())
        });
        received.unwrap_or_else(|error| endpoint::fatal_error(this, error, RECEIVE_FAILED))
    }

    /// Receives by the socket's recvfrom(), for address families that only the socket module knows.
    #[cold]
    fn receive_by_method(this: ThisDatagram<'_, '_>, slice: &TimeSlice) -> PyResult<()> {
        let py = this.py();
        let size = Object::from_size(py, RECEIVE_BUFFER)?;
        while this.is_wanted() {
            let socket = this.file.python_socket(py)?;
            let received = match socket.call_method(py, intern!(py, "recvfrom"), &[&size]) {
                Ok(received) => received,
                Err(error) if is_not_ready(py, &error) => return Ok(()),
                Err(error) if error.is_instance_of::<PyOSError>(py) => {
                    return Datagram::call_error_received(this, error);
                }
                Err(error) => return endpoint::fatal_error(this, error, RECEIVE_FAILED),
            };
            let (data, sender): (Bound<'_, PyAny>, Bound<'_, PyAny>) = received.bind(py).extract()?;
            this.note_read(data.len()?);
            Datagram::deliver(this, &Incoming { data: data.into(), sender: sender.into() })?;
            if slice.is_over() {
                break;
            }
        }
        Ok(())
    }

    fn receive_failed(this: ThisDatagram<'_, '_>, error: io::Error) -> PyResult<()> {
        if socket::is_not_ready(&error) {
            return Ok(());
        }
        Datagram::call_error_received(this, os_error(this.py(), error))
    }

    pub(super) fn call_error_received(this: ThisDatagram<'_, '_>, error: PyErr) -> PyResult<()> {
        let py = this.py();
        let error = Object::from(error.value(py));
        endpoint::call_protocol(this, intern!(py, "error_received"), &[&error])
    }

    fn deliver_batch(
        this: ThisDatagram<'_, '_>,
        batch: &Batch,
        count: usize,
        slice: &TimeSlice,
    ) -> PyResult<()> {
        for index in 0..count {
            let incoming = Datagram::incoming(this, batch, index)?;
            if let Err(error) = Datagram::deliver(this, &incoming) {
                Datagram::keep(this, batch, index + 1, count)?;
                return Err(error);
            }
            if this.is_closing() {
                return Ok(());
            }
            if !this.is_wanted() || (index + 1 < count && slice.is_over()) {
                return Datagram::keep(this, batch, index + 1, count);
            }
        }
        Ok(())
    }

    /// Keeps the datagrams of a batch from `first` on.
    fn keep(this: ThisDatagram<'_, '_>, batch: &Batch, first: usize, count: usize) -> PyResult<()> {
        let kept = (first..count).try_for_each(|index| {
            let incoming = Datagram::incoming(this, batch, index)?;
            let mut undelivered = this.undelivered.borrow_mut();
            if !try_grow(&mut undelivered, 1) {
                drop(undelivered);
                return Err(no_memory(this.py()));
            }
            undelivered.push_back(incoming);
            Ok(())
        });
        Datagram::deliver_later(this);
        kept
    }

    fn incoming(this: ThisDatagram<'_, '_>, batch: &Batch, index: usize) -> PyResult<Incoming> {
        let py = this.py();
        let (data, sender) = batch.get(index);
        this.note_read(data.len());
        let data = this.core.bytes_of(py, data)?;
        let sender = match sender {
            Some(sender) => this.addresses.for_python(py, sender)?,
            None => None,
        };
        // A sender whose socket has no address.
        Ok(Incoming { data, sender: sender.unwrap_or_else(|| Object::none(py)) })
    }

    fn deliver(this: ThisDatagram<'_, '_>, incoming: &Incoming) -> PyResult<()> {
        this.delivered_in.set(Some(this.core.iteration.get()));
        let method = intern!(this.py(), "datagram_received");
        endpoint::call_protocol(this, method, &[&incoming.data, &incoming.sender])
    }

    /// Delivers what was kept, in the next iteration.
    pub(super) fn deliver_later(this: ThisDatagram<'_, '_>) {
        if !this.undelivered.borrow().is_empty() {
            this.core.push(ReadyEntry::Step(BoundMethod::new(this, deliver_step)));
        }
    }

    /// Delivers what was kept, as long as it is wanted, for a time slice.
    fn deliver_kept(this: ThisDatagram<'_, '_>) -> PyResult<()> {
        let slice = TimeSlice::default();
        while this.is_wanted() && !slice.is_over() {
            let Some(incoming) = this.undelivered.borrow_mut().pop_front() else { break };
            if let Err(error) = Datagram::deliver(this, &incoming) {
                Datagram::deliver_later(this);
                return Err(error);
            }
        }
        Ok(())
    }
}

fn deliver_step(this: ThisDatagram<'_, '_>) -> PyResult<()> {
    endpoint::in_read_context(this, || Datagram::deliver_kept(this))?;
    if this.registration.wants_read() {
        // The time slice is over, or the event loop is stopping.
        Datagram::deliver_later(this);
    }
    Ok(())
}
