//! The ways in which a connection ends.

use pyo3::intern;
use pyo3::prelude::*;

use super::{Phase, Socket, Stream, ThisStream, call_server, connection_lost};
use crate::core::Ready;
use crate::cpython::object::{Object, copy_context};
use crate::handle::survivable;
use crate::imports::imports;
use crate::reactor::socket;
use crate::transports::address::Address;
use crate::transports::flow;

impl Stream {
    pub fn close(this: ThisStream<'_, '_>) -> PyResult<()> {
        if this.is_closing() {
            return Ok(());
        }
        Stream::flush_unless_blocked(this)?;
        if this.is_closing() {
            return Ok(());
        }
        this.wants_read.set(false);
        if this.queue.borrow().is_empty() {
            this.lose(this.py(), &this.object(), None)
        } else {
            this.phase.set(Phase::Closing);
            Ok(())
        }
    }

    /// Closes at once, with an exception for connection_lost().
    pub fn abort(this: ThisStream<'_, '_>, exception: Option<Object>) -> PyResult<()> {
        if this.is_lost() {
            return Ok(());
        }
        // asyncio has sent by now what was written, as far as the socket took it.
        Stream::flush_unless_blocked(this)?;
        this.force_close(this.py(), &this.object(), exception)
    }

    pub(super) fn force_close(
        &self,
        py: Python<'_>,
        this: &Object,
        exception: Option<Object>,
    ) -> PyResult<()> {
        if self.is_lost() {
            return Ok(());
        }
        self.queue.borrow_mut().clear();
        self.blocked.set(false);
        self.wants_read.set(false);
        self.lose(py, this, exception)
    }

    /// Schedules connection_lost().
    pub(super) fn lose(&self, py: Python<'_>, this: &Object, exception: Option<Object>) -> PyResult<()> {
        self.phase.set(Phase::Lost);
        let context = match &self.context {
            Some(context) => context.clone(),
            None => copy_context(py)?,
        };
        self.lost_context.set(Some(context));
        self.lost_exception.set(exception);
        self.core.push(Ready::Step(this.clone(), connection_lost));
        Ok(())
    }

    /// Ends the connection because of an error, which is reported unless it is the network's.
    pub fn fail(py: Python<'_>, this: &ThisStream<'_, '_>, error: PyErr, message: &str) -> PyResult<()> {
        let exception = survivable(py, error)?;
        // asyncio has sent by now what was written.
        Stream::flush_unless_blocked(*this)?;
        let object = this.object();
        let protocol = this.protocol.get().unwrap_or_else(|| Object::none(py));
        let message = message.into_pyobject(py)?.into();
        let arguments = [&this.event_loop, &message, &exception, &object, &protocol];
        imports(py)?.report_fatal.call(py, &arguments)?;
        this.force_close(py, &object, Some(exception))
    }

    pub(super) fn call_connection_lost(this: ThisStream<'_, '_>, exception: &Object) -> PyResult<()> {
        let py = this.py();
        let protocol = this.protocol.get();
        let result = match &protocol {
            Some(protocol) => protocol.call_method1(py, intern!(py, "connection_lost"), exception),
            None => Ok(Object::none(py)),
        };
        let object = this.object();
        let reported = this.with_parties(&object, py, |parties| {
            flow::report(py, result, "Exception in callback protocol.connection_lost()", parties)
        });
        let released = this.release(py, &object);
        if let Some(waiter) = this.empty_waiter.get() {
            imports(py)?.fail_empty_waiter.call(py, &[&waiter])?;
        }
        reported.and(released)
    }

    /// Closes the socket and lets go of everything.
    pub(super) fn release(&self, py: Python<'_>, this: &Object) -> PyResult<()> {
        self.phase.set(Phase::Closed);
        self.wants_read.set(false);
        self.blocked.set(false);
        if let Some(slot) = self.slot.take() {
            self.core.detach(slot);
        }
        if self.local.borrow().is_none() {
            let address = socket::local_address(self.fd).ok().map(Address::from);
            self.local.replace(address);
        }
        let socket = self.socket.replace(Socket::Closed);
        let closed = match &socket {
            Socket::Python(socket) => socket.call_method0(py, intern!(py, "close")).map(drop),
            Socket::Native(_) | Socket::Closed => Ok(()),
        };
        drop(socket);
        self.queue.borrow_mut().clear();
        self.protocol.set(None);
        let detached = match self.server.take() {
            Some(server) => call_server(py, &server, "_detach", this),
            None => Ok(()),
        };
        closed.and(detached)
    }
}
