//! What is ready and when: the part of the event loop that knows nothing of Python.
//!
//! - [`clock`]: the time.
//! - [`poller`]: waits for descriptors, and for a wake-up from another thread.
//! - [`registry`]: which descriptor is watched, for what, on whose behalf.
//! - [`descriptor_map`]: what belongs to the number of a descriptor.
//! - [`kernel`]: what those ask of the kernel; tests have a simulated one.
//! - [`spin`]: waiting without sleeping.
//! - [`faults`]: system calls that fail when a test says so.
//! - [`histogram`]: how long things took.
//! - [`poll_policy`]: when the clock and the descriptors are looked at.
//! - [`run_lock`]: keeps other threads from a handle while its callback runs.
//! - [`sync`]: what threads share state by.
//! - [`timers`]: what is due when.
//! - [`run_monitor`]: whether a callback runs for long.
//! - [`inject_queue`]: work handed over by other threads.
//! - [`socket`], [`datagram`], [`pipe`]: the system calls that transports make.

pub mod clock;
pub mod datagram;
mod descriptor_map;
pub mod faults;
pub mod histogram;
pub mod inject_queue;
pub mod kernel;
pub mod pipe;
pub mod poll_policy;
pub mod poller;
pub mod registry;
pub mod run_lock;
pub mod run_monitor;
pub mod socket;
pub mod spin;
mod sync;
pub mod timers;

#[cfg(all(loom, test))]
mod interleavings;
#[cfg(all(test, not(loom), target_os = "linux"))]
mod simulator;
