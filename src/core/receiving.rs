//! Receiving into bytes objects: for streams, and for sock_recv() from any socket.
//!
//! A size hint, which the caller keeps for each socket, follows what usually arrives: small data are copied out of the loop's
//! buffer, larger ones are received into objects of the pool.

use std::cell::Cell;
use std::io;
use std::os::fd::RawFd;

use pyo3::prelude::*;

use super::{Core, RECEIVE_BUFFER};
use crate::cpython::buffer::{joined, new_bytes};
use crate::cpython::errors::{no_memory, os_error};
use crate::cpython::object::Object;
use crate::cpython::received::UninitBytes;
use crate::reactor::socket;
use crate::reserve::zeroes;

pub enum Received {
    /// A bytes object and its length, which is 0 at the end of the stream.
    Data(Object, usize),
    /// The socket is not ready.
    Nothing,
}

/// Less than this is copied into a bytes object of its size, which the interpreter allocates from its own pools.
const SMALL: usize = 480;
/// An object of up to this many bytes may have twice the memory that it needs, a larger one a third more.
const LARGE: usize = 8 * 1024;

/// The most bytes of a stream to receive at a time. glibc maps memory for an object that is larger, and gives it back each time: its pages
/// are then made anew for each.
const PIECE: usize = 128 * 1024 - 256;
/// Bytes to receive at a time without memory for [`RECEIVE_BUFFER`].
pub const LEAST: usize = 8 * 1024;

/// A peak raises the hint at once; less than the hint lowers it by an eighth of the difference.
fn update_size_hint(size_hint: &Cell<usize>, size: usize) {
    let former = size_hint.get();
    size_hint.set(if size >= former { size } else { former - (former - size) / 8 });
}

/// How many bytes to receive at a time: the hint and a quarter more.
fn room(size_hint: &Cell<usize>) -> usize {
    size_hint.get() + size_hint.get() / 4
}

impl Core {
    /// A bytes object with a copy of received data.
    pub fn bytes_of(&self, py: Python<'_>, data: &[u8]) -> PyResult<Object> {
        if !(SMALL..=LARGE).contains(&data.len()) {
            return new_bytes(py, data);
        }
        let mut uninit = self.take_bytes(py, data.len())?;
        let count = uninit.write(data);
        // SAFETY: they were just written.
        Ok(unsafe { self.bytes_pool.borrow_mut().freeze(uninit, count) })
    }

    /// A bytes object with room for `size` bytes, without a content.
    #[inline(always)]
    pub fn take_bytes(&self, py: Python<'_>, size: usize) -> PyResult<UninitBytes> {
        let reused = self.bytes_pool.borrow_mut().reuse(size);
        match reused {
            Some(uninit) => Ok(uninit),
            None => UninitBytes::new(py, size),
        }
    }

    /// Keeps an object that was not needed.
    pub fn recycle_bytes(&self, uninit: UninitBytes) {
        self.bytes_pool.borrow_mut().recycle(uninit);
    }

    /// The bytes object with its first `count` bytes, of `capacity` that were offered, as its content; or a copy if too much of its
    /// memory would be wasted.
    ///
    /// # Safety
    /// They have been written.
    #[inline(always)]
    pub unsafe fn freeze_bytes(
        &self,
        py: Python<'_>,
        uninit: UninitBytes,
        capacity: usize,
        count: usize,
    ) -> Object {
        let least = if capacity <= LARGE { capacity / 2 } else { capacity - capacity / 4 };
        if count < least {
            // The program may keep the object, which would waste the rest of its memory.
            // SAFETY: as the caller says.
            if let Ok(data) = new_bytes(py, unsafe { uninit.written(count) }) {
                self.recycle_bytes(uninit);
                return data;
            }
        }
        // SAFETY: as the caller says.
        unsafe { self.bytes_pool.borrow_mut().freeze(uninit, count) }
    }

    /// Receives at most [`PIECE`] bytes of a stream. The number of an error behind data is put into `deferred_error`, for the
    /// next call: the kernel returns it once only.
    #[inline(always)]
    pub fn receive(
        &self,
        py: Python<'_>,
        fd: RawFd,
        size_hint: &Cell<usize>,
        deferred_error: &Cell<i32>,
    ) -> PyResult<Received> {
        if size_hint.get() < SMALL {
            return self.receive_and_copy(py, fd, PIECE, LEAST, size_hint);
        }
        let mut uninit = self.take_bytes(py, room(size_hint).min(PIECE))?;
        let slice = uninit.as_mut_slice();
        let capacity = slice.len().min(PIECE);
        let count = match socket::recv_uninit(fd, &mut slice[..capacity]) {
            Ok(count) => count,
            Err(error) => {
                self.bytes_pool.borrow_mut().recycle(uninit);
                return nothing_or_error(py, error);
            }
        };
        if count == capacity && count < PIECE && self.has_buffer() {
            // It is full, so that there may be more.
            return self.with_buffer(py, RECEIVE_BUFFER, |buffer| {
                let rest = &mut buffer[..PIECE - capacity];
                let more = match socket::recv(fd, &mut *rest) {
                    Ok(count) => count,
                    Err(error) if socket::is_not_ready(&error) => 0,
                    Err(error) => {
                        deferred_error.set(error.raw_os_error().unwrap_or(libc::EIO));
                        0
                    }
                };
                self.received_both(py, uninit, capacity, &rest[..more], size_hint)
            })?;
        }
        self.received(py, uninit, capacity, count, size_hint)
    }

