//! What a transport still has to send.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use crate::core::Count;
use crate::cpython::buffer::Bytes;
use crate::reactor::poller::fork_count;
use crate::reactor::socket::{MAX_SLICES, is_not_ready};

/// How far sending got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing is left.
    Drained,
    /// The socket takes no more for now, or has taken enough.
    Blocked,
}

/// Chunks of bytes in order, of which the first may be sent in part.
#[derive(Default)]
pub struct WriteQueue {
    /// Most often there is one. None if there is no other either.
    first: Option<Bytes>,
    others: VecDeque<Bytes>,
    /// Bytes of the first chunk that are sent.
    sent: usize,
    /// Bytes that are not.
    size: usize,
    /// In which process the chunks were added, by the number of its forks. A forked child must not send what its parent
    /// has queued, and sends.
    forks: u32,
}

/// Bytes sent before others have their turn. A peer that reads as fast as this loop writes would have it all otherwise.
const TURN: usize = 4 * 1024 * 1024;

impl WriteQueue {
    pub fn size(&self) -> usize {
        self.size
    }

    pub fn is_empty(&self) -> bool {
        self.size == 0
    }

    /// Makes room for so many chunks. False if there is no memory.
    #[must_use]
    pub fn reserve(&mut self, chunks: usize) -> bool {
        (self.first.is_none() && chunks == 1) || self.others.try_reserve(chunks).is_ok()
    }

    /// Adds a chunk. An empty one could never be sent, so it is left out.
    #[inline(always)]
    pub fn push(&mut self, chunk: Bytes) {
        let length = chunk.as_slice().len();
        if length == 0 {
            return;
        }
        if self.first.is_some() {
            return self.push_behind(chunk, length);
        }
        self.forks = fork_count();
        self.size = length;
        self.first = Some(chunk);
    }

    #[inline(never)]
    fn push_behind(&mut self, chunk: Bytes, length: usize) {
        if self.is_left_to_parent() {
            self.clear();
            return self.push(chunk);
        }
        self.size += length;
        self.others.push_back(chunk);
    }

    /// Adds the chunks of another queue, of which nothing is sent.
    pub fn append(&mut self, other: WriteQueue) {
        if other.forks == fork_count() {
            other.first.into_iter().chain(other.others).for_each(|chunk| self.push(chunk));
        }
    }

    /// Hands chunks to `write`, which tells how many bytes it took, until nothing is left or it takes no more. What it
    /// took is counted as `written`.
    pub fn drain(
        &mut self,
        written: &Count,
        write: impl Fn(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<Progress> {
        if self.is_left_to_parent() {
            self.clear();
        }
        // Most often there is one chunk, and it goes as a whole.
        let mut left = TURN;
        if self.others.is_empty() && self.size <= TURN {
            let Some(first) = &self.first else { return Ok(Progress::Drained) };
            match write(&[IoSlice::new(&first.as_slice()[self.sent..])]) {
                Ok(count) if count == self.size => {
                    written.add(count);
                    self.first = None;
                    self.sent = 0;
                    self.size = 0;
                    return Ok(Progress::Drained);
                }
                Ok(count) => {
                    self.advance(count, written);
                    left -= count;
                }
                // One that was interrupted is tried again in the next iteration, after the signal's handlers.
                Err(error) if is_not_ready(&error) => return Ok(Progress::Blocked),
                Err(error) => return Err(error),
            }
        }
        self.drain_chunks(left, written, write)
    }

    /// The same, for at most `left` bytes.
    #[inline(never)]
    fn drain_chunks(
        &mut self,
        mut left: usize,
        written: &Count,
        write: impl Fn(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<Progress> {
        while let Some(first) = &self.first {
            if left == 0 {
                return Ok(Progress::Blocked);
            }
            // One system call, too, can go on for as long as the peer reads.
            let first = &first.as_slice()[self.sent..];
            let first = &first[..first.len().min(left)];
            match self.write_several(first, left, &write) {
                Ok(count) => {
                    self.advance(count, written);
                    left = left.saturating_sub(count);
                }
                Err(error) if is_not_ready(&error) => return Ok(Progress::Blocked),
                Err(error) => return Err(error),
            }
        }
        Ok(Progress::Drained)
    }

    /// Whether what is queued was queued before this process was forked.
    fn is_left_to_parent(&self) -> bool {
        self.forks != fork_count()
    }

    #[inline(never)]
    fn write_several(
        &self,
        first: &[u8],
        limit: usize,
        write: impl Fn(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        slices[0] = IoSlice::new(first);
        let mut count = 1;
        let mut left = limit - first.len();
        for (slice, chunk) in slices[1..].iter_mut().zip(&self.others) {
            if left == 0 {
                break;
            }
            let chunk = chunk.as_slice();
            let chunk = &chunk[..chunk.len().min(left)];
            *slice = IoSlice::new(chunk);
            left -= chunk.len();
            count += 1;
        }
        write(&slices[..count])
    }

    /// Drops what was sent.
    fn advance(&mut self, count: usize, written: &Count) {
        written.add(count);
        self.size -= count;
        self.sent += count;
        while let Some(first) = &self.first {
            let length = first.as_slice().len();
            if self.sent < length {
                break;
            }
            self.sent -= length;
            self.first = self.others.pop_front();
        }
    }

    /// Drops everything. No Python code runs: the chunks are exactly bytes.
    pub fn clear(&mut self) {
        self.first = None;
        self.sent = 0;
        self.size = 0;
        if !self.others.is_empty() {
            self.others = VecDeque::new();
        }
    }
}
