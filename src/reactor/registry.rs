//! Which descriptor is watched, for what, and on whose behalf.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use super::poller::{Interest, Poller};

/// Names an entry. Keys handed to the poller carry a generation, so that an event for an entry that was removed, and
/// whose place is taken by another, is recognised and dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    index: u32,
    generation: u32,
}

const INDEX_BITS: u32 = usize::BITS / 2;
const INDEX_MASK: usize = (1 << INDEX_BITS) - 1;
/// One bit less than there is room for: the poller keeps the key of all ones for itself.
const GENERATION_MASK: u32 = (INDEX_MASK >> 1) as u32;

impl Slot {
    fn key(self) -> usize {
        ((self.generation as usize) << INDEX_BITS) | self.index as usize
    }

    fn from_key(key: usize) -> Slot {
        Slot { index: (key & INDEX_MASK) as u32, generation: (key >> INDEX_BITS) as u32 }
    }
}

struct Entry<W> {
    fd: RawFd,
    /// What the kernel has been asked for.
    registered: Interest,
    watch: W,
}

struct Place<W> {
    generation: u32,
    entry: Option<Entry<W>>,
}

/// The watched descriptors, each with a watch of type `W`: who is to be told.
pub struct Registry<W> {
    poller: Arc<Poller>,
    places: Vec<Place<W>>,
    free: Vec<u32>,
    /// By the number of the descriptor: the kernel gives out the smallest that is free.
    by_fd: Vec<Option<Slot>>,
}

impl<W> Registry<W> {
    pub fn new(poller: Poller) -> Registry<W> {
        Registry { poller: Arc::new(poller), places: Vec::new(), free: Vec::new(), by_fd: Vec::new() }
    }

    /// The poller to wait on. It can be replaced: do not keep it beyond one wait.
    pub fn poller(&self) -> &Arc<Poller> {
        &self.poller
    }

    pub fn find(&self, fd: RawFd) -> Option<Slot> {
        self.by_fd.get(usize::try_from(fd).ok()?).copied().flatten()
    }

    pub fn get(&self, slot: Slot) -> Option<&W> {
        self.entry(slot).map(|entry| &entry.watch)
    }

    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut W> {
        self.entry_mut(slot).map(|entry| &mut entry.watch)
    }

    /// The entry that an event's key names, unless it is gone.
    pub fn resolve(&self, key: usize) -> Option<(Slot, &W)> {
        let slot = Slot::from_key(key);
        self.get(slot).map(|watch| (slot, watch))
    }

    /// What the kernel has been asked for on behalf of this entry.
    pub fn registered(&self, slot: Slot) -> Interest {
        self.entry(slot).map_or(Interest::NONE, |entry| entry.registered)
    }

