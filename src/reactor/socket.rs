//! The system calls that transports make on their sockets, on borrowed descriptors.
//!
//! A descriptor that is not open makes the kernel answer EBADF. The caller guarantees that the number still stands for its socket.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use socket2::{Domain, SockAddr, Socket, Type};

use super::faults::{self, Call};
use super::memory::{Memory, MemoryMut};

/// The most buffers of one sendmsg(). Linux takes up to 1,024; fewer keep the array on the stack.
pub const MAX_SLICES: usize = 64;

// recv() and send(), by their numbers on Linux: the C library's functions are cancellation points, which takes some twenty
// instructions more.
#[cfg(not(target_os = "linux"))]
use libc::{recv as sys_recv, send as sys_send};

#[cfg(target_os = "linux")]
unsafe fn sys_recv(fd: RawFd, data: *mut libc::c_void, length: usize, flags: i32) -> isize {
    let no_address = std::ptr::null::<u8>();
    // SAFETY: recvfrom() without an address is recv(); the caller's data is valid for writes of `length` bytes.
    unsafe { libc::syscall(libc::SYS_recvfrom, fd, data, length, flags, no_address, no_address) as isize }
}

#[cfg(target_os = "linux")]
unsafe fn sys_send(fd: RawFd, data: *const libc::c_void, length: usize, flags: i32) -> isize {
    let no_address = std::ptr::null::<u8>();
    // SAFETY: sendto() without an address is send(); the caller's data is valid for reads of `length` bytes.
    unsafe { libc::syscall(libc::SYS_sendto, fd, data, length, flags, no_address, 0) as isize }
}

pub(super) fn check(result: isize) -> io::Result<usize> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as usize) }
}

/// Whether an error only says that the socket or pipe is not ready.
pub fn is_not_ready(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Receives into `buffer` and returns the number of bytes; never waits.
pub fn recv<'a>(fd: RawFd, buffer: impl Into<MemoryMut<'a>>) -> io::Result<usize> {
    let mut buffer = buffer.into();
    let length = faults::length(Call::Recv, buffer.length())?;
    // SAFETY: `buffer` is valid for writes of its length, which `length` is not above.
    check(unsafe { sys_recv(fd, buffer.as_mut_ptr().cast(), length, libc::MSG_DONTWAIT) })
}

/// Receives into memory that need not be initialised and returns the number of bytes, which are; never waits.
pub fn recv_uninit(fd: RawFd, buffer: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
    let length = faults::length(Call::Recv, buffer.len())?;
    // SAFETY: `buffer` is valid for writes of its length, which `length` is not above.
    check(unsafe { sys_recv(fd, buffer.as_mut_ptr().cast(), length, libc::MSG_DONTWAIT) })
}

/// Receives into two buffers, one after the other, and returns the number of bytes; never waits. This many bytes of the two are
/// initialised.
pub fn recv_into_both(fd: RawFd, first: &mut [MaybeUninit<u8>], rest: &mut [u8]) -> io::Result<usize> {
    let length = faults::length(Call::RecvMessage, first.len() + rest.len())?;
    let in_first = length.min(first.len());
    let slices = [
        libc::iovec { iov_base: first.as_mut_ptr().cast(), iov_len: in_first },
        libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: length - in_first },
    ];
    // SAFETY: all zeroes is a valid msghdr: no address, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = (&raw const slices).cast_mut().cast();
    message.msg_iovlen = slices.len() as _;
    // SAFETY: the slices are valid for writes, and everything lives through the call.
    check(unsafe { libc::recvmsg(fd, &mut message, libc::MSG_DONTWAIT) })
}

#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
pub(super) const SEND_FLAGS: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
pub(super) const SEND_FLAGS: libc::c_int = libc::MSG_DONTWAIT;

/// Sends what is in one piece; as [`send`].
pub fn send_one(fd: RawFd, data: Memory<'_>) -> io::Result<usize> {
    let length = faults::length(Call::Send, data.length())?;
    // SAFETY: `data` is valid for reads of its length, which `length` is not above.
    check(unsafe { sys_send(fd, data.as_ptr().cast(), length, SEND_FLAGS) })
}

