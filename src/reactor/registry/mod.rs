//! Which descriptor is watched, for what, and on whose behalf.
//!
//! Invariants:
//! - There is at most one entry for a number.
//! - [`Registry::registered`] is what the kernel's set has under the entry's key, as far as the kernel has said. A request
//!   that fails changes neither, unless the kernel says that the number no longer stands for the file in the set: the
//!   entry then has nothing in it.
//! - What the set may have beyond that is stray: a file that was closed behind our back and lives on under another
//!   number. The next [`Registry::refresh_poller`] after it shows drives it out.
//!
//! One case can't be told, as in any loop on epoll: a file whose number went to another file, both with an entry's key, comes
//! back to that number while the other lives on under a third.

#[cfg(all(test, not(loom)))]
mod tests;

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use super::descriptor_map::DescriptorMap;
use super::kernel::Kernel;
use super::poller::{Interest, Poller};

/// Names an entry. Keys handed to the poller carry a generation, so that an event for an entry that was removed, and
/// whose place is taken by another, is recognised and dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    index: u32,
    generation: u32,
}

const INDEX_BITS: u32 = usize::BITS / 2;
const INDEX_MASK: usize = (1 << INDEX_BITS) - 1;
/// One bit less than there is room for: the poller keeps the key of all ones for itself.
const GENERATION_MASK: u32 = (INDEX_MASK >> 1) as u32;

fn next_generation(generation: u32) -> u32 {
    (generation + 1) & GENERATION_MASK
}

/// Whether the kernel says what it says of a set that is closed, or whose number stands for another file.
fn is_closed(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADF | libc::EINVAL))
}

/// Whether the kernel says that a number does not stand for the file that is in the set: it is closed (EBADF), another
/// file (ENOENT), one that can't be watched (EPERM) or the set itself (EINVAL). The number of the set can be wrong, too.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADF | libc::ENOENT | libc::EPERM | libc::EINVAL))
}

impl Token {
    fn key(self) -> usize {
        ((self.generation as usize) << INDEX_BITS) | self.index as usize
    }

    fn from_key(key: usize) -> Token {
        Token { index: (key & INDEX_MASK) as u32, generation: (key >> INDEX_BITS) as u32 }
    }
}

struct Entry<W> {
    fd: RawFd,
    /// What the kernel has been asked for.
    registered: Interest,
    watch: W,
}

struct SlabEntry<W> {
    generation: u32,
    entry: Option<Entry<W>>,
}

/// The watched descriptors, each with a watch of type `W`: who is to be told.
pub struct Registry<W, K = Poller> {
    poller: Arc<K>,
    slab: Vec<SlabEntry<W>>,
    free: Vec<u32>,
    by_fd: DescriptorMap<Token>,
    stale: StaleRegistrations,
}

/// Whether the kernel's set may have registrations that are nobody's, or that have the key of an entry whose descriptor
/// stands for another file.
#[derive(Default)]
struct StaleRegistrations {
    suspected: bool,
    /// After a failure to drive them out, how many calls pass before the next attempt: twice as many each time.
    pause: u32,
    /// How many of those are left.
    left: u32,
}

/// The most calls between two attempts to drive stale out: each costs as much as registering all entries.
const LONGEST_PAUSE: u32 = 1024;

impl<W, K: Kernel> Registry<W, K> {
    pub fn new(poller: K) -> Registry<W, K> {
        Registry {
            poller: Arc::new(poller),
            slab: Vec::new(),
            free: Vec::new(),
            by_fd: DescriptorMap::default(),
            stale: StaleRegistrations::default(),
        }
    }

    /// The poller to wait on. It can be replaced: do not keep it beyond one wait.
    pub fn poller(&self) -> &Arc<K> {
        &self.poller
    }

    pub fn find(&self, fd: RawFd) -> Option<Token> {
        self.by_fd.get(fd)
    }

    pub fn get(&self, token: Token) -> Option<&W> {
        self.entry(token).map(|entry| &entry.watch)
    }

    pub fn get_mut(&mut self, token: Token) -> Option<&mut W> {
        self.entry_mut(token).map(|entry| &mut entry.watch)
    }

    /// The entry that an event's key names, unless it is gone.
    pub fn resolve(&self, key: usize) -> Option<(Token, &W)> {
        let token = Token::from_key(key);
        self.get(token).map(|watch| (token, watch))
    }

    /// What the kernel has been asked for on behalf of this entry.
    pub fn registered(&self, token: Token) -> Interest {
        self.entry(token).map_or(Interest::NONE, |entry| entry.registered)
    }

    fn entries(&self) -> impl Iterator<Item = &Entry<W>> {
        self.slab.iter().filter_map(|place| place.entry.as_ref())
    }