    fn entries(&self) -> impl Iterator<Item = &Entry<W>> {
        self.places.iter().filter_map(|place| place.entry.as_ref())
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
    pub fn insert(&mut self, fd: RawFd, watch: W) -> Slot {
        let entry = Entry { fd, registered: Interest::NONE, watch };
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place { generation: 0, entry: None });
            (self.places.len() - 1) as u32
        });
        let place = &mut self.places[index as usize];
        place.entry = Some(entry);
        let slot = Slot { index, generation: place.generation };
        debug_assert!(self.find(fd).is_none(), "descriptor {fd} is watched already");
        self.note(fd, Some(slot));
        slot
    }

    fn note(&mut self, fd: RawFd, slot: Option<Slot>) {
        let Ok(place) = usize::try_from(fd) else { return };
        if place >= self.by_fd.len() {
            self.by_fd.resize(place + 1, None);
        }
        self.by_fd[place] = slot;
    }

    /// Asks the kernel for `interest`, if that is not what it has been asked for.
    pub fn set_interest(&mut self, slot: Slot, interest: Interest) -> io::Result<()> {
        if self.registered(slot) == interest { Ok(()) } else { self.renew_interest(slot, interest) }
    }

    /// Asks the kernel for `interest` in any case: the descriptor's number may stand for another file by now.
    pub fn renew_interest(&mut self, slot: Slot, interest: Interest) -> io::Result<()> {
        self.own_poller()?;
        let poller = &self.poller;
        let Some(entry) = entry_of(&mut self.places, slot) else { return Ok(()) };
        let (fd, key) = (entry.fd, slot.key());
        if interest.is_none() {
            entry.registered = interest;
            return match poller.delete(fd) {
                // Closed, or closed and opened anew, behind our back: it is out of the set, as wanted.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EBADF | libc::ENOENT)) => Ok(()),
                result => result,
            };
        }
        let result = if entry.registered.is_none() {
            match poller.add(fd, key, interest) {
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => poller.modify(fd, key, interest),
                result => result,
            }
        } else {
            match poller.modify(fd, key, interest) {
                // Closed and opened anew behind our back: the number stands for another file now.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => poller.add(fd, key, interest),
                result => result,
            }
        };
        if result.is_ok() {
            entry.registered = interest;
        }
        result
    }

    /// As [`Registry::renew_interest`]. If the descriptor's number stands for another file by now, the entry gets another
    /// slot, so that events of the former file, which may live on under another number, are told from the new one's.
    pub fn renew_or_move(&mut self, slot: Slot, interest: Interest) -> io::Result<Slot> {
        self.own_poller()?;
        let poller = &self.poller;
        let Some(entry) = entry_of(&mut self.places, slot) else { return Ok(slot) };
        let fd = entry.fd;
        if !entry.registered.is_none() && !interest.is_none() {
            match poller.modify(fd, slot.key(), interest) {
                Ok(()) => {
                    entry.registered = interest;
                    return Ok(slot);
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => entry.registered = Interest::NONE,
                Err(error) => return Err(error),
            }
            let place = &mut self.places[slot.index as usize];
            place.generation = (place.generation + 1) & GENERATION_MASK;
            let moved = Slot { index: slot.index, generation: place.generation };
            self.note(fd, Some(moved));
            self.renew_interest(moved, interest)?;
            return Ok(moved);
        }
        self.renew_interest(slot, interest)?;
        Ok(slot)
    }

    /// Removes an entry and returns its watch; None if it was removed before.
    pub fn remove(&mut self, slot: Slot) -> Option<W> {
        if self.poller.is_inherited() {
            // The set is the parent's: leave it alone. A poller of our own is made when one is needed.
        } else if let Some(entry) = self.entry(slot)
            && !entry.registered.is_none()
        {
            // It may be closed already, and then is out of the set, too.
            let _ = self.poller.delete(entry.fd);
        }
        let place = self.places.get_mut(slot.index as usize)?;
        if place.generation != slot.generation {
            return None;
        }
        let entry = place.entry.take()?;
        place.generation = (place.generation + 1) & GENERATION_MASK;
        self.free.push(slot.index);
        self.note(entry.fd, None);
        Some(entry.watch)
    }

    /// Removes all entries without a word to the kernel, whose set is about to be closed.
    pub fn drain(&mut self) -> Vec<W> {
        self.by_fd.clear();
        self.free.clear();
        std::mem::take(&mut self.places)
            .into_iter()
            .filter_map(|place| place.entry)
            .map(|entry| entry.watch)
            .collect()
    }

    /// Answers an event that was nothing but out-of-band data.
    pub fn narrow(&mut self, slot: Slot) {
        if let Some(entry) = self.entry(slot) {
            // If the descriptor is gone, so is the event.
            let _ = self.poller.narrow(entry.fd, slot.key(), entry.registered);
        }
    }

    /// Makes a poller of our own if the present one belongs to the process that this one was forked from.
    pub fn own_poller(&mut self) -> io::Result<()> {
        if self.poller.is_inherited() { self.rebuild() } else { Ok(()) }
    }

    /// Replaces the poller and registers all entries with the new one. This alone gets rid of a registration whose
    /// descriptor was closed behind our back while a duplicate of it is still open.
    pub fn rebuild(&mut self) -> io::Result<()> {
        let poller = Poller::new(self.poller.is_portable())?;
        for (index, place) in self.places.iter_mut().enumerate() {
            let slot = Slot { index: index as u32, generation: place.generation };
            if let Some(entry) = &mut place.entry
                && !entry.registered.is_none()
                && poller.add(entry.fd, slot.key(), entry.registered).is_err()
            {
                // Closed behind our back: there is nothing to be told of it any more.
                entry.registered = Interest::NONE;
            }
        }
        self.poller = Arc::new(poller);
        Ok(())
    }

    fn entry(&self, slot: Slot) -> Option<&Entry<W>> {
        let place = self.places.get(slot.index as usize)?;
        if place.generation == slot.generation { place.entry.as_ref() } else { None }
    }

    fn entry_mut(&mut self, slot: Slot) -> Option<&mut Entry<W>> {
        entry_of(&mut self.places, slot)
    }
}

