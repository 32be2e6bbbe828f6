//! Which descriptor is watched, for what, and by which watch.
//!
//! It does not wait, and does not know what a watch does: `src/core` waits on [`Registry::poller`] and resolves each event's key.
//!
//! Invariants:
//! - There is at most one entry for a number.
//! - [`Registry::registered`] is what the kernel's set has under the entry's key, as far as the kernel has said. A request
//!   that fails changes neither, unless the kernel says that the number no longer stands for the file in the set, or an exclusive
//!   interest was to be replaced: the entry then has nothing in it. A set that does not remove what it should is replaced.
//! - Anything else in the set is stale: the registration of a file that the program has closed and that is still open under
//!   another number. After an event of it, the next [`Registry::refresh_poller`] removes it, by making another set.
//!
//! One case can't be told, as in any loop on epoll: a file whose number went to another file, both with an entry's key, comes
//! back to that number while the other lives on under a third.
//!
//! `src/core` calls it, from the loop's thread. Other threads wake the [`CurrentPoller`].

#[cfg(all(test, not(loom)))]
pub(super) mod tests;

use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, PoisonError};

use super::descriptor_map::DescriptorMap;
use super::kernel::Kernel;
use super::poller::{Interest, Poller};
use super::sync::Mutex;

/// Names an entry. An entry that reuses a place in the slab has another generation, so that an event of the former entry does
/// not resolve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    index: u32,
    generation: u32,
}

const INDEX_BITS: u32 = usize::BITS / 2;
const INDEX_MASK: usize = (1 << INDEX_BITS) - 1;
/// The top bit stays free: such keys are the poller's.
const GENERATION_MASK: u32 = (INDEX_MASK >> 1) as u32;

fn next_generation(generation: u32) -> u32 {
    (generation + 1) & GENERATION_MASK
}

/// Whether the error is that of a set which is closed, or whose number stands for another file.
fn is_closed(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADF | libc::EINVAL))
}

/// Whether the error says that a number does not stand for the file that is in the set: it is closed (EBADF), another
/// file (ENOENT), one that can't be watched (EPERM) or the set itself (EINVAL). The set's own number can be the wrong one, too.
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
    registered: Interest,
    watch: W,
}

struct SlabEntry<W> {
    generation: u32,
    entry: Option<Entry<W>>,
}

/// The watched descriptors, each with a watch of type `W`: the receiver of its events.
pub struct Registry<W, K = Poller> {
    poller: Arc<K>,
    current: Arc<CurrentPoller<K>>,
    slab: Vec<SlabEntry<W>>,
    free: Vec<u32>,
    by_fd: DescriptorMap<Token>,
    stale: StaleRegistrations,
}

/// What is known of stale registrations, and the back-off from removing them.
#[derive(Default)]
struct StaleRegistrations {
    suspected: bool,
    /// Calls between the last failed attempt to remove them and the next: twice as many each time.
    backoff: u32,
    /// Calls that are left of them.
    left: u32,
}

/// An attempt to remove stale registrations costs as much as registering all entries.
const MAX_BACKOFF: u32 = 1024;

/// The poller that a registry uses, for the threads that wake its wait. None once the registry is dropped.
pub struct CurrentPoller<K>(Mutex<Option<Arc<K>>>);

impl<K> Default for CurrentPoller<K> {
    fn default() -> Self {
        CurrentPoller(Mutex::new(None))
    }
}

impl<K> CurrentPoller<K> {
    pub fn get(&self) -> Option<Arc<K>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The lock is held for a moment, in which nothing waits.
    fn set(&self, poller: Option<Arc<K>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = poller;
    }
}

impl<W, K> Drop for Registry<W, K> {
    fn drop(&mut self) {
        self.current.set(None);
    }
}

impl<W, K: Kernel> Registry<W, K> {
    pub fn new(poller: K) -> Registry<W, K> {
        let poller = Arc::new(poller);
        let current = CurrentPoller::default();
        current.set(Some(Arc::clone(&poller)));
        Registry {
            poller,
            current: Arc::new(current),
            slab: Vec::new(),
            free: Vec::new(),
            by_fd: DescriptorMap::default(),
            stale: StaleRegistrations::default(),
        }
    }

