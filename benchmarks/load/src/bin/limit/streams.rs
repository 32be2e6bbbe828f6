//! Echo, or HTTP, on streams.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::rc::Rc;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

const LISTENER: Token = Token(usize::MAX);

/// The answer of the Python servers in benchmarks/servers.py.
const BODY: usize = 1024;

#[derive(Clone, Copy)]
pub enum Answer {
    Echo,
    Http,
}

/// Serves what `wrap` makes of each connection: it must read until there is no more, or the buffer is full.
pub fn serve<S: Read + Write>(
    host: SocketAddr,
    answer: Answer,
    wrap: impl Fn(TcpStream) -> io::Result<S>,
    ready: impl FnOnce(),
) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::bind(host)?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    ready();

    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {BODY}\r\n\r\n");
    let response = match answer {
        Answer::Echo => None,
        Answer::Http => Some([head.as_bytes(), &[b'x'; BODY]].concat().into()),
    };
    let make = |stream| Ok(Connection::new(wrap(stream)?, response.clone()));
    let mut connections: Vec<Option<Connection<S>>> = Vec::new();
    let mut events = Events::with_capacity(1024);
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            result => result?,
        }
        for event in &events {
            if event.token() == LISTENER {
                accept(&listener, &poll, &mut connections, make)?;
            } else if event.is_readable() {
                step(&mut connections[event.token().0], Connection::read);
            }
        }
        for event in events.iter().filter(|event| event.token() != LISTENER) {
            step(&mut connections[event.token().0], Connection::answer);
        }
    }
}

fn accept<C>(
    listener: &TcpListener,
    poll: &Poll,
    connections: &mut Vec<Option<C>>,
    make: impl Fn(TcpStream) -> io::Result<C>,
) -> io::Result<()> {
    loop {
        match listener.accept() {
            Ok((mut stream, _)) => {
                stream.set_nodelay(true)?;
                let token = Token(connections.len());
                poll.registry().register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
                connections.push(Some(make(stream)?));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Does a step of a connection that is still open, and closes it if that fails or it is at its end.
fn step<C>(connection: &mut Option<C>, does: fn(&mut C) -> io::Result<()>) {
    if connection.as_mut().is_some_and(|open| does(open).is_err()) {
        *connection = None;
    }
}

struct Connection<S> {
    stream: S,
    buffer: Vec<u8>,
    /// The part of the buffer that is read and not yet sent back.
    unsent: std::ops::Range<usize>,
    /// There may be more to read: its event has come, and will not come again.
    has_more: bool,
    /// What is sent for each request; without it, the request itself.
    response: Option<Rc<[u8]>>,
}

impl<S: Read + Write> Connection<S> {
    fn new(stream: S, response: Option<Rc<[u8]>>) -> Self {
        Connection { stream, buffer: vec![0; 256 * 1024], unsent: 0..0, has_more: false, response }
    }

    /// Reads once, and not at all while an answer waits for the client to read it.
    fn read(&mut self) -> io::Result<()> {
        self.has_more = true;
        if !self.unsent.is_empty() {
            return Ok(());
        }
        match self.stream.read(&mut self.buffer) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => {
                // What does not fill the buffer is all that there was, and for more there will be an event.
                self.has_more = length == self.buffer.len();
                self.unsent = match &self.response {
                    Some(response) if self.buffer[..length].ends_with(b"\r\n\r\n") => 0..response.len(),
                    Some(_) => 0..0,
                    None => 0..length,
                };
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.has_more = false;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Sends what was read, and goes on reading if there is more.
    fn answer(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            let answer = self.response.as_deref().unwrap_or(&self.buffer);
            match self.stream.write(&answer[self.unsent.clone()]) {
                Ok(length) => self.unsent.start += length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
            if self.unsent.is_empty() && self.has_more {
                self.read()?;
            }
        }
        Ok(())
    }
}
