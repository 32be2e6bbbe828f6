//! Transports: what moves bytes between a descriptor and a protocol.

pub mod address;
pub mod connection;
pub mod datagram;
pub mod endpoint;
pub mod flow;
pub mod limit;
pub mod listener;
mod methods;
pub mod pipe;
pub mod socket_file;
pub mod stream;
pub mod tls;
pub mod write_queue;

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use pyo3::prelude::*;

use crate::cpython::class::Obj;
use crate::cpython::object::Object;
use datagram::Datagram;
use endpoint::Transport;
use pipe::{ReadPipe, WritePipe};
use stream::Stream;

/// Whether the program has replaced socket.socket, or a method of it that asyncio's transports call. Set by `event_loop::overrides`.
pub static SOCKETS_ARE_PATCHED: AtomicBool = AtomicBool::new(false);

pub fn sockets_are_patched() -> bool {
    SOCKETS_ARE_PATCHED.load(Relaxed)
}

/// How many bytes an object has still to send, if it is a transport.
pub fn queued_size(object: &Object) -> usize {
    fn size_of<T: Transport>(object: &Object) -> Option<usize> {
        Obj::<T>::downcast(object).map(|transport| transport.queued_size())
    }
    size_of::<Stream>(object)
        .or_else(|| size_of::<Datagram>(object))
        .or_else(|| size_of::<WritePipe>(object))
        .unwrap_or(0)
}

/// Whether an object is a transport.
pub fn is_transport(object: &Object) -> bool {
    Obj::<Stream>::downcast(object).is_some()
        || Obj::<Datagram>::downcast(object).is_some()
        || Obj::<ReadPipe>::downcast(object).is_some()
        || Obj::<WritePipe>::downcast(object).is_some()
}

/// The protocol of a transport: over TLS, the program's.
pub fn protocol_of(object: &Object) -> Option<Object> {
    fn of<T: Transport>(object: &Object) -> Option<Object> {
        Obj::<T>::downcast(object)?.protocol.get()
    }
    let protocol = of::<Stream>(object)
        .or_else(|| of::<Datagram>(object))
        .or_else(|| of::<ReadPipe>(object))
        .or_else(|| of::<WritePipe>(object))?;
    match Obj::<tls::Protocol>::downcast(&protocol) {
        Some(tls) => tls.program_protocol().or(Some(protocol)),
        None => Some(protocol),
    }
}

/// Whether an object is a transport that waits for nothing, and whose descriptor is closed: garbage that the event loop has yet to
/// finalize, or as good as that.
pub fn is_abandoned(object: &Object) -> bool {
    fn is<T: Transport>(object: &Object) -> bool {
        Obj::<T>::downcast(object)
            .is_some_and(|transport| transport.registration.is_weak() && transport.is_file_closed())
    }
    is::<Stream>(object) || is::<Datagram>(object)
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    stream::class::register(module)?;
    tls::class::register(module)?;
    datagram::class::register(module)?;
    pipe::class::register(module)?;
    connection::register(module)?;
    limit::register(module)?;
    listener::register(module)
}
