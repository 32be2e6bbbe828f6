//! One connection that keeps its requests in flight.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::time::Instant;

use crate::exchange::{Exchange, Unsent};
use crate::socket::Socket;

pub struct Client {
    socket: Socket,
    exchange: Exchange,
    unsent: Unsent,
    /// When each request that has no answer yet was made, the oldest first.
    in_flight: VecDeque<Instant>,
}

impl Client {
    pub fn new(socket: Socket, exchange: Exchange) -> Self {
        Client { socket, exchange, unsent: Unsent::default(), in_flight: VecDeque::new() }
    }

    /// Makes `count` more requests and sends what the socket takes of them.
    pub fn request(&mut self, count: u64, now: Instant) -> Result<(), String> {
        self.unsent.requests += count;
        for _ in 0..count {
            self.in_flight.push_back(now);
        }
        self.flush()
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// When the requests in flight were made, the oldest first.
    pub fn unanswered(&self) -> impl Iterator<Item = &Instant> {
        self.in_flight.iter()
    }

    /// Sends what is due until the socket takes no more.
    pub fn flush(&mut self) -> Result<(), String> {
        match self.socket.flush() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            result => result.map_err(lost)?,
        }
        while self.unsent.requests > 0 {
            match self.socket.send(self.exchange.outgoing(&self.unsent)) {
                Ok(length) => self.account(length),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(lost(error)),
            }
        }
        Ok(())
    }

    fn account(&mut self, length: usize) {
        self.exchange.sent(length);
        let size = self.exchange.request_length();
        let done = self.unsent.done + length;
        self.unsent.requests -= (done / size) as u64;
        self.unsent.done = done % size;
    }

    /// Receives what has come and calls `answered` with the time at which each answered request was made.
    /// Returns how many were answered.
    pub fn receive(&mut self, buffer: &mut [u8], mut answered: impl FnMut(Instant)) -> Result<u64, String> {
        let mut total = 0;
        while !self.in_flight.is_empty() {
            let length = match self.socket.receive(buffer) {
                Ok(0) => return Err("lost a connection: the server closed it".into()),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(lost(error)),
            };
            let complete = self.exchange.received(&buffer[..length])?;
            for _ in 0..complete {
                answered(self.in_flight.pop_front().ok_or("wrong bytes: more answers than requests")?);
            }
            total += complete;
        }
        Ok(total)
    }
}

impl Client {
    /// Ends a connection that was made for one request. Returns whether its handshake resumed a session.
    pub fn end(mut self) -> Result<bool, String> {
        let tls = self.socket.tls().ok_or("only TLS has handshakes")?;
        tls.end().map_err(lost)?;
        Ok(tls.is_resumed())
    }
}

fn lost(error: io::Error) -> String {
    format!("lost a connection: {error}")
}
