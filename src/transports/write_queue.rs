//! What a transport still has to send.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use crate::cpython::object::Bytes;
use crate::reactor::socket::MAX_SLICES;

/// How far sending got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing is left.
    Drained,
    /// The socket takes no more for now.
    Blocked,
}

/// Chunks of bytes in order, of which the first may be sent in part.
#[derive(Default)]
pub struct WriteQueue {
    chunks: VecDeque<Bytes>,
    /// Bytes of the first chunk that are sent.
    sent: usize,
    /// Bytes that are not.
    size: usize,
}

impl WriteQueue {
    pub fn size(&self) -> usize {
        self.size
    }

    pub fn is_empty(&self) -> bool {
        self.size == 0
    }

    /// Adds a chunk. An empty one could never be sent, so it is left out.
    pub fn push(&mut self, chunk: Bytes) {
        let length = chunk.as_slice().len();
        if length > 0 {
            self.size += length;
            self.chunks.push_back(chunk);
        }
    }

    /// Hands chunks to `write`, which tells how many bytes it took, until nothing is left or it takes no more.
    pub fn drain(&mut self, write: impl Fn(&[IoSlice<'_>]) -> io::Result<usize>) -> io::Result<Progress> {
        while let Some(first) = self.chunks.front() {
            let first = &first.as_slice()[self.sent..];
            let result = if self.chunks.len() == 1 {
                write(&[IoSlice::new(first)])
            } else {
                self.write_several(&write)
            };
            match result {
                Ok(count) => self.advance(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Progress::Blocked),
                Err(error) => return Err(error),
            }
        }
        Ok(Progress::Drained)
    }

    fn write_several(&self, write: impl Fn(&[IoSlice<'_>]) -> io::Result<usize>) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let mut count = 0;
        for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
            let skip = if count == 0 { self.sent } else { 0 };
            *slice = IoSlice::new(&chunk.as_slice()[skip..]);
            count += 1;
        }
        write(&slices[..count])
    }

    /// Drops what was sent.
    fn advance(&mut self, count: usize) {
        self.size -= count;
        self.sent += count;
        while let Some(first) = self.chunks.front() {
            let length = first.as_slice().len();
            if self.sent < length {
                break;
            }
            self.sent -= length;
            self.chunks.pop_front();
        }
    }

    pub fn clear(&mut self) {
        *self = WriteQueue::default();
    }
}
