//! What is ready and when: the part of the event loop without Python. No module here can run Python code.
//!
//! - [`kernel`]: the contract of a backend, which tests keep with a simulated kernel.
//! - [`poller`]: the backends: waits for descriptors and for a wake-up from another thread.
//! - [`registry`]: which descriptor is watched, for what, by which watch.
//! - [`descriptor_map`]: a map by the number of a descriptor.
//! - [`inject_queue`]: messages from other threads, and the state of the loop's wait.
//! - [`spin`]: the spin before a wait.
//! - `owner`: which thread may touch a loop's state, without the GIL.
//! - [`published`]: cells that one thread writes and any may read.
//! - [`poll_policy`]: when to poll while callbacks are ready.
//! - [`timers`]: the heap of timers.
//! - [`clock`]: the time, in seconds and in the processor's ticks.
//! - [`histogram`]: durations, counted by size.
//! - [`ring`]: a ring of records of what a loop did.
//! - [`run_monitor`]: lets a watchdog see a callback or an iteration that runs for long.
//! - [`thread_state`]: what a thread does, as the system tells.
//! - [`breakdown`]: where the time of a run went.
//! - [`run_lock`]: keeps other threads from a handle while its callback runs.
//! - [`memory`]: memory that others may write to meanwhile.
//! - [`socket`], [`datagram`], [`pipe`]: the system calls that transports make.
//! - [`faults`]: system calls that fail on demand.
//! - [`sync`]: the standard library's primitives, or loom's.

pub mod breakdown;
pub mod clock;
pub mod datagram;
mod descriptor_map;
pub mod faults;
pub mod handover;
pub mod histogram;
pub mod inject_queue;
pub mod kernel;
pub mod limits;
pub mod memory;
#[cfg(any(Py_GIL_DISABLED, test))]
pub mod owner;
pub mod pipe;
pub mod poll_policy;
pub mod poller;
pub mod published;
pub mod registry;
pub mod ring;
pub mod run_lock;
pub mod run_monitor;
pub mod socket;
pub mod spin;
mod sync;
pub mod thread_state;
pub mod timers;

#[cfg(all(loom, test))]
mod interleavings;
#[cfg(all(test, not(loom), target_os = "linux"))]
mod simulator;
