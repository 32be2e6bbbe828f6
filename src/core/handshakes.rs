//! How long TLS handshakes take: some milliseconds each, so that one iteration is not to do all that a burst of connections brings.

use std::cell::Cell;

use super::Core;
use crate::reactor::clock;

/// How many seconds of an iteration handshakes may take. One that has begun then is finished.
const MOST: f64 = 4e-3;

#[derive(Default)]
pub struct Handshakes {
    iteration: Cell<u64>,
    /// What they took in that iteration, in seconds.
    taken: Cell<f64>,
}

impl Core {
    /// Runs a step of a handshake, unless others have taken this iteration's time. None if it is to be run in another one.
    pub fn shake_hands<R>(&self, f: impl FnOnce() -> R) -> Option<R> {
        let handshakes = &self.handshakes;
        let iteration = self.iteration.get();
        if handshakes.iteration.replace(iteration) != iteration {
            handshakes.taken.set(0.0);
        }
        if handshakes.taken.get() > MOST {
            return None;
        }
        let began = clock::now();
        let result = f();
        handshakes.taken.set(handshakes.taken.get() + clock::now() - began);
        Some(result)
    }
}