/// Borrows the places alone, so that the poller can be used meanwhile.
fn entry_of<W>(places: &mut [Place<W>], slot: Slot) -> Option<&mut Entry<W>> {
    let place = places.get_mut(slot.index as usize)?;
    if place.generation == slot.generation { place.entry.as_mut() } else { None }
}

#[cfg(test)]
mod tests {
    use super::super::poller::Ready;
    use super::*;
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    fn registry() -> Registry<&'static str> {
        Registry::new(Poller::new(false).unwrap())
    }

    fn poll(registry: &Registry<&'static str>) -> Vec<Option<&'static str>> {
        let mut ready = Ready::default();
        registry.poller().wait(&mut ready, Some(Duration::ZERO)).unwrap();
        ready.events().map(|event| registry.resolve(event.key).map(|(_, watch)| *watch)).collect()
    }

    fn readable_pair() -> (UnixStream, UnixStream) {
        let (here, mut there) = UnixStream::pair().unwrap();
        there.write_all(b"x").unwrap();
        (here, there)
    }

    /// Descriptors that tests running beside this one do not get by chance, one for each use.
    const HIGH: [RawFd; 3] = [900, 901, 902];

    fn duplicate_to(stream: &UnixStream, fd: RawFd) {
        // SAFETY: `fd` is one of HIGH, which nobody else uses.
        assert_eq!(unsafe { libc::dup2(stream.as_raw_fd(), fd) }, fd);
    }

    fn close(fd: RawFd) {
        // SAFETY: the tests pass descriptors that duplicate_to made.
        assert_eq!(unsafe { libc::close(fd) }, 0);
    }

    #[test]
    fn events_find_their_watch() {
        let mut registry = registry();
        let (here, _there) = readable_pair();
        let slot = registry.insert(here.as_raw_fd(), "watch");
        assert_eq!(poll(&registry), []);
        registry.set_interest(slot, Interest::READABLE).unwrap();
        assert_eq!(poll(&registry), [Some("watch")]);
        registry.set_interest(slot, Interest::NONE).unwrap();
        assert_eq!(poll(&registry), []);
        registry.set_interest(slot, Interest::WRITABLE).unwrap();
        assert_eq!(poll(&registry), [Some("watch")]);
        assert_eq!(registry.remove(slot), Some("watch"));
        assert_eq!(registry.remove(slot), None);
        assert_eq!(poll(&registry), []);
        assert_eq!(registry.find(here.as_raw_fd()), None);
    }

    #[test]
    fn a_slot_does_not_name_its_successor() {
        let mut registry = registry();
        let (first, second) = (readable_pair(), readable_pair());
        let old = registry.insert(first.0.as_raw_fd(), "old");
        registry.remove(old);
        let new = registry.insert(second.0.as_raw_fd(), "new");
        assert_eq!(old.index, new.index);
        assert_eq!(registry.get(old), None);
        registry.set_interest(old, Interest::READABLE).unwrap();
        assert_eq!(poll(&registry), []);
        assert_eq!(registry.get(new), Some(&"new"));
    }

    #[test]
    fn a_descriptor_closed_and_reused_is_watched_anew() {
        let mut registry = registry();
        let (here, _there) = readable_pair();
        let fd = HIGH[0];
        duplicate_to(&here, fd);
        drop(here);
        let slot = registry.insert(fd, "watch");
        registry.set_interest(slot, Interest::READABLE).unwrap();
        close(fd);
        assert_eq!(poll(&registry), []);
        let (successor, _peer) = UnixStream::pair().unwrap();
        duplicate_to(&successor, fd);
        registry.renew_interest(slot, Interest::READABLE).unwrap();
        assert_eq!(poll(&registry), []);
        registry.set_interest(slot, Interest::WRITABLE).unwrap();
        assert_eq!(poll(&registry), [Some("watch")]);
        close(fd);
    }

    #[test]
    fn an_entry_whose_file_was_replaced_does_not_hear_the_former_one() {
        let mut registry = registry();
        let (here, _there) = readable_pair();
        let fd = HIGH[2];
        duplicate_to(&here, fd);
        let slot = registry.insert(fd, "watch");
        assert_eq!(registry.renew_or_move(slot, Interest::READABLE).unwrap(), slot);
        assert_eq!(registry.renew_or_move(slot, Interest::READABLE).unwrap(), slot, "it is the same file");
        close(fd);
        let (successor, _peer) = UnixStream::pair().unwrap();
        duplicate_to(&successor, fd);
        let moved = registry.renew_or_move(slot, Interest::READABLE).unwrap();
        assert_ne!(moved, slot);
        assert_eq!(registry.find(fd), Some(moved));
        assert_eq!(poll(&registry), [None], "the former file lives on, and is nobody's");
        close(fd);
        drop(here);
    }

    #[test]
    fn a_ghost_is_told_from_the_living_and_driven_out() {
        let mut registry = registry();
        let ((here, _there), (other, _peer)) = (readable_pair(), readable_pair());
        let fd = HIGH[1];
        duplicate_to(&here, fd);
        let slot = registry.insert(fd, "closed");
        registry.set_interest(slot, Interest::READABLE).unwrap();
        let living = registry.insert(other.as_raw_fd(), "living");
        registry.set_interest(living, Interest::READABLE).unwrap();
        close(fd);
        registry.remove(slot);
        let mut seen = poll(&registry);
        seen.sort();
        assert_eq!(seen, [None, Some("living")], "the duplicate keeps the registration alive");
        registry.rebuild().unwrap();
        assert_eq!(poll(&registry), [Some("living")]);
        drop(here);
    }

    #[test]
    fn out_of_band_data_does_not_spin() {
        let mut registry = registry();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let slot = registry.insert(server.as_raw_fd(), "server");
        registry.set_interest(slot, Interest::READABLE).unwrap();
        socket2::SockRef::from(&client).send_out_of_band(b"!").unwrap();
        let mut ready = Ready::default();
        registry.poller().wait(&mut ready, Some(Duration::from_secs(5))).unwrap();
        assert!(ready.events().next().unwrap().only_priority);
        registry.narrow(slot);
        assert_eq!(poll(&registry), []);
        (&client).write_all(b"x").unwrap();
        registry.poller().wait(&mut ready, Some(Duration::from_secs(5))).unwrap();
        let event = ready.events().next().unwrap();
        assert!(event.readable && !event.only_priority);
    }

    #[test]
    fn a_forked_child_leaves_the_parents_set_alone() {
        let mut registry = registry();
        let (here, _there) = readable_pair();
        let slot = registry.insert(here.as_raw_fd(), "watch");
        registry.set_interest(slot, Interest::READABLE).unwrap();
        // SAFETY: the child calls nothing but this module and _exit.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let inherited = registry.poller().is_inherited();
            registry.remove(slot);
            drop(registry);
            // SAFETY: _exit does not return.
            unsafe { libc::_exit(if inherited { 0 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(status, 0);
        assert_eq!(poll(&registry), [Some("watch")]);
        registry.poller().wake().unwrap();
        let start = std::time::Instant::now();
        let mut ready = Ready::default();
        registry.remove(slot);
        registry.poller().wait(&mut ready, Some(Duration::from_secs(20))).unwrap();
        assert!(start.elapsed() < Duration::from_secs(10), "the parent can still be woken");
    }
}