    pub fn watches(&self) -> impl Iterator<Item = &W> {
        self.entries().map(|entry| &entry.watch)
    }

    /// The descriptor of the first entry that `is_wanted`.
    pub fn find_by(&self, is_wanted: impl Fn(&W) -> bool) -> Option<RawFd> {
        self.entries().find(|entry| is_wanted(&entry.watch)).map(|entry| entry.fd)
    }

    /// Adds an entry, of which the kernel hears with the first [`Registry::set_interest`]. An earlier entry for the
    /// same descriptor must have been removed.
    pub fn insert(&mut self, fd: RawFd, watch: W) -> Token {
        let entry = Entry { fd, registered: Interest::NONE, watch };
        let index = self.free.pop().unwrap_or_else(|| {
            self.slab.push(SlabEntry { generation: 0, entry: None });
            (self.slab.len() - 1) as u32
        });
        let place = &mut self.slab[index as usize];
        place.entry = Some(entry);
        let token = Token { index, generation: place.generation };
        debug_assert!(self.find(fd).is_none(), "descriptor {fd} is watched already");
        self.by_fd.insert(fd, token);
        token
    }

    /// Asks the kernel for `interest`, if that is not what it has been asked for.
    pub fn set_interest(&mut self, token: Token, interest: Interest) -> io::Result<()> {
        if self.registered(token) == interest { Ok(()) } else { self.renew_interest(token, interest) }
    }

    /// Asks the kernel for `interest` in any case: the descriptor's number may stand for another file by now.
    pub fn renew_interest(&mut self, token: Token, interest: Interest) -> io::Result<()> {
        self.refresh_poller()?;
        match self.request(token, interest) {
            Err(error) if is_closed(&error) && !self.poller.is_intact() => {
                // It was the set that is gone.
                self.rebuild()?;
                self.request(token, interest)
            }
            result => result,
        }
    }

