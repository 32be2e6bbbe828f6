//! The run: connect, keep every connection busy, count.

use std::io::{self, ErrorKind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Registry, Token};
use rustls::ClientConfig;

use crate::client::Client;
use crate::exchange::{Echo, Exchange, Http, Payload};
use crate::open_loop;
use crate::options::{Address, Handshake, Length, Options};
use crate::report::Report;
use crate::socket::Socket;
use crate::tls::Trust;
use crate::websocket::WebSocket;

pub fn run(options: &Options) -> Result<Report, String> {
    let poll = Poll::new().map_err(|error| format!("cannot poll: {error}"))?;
    // The server accepts in order: when the busy connections, opened last, are answered, all others are open, too.
    let connector = Connector::new(options)?;
    let mut idle = open_idle(&connector)?;
    let clients = connect(&connector, &poll)?;
    let report = match (options.rate, options.length) {
        (Some(rate), Length::Time(length)) => open_loop::drive(options, rate, length, poll, clients.open)?,
        _ => drive(options, poll, clients)?,
    };
    idle.iter_mut().try_for_each(check_silent)?;
    Ok(report)
}

fn drive(options: &Options, mut poll: Poll, mut clients: Clients) -> Result<Report, String> {
    let mut events = Events::with_capacity(options.connections.min(4096));
    let mut buffer = vec![0; 256 * 1024];
    let mut budget = Budget::new(options);

    let begin = Instant::now();
    let count_from = begin + options.warmup;
    let mut counted = Count::starting(begin);
    clients.request_of_all(&poll, &mut budget, begin)?;

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
                return Ok(counted.finish(woken, budget.answered_so_far()));
            }
        }
        for event in &events {
            let index = event.token().0;
            if event.is_writable() {
                clients.open[index].flush()?;
            }
            if event.is_readable() {
                let now = Instant::now();
                let answered = clients.open[index].receive(&mut buffer, |made| counted.add(now - made))?;
                budget.answered(answered);
                if !options.lockstep && answered > 0 {
                    clients.request(&poll, index, budget.take(answered), now)?;
                }
            }
        }
        if options.lockstep && budget.all_answered() {
            clients.request_of_all(&poll, &mut budget, Instant::now())?;
        }
    }
    Ok(counted.finish(Instant::now(), budget.answered_so_far()))
}

/// The connections that are kept busy.
struct Clients<'a> {
    connector: &'a Connector<'a>,
    open: Vec<Client>,
    /// What each connection, and those that replace it, have of TLS.
    configs: Vec<Option<Arc<ClientConfig>>>,
    /// The requests that each of them, and those that it replaced, has made.
    made: Vec<u64>,
}

impl Clients<'_> {
    fn request_of_all(&mut self, poll: &Poll, budget: &mut Budget, now: Instant) -> Result<(), String> {
        let depth = self.connector.options.depth;
        (0..self.open.len()).try_for_each(|index| self.request(poll, index, budget.take(depth), now))
    }

    fn request(&mut self, poll: &Poll, index: usize, count: u64, now: Instant) -> Result<(), String> {
        if count == 0 {
            return Ok(());
        }
        if let (true, Some(handshake)) = (self.made[index] > 0, self.connector.options.anew) {
            self.replace(poll, index, handshake)?;
        }
        self.made[index] += count;
        self.open[index].request(count, now)
    }

    fn replace(&mut self, poll: &Poll, index: usize, handshake: Handshake) -> Result<(), String> {
        let config = self.configs[index].as_ref();
        let client = self.connector.client(poll.registry(), index, config)?;
        let is_resumed = std::mem::replace(&mut self.open[index], client).end()?;
        match (handshake, is_resumed) {
            (Handshake::Full, true) => Err("a handshake was not a full one".into()),
            // The first has nothing to resume.
            (Handshake::Resumed, false) if self.made[index] > 1 => Err("a session was not resumed".into()),
            _ => Ok(()),
        }
    }
}

/// Connections that say nothing.
fn open_idle(connector: &Connector<'_>) -> Result<Vec<Socket>, String> {
    let config = connector.config();
    (0..connector.options.idle).map(|open| connector.connect(open, config.as_ref())).collect()
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

fn connect<'a>(connector: &'a Connector<'a>, poll: &Poll) -> Result<Clients<'a>, String> {
    let count = connector.options.connections;
    let configs: Vec<_> = (0..count).map(|_| connector.config()).collect();
    let open = configs
        .iter()
        .enumerate()
        .map(|(index, config)| connector.client(poll.registry(), index, config.as_ref()))
        .collect::<Result<_, _>>()?;
    Ok(Clients { connector, open, configs, made: vec![0; count] })
}

/// Makes connections.
struct Connector<'a> {
    options: &'a Options,
    trust: Option<Trust>,
    payload: Rc<Payload>,
    http_request: Option<Rc<[u8]>>,
}

impl<'a> Connector<'a> {
    fn new(options: &'a Options) -> Result<Self, String> {
        let http_request = match &options.address {
            Address::Http { host, path } | Address::Https { host, path } => {
                Some(Http::request(&host.to_string(), path))
            }
            _ => None,
        };
        let trust = match &options.trust {
            Some(path) if options.address.has_tls() => Some(Trust::of_file(path)?),
            _ => None,
        };
        Ok(Connector { options, trust, payload: Payload::new(), http_request })
    }

    fn config(&self) -> Option<Arc<ClientConfig>> {
        self.trust.as_ref().map(|trust| trust.config(self.options.anew))
    }

    fn client(
        &self,
        registry: &Registry,
        index: usize,
        config: Option<&Arc<ClientConfig>>,
    ) -> Result<Client, String> {
        let open = self.options.idle + index;
        let mut socket = self.connect(open, config)?;
        socket.register(registry, Token(index)).map_err(|error| cannot_connect(open, error))?;
        let datagrams = matches!(self.options.address, Address::Udp(_));
        let size = self.options.size;
        let exchange = match &self.http_request {
            Some(request) => Exchange::Http(Http::new(Rc::clone(request))),
            None if matches!(self.options.address, Address::WebSocket(_)) => {
                Exchange::WebSocket(WebSocket::new(self.payload.at(0, size)))
            }
            None => Exchange::Echo(Echo::new(Rc::clone(&self.payload), size, datagrams)),
        };
        Ok(Client::new(socket, exchange))
    }

    fn connect(&self, open: usize, config: Option<&Arc<ClientConfig>>) -> Result<Socket, String> {
        Socket::connect(&self.options.address, config).map_err(|error| cannot_connect(open, error))
    }
}

/// How many requests may still be made, and how many answers are still to come.
struct Budget {
    all: u64,
    to_make: u64,
    to_answer: u64,
}

impl Budget {
    fn new(options: &Options) -> Self {
        let requests = match options.length {
            Length::Requests(requests) => requests,
            Length::Time(_) => u64::MAX,
        };
        Budget { all: requests, to_make: requests, to_answer: requests }
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

    /// How many requests are answered by now.
    fn answered_so_far(&self) -> u64 {
        self.all - self.to_answer
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

    fn finish(self, end: Instant, answered: u64) -> Report {
        Report::new(self.latencies, end - self.begin, answered)
    }
}
