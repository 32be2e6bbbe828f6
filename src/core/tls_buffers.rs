//! OpenSSL's buffers of the loop's busy TLS connections, which are released when a connection has been idle for a second or two.
//!
//! While there are any, a wait lasts no longer than until they are looked at.

use super::Core;
use super::due::Due;
use crate::cpython::borrowing::StateCell;
use crate::cpython::openssl::Buffers;
use crate::cpython::ownership::Shared;

/// How long buffers are kept, in seconds, before they are looked at.
const INTERVAL: f64 = 1.0;

#[derive(Default)]
pub struct TlsBuffers {
    used: StateCell<Vec<Shared<Buffers>>>,
    /// When they are looked at.
    pub(super) due: Due,
}

impl Core {
    /// Looks at buffers from now on.
    pub fn keep_tls_buffers(&self, buffers: Shared<Buffers>) {
        let mut used = self.tls_buffers.used.borrow_mut();
        // Without memory, they are kept as long as the connection.
        if used.try_reserve(1).is_err() {
            return;
        }
        if used.is_empty() {
            self.tls_buffers.due.set(self.poll_policy.polled() + INTERVAL);
        }
        used.push(buffers);
    }

    /// Releases what is idle, if it is time.
    #[inline(always)]
    pub(super) fn release_tls_buffers(&self, now: f64) {
        if self.tls_buffers.due.has_come(now) {
            self.release_idle(now);
        }
    }

    #[cold]
    fn release_idle(&self, now: f64) {
        let mut used = self.tls_buffers.used.borrow_mut();
        used.retain(|buffers| buffers.release_if_idle());
        if used.is_empty() {
            *used = Vec::new();
            self.tls_buffers.due.clear();
        } else {
            self.tls_buffers.due.set(now + INTERVAL);
        }
    }
}
