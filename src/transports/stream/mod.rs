//! The stream transport: TCP and Unix sockets.
//!
//! In an iteration of few callbacks, the first write() sends. Otherwise what is written is sent at the end of the iteration, all of it
//! at once, so that a busy server does not wake its peers one by one in the middle of its work.
//!
//! Invariant: the program sees no difference. Methods whose result depends on what was sent (the buffer's size, close(),
//! abort(), write_eof()) call [`Transport::send_now`] first.

pub mod class;
mod reading;
mod writing;

use std::cell::Cell;

use pyo3::prelude::*;
use pyo3::types::PyString;

use super::endpoint::{self, Endpoint, Transport};
use super::socket_file::SocketFile;
use super::tls;
use super::write_queue::WriteQueue;
use crate::core::{Admitted, Parts};
use crate::cpython::borrowing::StateCell;
use crate::cpython::class::{Class, Native, Obj, This, Visitor};
use crate::cpython::object::{Object, ObjectCell};
use crate::cpython::ownership::Owner;
use crate::cpython::statics;
use crate::has_endpoint;
use crate::imports::imports;
use crate::intern;
use crate::reactor::published::Published;

pub use reading::BUFFER_UPDATED_FAILED;

#[derive(Clone, Copy, PartialEq, Eq)]
enum ProtocolKind {
    Streaming,
    Buffered,
    /// TLS, which takes what comes without an object.
    Tls,
}

pub struct Stream {
    endpoint: Endpoint,
    file: SocketFile,
    kind: Cell<ProtocolKind>,
    server: ObjectCell,
    /// Until the connection is closed, it counts as one of the server's.
    admitted: Cell<Option<Admitted>>,
    /// About how many bytes a receive yields: follows peaks.
    recv_size_hint: Cell<usize>,
    /// The errno of a failed receive, which can have followed data in the same event; 0 for none.
    read_error: Cell<i32>,
    eof_written: Cell<bool>,
    /// Whether write() is an error: after write_eof(), and during sendfile.
    refuses_writes: Cell<bool>,
    queue: StateCell<WriteQueue>,
    /// Whether the queue is sent at the end of the iteration.
    send_is_scheduled: Published<bool>,
    parts: Cell<Parts>,
    /// How often the high-water mark is doubled for what write() collects.
    doublings: Cell<u8>,
    /// Whether another thread uses the socket, so that what is written cannot wait for the end of the iteration.
    sends_at_once: Published<bool>,
    /// A future that sendfile waits for, done when the queue is empty. Nothing may be written until it is reset.
    empty_waiter: ObjectCell,
}

pub type ThisStream<'a, 'py> = This<'a, 'py, Stream>;

has_endpoint!(Stream);

impl Stream {
    /// Makes a transport, attaches it to its server, and schedules connection_made().
    pub fn create(
        py: Python<'_>,
        params: endpoint::EndpointParams,
        file: SocketFile,
        server: Option<Object>,
        admitted: Option<Admitted>,
    ) -> PyResult<Obj<Stream>> {
        let stream = Stream {
            kind: Cell::new(kind_of(py, &params.protocol)?),
            endpoint: Endpoint::new(py, params)?,
            file,
            server: ObjectCell::default(),
            admitted: Cell::new(admitted),
            recv_size_hint: Cell::new(0),
            read_error: Cell::new(0),
            eof_written: Cell::new(false),
            refuses_writes: Cell::new(false),
            queue: StateCell::default(),
            send_is_scheduled: Published::new(false),
            parts: Cell::default(),
            doublings: Cell::new(0),
            sends_at_once: Published::new(false),
            empty_waiter: ObjectCell::default(),
        };
        endpoint::start(py, stream, |stream| {
            if let Some(server) = server {
                call_server(py, &server, intern!(py, "_attach"), stream.as_object())?;
                stream.server.set(Some(server));
            }
            Ok(())
        })
    }
}

