//! What is ready and when: the part of the event loop that knows nothing of Python.
//!
//! - [`clock`]: the time.
//! - [`poller`]: waits for descriptors, and for a wake-up from another thread.
//! - [`registry`]: which descriptor is watched, for what, on whose behalf.
//! - [`doze`]: waiting without sleeping.
//! - [`faults`]: system calls that fail when a test says so.
//! - [`histogram`]: how long things took.
//! - [`pace`]: when the clock and the descriptors are looked at.
//! - [`timers`]: what is due when.
//! - [`turns`]: whether a callback runs for long.
//! - [`waker`]: work handed over by other threads.
//! - [`socket`], [`datagram`], [`pipe`]: the system calls that transports make.

pub mod clock;
pub mod datagram;
pub mod doze;
pub mod faults;
pub mod histogram;
pub mod pace;
pub mod pipe;
pub mod poller;
pub mod registry;
pub mod socket;
pub mod timers;
pub mod turns;
pub mod waker;
