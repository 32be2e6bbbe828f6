//! The system calls for datagrams: several received at a time, one sent.

use std::io;
use std::os::fd::RawFd;

use socket2::SockAddr;

use super::faults::{self, Call};
use super::memory::Memory;
use super::socket::{SEND_FLAGS, check};
use crate::reserve::{try_box, zeroes};

/// The most datagrams that one call receives.
pub const SLOTS: usize = 16;
/// The longest datagram of the Internet.
const SLOT_SIZE: usize = 64 * 1024;

/// How a batch's memory is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slots {
    /// [`SLOTS`], each large enough for a datagram of the Internet.
    Many,
    /// One, for sockets whose datagrams can be longer.
    One,
}

/// Memory to receive datagrams into, and the datagrams that were received last.
pub struct Batch {
    memory: Box<[u8]>,
    #[cfg(any(target_os = "linux", target_os = "android"))]
    headers: Box<Headers>,
    /// Start, length and sender of each.
    received: Vec<(usize, usize, Option<SockAddr>)>,
}

/// What recvmmsg() is called with, by slot. Its pointers are written anew for each call.
#[cfg(any(target_os = "linux", target_os = "android"))]
struct Headers {
    names: [libc::sockaddr_storage; SLOTS],
    vectors: [libc::iovec; SLOTS],
    messages: [libc::mmsghdr; SLOTS],
}

impl Batch {
    /// None if there is no memory.
    pub fn new() -> Option<Batch> {
        let mut received = Vec::new();
        received.try_reserve(SLOTS).ok()?;
        Some(Batch {
            memory: zeroes(SLOTS * SLOT_SIZE)?,
            // SAFETY: all zeroes is a valid value of these plain C structures.
            #[cfg(any(target_os = "linux", target_os = "android"))]
            headers: try_box(unsafe { std::mem::zeroed() })?,
            received,
        })
    }

    /// Receives datagrams, as many as there are slots, and returns how many; never waits. A datagram that is longer than its
    /// slot is cut off.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub fn receive(&mut self, fd: RawFd, slots: Slots) -> io::Result<usize> {
        let (count, size) = match slots {
            Slots::Many => (SLOTS, SLOT_SIZE),
            Slots::One => (1, self.memory.len()),
        };
        self.received.clear();
        let count = faults::length(Call::RecvMany, count)?;
        let Headers { names, vectors, messages } = &mut *self.headers;
        for (index, slot) in self.memory.chunks_exact_mut(size).enumerate() {
            vectors[index] = libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: size };
            let message = &mut messages[index].msg_hdr;
            message.msg_name = (&raw mut names[index]).cast();
            message.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            message.msg_iov = &raw mut vectors[index];
            message.msg_iovlen = 1;
        }
        // SAFETY: each of the first `count` messages points to a name and a vector that outlive the call; the vectors
        // to parts of the memory that do not overlap.
        let result = unsafe {
            libc::recvmmsg(
                fd,
                messages.as_mut_ptr(),
                count as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        let received = check(result as isize)?;
        for (index, message) in messages[..received].iter().enumerate() {
            let length = message.msg_hdr.msg_namelen;
            let name = (length > 0).then(|| {
                // SAFETY: the kernel has written an address of this length.
                let ((), address) = unsafe {
                    SockAddr::try_init(|storage, storage_length| {
                        *storage.cast() = names[index];
                        *storage_length = length;
                        Ok(())
                    })
                }?;
                io::Result::Ok(address)
            });
            self.received.push((index * size, message.msg_len as usize, name.transpose()?));
        }
        Ok(received)
    }

    /// Whether a socket that has given so many may have more.
    pub fn may_have_more(count: usize, slots: Slots) -> bool {
        slots == Slots::One || !cfg!(any(target_os = "linux", target_os = "android")) || count == SLOTS
    }

    /// Receives one datagram; never waits.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    pub fn receive(&mut self, fd: RawFd, _slots: Slots) -> io::Result<usize> {
        self.received.clear();
        let memory = &mut self.memory;
        // SAFETY: the memory is valid for writes of its length; try_init passes storage of the length that it says.
        let (length, address) = unsafe {
            SockAddr::try_init(|storage, length| {
                let pointer = memory.as_mut_ptr().cast();
                let flags = libc::MSG_DONTWAIT;
                check(libc::recvfrom(fd, pointer, memory.len(), flags, storage.cast(), length))
            })
        }?;
        self.received.push((0, length, (address.len() > 0).then_some(address)));
        Ok(1)
    }

    /// The data of a received datagram, and its sender if that has an address.
    pub fn get(&self, index: usize) -> (&[u8], Option<&SockAddr>) {
        let (start, length, address) = &self.received[index];
        (&self.memory[*start..start + length], address.as_ref())
    }
}

/// Sends a datagram, to the peer or to an address; never waits, and raises no SIGPIPE.
pub fn send_to(fd: RawFd, data: Memory<'_>, address: Option<&SockAddr>) -> io::Result<usize> {
    let (name, length) = match address {
        Some(address) => (address.as_ptr().cast(), address.len()),
        None => (std::ptr::null(), 0),
    };
    faults::attempt(Call::SendTo)?;
    // SAFETY: `data` is valid for reads of its length, and so is the address.
    check(unsafe { libc::sendto(fd, data.as_ptr().cast(), data.length(), SEND_FLAGS, name, length) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixDatagram;

    fn socket() -> UdpSocket {
        UdpSocket::bind("127.0.0.1:0").unwrap()
    }

    #[test]
    fn receives_what_waits_in_order_and_with_its_sender() {
        let (here, there) = (socket(), socket());
        let mut batch = Batch::new().unwrap();
        let error = batch.receive(here.as_raw_fd(), Slots::Many).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let address = here.local_addr().unwrap();
        for number in 0..20u8 {
            let data = vec![number; usize::from(number)];
            assert_eq!(
                send_to(there.as_raw_fd(), Memory::from(&data[..]), Some(&address.into())).unwrap(),
                data.len()
            );
        }
        let mut seen = Vec::new();
        while let Ok(count) = batch.receive(here.as_raw_fd(), Slots::Many) {
            for index in 0..count {
                let (data, sender) = batch.get(index);
                assert_eq!(sender.and_then(SockAddr::as_socket), Some(there.local_addr().unwrap()));
                seen.push(data.to_vec());
            }
        }
        let expected: Vec<_> = (0..20u8).map(|number| vec![number; usize::from(number)]).collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn long_datagrams_of_unix_sockets_are_received_whole() {
        let (here, there) = UnixDatagram::pair().unwrap();
        let data = vec![7; 150_000];
        assert_eq!(send_to(there.as_raw_fd(), Memory::from(&data[..]), None).unwrap(), data.len());
        let mut batch = Batch::new().unwrap();
        assert_eq!(batch.receive(here.as_raw_fd(), Slots::One).unwrap(), 1);
        assert_eq!(batch.get(0).0, data);
    }
}
