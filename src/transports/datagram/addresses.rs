//! Conversion of peers' addresses between Python and the kernel. A server answers the same peers again and again, so both ways
//! are cached.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use pyo3::prelude::*;
use pyo3::types::{PyInt, PyString, PyTuple};
use socket2::SockAddr;

use crate::cpython::borrowing::StateCell;
use crate::cpython::object::Object;
use crate::intern;
use crate::reserve::has_room;
use crate::transports::address::Address;

/// The sets of a [`Cache`] that has seen more than [`WAYS`] keys, a power of two. One that has not has a single set.
const SETS: usize = 64;
/// The entries of a set. A look-up compares no more keys than that.
const WAYS: usize = 4;

/// A set-associative cache: the hash of a key selects a set, whose oldest entry is replaced if it is full.
struct Cache<K, V> {
    /// None, one set's, or those of all.
    entries: Vec<Option<(K, V)>>,
    /// Of each set, where the next new entry goes.
    next: [u8; SETS],
}

/// What a cache has no more. Dropping it can run Python code.
#[must_use]
enum Forgotten<K, V> {
    Nothing,
    One { _entry: (K, V) },
    All { _entries: Vec<Option<(K, V)>> },
}

impl<K, V> From<Option<(K, V)>> for Forgotten<K, V> {
    fn from(entry: Option<(K, V)>) -> Self {
        entry.map_or(Forgotten::Nothing, |_entry| Forgotten::One { _entry })
    }
}

/// Places for so many entries, if there is memory for them.
fn places<K, V>(count: usize) -> Option<Vec<Option<(K, V)>>> {
    let mut entries = Vec::new();
    if !has_room(count * size_of::<Option<(K, V)>>()) || entries.try_reserve_exact(count).is_err() {
        return None;
    }
    entries.resize_with(count, || None);
    Some(entries)
}

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Cache { entries: Vec::new(), next: [0; SETS] }
    }
}

impl<K, V> Cache<K, V> {
    fn find(&self, hash: usize, is_it: impl Fn(&K) -> bool) -> Option<&V> {
        let first = self.set_of(hash) * WAYS;
        let set = self.entries.get(first..first + WAYS)?;
        set.iter().flatten().find(|(key, _)| is_it(key)).map(|(_, value)| value)
    }

    fn set_of(&self, hash: usize) -> usize {
        if self.entries.len() <= WAYS { 0 } else { hash % SETS }
    }

    /// Adds an entry. Returns what it replaces, or itself if there is no memory for the cache.
    fn insert(&mut self, hash: usize, key: K, value: V) -> Forgotten<K, V> {
        if self.entries.is_empty() {
            let Some(entries) = places(WAYS) else { return Some((key, value)).into() };
            self.entries = entries;
        } else if self.entries.len() == WAYS
            && self.entries.iter().all(Option::is_some)
            && let Some(entries) = places(SETS * WAYS)
        {
            // Most endpoints have few peers. The hashes of the former entries are not known any more.
            let _entries = std::mem::replace(&mut self.entries, entries);
            self.next = [0; SETS];
            let _ = self.put(hash, key, value);
            return Forgotten::All { _entries };
        }
        self.put(hash, key, value).into()
    }

    fn put(&mut self, hash: usize, key: K, value: V) -> Option<(K, V)> {
        let set = self.set_of(hash);
        let way = usize::from(self.next[set]) % WAYS;
        self.next[set] = self.next[set].wrapping_add(1);
        self.entries[set * WAYS + way].replace((key, value))
    }
}

/// What a socket's addresses look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
    Unix,
    /// Left to the socket module.
    Other,
}

impl Family {
    /// The family of a socket.socket.
    pub fn of(socket: &Bound<'_, PyAny>) -> PyResult<Family> {
        let family: i32 = socket.getattr(intern!(socket.py(), "family"))?.extract()?;
        Ok(match family {
            libc::AF_INET => Family::V4,
            libc::AF_INET6 => Family::V6,
            libc::AF_UNIX => Family::Unix,
            _ => Family::Other,
        })
    }
}

pub struct Addresses {
    pub family: Family,
    /// Python's addresses by the kernel's.
    received: StateCell<Cache<SocketAddr, Object>>,
    /// The kernel's addresses by the identity of Python's, which are kept alive.
    sent: StateCell<Cache<Object, SocketAddr>>,
}

impl Addresses {
    pub fn new(family: Family) -> Addresses {
        Addresses { family, received: StateCell::default(), sent: StateCell::default() }
    }

    /// Python's form of a sender's address; None if only the socket module can make it.
    pub fn for_python(&self, py: Python<'_>, address: &SockAddr) -> PyResult<Option<Object>> {
        let Some(key) = address.as_socket() else {
            return Address::from(address.clone()).to_python(py);
        };
        let hash = hash(&key) as usize;
        if let Some(object) = self.received.borrow().find(hash, |known| *known == key) {
            return Ok(Some(object.clone()));
        }
        // Making it can run Python code, and so can dropping: nothing is borrowed.
        let made = Address::Internet(key).to_python(py)?;
        if let Some(made) = &made {
            let forgotten = self.received.borrow_mut().insert(hash, key, made.clone());
            drop(forgotten);
        }
        Ok(made)
    }

    /// The kernel's form of an address; None for names and mistakes, which are left to the socket module.
    pub fn for_kernel(&self, py: Python<'_>, object: &Object) -> Option<SockAddr> {
        let hash = object.as_ptr() as usize >> 4;
        if let Some(address) = self.sent.borrow().find(hash, |known| known.is(object)) {
            return Some(SockAddr::from(*address));
        }
        let address = parse(py, object, self.family)?;
        let forgotten = self.sent.borrow_mut().insert(hash, object.clone(), address);
        drop(forgotten);
        Some(SockAddr::from(address))
    }
}

fn hash(address: &SocketAddr) -> u32 {
    let host = match address.ip() {
        IpAddr::V4(host) => host.to_bits(),
        IpAddr::V6(host) => {
            let bits = host.to_bits();
            [96, 64, 32, 0].iter().fold(0, |hash, shift| hash ^ (bits >> shift) as u32)
        }
    };
    // Fibonacci hashing: the upper bits depend on all lower ones.
    (host ^ u32::from(address.port()).rotate_left(16)).wrapping_mul(0x9e37_79b9) >> 16
}

/// Parses an exact tuple of strings and integers, which is immutable, with a numeric host. None for anything else.
fn parse(py: Python<'_>, object: &Object, family: Family) -> Option<SocketAddr> {
    let object = object.bind(py);
    let tuple = object.cast_exact::<PyTuple>().ok()?;
    let host = tuple.get_item(0).ok()?;
    let host = host.cast_exact::<PyString>().ok()?.to_str().ok()?;
    let number = |index: usize| -> Option<u32> {
        let number = tuple.get_item(index).ok()?;
        number.cast_exact::<PyInt>().ok()?;
        number.extract().ok()
    };
    let port = u16::try_from(number(1)?).ok()?;
    let address: SocketAddr = match (family, tuple.len()) {
        (Family::V4, 2) => (host.parse::<Ipv4Addr>().ok()?, port).into(),
        (Family::V6, length @ 2..=4) => {
            let host = host.parse::<Ipv6Addr>().ok()?;
            let flow = if length > 2 { number(2).filter(|flow| *flow <= 0xf_ffff)? } else { 0 };
            let scope = if length > 3 { number(3)? } else { 0 };
            SocketAddrV6::new(host, port, flow.to_be(), scope).into()
        }
        _ => return None,
    };
    Some(address)
}