    /// The poller to wait on. [`Registry::refresh_poller`] can replace it: keep it for one wait only.
    pub fn poller(&self) -> &Arc<K> {
        &self.poller
    }

    pub fn current(&self) -> &Arc<CurrentPoller<K>> {
        &self.current
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

    /// The entry that an event's key names; None if it was removed.
    pub fn resolve(&self, key: usize) -> Option<(Token, &W)> {
        let token = Token::from_key(key);
        self.get(token).map(|watch| (token, watch))
    }

    /// The descriptor of an entry; -1 if it was removed.
    pub fn descriptor(&self, token: Token) -> RawFd {
        self.entry(token).map_or(-1, |entry| entry.fd)
    }

    /// What the kernel has been asked for.
    pub fn registered(&self, token: Token) -> Interest {
        self.entry(token).map_or(Interest::NONE, |entry| entry.registered)
    }

    fn entries(&self) -> impl Iterator<Item = &Entry<W>> {
        self.slab.iter().filter_map(|slab_entry| slab_entry.entry.as_ref())
    }

    pub fn watches(&self) -> impl Iterator<Item = &W> {
        self.entries().map(|entry| &entry.watch)
    }

    /// The descriptor of the first entry that `is_wanted`.
    pub fn find_by(&self, is_wanted: impl Fn(&W) -> bool) -> Option<RawFd> {
        self.entries().find(|entry| is_wanted(&entry.watch)).map(|entry| entry.fd)
    }

    /// Makes room for an entry of this number. False if there is no memory.
    #[must_use]
    pub fn reserve(&mut self, fd: RawFd) -> bool {
        // `free` never has more items than `slab`, so that removing an entry needs no memory.
        let has_place = !self.free.is_empty()
            || (self.slab.try_reserve(1).is_ok() && self.free.try_reserve(self.slab.len() + 1).is_ok());
        has_place && self.by_fd.reserve(fd)
    }

    /// Adds an entry without an interest. The descriptor must have no other entry.
    pub fn insert(&mut self, fd: RawFd, watch: W) -> Token {
        let entry = Entry { fd, registered: Interest::NONE, watch };
        let index = self.free.pop().unwrap_or_else(|| {
            self.slab.push(SlabEntry { generation: 0, entry: None });
            (self.slab.len() - 1) as u32
        });
        let slab_entry = &mut self.slab[index as usize];
        slab_entry.entry = Some(entry);
        let token = Token { index, generation: slab_entry.generation };
        debug_assert!(self.find(fd).is_none(), "descriptor {fd} is watched already");
        self.by_fd.insert(fd, token);
        token
    }

    /// Asks the kernel for `interest`, unless that is registered.
    pub fn set_interest(&mut self, token: Token, interest: Interest) -> io::Result<()> {
        if self.registered(token) == interest { Ok(()) } else { self.renew_interest(token, interest) }
    }

    /// Asks the kernel for `interest` even if that is registered: the number may stand for another file by now. An exclusive interest
    /// then comes behind those that other processes have in the file.
    pub fn renew_interest(&mut self, token: Token, interest: Interest) -> io::Result<()> {
        self.refresh_poller()?;
        match self.request(token, interest) {
            Err(error) if is_closed(&error) && !self.poller.is_intact() => {
                // It is the set that was closed.
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
                // The program has closed and duplicated the file, which is in the set under this number. Or the number was
                // closed, and the poller has got it.
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                    if poller.is_own(fd) {
                        return Err(io::Error::from_raw_os_error(libc::EBADF));
                    }
                    // An exclusive registration can't be modified.
                    poller.delete(fd)?;
                    poller.add(fd, key, interest)?;
                }
                result => result?,
            }
            entry.registered = interest;
            return Ok(());
        }
        let replaced = !interest.is_none() && (entry.registered.exclusive || interest.exclusive);
        let result =
            if interest.is_none() || replaced { poller.delete(fd) } else { poller.modify(fd, key, interest) };
        match result {
            Ok(()) if replaced => {
                entry.registered = Interest::NONE;
                return self.request(token, interest);
            }
            Ok(()) => entry.registered = interest,
            Err(error) if is_gone(&error) => {
                // If the file is open under another number, it is still in the set, with this key.
                entry.registered = Interest::NONE;
                self.stale.suspected = true;
                if error.raw_os_error() == Some(libc::ENOENT) {
                    return self.request(token, interest);
                }
                if !interest.is_none() {
                    return Err(error);
                }
            }
            Err(_) if interest.is_none() => {
                // The set keeps reporting, even if it were asked for nothing. Another one does not have the file.
                let kept = std::mem::replace(&mut entry.registered, Interest::NONE);
                let rebuilt = self.rebuild();
                if let (Err(_), Some(entry)) = (&rebuilt, self.entry_mut(token)) {
                    entry.registered = kept;
                }
                return rebuilt;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// As [`Registry::renew_interest`], but gives the entry another token if the number stands for another file by now. Events
    /// of the former file, which may be open under another number, then do not resolve. After an error the entry can have
    /// another token, too: see [`Registry::find`].
    pub fn renew_or_move(&mut self, token: Token, interest: Interest) -> io::Result<Token> {
        self.refresh_poller()?;
        let Some(entry) = entry_of(&mut self.slab, token) else { return Ok(token) };
        if entry.registered.is_none() || interest.is_none() {
            self.renew_interest(token, interest)?;
            return Ok(token);
        }
        let replaced = entry.registered.exclusive || interest.exclusive;
        let result = if replaced {
            self.poller.delete(entry.fd)
        } else {
            self.poller.modify(entry.fd, token.key(), interest)
        };
        match result {
            Ok(()) if replaced => {
                entry.registered = Interest::NONE;
                self.renew_interest(token, interest)?;
                return Ok(token);
            }
            Ok(()) => {
                entry.registered = interest;
                return Ok(token);
            }
            Err(error) if is_gone(&error) => entry.registered = Interest::NONE,
            Err(error) => return Err(error),
        }
        let fd = entry.fd;
        let slab_entry = &mut self.slab[token.index as usize];
        slab_entry.generation = next_generation(slab_entry.generation);
        let moved = Token { index: token.index, generation: slab_entry.generation };
        self.by_fd.insert(fd, moved);
        self.renew_interest(moved, interest)?;
        Ok(moved)
    }

    /// Removes an entry and returns its watch; None if it was removed before.
    pub fn remove(&mut self, token: Token) -> Option<W> {
        if self.poller.is_inherited() {
            // The set is the parent's, and is left as it is.
        } else if let Some(entry) = self.entry(token)
            && !entry.registered.is_none()
        {
            // A descriptor that was closed is out of the set already.
            let _ = self.poller.delete(entry.fd);
        }
        let slab_entry = self.slab.get_mut(token.index as usize)?;
        if slab_entry.generation != token.generation {
            return None;
        }
        let entry = slab_entry.entry.take()?;
        slab_entry.generation = next_generation(slab_entry.generation);
        self.free.push(token.index);
        self.by_fd.remove(entry.fd);
        Some(entry.watch)
    }

    /// Removes all entries, but not their registrations: the set is about to be closed.
    pub fn drain(&mut self) -> Vec<W> {
        self.by_fd.clear();
        self.free.clear();
        std::mem::take(&mut self.slab)
            .into_iter()
            .filter_map(|slab_entry| slab_entry.entry)
            .map(|entry| entry.watch)
            .collect()
    }

    /// Stops asking for out-of-band data, after an event that was nothing else.
    pub fn mask_priority(&mut self, token: Token) {
        if let Some(entry) = self.entry(token)
            && self.poller.mask_priority(entry.fd, token.key(), entry.registered).is_err()
        {
            // The descriptor was closed, but the file is open under another number.
            self.stale.suspected = true;
        }
    }

    /// Records an event that did not resolve: the next [`Registry::refresh_poller`] removes its registration.
    pub fn suspect_stale(&mut self) {
        self.stale.suspected = true;
    }

    /// Whether stale registrations are left because no new poller could be made, which is tried again from time to time.
    pub fn keeps_stale(&self) -> bool {
        self.stale.backoff > 0
    }

    /// Replaces the poller if it was inherited in a fork, or may have stale registrations. To be called before each wait. After an
    /// error there is no poller to wait on; the next call tries again.
    pub fn refresh_poller(&mut self) -> io::Result<()> {
        if self.poller.is_inherited() {
            return self.rebuild();
        }
        if self.stale.suspected {
            self.remove_stale();
        }
        Ok(())
    }

    /// Ignores a failure: stale registrations cost time and do no other harm.
    #[cold]
    fn remove_stale(&mut self) {
        if self.stale.left > 0 {
            self.stale.left -= 1;
        } else if self.rebuild().is_err() {
            self.stale.backoff = (2 * self.stale.backoff).clamp(1, MAX_BACKOFF);
            self.stale.left = self.stale.backoff;
        }
    }

    /// Replaces the poller after a wait that failed because the program has closed the poller's descriptors, as daemons do. Returns
    /// any other error.
    pub fn recover(&mut self, error: io::Error) -> io::Result<()> {
        if !is_gone(&error) {
            return Err(error);
        }
        self.poller.abandon();
        self.rebuild()
    }

    /// Replaces the poller and registers all entries with the new one. There is no other way to remove a stale registration. An
    /// error changes nothing.
    pub fn rebuild(&mut self) -> io::Result<()> {
        let poller = self.poller.renew()?;
        let mut gone = Vec::new();
        for (index, slab_entry) in self.slab.iter().enumerate() {
            let token = Token { index: index as u32, generation: slab_entry.generation };
            let Some(entry) = &slab_entry.entry else { continue };
            if entry.registered.is_none() {
                continue;
            }
            match poller.add(entry.fd, token.key(), entry.registered) {
                Ok(()) => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::ENOMEM)) => {
                    return Err(error);
                }
                // The program has closed the file, and what the number stands for now, if anything, can't be watched.
                Err(_) if gone.try_reserve(1).is_ok() => gone.push(token),
                Err(_) => return Err(io::ErrorKind::OutOfMemory.into()),
            }
        }
        for token in gone {
            if let Some(entry) = self.entry_mut(token) {
                entry.registered = Interest::NONE;
            }
        }
        self.poller = Arc::new(poller);
        self.current.set(Some(Arc::clone(&self.poller)));
        self.stale = StaleRegistrations::default();
        Ok(())
    }

    fn entry(&self, token: Token) -> Option<&Entry<W>> {
        let slab_entry = self.slab.get(token.index as usize)?;
        if slab_entry.generation == token.generation { slab_entry.entry.as_ref() } else { None }
    }

    fn entry_mut(&mut self, token: Token) -> Option<&mut Entry<W>> {
        entry_of(&mut self.slab, token)
    }

    /// Whether there may be stale registrations. After [`Registry::refresh_poller`] they could not be removed.
    #[cfg(test)]
    pub fn suspects_stale(&self) -> bool {
        self.stale.suspected
    }

    /// Leaves `left` generations to all free places in the slab, as after billions of entries.
    #[cfg(test)]
    pub fn age(&mut self, left: u32) {
        for index in &self.free {
            self.slab[*index as usize].generation = GENERATION_MASK - left;
        }
    }
}

/// Borrows the slab alone, so that the poller can be used meanwhile.
fn entry_of<W>(slab: &mut [SlabEntry<W>], token: Token) -> Option<&mut Entry<W>> {
    let slab_entry = slab.get_mut(token.index as usize)?;
    if slab_entry.generation == token.generation { slab_entry.entry.as_mut() } else { None }
}
