//! hotloop's reactor beside mio's, on the same work.
//!
//! - [`sides`]: the two reactors behind one interface.
//! - [`cases`]: the work.

pub mod cases;
pub mod sides;
