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
