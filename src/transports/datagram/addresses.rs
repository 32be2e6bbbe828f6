//! The addresses of peers, as Python has them and as the kernel does. A server answers the same peers again and again,
//! so both ways are remembered.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use pyo3::prelude::*;
use pyo3::types::{PyInt, PyString, PyTuple};
use socket2::SockAddr;

use crate::cpython::object::Object;
use crate::transports::address::Address;

/// How many peers are remembered; a power of two.
const PLACES: usize = 128;

/// What a socket's addresses look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
    /// Left to the socket module.
    Other,
}

impl Family {
    /// The family of a socket.socket.
    pub fn of(socket: &Bound<'_, PyAny>) -> PyResult<Family> {
        let family: i32 = socket.getattr("family")?.extract()?;
        Ok(match family {
            libc::AF_INET => Family::V4,
            libc::AF_INET6 => Family::V6,
            _ => Family::Other,
        })
    }
}

pub struct Addresses {
    pub family: Family,
    /// By the kernel's address: what Python is given for it.
    received: RefCell<Vec<Option<(SocketAddr, Object)>>>,
    /// By the identity of Python's address, which is kept alive: what the kernel is given for it.
    sent: RefCell<Vec<Option<(Object, SockAddr)>>>,
}

impl Addresses {
    pub fn new(family: Family) -> Addresses {
        Addresses { family, received: RefCell::default(), sent: RefCell::default() }
    }

    /// What Python is told of a sender; None if the socket module has to be asked.
    pub fn for_python(&self, py: Python<'_>, address: &SockAddr) -> PyResult<Option<Object>> {
        let Some(key) = address.as_socket() else {
            return Address::from(address.clone()).to_python(py);
        };
        let place = hash(&key) as usize % PLACES;
        if let Some(Some((known, object))) = self.received.borrow().get(place)
            && *known == key
        {
            return Ok(Some(object.clone()));
        }
        // Making it can run Python code: nothing is borrowed.
        let made = Address::Internet(key).to_python(py)?;
        if let Some(made) = &made {
            let mut received = self.received.borrow_mut();
            if received.is_empty() {
                received.resize_with(PLACES, || None);
            }
            // What is dropped here is a tuple of strings and integers.
            received[place] = Some((key, made.clone()));
        }
        Ok(made)
    }

    /// What the kernel is given for an address; None if only the socket module can tell: names, and mistakes.
    pub fn for_kernel(&self, py: Python<'_>, object: &Object) -> Option<SockAddr> {
        let place = (object.as_ptr() as usize >> 4) % PLACES;
        if let Some(Some((known, address))) = self.sent.borrow().get(place)
            && known.is(object)
        {
            return Some(address.clone());
        }
        let address = parse(py, object, self.family)?;
        let mut sent = self.sent.borrow_mut();
        if sent.is_empty() {
            sent.resize_with(PLACES, || None);
        }
        sent[place] = Some((object.clone(), address.clone()));
        Some(address)
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

/// An exact tuple of strings and integers, which nobody can change, with a numeric host.
fn parse(py: Python<'_>, object: &Object, family: Family) -> Option<SockAddr> {
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
    Some(address.into())
}
