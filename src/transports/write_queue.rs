//! The chunks that a transport still has to send. It calls no Python code: writing is the caller's closure.
//!
//! Every byte that a stream or a pipe sends goes through [`WriteQueue::drain`], which limits how many are sent at a time.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use crate::cpython::buffer::Bytes;
use crate::reactor::poller::fork_count;
use crate::reactor::socket::{MAX_SLICES, is_not_ready};
use crate::reserve::try_grow;

/// How far sending got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing is left.
    Drained,
    /// The descriptor takes no more for now, or the limit is reached.
    Blocked,
}

/// What is done after a write that took less than it was offered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum AfterShort {
    /// Wait. A socket that is ready again takes much at a time; at once it would take as little as its peer has just read.
    Wait,
    /// Go on. A pipe is ready again when its reader has taken a page.
    GoOn,
}

/// Chunks of bytes in order, of which the first may be sent in part.
#[derive(Default)]
pub struct WriteQueue {
    /// Most often the only one. None if the queue is empty.
    first: Option<Bytes>,
    others: VecDeque<Bytes>,
    /// Bytes of the first chunk that have been sent.
    sent: usize,
    /// Bytes that are to be sent.
    size: usize,
    /// [`fork_count`] when the chunks were added. A forked child must not send what its parent queued, and will send itself.
    forks: u32,
}

/// The most bytes sent in one call of [`WriteQueue::drain`]. A peer that reads as fast as the loop writes would keep it busy for ever.
pub const MAX_DRAIN: usize = 4 * 1024 * 1024;

impl WriteQueue {
    pub fn size(&self) -> usize {
        self.size
    }

    pub fn is_empty(&self) -> bool {
        self.size == 0
    }

    /// Whether it has one chunk.
    pub fn is_single(&self) -> bool {
        self.first.is_some() && self.others.is_empty()
    }

    /// Makes room for `chunks` more. False if there is no memory.
    #[must_use]
    pub fn reserve(&mut self, chunks: usize) -> bool {
        (self.first.is_none() && chunks == 1) || try_grow(&mut self.others, chunks)
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

    /// Passes chunks to `write`, which returns how many bytes it took, until nothing is left, it takes no more, or the limit is
    /// reached.
    pub fn drain(
        &mut self,
        short: AfterShort,
        write: impl Fn(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<Progress> {
        if self.is_left_to_parent() {
            self.clear();
        }
        // Most often there is one chunk, and it goes as a whole.
        let mut left = MAX_DRAIN;
        if self.others.is_empty() && self.size <= MAX_DRAIN {
            let Some(first) = &self.first else { return Ok(Progress::Drained) };
            match write(&[IoSlice::new(&first.as_slice()[self.sent..])]) {
                Ok(count) if count == self.size => {
                    self.first = None;
                    self.sent = 0;
                    self.size = 0;
                    return Ok(Progress::Drained);
                }
                Ok(count) => {
                    self.advance(count);
                    if short == AfterShort::Wait {
                        return Ok(Progress::Blocked);
                    }
                    left -= count;
                }
                // One that was interrupted is tried again in the next iteration, after the signal's handlers.
                Err(error) if is_not_ready(&error) => return Ok(Progress::Blocked),
                Err(error) => return Err(error),
            }
        }
        self.drain_chunks(left, short, write)
    }

    /// [`WriteQueue::drain`] of several chunks, or of a large one or what is left of one, up to `left` bytes.
    #[inline(never)]
    fn drain_chunks(
        &mut self,
        mut left: usize,
        short: AfterShort,
        write: impl Fn(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<Progress> {
        while let Some(first) = &self.first {
            if left == 0 {
                return Ok(Progress::Blocked);
            }
            // A single system call, too, lasts as long as the peer reads.
            let first = &first.as_slice()[self.sent..];
            let first = &first[..first.len().min(left)];
            match self.write_several(first, left, &write) {
                Ok((count, offered)) => {
                    self.advance(count);
                    if count < offered && short == AfterShort::Wait {
                        return Ok(Progress::Blocked);
                    }
                    left -= count;
                }
                Err(error) if is_not_ready(&error) => return Ok(Progress::Blocked),
                Err(error) => return Err(error),
            }
        }
        Ok(Progress::Drained)
    }

    /// Whether the chunks were added before this process was forked.
    fn is_left_to_parent(&self) -> bool {
        self.forks != fork_count()
    }

    /// Returns how many bytes were written, and how many offered.
    #[inline(never)]
    fn write_several(
        &self,
        first: &[u8],
        limit: usize,
        write: impl Fn(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<(usize, usize)> {
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
        write(&slices[..count]).map(|written| (written, limit - left))
    }

    /// Drops what was sent.
    fn advance(&mut self, count: usize) {
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