impl Stream {
    /// Whether write() is an error.
    pub fn refuses_writes(&self) -> bool {
        self.refuses_writes.get()
    }
}

impl Transport for Stream {
    const EXTRA: &'static [&'static str] = SocketFile::EXTRA;

    fn readable(this: ThisStream<'_, '_>) -> PyResult<()> {
        Stream::read(this)
    }

    fn writable(this: ThisStream<'_, '_>) -> PyResult<()> {
        Stream::write_ready(this)
    }

    fn send_now(this: ThisStream<'_, '_>) -> PyResult<()> {
        if this.can_send() { Stream::send(this) } else { Ok(()) }
    }

    fn queued_size(&self) -> usize {
        self.queue.borrow().size()
    }

    fn clear_queue(&self) {
        self.queue.borrow_mut().clear();
    }

    fn is_file_closed(&self) -> bool {
        self.file.descriptor() < 0
    }

    fn close_file(&self, py: Python<'_>, this: &Object) -> PyResult<()> {
        let closed = self.file.close(py);
        drop(self.admitted.take());
        let detached = match self.server.take() {
            Some(server) => call_server(py, &server, intern!(py, "_detach"), this),
            None => Ok(()),
        };
        closed.and(detached)
    }

    fn extra_info(this: ThisStream<'_, '_>, name: &Bound<'_, PyAny>) -> PyResult<Option<Object>> {
        let py = this.py();
        if name.eq(intern!(py, "socket"))? {
            let arguments = [&this.file.python_socket(py)?, &this.object()];
            return imports(py)?.stream_socket.call(py, &arguments).map(Some);
        }
        this.file.extra_info(py, name)
    }

    fn set_protocol(this: ThisStream<'_, '_>, protocol: Object) -> PyResult<()> {
        this.kind.set(kind_of(this.py(), &protocol)?);
        endpoint::replace_protocol(this, Some(protocol));
        Ok(())
    }

    fn after_lost(this: ThisStream<'_, '_>) -> PyResult<()> {
        match this.empty_waiter.get() {
            Some(waiter) => imports(this.py())?.fail_empty_waiter.call(this.py(), &[&waiter]).map(drop),
            None => Ok(()),
        }
    }
}

fn kind_of(py: Python<'_>, protocol: &Object) -> PyResult<ProtocolKind> {
    if Obj::<tls::Protocol>::downcast(protocol).is_some() {
        return Ok(ProtocolKind::Tls);
    }
    let buffered = protocol.bind(py).is_instance(&imports(py)?.buffered_protocol.bind(py))?;
    Ok(if buffered { ProtocolKind::Buffered } else { ProtocolKind::Streaming })
}

/// Calls a method by which a server keeps its connections; before 3.13 it only counts them.
pub fn call_server(
    py: Python<'_>,
    server: &Object,
    method: &Bound<'_, PyString>,
    transport: &Object,
) -> PyResult<()> {
    if imports(py)?.server_takes_transport {
        server.call_method(py, method, &[transport]).map(drop)
    } else {
        server.call_method(py, method, &[]).map(drop)
    }
}

impl Native for Stream {
    fn class() -> &'static Class {
        &statics::STREAM
    }

    fn traverse(&self, visitor: &mut Visitor) {
        self.endpoint.traverse(visitor);
        self.file.traverse(visitor);
        visitor.cell(&self.server);
        visitor.cell(&self.empty_waiter);
    }

    fn clear(&self) {
        self.endpoint.clear();
        self.server.set(None);
        self.empty_waiter.set(None);
    }

    fn owner(&self) -> Option<&Owner> {
        Some(&self.core.owner)
    }

    const FINALIZES: bool = true;

    fn finalize(this: ThisStream<'_, '_>) {
        endpoint::finalize(this);
    }

    fn finalize_elsewhere(this: ThisStream<'_, '_>) {
        this.core.finalize_later(this);
    }
}
