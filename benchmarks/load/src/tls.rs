//! One side of a TLS connection, on a socket that does not block.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use mio::net::TcpStream;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore};

use crate::options::Handshake;

/// What a client trusts. Each connection that may resume another's session shares its sessions.
pub struct Trust(RootCertStore);

impl Trust {
    pub fn of_file(path: &Path) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        let certificate = CertificateDer::from_pem_file(path)
            .map_err(|error| format!("no certificate in {}: {error}", path.display()))?;
        roots.add(certificate).map_err(|error| format!("no right certificate: {error}"))?;
        Ok(Trust(roots))
    }

    /// The settings of one connection, and of those that replace it.
    pub fn config(&self, anew: Option<Handshake>) -> Arc<ClientConfig> {
        let mut config =
            ClientConfig::builder().with_root_certificates(self.0.clone()).with_no_client_auth();
        config.resumption = match anew {
            Some(Handshake::Resumed) => Resumption::in_memory_sessions(1),
            Some(Handshake::Full) | None => Resumption::disabled(),
        };
        Arc::new(config)
    }
}

pub struct Tls {
    connection: ClientConnection,
    pub stream: TcpStream,
}

impl Tls {
    pub fn new(stream: TcpStream, host: SocketAddr, config: Arc<ClientConfig>) -> io::Result<Self> {
        let connection = ClientConnection::new(config, host.ip().into()).map_err(io::Error::other)?;
        Ok(Tls { connection, stream })
    }

    /// Sends the records that wait, until the socket takes no more.
    pub fn flush(&mut self) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(&mut self.stream)?;
        }
        Ok(())
    }

    pub fn send(&mut self, data: &[u8]) -> io::Result<usize> {
        self.flush()?;
        let length = self.connection.writer().write(data)?;
        if length == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.flush_some()?;
        Ok(length)
    }

    pub fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.connection.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                result => return result,
            }
            if self.connection.read_tls(&mut self.stream)? == 0 {
                return Ok(0);
            }
            self.connection.process_new_packets().map_err(io::Error::other)?;
            self.flush_some()?;
        }
    }

    pub fn is_resumed(&self) -> bool {
        self.connection.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Says that nothing more comes. What the socket does not take at once is lost with it.
    pub fn end(&mut self) -> io::Result<()> {
        self.connection.send_close_notify();
        self.flush_some()
    }

    fn flush_some(&mut self) -> io::Result<()> {
        match self.flush() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            result => result,
        }
    }
}