    fn request(&mut self, token: Token, interest: Interest) -> io::Result<()> {
        let Some(entry) = entry_of(&mut self.slab, token) else { return Ok(()) };
        let (fd, key, poller) = (entry.fd, token.key(), &self.poller);
        if entry.registered.is_none() {
            if interest.is_none() {
                return Ok(());
            }
            match poller.add(fd, key, interest) {
                // The same file was in the set under this number, and was closed and duplicated behind our back. Or the
                // number was closed, and it is the poller itself that has got it.
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                    if poller.is_own(fd) {
                        return Err(io::Error::from_raw_os_error(libc::EBADF));
                    }
                    poller.modify(fd, key, interest)?;
                }
                result => result?,
            }
            entry.registered = interest;
            return Ok(());
        }
        let result = if interest.is_none() { poller.delete(fd) } else { poller.modify(fd, key, interest) };
        match result {
            Ok(()) => entry.registered = interest,
            Err(error) if is_gone(&error) => {
                // If the file lives on under another number, it is still in the set, with this key.
                entry.registered = Interest::NONE;
                self.stale.suspected = true;
                if error.raw_os_error() == Some(libc::ENOENT) {
                    return self.request(token, interest);
                }
                if !interest.is_none() {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// As [`Registry::renew_interest`]. If the descriptor's number stands for another file by now, the entry gets another
    /// token, so that events of the former file, which may live on under another number, are told from the new one's.
    /// That is also so if the new one can't be watched: after an error, [`Registry::find`] tells the token.
    pub fn renew_or_move(&mut self, token: Token, interest: Interest) -> io::Result<Token> {
        self.refresh_poller()?;
        let Some(entry) = entry_of(&mut self.slab, token) else { return Ok(token) };
        if entry.registered.is_none() || interest.is_none() {
            self.renew_interest(token, interest)?;
            return Ok(token);
        }
        match self.poller.modify(entry.fd, token.key(), interest) {
            Ok(()) => {
                entry.registered = interest;
                return Ok(token);
            }
            Err(error) if is_gone(&error) => entry.registered = Interest::NONE,
            Err(error) => return Err(error),
        }
        let fd = entry.fd;
        let place = &mut self.slab[token.index as usize];
        place.generation = next_generation(place.generation);
        let moved = Token { index: token.index, generation: place.generation };
        self.by_fd.insert(fd, moved);
        self.renew_interest(moved, interest)?;
        Ok(moved)
    }

    /// Removes an entry and returns its watch; None if it was removed before.
    pub fn remove(&mut self, token: Token) -> Option<W> {
        if self.poller.is_inherited() {
            // The set is the parent's: leave it alone. A poller of our own is made when one is needed.
        } else if let Some(entry) = self.entry(token)
            && !entry.registered.is_none()
        {
            // It may be closed already, and then is out of the set, too.
            let _ = self.poller.delete(entry.fd);
        }
        let place = self.slab.get_mut(token.index as usize)?;
        if place.generation != token.generation {
            return None;
        }
        let entry = place.entry.take()?;
        place.generation = next_generation(place.generation);
        self.free.push(token.index);
        self.by_fd.remove(entry.fd);
        Some(entry.watch)
    }

    /// Removes all entries without a word to the kernel, whose set is about to be closed.
    pub fn drain(&mut self) -> Vec<W> {
        self.by_fd.clear();
        self.free.clear();
        std::mem::take(&mut self.slab)
            .into_iter()
            .filter_map(|place| place.entry)
            .map(|entry| entry.watch)
            .collect()
    }

    /// Answers an event that was nothing but out-of-band data.
    pub fn mask_priority(&mut self, token: Token) {
        if let Some(entry) = self.entry(token)
            && self.poller.mask_priority(entry.fd, token.key(), entry.registered).is_err()
        {
            // The descriptor is gone, and the event is not: the file has another descriptor.
            self.stale.suspected = true;
        }
    }

    /// An event came whose key is no entry's: the next [`Registry::refresh_poller`] sees to it that it does not come again.
    pub fn suspect_stale(&mut self) {
        self.stale.suspected = true;
    }

    /// Whether stale are left because there could be no new poller. Tried again from time to time.
    pub fn keeps_stale(&self) -> bool {
        self.stale.pause > 0
    }

    /// Sees to it that the poller is of use: to be called before each wait. Makes another one if the present one belongs to
    /// the process that this one was forked from, or has registrations that must not be there. An error means that there is
    /// none to wait on; the next call tries again.
    pub fn refresh_poller(&mut self) -> io::Result<()> {
        if self.poller.is_inherited() {
            return self.rebuild();
        }
        if self.stale.suspected {
            self.drive_out_strays();
        }
        Ok(())
    }

    /// StaleRegistrations cost time and do no other harm, so that a failure is no error.
    #[cold]
    fn drive_out_strays(&mut self) {
        if self.stale.left > 0 {
            self.stale.left -= 1;
        } else if self.rebuild().is_err() {
            self.stale.pause = (2 * self.stale.pause).clamp(1, LONGEST_PAUSE);
            self.stale.left = self.stale.pause;
        }
    }

    /// Answers a wait that failed: if that is because the poller's descriptors were closed behind its back, as programs do
    /// that become a daemon, there is another poller now, to wait on again. Any other error is returned.
    pub fn recover(&mut self, error: io::Error) -> io::Result<()> {
        if !is_gone(&error) {
            return Err(error);
        }
        self.poller.abandon();
        self.rebuild()
    }

    /// Replaces the poller and registers all entries with the new one. This alone gets rid of a registration whose
    /// descriptor was closed behind our back while a duplicate of it is still open. After an error all is as before.
    pub fn rebuild(&mut self) -> io::Result<()> {
        let poller = self.poller.renew()?;
        let mut gone = Vec::new();
        for (index, place) in self.slab.iter().enumerate() {
            let token = Token { index: index as u32, generation: place.generation };
            let Some(entry) = &place.entry else { continue };
            if entry.registered.is_none() {
                continue;
            }
            match poller.add(entry.fd, token.key(), entry.registered) {
                Ok(()) => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::ENOMEM)) => {
                    return Err(error);
                }
                // Closed behind our back, and perhaps opened anew: what the number stands for can't be watched.
                Err(_) => gone.push(token),
            }
        }
        for token in gone {
            if let Some(entry) = self.entry_mut(token) {
                entry.registered = Interest::NONE;
            }
        }
        self.poller = Arc::new(poller);
        self.stale = StaleRegistrations::default();
        Ok(())
    }

    fn entry(&self, token: Token) -> Option<&Entry<W>> {
        let place = self.slab.get(token.index as usize)?;
        if place.generation == token.generation { place.entry.as_ref() } else { None }
    }

    fn entry_mut(&mut self, token: Token) -> Option<&mut Entry<W>> {
        entry_of(&mut self.slab, token)
    }

    /// Whether there may be stale: after [`Registry::refresh_poller`], that is so if they could not be driven out.
    #[cfg(test)]
    pub fn suspects_strays(&self) -> bool {
        self.stale.suspected
    }

    /// Lets all free slab be of the last generation but `left`: as after billions of entries.
    #[cfg(test)]
    pub fn age(&mut self, left: u32) {
        for index in &self.free {
            self.slab[*index as usize].generation = GENERATION_MASK - left;
        }
    }
}

/// Borrows the slab alone, so that the poller can be used meanwhile.
fn entry_of<W>(slab: &mut [SlabEntry<W>], token: Token) -> Option<&mut Entry<W>> {
    let place = slab.get_mut(token.index as usize)?;
    if place.generation == token.generation { place.entry.as_mut() } else { None }
}
