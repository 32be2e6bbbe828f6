//! Single cases on the simulated kernel, which random programs meet too rarely or check too leniently.

use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::super::kernel::Wait;
use super::super::poller::{Events, Interest};
use super::super::registry::{Registry, Token};
use super::machine::{IN, Kind, Machine};
use super::set::Set;

struct Case {
    machine: Rc<Machine>,
    registry: Registry<RawFd, Set>,
}

impl Case {
    fn new() -> Case {
        let machine = Machine::new();
        let registry = Registry::new(Set::new(&machine).unwrap());
        Case { machine, registry }
    }

    /// A file that is readable and watched.
    fn watched(&mut self) -> (RawFd, Token) {
        let mut state = self.machine.state.borrow_mut();
        let fd = state.open(Kind::Socket).unwrap();
        let file = state.file(fd).unwrap();
        state.change(file, IN);
        drop(state);
        let token = self.registry.insert(fd, fd);
        self.registry.set_interest(token, Interest::READABLE).unwrap();
        (fd, token)
    }

    /// Leaves the registration of a file that was closed and is open under another number.
    fn make_stale(&mut self) {
        let (fd, token) = self.watched();
        let mut state = self.machine.state.borrow_mut();
        state.duplicate(fd, None).unwrap();
        state.close(fd).unwrap();
        drop(state);
        self.registry.remove(token);
        self.registry.suspect_stale();
    }

    fn poll(&self) -> Vec<Option<RawFd>> {
        let mut events = Events::default();
        self.registry.poller().wait(&mut events, Some(Duration::ZERO)).unwrap();
        let mut found: Vec<_> =
            events.events().map(|event| self.registry.resolve(event.key).map(|(_, fd)| *fd)).collect();
        found.sort();
        found
    }
}

#[test]
fn a_rebuild_that_fails_half_way_loses_nothing() {
    for error in [libc::ENOSPC, libc::ENOMEM] {
        let mut case = Case::new();
        let entries: Vec<_> = (0..4).map(|_| case.watched()).collect();
        let everything: Vec<_> = entries.iter().map(|(fd, _)| Some(*fd)).collect();
        let set = Arc::clone(case.registry.poller());
        let numbers = case.machine.state.borrow().numbers().count();
        {
            let mut state = case.machine.state.borrow_mut();
            state.accept_add = 2;
            state.refuse_add = (1, error);
        }
        assert_eq!(case.registry.rebuild().unwrap_err().raw_os_error(), Some(error));
        assert!(Arc::ptr_eq(&set, case.registry.poller()));
        assert_eq!(case.poll(), everything);
        assert_eq!(case.machine.state.borrow().numbers().count(), numbers, "no descriptor is left open");
        assert!(entries.iter().all(|(_, token)| case.registry.registered(*token) == Interest::READABLE));
        drop(set);
        case.registry.rebuild().unwrap();
        assert_eq!(case.poll(), everything);
    }
}

#[test]
fn stale_registrations_are_removed_when_possible_with_a_back_off() {
    let mut case = Case::new();
    let (open, _) = case.watched();
    case.make_stale();
    case.machine.state.borrow_mut().refuse_new = (u32::MAX, libc::EMFILE);
    for _ in 0..10_000 {
        case.registry.refresh_poller().unwrap();
    }
    let attempts = case.machine.state.borrow().refusals;
    assert!((5..30).contains(&attempts), "{attempts} attempts");
    assert_eq!(case.poll(), [None, Some(open)]);
    case.machine.state.borrow_mut().refuse_new = (0, 0);
    for _ in 0..2000 {
        case.registry.refresh_poller().unwrap();
    }
    assert_eq!(case.poll(), [Some(open)]);
}

#[test]
fn a_child_without_a_free_descriptor_gets_an_error_and_tries_again() {
    let mut case = Case::new();
    let (fd, token) = case.watched();
    case.machine.state.borrow_mut().fork();
    case.machine.state.borrow_mut().refuse_new = (2, libc::EMFILE);
    assert_eq!(case.registry.refresh_poller().unwrap_err().raw_os_error(), Some(libc::EMFILE));
    assert!(case.registry.set_interest(token, Interest::WRITABLE).is_err());
    assert_eq!(case.registry.registered(token), Interest::READABLE);
    case.registry.refresh_poller().unwrap();
    assert_eq!(case.poll(), [Some(fd)]);
    assert!(case.machine.state.borrow().parents_are_unharmed());
}
