//! What is said on a connection: the bytes to send, and whether those that come back are right.

use std::rc::Rc;

use crate::websocket::WebSocket;

/// The payload repeats after a prime number of bytes, so that an answer which is a buffer's length off,
/// repeated or out of order never matches.
const PERIOD: usize = 8191;

/// How much of the payload can be had in one piece.
pub const PIECE: usize = 256 * 1024;

/// A repeating payload that any part of the stream can be sliced from, whatever its offset.
pub struct Payload(Vec<u8>);

impl Payload {
    pub fn new() -> Rc<Self> {
        let mut state = 0x9e37_79b9_u32;
        let period: Vec<u8> = (0..PERIOD)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        Rc::new(Payload(period.iter().copied().cycle().take(PERIOD + PIECE).collect()))
    }

    pub fn at(&self, position: u64, length: usize) -> &[u8] {
        let start = (position % PERIOD as u64) as usize;
        &self.0[start..start + length.min(PIECE)]
    }
}

/// The requests of one connection and the answers to them.
pub enum Exchange {
    Echo(Echo),
    Http(Http),
    WebSocket(WebSocket),
}

impl Exchange {
    /// The next bytes to send, where `unsent` requests (the first perhaps begun) wait to be.
    pub fn outgoing(&self, unsent: &Unsent) -> &[u8] {
        match self {
            Exchange::Echo(echo) => echo.outgoing(unsent),
            Exchange::Http(http) => &http.request[unsent.done..],
            Exchange::WebSocket(websocket) => &websocket.request[unsent.done..],
        }
    }

    /// The length in bytes of one request.
    pub fn request_length(&self) -> usize {
        match self {
            Exchange::Echo(echo) => echo.size,
            Exchange::Http(http) => http.request.len(),
            Exchange::WebSocket(websocket) => websocket.request.len(),
        }
    }

    /// Checks what came back and returns how many answers it completes.
    pub fn received(&mut self, data: &[u8]) -> Result<u64, String> {
        match self {
            Exchange::Echo(echo) => echo.received(data),
            Exchange::Http(http) => http.received(data),
            Exchange::WebSocket(websocket) => websocket.received(data),
        }
    }

    pub fn sent(&mut self, length: usize) {
        if let Exchange::Echo(echo) = self {
            echo.sent += length as u64;
        }
    }
}

/// Requests that are due but not yet sent: how many, and how many bytes of the first are already out.
#[derive(Default)]
pub struct Unsent {
    pub requests: u64,
    pub done: usize,
}

pub struct Echo {
    payload: Rc<Payload>,
    size: usize,
    datagrams: bool,
    sent: u64,
    received: u64,
}

impl Echo {
    pub fn new(payload: Rc<Payload>, size: usize, datagrams: bool) -> Self {
        Echo { payload, size, datagrams, sent: 0, received: 0 }
    }

    /// A datagram goes alone; a stream takes all that is due at once.
    fn outgoing(&self, unsent: &Unsent) -> &[u8] {
        let requests = if self.datagrams { 1 } else { unsent.requests as usize };
        self.payload.at(self.sent, requests * self.size - unsent.done)
    }

    fn received(&mut self, data: &[u8]) -> Result<u64, String> {
        if self.datagrams && data.len() != self.size {
            return Err(format!("wrong bytes: a datagram of {}, not {}", data.len(), self.size));
        }
        if data != self.payload.at(self.received, data.len()) {
            return Err(format!("wrong bytes after {} right ones", self.received));
        }
        let before = self.received / self.size as u64;
        self.received += data.len() as u64;
        Ok(self.received / self.size as u64 - before)
    }
}

pub struct Http {
    request: Rc<[u8]>,
    response: Vec<u8>,
    /// The first answer's body, which the others must have, too.
    body: Option<Vec<u8>>,
}

impl Http {
    pub fn new(request: Rc<[u8]>) -> Self {
        Http { request, response: Vec::new(), body: None }
    }

    pub fn request(host: &str, path: &str) -> Rc<[u8]> {
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes().into()
    }

    fn received(&mut self, data: &[u8]) -> Result<u64, String> {
        self.response.extend_from_slice(data);
        let mut complete = 0;
        while let Some((head, length)) = response_lengths(&self.response)? {
            if self.response.len() < length {
                break;
            }
            let body = &self.response[head..length];
            if self.body.get_or_insert_with(|| body.to_vec()) != body {
                return Err("wrong bytes in a response's body".into());
            }
            self.response.drain(..length);
            complete += 1;
        }
        Ok(complete)
    }
}

/// The lengths of the head and of all of the response at the start of `data`, once the head is whole.
fn response_lengths(data: &[u8]) -> Result<Option<(usize, usize)>, String> {
    let Some(head_end) = data.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&data[..head_end]).map_err(|_| "wrong bytes in a response's head")?;
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if !status.starts_with("HTTP/1.1 200") {
        return Err(format!("wrong status: {status}"));
    }
    let body: usize = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .ok_or("a response without Content-Length")?;
    let head = head_end + 4;
    Ok(Some((head, head + body)))
}
