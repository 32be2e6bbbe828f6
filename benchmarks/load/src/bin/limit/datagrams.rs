//! Echo on a datagram socket.

use std::io;
use std::net::{SocketAddr, UdpSocket};

pub fn serve(host: SocketAddr, ready: impl FnOnce()) -> io::Result<()> {
    let socket = UdpSocket::bind(host)?;
    ready();
    #[cfg(target_os = "linux")]
    return several::echo(&socket);
    #[cfg(not(target_os = "linux"))]
    return echo(&socket);
}

#[cfg(not(target_os = "linux"))]
fn echo(socket: &UdpSocket) -> io::Result<()> {
    let mut buffer = [0; 64 * 1024];
    loop {
        let (length, sender) = socket.recv_from(&mut buffer)?;
        socket.send_to(&buffer[..length], sender)?;
    }
}

/// Linux takes and gives several datagrams in one system call.
#[cfg(target_os = "linux")]
mod several {
    use std::io::{self, ErrorKind};
    use std::mem;
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;
    use std::ptr;

    const COUNT: usize = 64;
    const SIZE: usize = 64 * 1024;
    const ADDRESS: libc::socklen_t = mem::size_of::<libc::sockaddr_in6>() as libc::socklen_t;

    pub fn echo(socket: &UdpSocket) -> io::Result<()> {
        let mut buffers = vec![0_u8; COUNT * SIZE];
        // SAFETY: These are plain C structures, for which all zeroes is a value.
        let mut senders: [libc::sockaddr_in6; COUNT] = unsafe { mem::zeroed() };
        let mut pieces: Vec<libc::iovec> = buffers
            .chunks_mut(SIZE)
            .map(|buffer| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: SIZE })
            .collect();
        // SAFETY: As above.
        let mut messages: [libc::mmsghdr; COUNT] = unsafe { mem::zeroed() };
        for ((message, piece), sender) in messages.iter_mut().zip(&mut pieces).zip(&mut senders) {
            message.msg_hdr.msg_iov = ptr::from_mut(piece);
            message.msg_hdr.msg_iovlen = 1;
            message.msg_hdr.msg_name = ptr::from_mut(sender).cast();
        }
        loop {
            for (message, piece) in messages.iter_mut().zip(&mut pieces) {
                message.msg_hdr.msg_namelen = ADDRESS;
                piece.iov_len = SIZE;
            }
            let received = receive(socket, &mut messages)?;
            for (message, piece) in messages[..received].iter().zip(&mut pieces) {
                piece.iov_len = message.msg_len as usize;
            }
            let mut sent = 0;
            while sent < received {
                sent += send(socket, &mut messages[sent..received])?;
            }
        }
    }

    /// Waits for the first and takes those that are there with it.
    fn receive(socket: &UdpSocket, messages: &mut [libc::mmsghdr]) -> io::Result<usize> {
        let count = messages.len() as libc::c_uint;
        // SAFETY: Each message points to a buffer and an address that are alive, of the lengths it gives.
        again(|| unsafe {
            let flags = libc::MSG_WAITFORONE as _;
            libc::recvmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count, flags, ptr::null_mut())
        })
    }

    fn send(socket: &UdpSocket, messages: &mut [libc::mmsghdr]) -> io::Result<usize> {
        let count = messages.len() as libc::c_uint;
        // SAFETY: As for receive.
        again(|| unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count, 0) })
    }

    /// Makes a system call until no signal interrupts it.
    fn again(mut call: impl FnMut() -> libc::c_int) -> io::Result<usize> {
        loop {
            match usize::try_from(call()) {
                Ok(count) => return Ok(count),
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
    }
}