/// Sends as much of the buffers as the socket takes, of which at most [`MAX_SLICES`] are used, and returns the
/// number of bytes; never waits, and raises no SIGPIPE.
pub fn send(fd: RawFd, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    if let [data] = slices {
        return send_one(fd, Memory::from(&**data));
    }
    let slices = faults::slices(Call::SendMessage, &slices[..slices.len().min(MAX_SLICES)])?;
    // SAFETY: all zeroes is a valid msghdr: no address, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = slices.as_ptr().cast_mut().cast();
    message.msg_iovlen = slices.len() as _;
    // SAFETY: IoSlice has the layout of iovec; sendmsg reads the slices, which are valid for the call.
    check(unsafe { libc::sendmsg(fd, &message, SEND_FLAGS) })
}

/// Accepts a connection that is waiting; the new socket does not block and is not inherited.
pub fn accept(listener: RawFd) -> io::Result<(OwnedFd, SockAddr)> {
    #[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
    let flags = Some(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC);
    #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
    let flags: Option<libc::c_int> = None;
    faults::attempt(Call::Accept)?;
    // SAFETY: try_init passes storage of the length that it says; the calls fill it in.
    let (fd, address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let fd = match flags {
                #[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
                Some(flags) => libc::accept4(listener, storage.cast(), length, flags),
                _ => libc::accept(listener, storage.cast(), length),
            };
            if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(fd) }
        })
    }?;
    // SAFETY: the descriptor was just made, and has no other owner.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    if flags.is_none() {
        let socket = socket2::SockRef::from(&socket);
        socket.set_nonblocking(true)?;
        socket.set_cloexec(true)?;
    }
    Ok((socket, address))
}

/// A TCP socket for an address; it does not block and is not inherited.
pub fn stream(address: &SocketAddr) -> io::Result<OwnedFd> {
    faults::attempt(Call::Socket)?;
    let kind = Type::STREAM;
    #[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
    let kind = kind.nonblocking();
    let socket = Socket::new(Domain::for_address(*address), kind, None)?;
    #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Begins to connect.
pub fn connect(fd: RawFd, address: &SocketAddr) -> io::Result<()> {
    let address = SockAddr::from(*address);
    faults::attempt(Call::Connect)?;
    // SAFETY: the address lives through the call, and is of the length that it says.
    check(unsafe { libc::connect(fd, address.as_ptr().cast(), address.len()) } as isize).map(drop)
}

/// An option of the socket whose value is a number.
fn option(fd: RawFd, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut number: libc::c_int = 0;
    let mut length = size_of_val(&number) as libc::socklen_t;
    faults::attempt(Call::GetSockOpt)?;
    // SAFETY: the option's value is an int that lives through the call.
    check(unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, name, (&raw mut number).cast(), &mut length) }
        as isize)?;
    Ok(number)
}

/// Takes the socket's pending error (SO_ERROR).
pub fn take_error(fd: RawFd) -> io::Result<Option<io::Error>> {
    let number = option(fd, libc::SO_ERROR)?;
    Ok((number != 0).then(|| io::Error::from_raw_os_error(number)))
}

/// Whether the socket is a stream: bytes that one call does not receive are left for the next.
pub fn is_stream(fd: RawFd) -> bool {
    option(fd, libc::SO_TYPE).is_ok_and(|kind| kind == libc::SOCK_STREAM)
}

/// Shuts down the sending direction.
pub fn shutdown_write(fd: RawFd) -> io::Result<()> {
    faults::attempt(Call::Shutdown)?;
    // SAFETY: a call without pointers.
    check(unsafe { libc::shutdown(fd, libc::SHUT_WR) } as isize).map(drop)
}

