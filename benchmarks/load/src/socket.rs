//! One non-blocking socket, of any of the three families that a loop serves.

use std::io::{self, Read, Write};

use mio::event::Source;
use mio::net::{TcpStream, UdpSocket};
use mio::{Interest, Registry, Token};

use crate::options::Address;

#[cfg(unix)]
use mio::net::UnixStream;

pub enum Socket {
    Tcp(TcpStream),
    Udp(UdpSocket),
    #[cfg(unix)]
    Unix(UnixStream),
}

impl Socket {
    /// Connects, waiting for the server to accept, and only then goes non-blocking.
    pub fn connect(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(host) | Address::Http { host, .. } => {
                let stream = std::net::TcpStream::connect(host)?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                Ok(Socket::Tcp(TcpStream::from_std(stream)))
            }
            Address::Udp(host) => {
                let any = if host.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = std::net::UdpSocket::bind(any)?;
                socket.connect(host)?;
                socket.set_nonblocking(true)?;
                Ok(Socket::Udp(UdpSocket::from_std(socket)))
            }
            #[cfg(unix)]
            Address::Unix(path) => {
                let stream = std::os::unix::net::UnixStream::connect(path)?;
                stream.set_nonblocking(true)?;
                Ok(Socket::Unix(UnixStream::from_std(stream)))
            }
            #[cfg(not(unix))]
            Address::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        match self {
            Socket::Tcp(stream) => stream.register(registry, token, interest),
            Socket::Udp(socket) => socket.register(registry, token, interest),
            #[cfg(unix)]
            Socket::Unix(stream) => stream.register(registry, token, interest),
        }
    }

    pub fn send(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.write(data),
            Socket::Udp(socket) => socket.send(data),
            #[cfg(unix)]
            Socket::Unix(stream) => stream.write(data),
        }
    }

    pub fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.read(buffer),
            Socket::Udp(socket) => socket.recv(buffer),
            #[cfg(unix)]
            Socket::Unix(stream) => stream.read(buffer),
        }
    }
}
