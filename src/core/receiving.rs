//! Receiving from stream sockets into bytes objects.

use std::cell::Cell;
use std::io;
use std::os::fd::RawFd;

use pyo3::prelude::*;

use super::{Core, RECEIVE_BUFFER};
use crate::cpython::buffer::{joined, new_bytes};
use crate::cpython::errors::os_error;
use crate::cpython::object::Object;
use crate::cpython::received::Blank;
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

/// Room for what usually comes, and some more.
fn room(usual: &Cell<usize>) -> usize {
    usual.get() + usual.get() / 4
}

/// Where an error goes that comes behind data of the same attempt: the kernel tells it once.
#[derive(Clone, Copy)]
pub enum Later<'a> {
    /// The number is kept here, for the next attempt.
    Kept(&'a Cell<i32>),
    /// Nowhere: only where there are more data, so that there is no error yet, is received again. The socket need not be a
    /// stream.
    Unread,
}

impl Core {
    /// A bytes object with a copy of what was received.
    pub fn bytes_of(&self, py: Python<'_>, data: &[u8]) -> PyResult<Object> {
        if !(SMALL..=LARGE).contains(&data.len()) {
            return new_bytes(py, data);
        }
        let mut blank = self.blank_bytes(py, data.len())?;
        let count = blank.write(data);
        // SAFETY: they were just written.
        Ok(unsafe { self.hand_out(blank, count) })
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
        later: Later<'_>,
    ) -> PyResult<Received> {
        let limit = limit.min(RECEIVE_BUFFER);
        // What does not fit into a smaller bytes object would be lost of a datagram.
        let is_datagram = || limit > room(usual) && !socket::is_stream(fd);
        if usual.get() < SMALL || (matches!(later, Later::Unread) && is_datagram()) {
            self.receive_and_copy(py, fd, limit, usual)
        } else {
            self.receive_into_bytes(py, fd, limit, usual, later)
        }
    }

    /// Receives into the loop's buffer.
    #[inline(never)]
    fn receive_and_copy(
        &self,
        py: Python<'_>,
        fd: RawFd,
        limit: usize,
        usual: &Cell<usize>,
    ) -> PyResult<Received> {
        self.with_buffer(|buffer| match socket::recv(fd, &mut buffer[..limit]) {
            Ok(count) => {
                note_size(usual, count);
                Ok(Received::Data(new_bytes(py, &buffer[..count])?, count))
            }
            Err(error) => nothing_or(py, error),
        })
    }

    /// Receives into a bytes object that has [`room`].
    #[inline(always)]
    fn receive_into_bytes(
        &self,
        py: Python<'_>,
        fd: RawFd,
        limit: usize,
        usual: &Cell<usize>,
        later: Later<'_>,
    ) -> PyResult<Received> {
        let mut blank = self.blank_bytes(py, room(usual).min(limit))?;
        let slice = blank.as_mut_slice();
        let capacity = slice.len().min(limit);
        let slice = &mut slice[..capacity];
        let result = socket::recv_uninit(fd, slice);
        let count = match result {
            Ok(count) => count,
            Err(error) => {
                self.put_back(blank);
                return nothing_or(py, error);
            }
        };
        if count == capacity && count < limit {
            // There may be more.
            let more = |rest: &mut [u8]| {
                if matches!(later, Later::Unread) && !socket::has_data(fd) {
                    return 0;
                }
                match (socket::recv(fd, rest), later) {
                    (Ok(count), _) => count,
                    (Err(error), Later::Kept(place)) if !socket::is_not_ready(&error) => {
                        place.set(error.raw_os_error().unwrap_or(libc::EIO));
                        0
                    }
                    (Err(_), _) => 0,
                }
            };
            return self.with_buffer(|buffer| {
                let rest = &mut buffer[..limit - capacity];
                let more = more(rest);
                self.both(py, blank, capacity, &rest[..more], usual)
            });
        }
        self.received(py, blank, capacity, count, usual)
    }

    /// The `count` bytes that were received into a bytes object where there is room for `capacity`.
    #[inline(always)]
    fn received(
        &self,
        py: Python<'_>,
        blank: Blank,
        capacity: usize,
        count: usize,
        usual: &Cell<usize>,
    ) -> PyResult<Received> {
        note_size(usual, count);
        let least = if capacity <= LARGE { capacity / 2 } else { capacity - capacity / 4 };
        if count < least {
            // Too little to keep that much memory for.
            // SAFETY: so many bytes were received.
            let data = new_bytes(py, unsafe { blank.written(count) });
            self.put_back(blank);
            return data.map(|data| Received::Data(data, count));
        }
        // SAFETY: so many bytes were received.
        Ok(Received::Data(unsafe { self.hand_out(blank, count) }, count))
    }

    /// The `count` bytes that were received into a bytes object, and the rest.
    #[inline(never)]
    fn both(
        &self,
        py: Python<'_>,
        blank: Blank,
        count: usize,
        rest: &[u8],
        usual: &Cell<usize>,
    ) -> PyResult<Received> {
        note_size(usual, count + rest.len());
        // SAFETY: so many bytes were received.
        let data = joined(py, unsafe { blank.written(count) }, rest);
        self.put_back(blank);
        data.map(|data| Received::Data(data, count + rest.len()))
    }
}

fn nothing_or(py: Python<'_>, error: io::Error) -> PyResult<Received> {
    if socket::is_not_ready(&error) { Ok(Received::Nothing) } else { Err(os_error(py, error)) }
}
