//! The datagram transport: UDP, and Unix sockets of that kind.
//!
//! A datagram is sent within sendto(), and queued only if the socket does not take it. Several are received at a time. Those that
//! the protocol no longer wants, because it paused reading or stopped the event loop, are kept for later.

mod addresses;
pub mod class;
mod receiving;
mod sending;

use std::cell::Cell;
use std::collections::VecDeque;

use pyo3::exceptions::{PyBlockingIOError, PyInterruptedError};
use pyo3::prelude::*;

use super::endpoint::{self, Endpoint, Transport};
use super::socket_file::SocketFile;
use crate::cpython::borrowing::StateCell;
use crate::cpython::buffer::Bytes;
use crate::cpython::class::{Class, Native, Obj, This, Visitor};
use crate::cpython::object::Object;
use crate::cpython::ownership::Owner;
use crate::cpython::statics;
use crate::has_endpoint;
use crate::reactor::poller::fork_count;
use addresses::{Addresses, Family};

/// Whether a method of a socket is to be called again when the descriptor is ready.
fn is_not_ready(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<PyBlockingIOError>(py) || error.is_instance_of::<PyInterruptedError>(py)
}

/// A datagram to be sent, and where to, unless the socket is connected.
struct Outgoing {
    data: Bytes,
    address: Option<Object>,
}

/// A datagram received and not yet delivered, and its sender.
struct Incoming {
    data: Object,
    sender: Object,
}

pub struct Datagram {
    endpoint: Endpoint,
    file: SocketFile,
    /// The only address that may be sent to.
    address: Option<Object>,
    addresses: Addresses,
    queue: StateCell<VecDeque<Outgoing>>,
    /// [`fork_count`] when it was filled: a forked child must not send what its parent queued.
    forks: Cell<u32>,
    /// Bytes in the queue, each datagram counted with its header.
    queued: Cell<usize>,
    /// What asyncio adds to the buffer's size for each datagram.
    header: usize,
    undelivered: StateCell<VecDeque<Incoming>>,
    /// The iteration of the last delivery.
    delivered_in: Cell<Option<u64>>,
}

pub type ThisDatagram<'a, 'py> = This<'a, 'py, Datagram>;

has_endpoint!(Datagram);

impl Datagram {
    /// Makes a transport and schedules connection_made().
    pub fn create(
        py: Python<'_>,
        params: endpoint::EndpointParams,
        file: SocketFile,
        address: Option<Object>,
        header: usize,
    ) -> PyResult<Obj<Datagram>> {
        let family = Family::of(&file.python_socket(py)?.bind(py))?;
        let datagram = Datagram {
            endpoint: Endpoint::new(py, params)?,
            file,
            address,
            addresses: Addresses::new(family),
            queue: StateCell::default(),
            forks: Cell::new(fork_count()),
            queued: Cell::new(0),
            header,
            undelivered: StateCell::default(),
            delivered_in: Cell::new(None),
        };
        endpoint::start(py, datagram, |_| Ok(()))
    }
}

impl Datagram {
    /// Drops what was queued before this process was forked.
    fn leave_to_parent(&self) {
        let forks = fork_count();
        if self.forks.replace(forks) != forks {
            self.queued.set(0);
            drop(self.queue.take());
        }
    }
}

impl Transport for Datagram {
    const EXTRA: &'static [&'static str] = SocketFile::EXTRA;

    fn readable(this: ThisDatagram<'_, '_>) -> PyResult<()> {
        Datagram::receive(this)
    }

    fn writable(this: ThisDatagram<'_, '_>) -> PyResult<()> {
        Datagram::write_ready(this)
    }

    fn has_queued(&self) -> bool {
        !self.queue.borrow().is_empty()
    }

    fn queued_size(&self) -> usize {
        self.queued.get()
    }

    fn clear_queue(&self) {
        let queue = self.queue.take();
        self.queued.set(0);
        let undelivered = self.undelivered.take();
        drop((queue, undelivered));
    }

    fn is_file_closed(&self) -> bool {
        self.file.descriptor() < 0
    }

    fn close_file(&self, py: Python<'_>, _this: &Object) -> PyResult<()> {
        self.file.close(py)
    }

    fn extra_info(this: ThisDatagram<'_, '_>, name: &Bound<'_, PyAny>) -> PyResult<Option<Object>> {
        this.file.extra_info(this.py(), name)
    }

    fn resumed(this: ThisDatagram<'_, '_>) -> PyResult<()> {
        Datagram::deliver_later(this);
        Ok(())
    }
}

impl Native for Datagram {
    fn class() -> &'static Class {
        &statics::DATAGRAM
    }

    fn traverse(&self, visitor: &mut Visitor) {
        self.endpoint.traverse(visitor);
        self.file.traverse(visitor);
        visitor.optional(&self.address);
        if let Ok(queue) = self.queue.try_borrow() {
            queue.iter().for_each(|outgoing| visitor.optional(&outgoing.address));
        }
    }

    fn clear(&self) {
        self.endpoint.clear();
        if let Ok(mut queue) = self.queue.try_borrow_mut() {
            let dropped = std::mem::take(&mut *queue);
            drop(queue);
            drop(dropped);
        }
    }

    fn owner(&self) -> Option<&Owner> {
        Some(&self.core.owner)
    }

    const FINALIZES: bool = true;

    fn finalize(this: ThisDatagram<'_, '_>) {
        endpoint::finalize(this);
    }

    fn finalize_elsewhere(this: ThisDatagram<'_, '_>) {
        this.core.finalize_later(this);
    }
}
