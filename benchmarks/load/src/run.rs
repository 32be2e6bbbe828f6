//! The run: connect, keep every connection busy, count.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};

use crate::client::Client;
use crate::exchange::{Echo, Exchange, Http, Payload};
use crate::options::{Address, Length, Options};
use crate::report::Report;
use crate::socket::Socket;

pub fn run(options: &Options) -> Result<Report, String> {
    let poll = Poll::new().map_err(|error| format!("cannot poll: {error}"))?;
    // The server accepts in order: when the busy connections, opened last, are answered, all others are open, too.
    let mut idle = open_idle(options)?;
    let clients = connect(options, &poll, idle.len())?;
    let report = drive(options, poll, clients)?;
    idle.iter_mut().try_for_each(check_silent)?;
    Ok(report)
}

fn drive(options: &Options, mut poll: Poll, mut clients: Vec<Client>) -> Result<Report, String> {
    let mut events = Events::with_capacity(clients.len().min(4096));
    let mut buffer = vec![0; 256 * 1024];
    let mut budget = Budget::new(options);

    let begin = Instant::now();
    let count_from = begin + options.warmup;
    let mut counted = Count::starting(begin);
    request_of_all(&mut clients, &mut budget, options.depth, begin)?;

    while !budget.spent() {
        match poll.poll(&mut events, Some(options.patience)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(format!("cannot poll: {error}")),
            Ok(()) if events.is_empty() => {
                return Err(format!("no answer for {} s", options.patience.as_secs_f64()));
            }
            Ok(()) => {}
        }
        let woken = Instant::now();
        if counted.begin < count_from && woken >= count_from {
            counted = Count::starting(woken);
        }
        if let Length::Time(length) = options.length {
            if woken >= count_from + length {
                return Ok(counted.finish(woken));
            }
        }
        for event in &events {
            let client = &mut clients[event.token().0];
            if event.is_writable() {
                client.flush()?;
            }
            if event.is_readable() {
                let now = Instant::now();
                let answered = client.receive(&mut buffer, |made| counted.add(now - made))?;
                budget.answered(answered);
                if !options.lockstep {
                    client.request(budget.take(answered), now)?;
                }
            }
        }
        if options.lockstep && budget.all_answered() {
            request_of_all(&mut clients, &mut budget, options.depth, Instant::now())?;
        }
    }
    Ok(counted.finish(Instant::now()))
}

fn request_of_all(
    clients: &mut [Client],
    budget: &mut Budget,
    depth: u64,
    now: Instant,
) -> Result<(), String> {
    clients.iter_mut().try_for_each(|client| client.request(budget.take(depth), now))
}

/// Connections that say nothing.
fn open_idle(options: &Options) -> Result<Vec<Socket>, String> {
    (0..options.idle)
        .map(|open| Socket::connect(&options.address).map_err(|error| cannot_connect(open, error)))
        .collect()
}

/// An idle connection must still be open in the end, and nothing may have come on it.
fn check_silent(socket: &mut Socket) -> Result<(), String> {
    match socket.receive(&mut [0]) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(format!("lost an idle connection: {error}")),
        Ok(0) => Err("lost an idle connection: the server closed it".into()),
        Ok(_) => Err("wrong bytes: an answer on an idle connection".into()),
    }
}

fn cannot_connect(open: usize, error: io::Error) -> String {
    format!("cannot connect, with {open} connections open: {error}")
}

fn connect(options: &Options, poll: &Poll, idle: usize) -> Result<Vec<Client>, String> {
    let payload = Payload::new();
    let datagrams = matches!(options.address, Address::Udp(_));
    let http = match &options.address {
        Address::Http { host, path } => Some(http_request(host, path)),
        _ => None,
    };
    (0..options.connections)
        .map(|index| {
            let failed = |error| cannot_connect(idle + index, error);
            let mut socket = Socket::connect(&options.address).map_err(failed)?;
            socket.register(poll.registry(), Token(index)).map_err(failed)?;
            let exchange = match &http {
                Some(request) => Exchange::Http(Http::new(Rc::clone(request))),
                None => Exchange::Echo(Echo::new(Rc::clone(&payload), options.size, datagrams)),
            };
            Ok(Client::new(socket, exchange))
        })
        .collect()
}

fn http_request(host: &SocketAddr, path: &str) -> Rc<[u8]> {
    Http::request(&host.to_string(), path)
}

/// How many requests may still be made, and how many answers are still to come.
struct Budget {
    to_make: u64,
    to_answer: u64,
}

impl Budget {
    fn new(options: &Options) -> Self {
        let requests = match options.length {
            Length::Requests(requests) => requests,
            Length::Time(_) => u64::MAX,
        };
        Budget { to_make: requests, to_answer: requests }
    }

    fn take(&mut self, wanted: u64) -> u64 {
        let taken = wanted.min(self.to_make);
        self.to_make -= taken;
        taken
    }

    fn answered(&mut self, count: u64) {
        self.to_answer -= count;
    }

    /// Whether every request that was made is answered.
    fn all_answered(&self) -> bool {
        self.to_answer == self.to_make
    }

    fn spent(&self) -> bool {
        self.to_answer == 0
    }
}

/// The answers since a moment.
struct Count {
    begin: Instant,
    latencies: Vec<Duration>,
}

impl Count {
    fn starting(begin: Instant) -> Self {
        Count { begin, latencies: Vec::new() }
    }

    fn add(&mut self, latency: Duration) {
        self.latencies.push(latency);
    }

    fn finish(self, end: Instant) -> Report {
        Report::new(self.latencies, end - self.begin)
    }
}
