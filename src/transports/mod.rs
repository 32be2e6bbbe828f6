//! Transports: what moves bytes between a descriptor and a protocol.

pub mod address;
pub mod datagram;
pub mod endpoint;
pub mod flow;
mod methods;
pub mod pipe;
pub mod socket_file;
pub mod stream;
pub mod write_queue;

use pyo3::prelude::*;

use crate::cpython::class::Obj;
use crate::cpython::object::Object;
use datagram::Datagram;
use endpoint::Transport;
use pipe::WritePipe;
use stream::Stream;

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

/// Makes the classes.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    stream::class::register(module)?;
    datagram::class::register(module)?;
    pipe::class::register(module)
}
