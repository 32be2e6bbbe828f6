//! Transports: what moves bytes between a descriptor and a protocol.

pub mod address;
pub mod flow;
pub mod stream;
pub mod write_queue;
