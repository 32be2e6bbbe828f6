//! The stream transport: TCP and Unix sockets.
//!
//! A program with one thing to do at a time sends within write(). Otherwise what is written is sent at the end of the
//! iteration, all of it at once, so that a busy server does not wake its peers one by one in the middle of its work. Nobody can tell: whatever looks at what was sent (the buffer's size,
//! close(), abort(), write_eof()) has it sent first.

pub mod class;
mod reading;
mod writing;

use std::cell::Cell;
use std::ops::Deref;

use pyo3::prelude::*;
use pyo3::types::PyString;

use super::endpoint::{self, Endpoint, Transport};
use super::socket_file::SocketFile;
use super::write_queue::WriteQueue;
use crate::cpython::borrowing::StateCell;
use crate::cpython::class::{Native, Obj, This, Visitor};
use crate::cpython::object::{Object, ObjectCell};
use crate::imports::imports;
use crate::intern;

#[derive(Clone, Copy, PartialEq, Eq)]
enum ProtocolKind {
    Streaming,
    Buffered,
}

pub struct Stream {
    endpoint: Endpoint,
    file: SocketFile,
    kind: Cell<ProtocolKind>,
    server: ObjectCell,
    /// How many bytes arrive at a time, roughly.
    recv_size_hint: Cell<usize>,
    /// The number of the error that receiving met, which may have come behind data; 0 for none.
    read_error: Cell<i32>,
    /// Whether write_eof() was called.
    eof_written: Cell<bool>,
    /// Whether either forbids to write: write_eof(), or a sendfile that is under way.
    refuses_writes: Cell<bool>,
    queue: StateCell<WriteQueue>,
    /// Whether the queue will be sent at the end of the iteration.
    flush_scheduled: Cell<bool>,
    /// A future that sendfile waits for: the queue is empty, and nothing may be added.
    empty_waiter: ObjectCell,
}

pub type ThisStream<'a, 'py> = This<'a, 'py, Stream>;

impl Deref for Stream {
    type Target = Endpoint;

    fn deref(&self) -> &Endpoint {
        &self.endpoint
    }
}

impl Stream {
    /// Makes a transport, attaches it to its server, and schedules connection_made().
    pub fn create(
        py: Python<'_>,
        params: endpoint::EndpointParams,
        file: SocketFile,
        server: Option<Object>,
    ) -> PyResult<Obj<Stream>> {
        let stream = Stream {
            kind: Cell::new(kind_of(py, &params.protocol)?),
            endpoint: Endpoint::new(py, params)?,
            file,
            server: ObjectCell::default(),
            recv_size_hint: Cell::new(0),
            read_error: Cell::new(0),
            eof_written: Cell::new(false),
            refuses_writes: Cell::new(false),
            queue: StateCell::default(),
            flush_scheduled: Cell::new(false),
            empty_waiter: ObjectCell::default(),
        };
        let stream = Obj::new(py, stream)?;
        endpoint::start(py, &stream, || {
            if let Some(server) = server {
                call_server(py, &server, intern!(py, "_attach"), stream.as_object())?;
                stream.server.set(Some(server));
            }
            Ok(())
        })?;
        Ok(stream)
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

    fn flush(this: ThisStream<'_, '_>) -> PyResult<()> {
        Stream::flush_unless_blocked(this)
    }

    fn has_queued(&self) -> bool {
        !self.queue.borrow().is_empty()
    }

    fn queued_size(&self) -> usize {
        self.queue.borrow().size()
    }

    fn clear_queue(&self) {
        self.queue.borrow_mut().clear();
    }

    fn close_file(&self, py: Python<'_>, this: &Object) -> PyResult<()> {
        let closed = self.file.close(py);
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

    fn set_protocol(&self, py: Python<'_>, protocol: Object) -> PyResult<()> {
        self.kind.set(kind_of(py, &protocol)?);
        self.protocol.set(Some(protocol));
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
    let buffered = protocol.bind(py).is_instance(&imports(py)?.buffered_protocol.bind(py))?;
    Ok(if buffered { ProtocolKind::Buffered } else { ProtocolKind::Streaming })
}

/// Tells a server of a connection; before 3.13 it only counts them.
fn call_server(
    py: Python<'_>,
    server: &Object,
    method: &Bound<'_, PyString>,
    transport: &Object,
) -> PyResult<()> {
    if imports(py)?.server_takes_transport {
        server.call_method1(py, method, transport).map(drop)
    } else {
        server.call_method0(py, method).map(drop)
    }
}

impl Native for Stream {
    crate::class_static!(0);

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

    const FINALIZES: bool = true;

    fn finalize(this: ThisStream<'_, '_>) {
        endpoint::finalize(this);
    }
}
