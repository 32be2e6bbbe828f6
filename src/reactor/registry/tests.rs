use super::super::kernel::Wait;
use super::super::poller::{Backend, Events};
use super::*;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

fn registry() -> Registry<&'static str> {
    Registry::new(Poller::new(Backend::default()).unwrap())
}

fn poll(registry: &Registry<&'static str>) -> Vec<Option<&'static str>> {
    let mut events = Events::default();
    registry.poller().wait(&mut events, Some(Duration::ZERO)).unwrap();
    events.events().map(|event| registry.resolve(event.key).map(|(_, watch)| *watch)).collect()
}

fn readable_pair() -> (UnixStream, UnixStream) {
    let (here, mut there) = UnixStream::pair().unwrap();
    there.write_all(b"x").unwrap();
    (here, there)
}

/// Descriptors that tests running beside this one do not get by chance, one for each use.
const HIGH: [RawFd; 3] = [900, 901, 902];

const HIGH_EXCLUSIVE: RawFd = 903;

fn duplicate_to(stream: &UnixStream, fd: RawFd) {
    // SAFETY: `fd` is one of these, which only one test uses.
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
    let token = registry.insert(here.as_raw_fd(), "watch");
    assert_eq!(poll(&registry), []);
    registry.set_interest(token, Interest::READABLE).unwrap();
    assert_eq!(poll(&registry), [Some("watch")]);
    registry.set_interest(token, Interest::NONE).unwrap();
    assert_eq!(poll(&registry), []);
    registry.set_interest(token, Interest::WRITABLE).unwrap();
    assert_eq!(poll(&registry), [Some("watch")]);
    assert_eq!(registry.remove(token), Some("watch"));
    assert_eq!(registry.remove(token), None);
    assert_eq!(poll(&registry), []);
    assert_eq!(registry.find(here.as_raw_fd()), None);
}

#[test]
fn an_exclusive_interest_is_replaced() {
    let mut registry = registry();
    let (here, _there) = readable_pair();
    let token = registry.insert(here.as_raw_fd(), "watch");
    let both = Interest { writable: true, ..Interest::READABLE };
    for interest in [Interest::ACCEPTING, Interest::ACCEPTING, both, Interest::ACCEPTING, Interest::READABLE]
    {
        registry.renew_interest(token, interest).unwrap();
        assert_eq!(registry.registered(token), interest);
        assert_eq!(poll(&registry), [Some("watch")]);
        assert_eq!(registry.renew_or_move(token, Interest::ACCEPTING).unwrap(), token);
        assert_eq!(registry.renew_or_move(token, interest).unwrap(), token);
        registry.rebuild().unwrap();
        assert_eq!(poll(&registry), [Some("watch")]);
    }
    registry.set_interest(token, Interest::ACCEPTING).unwrap();
    registry.set_interest(token, Interest::NONE).unwrap();
    assert_eq!(poll(&registry), []);
}

#[test]
fn an_exclusive_interest_moves_to_another_file_of_the_number() {
    let mut registry = registry();
    let [first, second] = [readable_pair(), readable_pair()];
    let fd = HIGH_EXCLUSIVE;
    duplicate_to(&first.0, fd);
    let token = registry.insert(fd, "watch");
    registry.set_interest(token, Interest::ACCEPTING).unwrap();
    // The first is in the set as long as it is open anywhere.
    duplicate_to(&second.0, fd);
    let moved = registry.renew_or_move(token, Interest::ACCEPTING).unwrap();
    assert_ne!(moved, token);
    assert!(poll(&registry).contains(&Some("watch")));
    registry.suspect_stale();
    registry.refresh_poller().unwrap();
    assert_eq!(poll(&registry), [Some("watch")]);
    // Closed and duplicated, it is in the set under this number without an entry's knowledge.
    registry.remove(moved);
    let token = registry.insert(fd, "another");
    registry.poller().add(fd, 1 << 40, Interest::ACCEPTING).unwrap();
    registry.set_interest(token, Interest::READABLE).unwrap();
    assert_eq!(poll(&registry), [Some("another")]);
    close(fd);
}

#[test]
fn a_token_does_not_name_its_successor() {
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
    let token = registry.insert(fd, "watch");
    registry.set_interest(token, Interest::READABLE).unwrap();
    close(fd);
    assert_eq!(poll(&registry), []);
    let (successor, _peer) = UnixStream::pair().unwrap();
    duplicate_to(&successor, fd);
    registry.renew_interest(token, Interest::READABLE).unwrap();
    assert_eq!(poll(&registry), []);
    registry.set_interest(token, Interest::WRITABLE).unwrap();
    assert_eq!(poll(&registry), [Some("watch")]);
    close(fd);
}

#[test]
fn an_entry_whose_file_was_replaced_gets_no_events_of_the_former_one() {
    let mut registry = registry();
    let (here, _there) = readable_pair();
    let fd = HIGH[2];
    duplicate_to(&here, fd);
    let token = registry.insert(fd, "watch");
    assert_eq!(registry.renew_or_move(token, Interest::READABLE).unwrap(), token);
    assert_eq!(registry.renew_or_move(token, Interest::READABLE).unwrap(), token, "it is the same file");
    close(fd);
    let (successor, _peer) = UnixStream::pair().unwrap();
    duplicate_to(&successor, fd);
    let moved = registry.renew_or_move(token, Interest::READABLE).unwrap();
    assert_ne!(moved, token);
    assert_eq!(registry.find(fd), Some(moved));
    assert_eq!(poll(&registry), [None], "the former file is open, and has no entry");
    close(fd);
    drop(here);
}

#[test]
fn a_stale_registration_is_recognised_and_removed() {
    let mut registry = registry();
    let ((here, _there), (other, _peer)) = (readable_pair(), readable_pair());
    let fd = HIGH[1];
    duplicate_to(&here, fd);
    let token = registry.insert(fd, "closed");
    registry.set_interest(token, Interest::READABLE).unwrap();
    let open = registry.insert(other.as_raw_fd(), "open");
    registry.set_interest(open, Interest::READABLE).unwrap();
    close(fd);
    registry.remove(token);
    let mut seen = poll(&registry);
    seen.sort();
    assert_eq!(seen, [None, Some("open")], "the duplicate keeps the registration alive");
    registry.rebuild().unwrap();
    assert_eq!(poll(&registry), [Some("open")]);
    drop(here);
}

#[test]
fn out_of_band_data_does_not_spin() {
    let mut registry = registry();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    let token = registry.insert(server.as_raw_fd(), "server");
    registry.set_interest(token, Interest::READABLE).unwrap();
    socket2::SockRef::from(&client).send_out_of_band(b"!").unwrap();
    let mut events = Events::default();
    registry.poller().wait(&mut events, Some(Duration::from_secs(5))).unwrap();
    assert!(events.events().next().unwrap().only_priority);
    registry.mask_priority(token);
    assert_eq!(poll(&registry), []);
    (&client).write_all(b"x").unwrap();
    registry.poller().wait(&mut events, Some(Duration::from_secs(5))).unwrap();
    let event = events.events().next().unwrap();
    assert!(event.readable && !event.only_priority);
}

#[test]
fn a_forked_child_leaves_the_parents_set_alone() {
    let mut registry = registry();
    let (here, _there) = readable_pair();
    let token = registry.insert(here.as_raw_fd(), "watch");
    registry.set_interest(token, Interest::READABLE).unwrap();
    in_child(|| {
        let mut inherited = std::mem::replace(&mut registry, self::registry());
        inherited.remove(token);
        inherited.poller().is_inherited()
    });
    assert_eq!(poll(&registry), [Some("watch")]);
    registry.poller().wake().unwrap();
    let start = std::time::Instant::now();
    let mut events = Events::default();
    registry.remove(token);
    registry.poller().wait(&mut events, Some(Duration::from_secs(20))).unwrap();
    assert!(start.elapsed() < Duration::from_secs(10), "the parent can still be woken");
}

#[test]
fn numbers_beyond_all_reason_are_refused_and_cost_nothing() {
    let mut registry = registry();
    for fd in [50_000_000, RawFd::MAX, -1] {
        let token = registry.insert(fd, "watch");
        assert_eq!(registry.find(fd), Some(token));
        let error = registry.set_interest(token, Interest::READABLE).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        assert_eq!(registry.remove(token), Some("watch"));
        assert_eq!(registry.find(fd), None);
    }
}

/// Runs a part of a test in a child, where it may close any descriptor.
pub fn in_child(run: impl FnOnce() -> bool) {
    // SAFETY: the child calls nothing but the test's code and _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let passed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_or(false);
        // SAFETY: _exit does not return.
        unsafe { libc::_exit(if passed { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0);
}

pub fn close_all() {
    for fd in 3..1024 {
        // SAFETY: the child has no use for any of them, and nothing that it drops closes them once more.
        unsafe { libc::close(fd) };
    }
}

/// In a child, since other tests run in this process: closes all descriptors before it runs what is given.
fn after_closing_all(backend: Backend, run: impl FnOnce(&mut Registry<&'static str>, Token) -> bool) {
    in_child(|| {
        let mut registry = Registry::new(Poller::new(backend).unwrap());
        let (here, there) = readable_pair();
        let token = registry.insert(here.as_raw_fd(), "closed");
        registry.set_interest(token, Interest::READABLE).unwrap();
        close_all();
        std::mem::forget((here, there));
        run(&mut registry, token)
    });
}

#[test]
fn a_set_that_was_closed_is_made_anew_by_the_wait() {
    for backend in Backend::ALL {
        after_closing_all(*backend, |registry, token| {
            let mut events = Events::default();
            let error = registry.poller().wait(&mut events, Some(Duration::ZERO)).unwrap_err();
            registry.recover(error).unwrap();
            let gone = registry.registered(token).is_none() && poll(registry).is_empty();
            let (here, _there) = readable_pair();
            let token = match registry.find(here.as_raw_fd()) {
                Some(token) => registry.renew_or_move(token, Interest::READABLE).unwrap(),
                None => registry.insert(here.as_raw_fd(), "new"),
            };
            registry.set_interest(token, Interest::READABLE).unwrap();
            gone && poll(registry).len() == 1
        });
    }
}

#[test]
fn a_set_that_was_closed_is_made_anew_by_a_request() {
    after_closing_all(Backend::default(), |registry, token| {
        let (here, _there) = readable_pair();
        let new = registry.insert(here.as_raw_fd() + 100, "new");
        // SAFETY: the child has that number for nothing else.
        unsafe { libc::dup2(here.as_raw_fd(), here.as_raw_fd() + 100) };
        registry.set_interest(new, Interest::READABLE).unwrap();
        registry.set_interest(token, Interest::NONE).unwrap();
        poll(registry) == [Some("new")]
    });
}

#[test]
fn a_poller_that_lost_its_numbers_closes_no_other_file() {
    in_child(|| {
        let former = Poller::new(Backend::default()).unwrap();
        close_all();
        // It has the same numbers.
        let (poller, mut events) = (Poller::new(Backend::default()).unwrap(), Events::default());
        assert!(poller.is_intact() && !former.is_intact());
        drop(former);
        poller.wake().unwrap();
        let start = std::time::Instant::now();
        poller.wait(&mut events, Some(Duration::from_secs(20))).unwrap();
        start.elapsed() < Duration::from_secs(10)
    });
}

#[test]
fn the_pollers_own_number_cannot_be_watched() {
    let mut registry = registry();
    let fd = (3..1024).find(|fd| registry.poller().is_own(*fd)).unwrap();
    let token = registry.insert(fd, "watch");
    assert!(registry.set_interest(token, Interest::READABLE).is_err());
    assert!(registry.poller().is_intact());
}
