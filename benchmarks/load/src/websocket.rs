//! WebSocket: the opening handshake of a client, and binary messages that the server echoes.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

const BINARY: u8 = 0x82;
const MASKED: u8 = 0x80;
/// Leaves the payload as it is. The server applies it all the same.
const MASK: [u8; 4] = [0; 4];
/// The longest head of an answer to the handshake.
const LONGEST_HEAD: usize = 16 * 1024;

/// The requests of one connection, which are equal, and the answers to them.
pub struct WebSocket {
    pub request: Vec<u8>,
    answer: Vec<u8>,
    /// How many bytes of the next answer have come.
    received: usize,
}

impl WebSocket {
    pub fn new(payload: &[u8]) -> Self {
        let request = [&head(payload.len(), MASKED), &MASK[..], payload].concat();
        let answer = [&head(payload.len(), 0), payload].concat();
        WebSocket { request, answer, received: 0 }
    }

    pub fn received(&mut self, mut data: &[u8]) -> Result<u64, String> {
        let mut complete = 0;
        while !data.is_empty() {
            let expected = &self.answer[self.received..];
            let length = expected.len().min(data.len());
            if data[..length] != expected[..length] {
                return Err("wrong bytes in a message".into());
            }
            data = &data[length..];
            self.received += length;
            if self.received == self.answer.len() {
                self.received = 0;
                complete += 1;
            }
        }
        Ok(complete)
    }
}

/// The head of a frame that is a whole message, without the mask.
fn head(length: usize, masked: u8) -> Vec<u8> {
    let mut head = vec![BINARY];
    if length < 126 {
        head.push(masked | length as u8);
    } else if let Ok(short) = u16::try_from(length) {
        head.push(masked | 126);
        head.extend(short.to_be_bytes());
    } else {
        head.push(masked | 127);
        head.extend((length as u64).to_be_bytes());
    }
    head
}

/// Asks for WebSocket on a blocking stream, and waits for the answer.
pub fn open(stream: &mut TcpStream, host: &SocketAddr) -> io::Result<()> {
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    // The server says nothing after this before it is sent a message.
    while !answer.ends_with(b"\r\n\r\n") {
        let mut buffer = [0; 4096];
        let length = stream.read(&mut buffer)?;
        if length == 0 || answer.len() > LONGEST_HEAD {
            return Err(io::Error::other("no answer to the handshake"));
        }
        answer.extend(&buffer[..length]);
    }
    if !answer.starts_with(b"HTTP/1.1 101") {
        let status = String::from_utf8_lossy(&answer);
        return Err(io::Error::other(format!("refused: {}", status.lines().next().unwrap_or_default())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_have_the_length_of_the_payload() {
        assert_eq!(head(125, MASKED), [0x82, 0xfd]);
        assert_eq!(head(126, 0), [0x82, 126, 0, 126]);
        assert_eq!(head(65_536, 0), [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn answers_are_counted_when_they_are_whole() {
        let mut websocket = WebSocket::new(b"abc");
        assert_eq!(websocket.received(&[0x82, 3, b'a']), Ok(0));
        assert_eq!(websocket.received(&[b'b', b'c', 0x82, 3, b'a', b'b', b'c', 0x82]), Ok(2));
        assert!(websocket.received(&[4]).is_err());
    }
}
