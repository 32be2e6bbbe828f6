//! Transports: what moves bytes between a descriptor and a protocol.

pub mod address;
pub mod flow;
pub mod stream;
pub mod stream_class;
pub mod write_queue;
