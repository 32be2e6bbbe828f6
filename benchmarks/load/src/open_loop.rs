//! The open loop: requests are due at a fixed rate, and latency counts from when a request was due.
//!
//! A request that is due while its connection has `depth` requests in flight waits for an answer. That wait is
//! part of its latency, so a slow server does not slow the measurement down (no coordinated omission).
//!
//! The loop never sleeps: it needs a processor of its own.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use mio::{Events, Poll};

use crate::client::Client;
use crate::options::Options;
use crate::report::{Pacing, Report};
use crate::schedule::Schedule;

pub fn drive(
    options: &Options,
    rate: u64,
    length: Duration,
    mut poll: Poll,
    clients: Vec<Client>,
) -> Result<Report, String> {
    let mut events = Events::with_capacity(options.connections.min(4096));
    let mut buffer = vec![0; 256 * 1024];
    let begin = Instant::now();
    let mut open = OpenLoop::new(options, rate, begin, length, clients);
    // Answers to requests that were due in time are waited for as long again.
    let give_up = open.end + length.max(Duration::from_millis(100));

    loop {
        let now = Instant::now();
        open.send_due(now)?;
        if open.is_done() || now >= give_up {
            return Ok(open.finish(now));
        }
        match poll.poll(&mut events, Some(Duration::ZERO)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(format!("cannot poll: {error}")),
            Ok(()) => {}
        }
        for event in &events {
            let index = event.token().0;
            if event.is_writable() {
                open.clients[index].flush()?;
            }
            if event.is_readable() {
                open.receive(index, &mut buffer)?;
            }
            open.send_due(Instant::now())?;
        }
    }
}

struct OpenLoop {
    clients: Vec<Client>,
    /// For each connection, when its requests were due that wait for one in flight to be answered.
    waiting: Vec<VecDeque<Instant>>,
    schedule: Schedule,
    depth: usize,
    /// The first request that is due from here on is the first that is counted.
    count_from: Instant,
    /// The end of the schedule, and of what counts as answered in time.
    end: Instant,
    latencies: Vec<Duration>,
    /// How long after a request was due the generator dealt with it.
    lateness: Vec<Duration>,
    /// Counted requests that were answered before the end.
    in_time: u64,
    made: u64,
    answered: u64,
}

impl OpenLoop {
    fn new(options: &Options, rate: u64, begin: Instant, length: Duration, clients: Vec<Client>) -> Self {
        let count_from = begin + options.warmup;
        let counted = (rate as f64 * length.as_secs_f64()) as usize + 1;
        OpenLoop {
            waiting: vec![VecDeque::new(); clients.len()],
            clients,
            schedule: Schedule::new(begin, options.warmup + length, rate),
            depth: options.depth as usize,
            count_from,
            end: count_from + length,
            latencies: Vec::with_capacity(counted),
            lateness: Vec::with_capacity(counted),
            in_time: 0,
            made: 0,
            answered: 0,
        }
    }

    /// Sends what is due, each request on the next connection in turn.
    fn send_due(&mut self, now: Instant) -> Result<(), String> {
        while let Some((number, due)) = self.schedule.take(now) {
            self.made += 1;
            if due >= self.count_from {
                self.lateness.push(now - due);
            }
            let index = (number % self.clients.len() as u64) as usize;
            self.waiting[index].push_back(due);
            self.send_waiting(index)?;
        }
        Ok(())
    }

    fn send_waiting(&mut self, index: usize) -> Result<(), String> {
        while self.clients[index].in_flight() < self.depth {
            let Some(due) = self.waiting[index].pop_front() else { break };
            self.clients[index].request(1, due)?;
        }
        Ok(())
    }

    fn receive(&mut self, index: usize, buffer: &mut [u8]) -> Result<(), String> {
        let now = Instant::now();
        let (count_from, end, latencies) = (self.count_from, self.end, &mut self.latencies);
        let mut in_time = 0;
        self.answered += self.clients[index].receive(buffer, |due| {
            if due >= count_from {
                latencies.push(now - due);
                in_time += u64::from(now < end);
            }
        })?;
        self.in_time += in_time;
        self.send_waiting(index)
    }

    fn is_done(&self) -> bool {
        self.schedule.next().is_none() && self.answered == self.made
    }

    /// A request without an answer counts with the time that it has waited.
    fn finish(mut self, now: Instant) -> Report {
        let unanswered: Vec<Duration> = self
            .clients
            .iter()
            .flat_map(Client::unanswered)
            .chain(self.waiting.iter().flatten())
            .filter(|due| **due >= self.count_from)
            .map(|due| now - *due)
            .collect();
        let pacing = Pacing::new(self.lateness, self.in_time, unanswered.len() as u64);
        self.latencies.extend(unanswered);
        Report::new(self.latencies, self.end - self.count_from, self.answered).paced(pacing)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// Runs an open loop against a server that waits before its first answer, and returns the report.
    fn report(stall: Duration, arguments: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut connection, _) = listener.accept().unwrap();
            let mut request = [0; 64];
            let mut wait = Some(stall);
            while connection.read_exact(&mut request).is_ok() {
                thread::sleep(wait.take().unwrap_or_default());
                if connection.write_all(&request).is_err() {
                    break;
                }
            }
        });
        let line = format!("tcp://{address} --size 64 {arguments}");
        let options = Options::from_args(line.split_whitespace().map(String::from)).unwrap();
        let report = crate::run::run(&options).unwrap().to_string();
        server.join().unwrap();
        report
    }

    fn figure(report: &str, name: &str) -> f64 {
        let (_, rest) = report.split_once(&format!("\"{name}\": ")).unwrap();
        rest.split([',', '}']).next().unwrap().parse().unwrap()
    }

    #[test]
    fn requests_that_were_due_during_a_stall_have_waited() {
        let report = report(Duration::from_millis(300), "--rate 1000 --seconds 0.5");
        assert_eq!(figure(&report, "requests"), 500.0);
        assert_eq!(figure(&report, "unanswered"), 0.0);
        // Those due in the first 50 ms wait at least 250 ms, and a tenth of all requests are due by then.
        assert!(figure(&report, "p90") >= 250e3, "{report}");
    }

    #[test]
    fn requests_without_an_answer_are_counted() {
        let report = report(Duration::from_secs(1), "--rate 1000 --seconds 0.1");
        assert_eq!(figure(&report, "requests"), 100.0);
        assert_eq!(figure(&report, "unanswered"), 100.0);
        assert_eq!(figure(&report, "in_time"), 0.0);
        assert!(figure(&report, "p50") >= 100e3, "{report}");
    }
}
