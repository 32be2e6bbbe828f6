//! Receiving from stream sockets into bytes objects.

use std::cell::Cell;
use std::os::fd::RawFd;

use pyo3::prelude::*;

use super::{Core, RECEIVE_BUFFER};
use crate::cpython::buffer::new_bytes;
use crate::cpython::object::Object;
use crate::cpython::os_error::OrOsError;
use crate::reactor::socket;

/// What came of an attempt to receive.
pub enum Received {
    /// Bytes: none at the end of the stream.
    Data(Object, usize),
    /// The socket is not ready.
    Nothing,
}

/// What is received is copied into a bytes object of its size if it is usually less than this, which the interpreter
/// allocates cheaply...
const SMALL: usize = 480;
/// ...and what is larger than this is not to take up much more memory than it needs: a program may keep it.
const LARGE: usize = 8 * 1024;

/// Follows what comes: up at once, down slowly.
fn note_size(usual: &Cell<usize>, size: usize) {
    let former = usual.get();
    usual.set(if size >= former { size } else { former - (former - size) / 8 });
}

impl Core {
    /// A bytes object with a copy of what was received.
    pub fn bytes_of(&self, py: Python<'_>, data: &[u8]) -> PyResult<Object> {
        if !(SMALL..=LARGE).contains(&data.len()) {
            return new_bytes(py, data);
        }
        let mut blank = self.blank_bytes(py, data.len())?;
        blank.as_mut_slice()[..data.len()].copy_from_slice(data);
        Ok(self.hand_out(blank, data.len()))
    }

    /// Receives at most `limit` bytes, and no more than [`RECEIVE_BUFFER`]. `usual` remembers, from one call to the next,
    /// how much comes.
    #[inline(always)]
    pub fn receive(
        &self,
        py: Python<'_>,
        fd: RawFd,
        limit: usize,
        usual: &Cell<usize>,
    ) -> PyResult<Received> {
        let limit = limit.min(RECEIVE_BUFFER);
        if usual.get() < SMALL {
            self.receive_and_copy(py, fd, limit, &[], usual)
        } else {
            self.receive_into_bytes(py, fd, limit, usual)
        }
    }

    /// Receives into the loop's buffer, behind what was received already.
    #[inline(never)]
    fn receive_and_copy(
        &self,
        py: Python<'_>,
        fd: RawFd,
        limit: usize,
        begun: &[u8],
        usual: &Cell<usize>,
    ) -> PyResult<Received> {
        self.with_buffer(|buffer| {
            let (front, rest) = buffer[..limit].split_at_mut(begun.len());
            let count = match socket::recv(fd, rest) {
                Ok(count) => begun.len() + count,
                // The end or the error comes again with the next event.
                Err(_) if !begun.is_empty() => begun.len(),
                Err(error) if socket::is_not_ready(&error) => return Ok(Received::Nothing),
                Err(error) => return Err(error).or_os_error(),
            };
            front.copy_from_slice(begun);
            note_size(usual, count);
            Ok(Received::Data(new_bytes(py, &buffer[..count])?, count))
        })
    }

    /// Receives into a bytes object, with room for what usually comes and some more.
    #[inline(always)]
    fn receive_into_bytes(
        &self,
        py: Python<'_>,
        fd: RawFd,
        limit: usize,
        usual: &Cell<usize>,
    ) -> PyResult<Received> {
        let size = (usual.get() + usual.get() / 4).min(limit);
        let mut blank = self.blank_bytes(py, size)?;
        let slice = blank.as_mut_slice();
        let capacity = slice.len().min(limit);
        let count = match socket::recv(fd, &mut slice[..capacity]) {
            Ok(count) => count,
            Err(error) => {
                self.put_back(blank);
                return if socket::is_not_ready(&error) {
                    Ok(Received::Nothing)
                } else {
                    Err(error).or_os_error()
                };
            }
        };
        if count == capacity && count < limit {
            // There may be more.
            let received = self.receive_and_copy(py, fd, limit, &blank.as_mut_slice()[..count], usual);
            self.put_back(blank);
            return received;
        }
        note_size(usual, count);
        let least = if capacity <= LARGE { capacity / 2 } else { capacity - capacity / 4 };
        if count < least {
            // Too little to keep that much memory for.
            let data = new_bytes(py, &blank.as_mut_slice()[..count]);
            self.put_back(blank);
            return data.map(|data| Received::Data(data, count));
        }
        Ok(Received::Data(self.hand_out(blank, count), count))
    }
}
