//! The object layer: Python objects, classes and calls, by the C API.
//!
//! **To call Python, use [`call`] (a callable or a method's name, and a slice of arguments); for anything else use PyO3, but
//! nothing of it that makes an object of a Rust value, since that panics out of memory.** Attributes, operators, conversions
//! from Python and calls without arguments on rare paths are PyO3's. Names are interned by `intern!`, other objects are made
//! by [`object`] and [`buffer`], and errors by [`errors`]: all of these return MemoryError.
//!
//! | type | what it is for | invariant |
//! |---|---|---|
//! | [`object::Object`] | a strong reference | never null; dropping it may run Python code |
//! | [`object::ObjectCell`] | a reference that is replaced while its owner is shared | no reference into it outlives an expression |
//! | [`class::Native`] | the Rust value of an instance: what the garbage collector sees and clears | `traverse` runs no Python code and visits all that the value owns |
//! | [`class::Obj`] | a strong reference to an instance of a native class | its class is `T`'s, so it derefs to `T` unchecked |
//! | [`class::This`] | `self` in a method, borrowed | as for `Obj` |
//! | [`class::Class`] | a class once it is made, and its free list | made once; an instance on the list has no value and one memory block |
//! | [`bound_method::BoundMethod`] | an instance and a function for it, for callers that do not know its class | the function is for the instance's class |
//! | [`class::Definition`] | what a class is made of | `open` classes have a `__dict__` and weak references behind the value |
//! | [`args::Signature`] | a method's name and parameters | the text that `inspect` shows is the one that is parsed |
//! | [`args::Args`] | the arguments of a vectorcall, borrowed | good for the call |
//! | [`buffer::Bytes`] | an exact bytes object | immutable; dropping it runs no Python code |
//! | [`buffer::ReadableBuffer`] | memory that an object lends | passed to system calls only |
//! | [`received::BytesPool`] | bytes objects to receive into | filled only while no other reference exists |
//! | [`borrowing::StateCell`] | state of the core | not borrowed while Python code runs: debug builds check it |
//! | [`openssl::Connection`] | the SSL of an `_ssl._SSLSocket` | its owner is kept; its BIO is ours |
//! | [`names::Name`] | an interned string | made once, never released |
//! | [`module::Definition`] | the extension module | static |
//!
//! PyO3's own types are used where they do as well: `Bound` and `Borrowed` for references within a function, `PyErr` for
//! errors, `Python` for an attached thread. They are not used
//! - for references that are kept: dropping a `Py` looks up whether the thread is attached, which a `Handle` would pay five
//!   times;
//! - for classes: `#[pyclass]` cannot derive from a class written in Python on every supported version, and a transport must
//!   be an asyncio.Transport; its parsing of arguments is generic;
//! - for buffers: `PyBuffer` requests shape, strides and format, and is boxed;
//! - for the module and interned names: `#[pymodule]` and PyO3's `intern!` panic out of memory.
//!
//! **Threads.** An object is used and dropped only by a thread that is attached to the interpreter. [`object::Object`] is neither
//! Send nor Sync, so the compiler rejects code that takes one where the thread is detached. [`ownership`] says which thread may touch an
//! event loop's state. What is process-wide is in [`statics`]; besides, there
//! are interned names, `crate::imports`, the depth in [`trashcan`] and the mark in [`interpreter`]. [`interpreter::Interpreter`] is
//! what a thread has that Python did not start.
//!
//! **Unsafe code** is here and in the reactor only. [`ways_in`] wraps each call that can run Python code.
//!
//! **Tests**: `tests/test_native_classes.py`, `test_native_arguments.py` and `test_native_memory.py`, `tests/test_introspection.py`
//! for signatures, `tests/torture/test_surface.py`, `test_memory.py` and `test_memcheck.py`; `make torture-debug` for borrows.

pub mod args;
pub mod arguments;
pub mod audit;
pub mod borrowing;
pub mod bound_method;
pub mod buffer;
pub mod call;
pub mod class;
pub mod coroutine_method;
mod counts;
pub mod errors;
pub mod frames;
pub mod free_list;
pub mod getter;
pub mod identity;
pub mod interpreter;
pub mod methods;
pub mod module;
pub mod names;
pub mod namespace;
pub mod object;
pub mod openssl;
pub mod ownership;
pub mod received;
pub mod socket;
pub mod statics;
mod trashcan;
mod ways_in;
