//! The C API that PyO3 does not wrap, and the one home, beside the reactor, of unsafe code.
//!
//! PyO3 cannot make a class whose base is a Python class on every supported version (a transport must be an
//! asyncio.Transport), takes a generic path to parse arguments, and keeps per-thread counts that a reference need not
//! cost. The hot classes of the event loop are therefore made here from the C API's own parts:
//!
//! - [`object`]: references, and calls.
//! - [`interpreter`]: which interpreter all this is of.
//! - [`class`]: classes whose instances hold a Rust value behind the layout of a Python base.
//! - [`bound_method`]: an instance and a function for it, for callers that do not know its class.
//! - [`methods`]: their methods and attributes; [`coroutine_method`]: those that pass for coroutine functions.
//! - [`args`]: what a method was called with.
//! - [`received`]: bytes objects to receive into.
//! - [`socket`]: the descriptors of socket objects.
//! - [`trashcan`]: how long chains of objects are destroyed.
//! - [`ways_in`]: what happens around each call that can run Python code; [`borrowing`] is a check made there.
//! - [`errors`]: exceptions, and errors of the operating system.
//! - [`module`]: the extension module, and what is asked of other modules.
//! - [`names`]: names of attributes and methods.
//! - [`namespace`]: hearing of changes to a dict.
//!
//! All of it leans on the GIL: an [`object::Object`] is used and dropped only by a thread that holds it. It is
//! neither Send nor Sync, so the compiler sees to it that none crosses into code that runs without it.
// GIL: reference counts, class statics and free lists are not synchronised in any other way.

pub mod args;
pub mod audit;
pub mod borrowing;
pub mod bound_method;
pub mod buffer;
pub mod class;
pub mod coroutine_method;
pub mod errors;
pub mod interpreter;
pub mod methods;
pub mod module;
pub mod names;
pub mod namespace;
pub mod object;
pub mod received;
pub mod socket;
mod trashcan;
mod ways_in;
