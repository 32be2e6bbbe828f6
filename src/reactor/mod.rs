//! What is ready and when: the part of the event loop that knows nothing of Python.
//!
//! - [`clock`]: the time.
//! - [`poller`]: waits for descriptors, and for a wake-up from another thread.
//! - [`registry`]: which descriptor is watched, for what, on whose behalf.
//! - [`descriptor_map`]: what belongs to the number of a descriptor.
//! - [`kernel`]: what those ask of the kernel; tests have a simulated one.
//! - [`doze`]: waiting without sleeping.
//! - [`faults`]: system calls that fail when a test says so.
//! - [`histogram`]: how long things took.
//! - [`pace`]: when the clock and the descriptors are looked at.
//! - [`run_lock`]: keeps other threads from a handle while its callback runs.
//! - [`sync`]: what threads share state by.
//! - [`timers`]: what is due when.
//! - [`turns`]: whether a callback runs for long.
//! - [`waker`]: work handed over by other threads.
//! - [`socket`], [`datagram`], [`pipe`]: the system calls that transports make.

pub mod clock;
pub mod datagram;
mod descriptor_map;
pub mod doze;
pub mod faults;
pub mod histogram;
pub mod kernel;
pub mod pace;
pub mod pipe;
pub mod poller;
pub mod registry;
pub mod run_lock;
pub mod socket;
mod sync;
pub mod timers;
pub mod turns;
pub mod waker;

#[cfg(all(loom, test))]
mod interleavings;
#[cfg(all(test, not(loom), target_os = "linux"))]
mod simulator;