    /// Receives at most `limit` bytes, and no more than [`RECEIVE_BUFFER`], by one system call. A second one would find the rest of a
    /// datagram lost, and an error of it would be.
    pub fn receive_at_once(
        &self,
        py: Python<'_>,
        fd: RawFd,
        limit: usize,
        size_hint: &Cell<usize>,
    ) -> PyResult<Received> {
        let limit = limit.min(RECEIVE_BUFFER);
        if size_hint.get() < SMALL {
            return self.receive_and_copy(py, fd, limit, limit, size_hint);
        }
        let mut uninit = self.take_bytes(py, room(size_hint).min(limit))?;
        let capacity = uninit.as_mut_slice().len().min(limit);
        self.with_buffer(py, limit, |buffer| {
            let rest = &mut buffer[..limit - capacity];
            match socket::recv_into_both(fd, &mut uninit.as_mut_slice()[..capacity], rest) {
                Ok(count) if count > capacity => {
                    self.received_both(py, uninit, capacity, &rest[..count - capacity], size_hint)
                }
                Ok(count) => self.received(py, uninit, capacity, count, size_hint),
                Err(error) => {
                    self.bytes_pool.borrow_mut().recycle(uninit);
                    nothing_or_error(py, error)
                }
            }
        })?
    }

    /// Receives into the loop's buffer at most `limit` bytes, or `least` if there is no memory for more.
    #[inline(never)]
    fn receive_and_copy(
        &self,
        py: Python<'_>,
        fd: RawFd,
        limit: usize,
        least: usize,
        size_hint: &Cell<usize>,
    ) -> PyResult<Received> {
        self.with_buffer(py, least, |buffer| {
            let limit = limit.min(buffer.len());
            match socket::recv(fd, &mut buffer[..limit]) {
                Ok(count) => {
                    update_size_hint(size_hint, count);
                    Ok(Received::Data(self.received_bytes(py, &buffer[..count], &[])?, count))
                }
                Err(error) => nothing_or_error(py, error),
            }
        })?
    }

    /// Makes the result of `count` bytes that were received into `uninit`, of `capacity` bytes that were offered.
    #[inline(always)]
    fn received(
        &self,
        py: Python<'_>,
        uninit: UninitBytes,
        capacity: usize,
        count: usize,
        size_hint: &Cell<usize>,
    ) -> PyResult<Received> {
        update_size_hint(size_hint, count);
        // SAFETY: `count` bytes were received.
        Ok(Received::Data(unsafe { self.freeze_bytes(py, uninit, capacity, count) }, count))
    }

    /// Makes the result of `count` bytes that were received into `uninit`, and the rest, into the buffer.
    #[inline(never)]
    fn received_both(
        &self,
        py: Python<'_>,
        uninit: UninitBytes,
        count: usize,
        rest: &[u8],
        size_hint: &Cell<usize>,
    ) -> PyResult<Received> {
        update_size_hint(size_hint, count + rest.len());
        // SAFETY: `count` bytes were received.
        let data = self.received_bytes(py, unsafe { uninit.written(count) }, rest);
        self.bytes_pool.borrow_mut().recycle(uninit);
        data.map(|data| Received::Data(data, count + rest.len()))
    }

    /// Whether [`Core::with_buffer`] cannot fail for [`RECEIVE_BUFFER`] bytes.
    pub fn has_buffer(&self) -> bool {
        let (buffer, spare) = (self.buffer.take(), self.spare.take());
        let is_there = buffer.is_some() && spare.is_some();
        self.buffer.set(buffer);
        self.spare.set(spare);
        is_there
    }

    /// Calls `f` with the receive buffer, of at least `least` bytes. MemoryError if there is no memory for them, or for the object
    /// that [`Core::received_bytes`] makes of them.
    pub fn with_buffer<R>(
        &self,
        py: Python<'_>,
        least: usize,
        f: impl FnOnce(&mut [u8]) -> R,
    ) -> PyResult<R> {
        let spare = match self.spare.take() {
            Some(spare) => spare,
            None => UninitBytes::new(py, RECEIVE_BUFFER).or_else(|_| UninitBytes::new(py, least))?,
        };
        let room = spare.capacity();
        self.spare.set(Some(spare));
        let buffer = self.buffer.take().or_else(|| zeroes(RECEIVE_BUFFER)).or_else(|| zeroes(least));
        let mut buffer = buffer.ok_or_else(|| no_memory(py))?;
        let size = buffer.len().min(room);
        let result = f(&mut buffer[..size]);
        if buffer.len() == RECEIVE_BUFFER {
            self.buffer.set(Some(buffer));
        }
        if room < RECEIVE_BUFFER {
            // It was the best there was memory for: the next call tries to get a larger one.
            self.spare.set(None);
        }
        Ok(result)
    }

    /// A bytes object of two parts of received data. Without memory for a new one, the spare one is used: data that were taken out
    /// of a socket must not be lost.
    pub fn received_bytes(&self, py: Python<'_>, first: &[u8], rest: &[u8]) -> PyResult<Object> {
        let made = if rest.is_empty() { new_bytes(py, first) } else { joined(py, first, rest) };
        made.or_else(|error| {
            let Some(mut uninit) = self.spare.take() else { return Err(error) };
            let length = first.len() + rest.len();
            if uninit.capacity() < length {
                return Err(error);
            }
            let bytes = first.iter().chain(rest);
            uninit.as_mut_slice().iter_mut().zip(bytes).for_each(|(place, byte)| _ = place.write(*byte));
            // SAFETY: they were just written.
            Ok(unsafe { self.bytes_pool.borrow_mut().freeze(uninit, length) })
        })
    }
}

fn nothing_or_error(py: Python<'_>, error: io::Error) -> PyResult<Received> {
    if socket::is_not_ready(&error) { Ok(Received::Nothing) } else { Err(os_error(py, error)) }
}
