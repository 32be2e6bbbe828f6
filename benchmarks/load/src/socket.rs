//! One non-blocking socket, of any of the families that a loop serves.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use mio::event::Source;
use mio::net::{TcpStream, UdpSocket};
use mio::{Interest, Registry, Token};

use rustls::ClientConfig;

use crate::options::Address;
use crate::tls::Tls;
use crate::websocket;

#[cfg(unix)]
use mio::net::UnixStream;

pub enum Socket {
    Tcp(TcpStream),
    Tls(Box<Tls>),
    Udp(UdpSocket),
    #[cfg(unix)]
    Unix(UnixStream),
}

impl Socket {
    /// Connects, waiting for the server to accept, and only then goes non-blocking.
    pub fn connect(address: &Address, config: Option<&Arc<ClientConfig>>) -> io::Result<Self> {
        match address {
            Address::Tcp(host) | Address::Http { host, .. } => Ok(Socket::Tcp(connected(host)?)),
            Address::WebSocket(host) => {
                let mut stream = std::net::TcpStream::connect(host)?;
                stream.set_nodelay(true)?;
                websocket::open(&mut stream, host)?;
                stream.set_nonblocking(true)?;
                Ok(Socket::Tcp(TcpStream::from_std(stream)))
            }
            Address::Tls(host) | Address::Https { host, .. } => {
                let config = config.ok_or(io::ErrorKind::InvalidInput)?;
                Ok(Socket::Tls(Tls::new(connected(host)?, *host, Arc::clone(config))?.into()))
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
            Socket::Tls(tls) => tls.stream.register(registry, token, interest),
            Socket::Udp(socket) => socket.register(registry, token, interest),
            #[cfg(unix)]
            Socket::Unix(stream) => stream.register(registry, token, interest),
        }
    }

    pub fn send(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.write(data),
            Socket::Tls(tls) => tls.send(data),
            Socket::Udp(socket) => socket.send(data),
            #[cfg(unix)]
            Socket::Unix(stream) => stream.write(data),
        }
    }

    pub fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.read(buffer),
            Socket::Tls(tls) => tls.receive(buffer),
            Socket::Udp(socket) => socket.recv(buffer),
            #[cfg(unix)]
            Socket::Unix(stream) => stream.read(buffer),
        }
    }

    /// Sends what TLS still keeps of what it was given.
    pub fn flush(&mut self) -> io::Result<()> {
        match self {
            Socket::Tls(tls) => tls.flush(),
            _ => Ok(()),
        }
    }

    /// The side of a TLS connection, if it is one.
    pub fn tls(&mut self) -> Option<&mut Tls> {
        match self {
            Socket::Tls(tls) => Some(tls),
            _ => None,
        }
    }
}

fn connected(host: &SocketAddr) -> io::Result<TcpStream> {
    let stream = std::net::TcpStream::connect(host)?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    Ok(TcpStream::from_std(stream))
}
