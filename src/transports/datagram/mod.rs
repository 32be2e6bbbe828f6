//! The datagram transport: UDP, and Unix sockets of that kind.
//!
//! A datagram is sent within sendto(), and only one that the socket does not take is queued. Several are received at a
//! time; what a protocol does not want any more, because it paused reading or stopped the event loop, is kept for later.

mod addresses;
pub mod class;
mod receiving;
mod sending;

use std::cell::Cell;
use std::collections::VecDeque;
use std::ops::Deref;

use pyo3::prelude::*;

use super::endpoint::{self, Endpoint, Transport};
use super::socket_file::SocketFile;
use crate::cpython::borrowing::StateCell;
use crate::cpython::buffer::Bytes;
use crate::cpython::class::{Native, Obj, This, Visitor};
use crate::cpython::object::Object;
use crate::reactor::poller::fork_count;
use addresses::{Addresses, Family};

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
    /// In which process it was filled, by the number of its forks: a forked child leaves it to its parent.
    forks: Cell<u32>,
    /// Bytes in the queue, each datagram counted with its header.
    queued: Cell<usize>,
    /// What asyncio adds for each datagram.
    header: usize,
    undelivered: StateCell<VecDeque<Incoming>>,
}

pub type ThisDatagram<'a, 'py> = This<'a, 'py, Datagram>;

impl Deref for Datagram {
    type Target = Endpoint;

    fn deref(&self) -> &Endpoint {
        &self.endpoint
    }
}

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
        };
        let datagram = Obj::new(py, datagram)?;
        endpoint::start(py, &datagram, || Ok(()))?;
        Ok(datagram)
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
    crate::class_static!(0);

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

    const FINALIZES: bool = true;

    fn finalize(this: ThisDatagram<'_, '_>) {
        endpoint::finalize(this);
    }
}
