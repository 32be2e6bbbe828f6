use super::*;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

fn pollers() -> impl Iterator<Item = Poller> {
    Backend::ALL.iter().map(|backend| Poller::new(*backend).unwrap())
}

const MOMENT: Option<Duration> = Some(Duration::from_millis(20));

#[test]
fn reports_what_is_ready_as_long_as_it_is() {
    for poller in pollers() {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let mut events = Events::default();
        poller.add(here.as_raw_fd(), 7, Interest::READABLE).unwrap();
        poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
        assert!(events.is_empty());
        there.write_all(b"x").unwrap();
        let event = Event { key: 7, readable: true, writable: false, only_priority: false };
        for _ in 0..2 {
            poller.wait(&mut events, None).unwrap();
            assert_eq!(events.events().collect::<Vec<_>>(), [event]);
        }
        here.read_exact(&mut [0]).unwrap();
        poller.modify(here.as_raw_fd(), 8, Interest::WRITABLE).unwrap();
        poller.wait(&mut events, None).unwrap();
        assert_eq!(
            events.events().collect::<Vec<_>>(),
            [Event { key: 8, readable: false, writable: true, only_priority: false }]
        );
        poller.delete(here.as_raw_fd()).unwrap();
        poller.wait(&mut events, MOMENT).unwrap();
        assert!(events.is_empty());
    }
}

#[test]
fn waits_no_shorter_than_asked() {
    for poller in pollers() {
        let mut events = Events::default();
        for timeout in [Duration::from_micros(300), Duration::from_millis(5)] {
            let start = Instant::now();
            poller.wait(&mut events, Some(timeout)).unwrap();
            assert!(start.elapsed() >= timeout);
        }
    }
}

#[test]
fn wakes_again_and_again() {
    for poller in pollers() {
        let mut events = Events::default();
        for _ in 0..3 {
            poller.wake().unwrap();
            poller.wake().unwrap();
            let start = Instant::now();
            poller.wait(&mut events, Some(Duration::from_secs(20))).unwrap();
            assert!(start.elapsed() < Duration::from_secs(10));
            assert!(events.is_empty());
            let start = Instant::now();
            poller.wait(&mut events, MOMENT).unwrap();
            assert!(start.elapsed() >= MOMENT.unwrap(), "a wake-up ends one wait");
        }
    }
}

#[test]
fn errors_are_returned() {
    let poller = Poller::new(Backend::default()).unwrap();
    assert!(poller.add(-1, 1, Interest::READABLE).is_err());
    assert!(poller.modify(-1, 1, Interest::READABLE).is_err());
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    assert_eq!(
        poller.add(file.as_raw_fd(), 1, Interest::READABLE).unwrap_err().raw_os_error(),
        Some(libc::EPERM),
        "epoll refuses regular files"
    );
}
