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

/// Makes the classes.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    stream::class::register(module)?;
    datagram::class::register(module)?;
    pipe::class::register(module)
}