/// Whether closing the socket waits until the peer has what was sent (SO_LINGER, which accepted connections inherit).
pub fn lingers(socket: &OwnedFd) -> bool {
    socket2::SockRef::from(socket).linger().is_ok_and(|time| time.is_some())
}

/// fstat()
pub(super) fn status(fd: RawFd) -> io::Result<libc::stat> {
    // SAFETY: all zeroes is a valid stat structure, which fstat fills in.
    let mut status: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `status` outlives the call.
    check(unsafe { libc::fstat(fd, &mut status) } as isize).map(|_| status)
}

/// Identifies the file that a descriptor stands for among all open files. None if the descriptor is closed.
pub fn identity(fd: RawFd) -> Option<(libc::dev_t, libc::ino_t)> {
    faults::attempt(Call::Fstat).ok()?;
    let status = status(fd).ok()?;
    Some((status.st_dev, status.st_ino))
}

/// Disables Nagle's algorithm. This is a no-op if the socket is not TCP's.
pub fn set_nodelay(fd: RawFd) {
    if faults::attempt(Call::SetSockOpt).is_err() {
        return;
    }
    let on: libc::c_int = 1;
    let length = size_of_val(&on) as libc::socklen_t;
    // SAFETY: the option's value is an int that lives through the call.
    unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, (&raw const on).cast(), length) };
}

/// The address that the socket is bound to.
pub fn local_address(fd: RawFd) -> io::Result<SockAddr> {
    faults::attempt(Call::GetSockName)?;
    address(fd, libc::getsockname)
}

/// The address that the socket is connected to.
pub fn peer_address(fd: RawFd) -> io::Result<SockAddr> {
    faults::attempt(Call::GetPeerName)?;
    address(fd, libc::getpeername)
}

type GetAddress = unsafe extern "C" fn(RawFd, *mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int;

fn address(fd: RawFd, get: GetAddress) -> io::Result<SockAddr> {
    // SAFETY: the call fills in storage of the length that it is passed.
    unsafe { SockAddr::try_init(|storage, length| check(get(fd, storage.cast(), length) as isize).map(drop)) }
        .map(|((), address)| address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn moves_bytes_and_never_waits() {
        let (mut here, there) = UnixStream::pair().unwrap();
        let mut buffer = [0; 8];
        assert_eq!(recv(there.as_raw_fd(), &mut buffer[..]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        here.write_all(b"ping").unwrap();
        assert_eq!(recv(there.as_raw_fd(), &mut buffer[..]).unwrap(), 4);
        assert_eq!(&buffer[..4], b"ping");
        assert_eq!(send(there.as_raw_fd(), &[IoSlice::new(b"po"), IoSlice::new(b"ng")]).unwrap(), 4);
        here.read_exact(&mut buffer[..4]).unwrap();
        assert_eq!(&buffer[..4], b"pong");
        let flood = vec![0; 1 << 22];
        assert!(send(there.as_raw_fd(), &[IoSlice::new(&flood)]).unwrap() < flood.len());
        assert_eq!(
            send(there.as_raw_fd(), &[IoSlice::new(&flood)]).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        here.write_all(b"three").unwrap();
        drop(here);
        assert_eq!(
            send(there.as_raw_fd(), &[IoSlice::new(b"x")]).unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
        assert_eq!(recv(-1, &mut buffer[..]).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn accepts_a_connection_that_waits() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        assert_eq!(accept(listener.as_raw_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, address) = accept(listener.as_raw_fd()).unwrap();
        assert_eq!(address.as_socket(), Some(client.local_addr().unwrap()));
        assert_eq!(local_address(server.as_raw_fd()).unwrap().as_socket(), Some(client.peer_addr().unwrap()));
        set_nodelay(server.as_raw_fd());
        assert!(socket2::SockRef::from(&server).tcp_nodelay().unwrap());
        assert_eq!(recv(server.as_raw_fd(), &mut [0][..]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        shutdown_write(server.as_raw_fd()).unwrap();
        assert_eq!((&client).read(&mut [0][..]).unwrap(), 0);
    }
}
