//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::exchange::PIECE;

pub const USAGE: &str = "usage: load ADDRESS [--connections N] [--size BYTES] [--depth N] [--requests N] \
[--seconds S] [--warmup S] [--lockstep] [--idle N] [--anew full|resumed] [--trust FILE] \
[--rate N] [--patience S]

ADDRESS is tcp://HOST:PORT, tls://HOST:PORT, udp://HOST:PORT, unix:PATH, ws://HOST:PORT,
http://HOST:PORT/PATH or https://HOST:PORT/PATH, the host a numeric address.
  --connections N   open N connections (default 1)
  --size BYTES      send BYTES in each request to an echo server (default 1024)
  --depth N         keep N requests in flight on each connection (default 1)
  --requests N      stop after N requests
  --seconds S       stop after S seconds (default 1, where --requests is not given)
  --warmup S        do not count the first S seconds (default 0)
  --lockstep        make the next requests when all connections are answered, not each by itself
  --rate N          make N requests per second, evenly spaced, on the connections in turn; latency counts from
                    when a request was due
  --idle N          first open N more connections and keep them open, saying nothing (default 0)
  --anew HOW        connect anew for each request, over TLS, with a full or a resumed handshake
  --trust FILE      the server's certificate, of its own making, as PEM: needed for TLS
  --patience S      give up when the server is silent for S seconds (default 10)";

pub enum Address {
    Tcp(SocketAddr),
    Tls(SocketAddr),
    Udp(SocketAddr),
    Unix(PathBuf),
    WebSocket(SocketAddr),
    Http { host: SocketAddr, path: String },
    Https { host: SocketAddr, path: String },
}

impl Address {
    pub fn has_tls(&self) -> bool {
        matches!(self, Address::Tls(_) | Address::Https { .. })
    }
}

/// The handshake of a connection that is made for one request.
#[derive(Clone, Copy, PartialEq)]
pub enum Handshake {
    Full,
    Resumed,
}

/// When a run is over.
#[derive(Clone, Copy)]
pub enum Length {
    Requests(u64),
    Time(Duration),
}

pub struct Options {
    pub address: Address,
    pub connections: usize,
    pub size: usize,
    pub depth: u64,
    pub length: Length,
    pub warmup: Duration,
    pub lockstep: bool,
    pub rate: Option<u64>,
    pub idle: usize,
    pub anew: Option<Handshake>,
    pub trust: Option<PathBuf>,
    pub patience: Duration,
}

impl Options {
    pub fn from_args(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let address = args.next().ok_or(USAGE)?;
        if address == "--help" {
            println!("{USAGE}");
            std::process::exit(0);
        }
        let mut options = Options {
            address: parse_address(&address)?,
            connections: 1,
            size: 1024,
            depth: 1,
            length: Length::Time(Duration::from_secs(1)),
            warmup: Duration::ZERO,
            lockstep: false,
            rate: None,
            idle: 0,
            anew: None,
            trust: None,
            patience: Duration::from_secs(10),
        };
        while let Some(name) = args.next() {
            if name == "--lockstep" {
                options.lockstep = true;
                continue;
            }
            let value = args.next().ok_or_else(|| format!("{name} needs a value\n{USAGE}"))?;
            match name.as_str() {
                "--connections" => options.connections = positive(&name, &value)?,
                "--rate" => options.rate = Some(positive(&name, &value)? as u64),
                "--idle" => options.idle = whole(&name, &value)?,
                "--anew" => options.anew = Some(handshake(&value)?),
                "--trust" => options.trust = Some(value.into()),
                "--size" => options.size = positive(&name, &value)?,
                "--depth" => options.depth = positive(&name, &value)? as u64,
                "--requests" => options.length = Length::Requests(positive(&name, &value)? as u64),
                "--seconds" => options.length = Length::Time(seconds(&name, &value)?),
                "--warmup" => options.warmup = seconds(&name, &value)?,
                "--patience" => options.patience = seconds(&name, &value)?,
                _ => return Err(format!("no such option: {name}\n{USAGE}")),
            }
        }
        options.check()?;
        Ok(options)
    }

    fn check(&self) -> Result<(), String> {
        if self.address.has_tls() && self.trust.is_none() {
            return Err(format!("TLS needs --trust\n{USAGE}"));
        }
        if matches!(self.address, Address::WebSocket(_)) && self.size > PIECE {
            return Err(format!("a WebSocket message has at most {PIECE} bytes\n{USAGE}"));
        }
        if self.anew.is_some() && !(self.address.has_tls() && self.depth == 1) {
            return Err(format!("--anew needs TLS, and a depth of 1\n{USAGE}"));
        }
        if self.rate.is_some() {
            if self.lockstep || self.anew.is_some() {
                return Err(format!("--rate excludes --lockstep and --anew\n{USAGE}"));
            }
            match self.length {
                Length::Requests(_) => {
                    return Err(format!("--rate needs --seconds, not --requests\n{USAGE}"))
                }
                Length::Time(length) if length.is_zero() => {
                    return Err(format!("--rate needs --seconds above 0\n{USAGE}"));
                }
                Length::Time(_) => {}
            }
        }
        Ok(())
    }
}

fn handshake(text: &str) -> Result<Handshake, String> {
    match text {
        "full" => Ok(Handshake::Full),
        "resumed" => Ok(Handshake::Resumed),
        _ => Err(format!("no such handshake: {text}\n{USAGE}")),
    }
}

fn parse_address(text: &str) -> Result<Address, String> {
    let host = |text: &str| {
        text.parse::<SocketAddr>().map_err(|_| format!("not a numeric address and port: {text}"))
    };
    if let Some(rest) = text.strip_prefix("tcp://") {
        Ok(Address::Tcp(host(rest)?))
    } else if let Some(rest) = text.strip_prefix("udp://") {
        Ok(Address::Udp(host(rest)?))
    } else if let Some(rest) = text.strip_prefix("unix:") {
        Ok(Address::Unix(rest.into()))
    } else if let Some(rest) = text.strip_prefix("ws://") {
        Ok(Address::WebSocket(host(rest)?))
    } else if let Some(rest) = text.strip_prefix("tls://") {
        Ok(Address::Tls(host(rest)?))
    } else if let Some((scheme @ ("http" | "https"), rest)) = text.split_once("://") {
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, path) = (host(authority)?, format!("/{path}"));
        Ok(if scheme == "http" { Address::Http { host, path } } else { Address::Https { host, path } })
    } else {
        Err(format!("not an address: {text}\n{USAGE}"))
    }
}

fn whole(name: &str, value: &str) -> Result<usize, String> {
    value.parse().map_err(|_| format!("{name} needs a number, not {value}"))
}

fn positive(name: &str, value: &str) -> Result<usize, String> {
    match whole(name, value)? {
        0 => Err(format!("{name} needs a number above 0, not {value}")),
        number => Ok(number),
    }
}

fn seconds(name: &str, value: &str) -> Result<Duration, String> {
    value
        .parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| format!("{name} needs a number of seconds, not {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        Options::from_args(line.split_whitespace().map(String::from))
    }

    #[test]
    fn idle_connections_are_none_unless_asked_for() {
        assert_eq!(parse("tcp://127.0.0.1:1").ok().map(|options| options.idle), Some(0));
        assert_eq!(parse("tcp://127.0.0.1:1 --idle 9900").ok().map(|options| options.idle), Some(9900));
        assert_eq!(parse("tcp://127.0.0.1:1 --idle 0").ok().map(|options| options.idle), Some(0));
    }

    #[test]
    fn numbers_are_checked() {
        assert!(parse("tcp://127.0.0.1:1 --idle some").is_err());
        assert!(parse("tcp://127.0.0.1:1 --connections 0").is_err());
        assert!(parse("tcp://127.0.0.1:1 --connections").is_err());
    }

    #[test]
    fn websocket_messages_are_pieces_of_the_payload() {
        assert!(parse("ws://127.0.0.1:1 --size 262144").is_ok());
        assert!(parse("ws://127.0.0.1:1 --size 262145").is_err());
    }

    #[test]
    fn tls_needs_a_certificate_and_only_tls_has_handshakes() {
        assert!(parse("tls://127.0.0.1:1").is_err());
        assert!(parse("https://127.0.0.1:1/ --trust a.pem --anew full").is_ok());
        assert!(parse("tls://127.0.0.1:1 --trust a.pem --anew some").is_err());
        assert!(parse("tls://127.0.0.1:1 --trust a.pem --anew full --depth 2").is_err());
        assert!(parse("tcp://127.0.0.1:1 --anew full").is_err());
    }

    #[test]
    fn a_rate_is_for_a_time_and_for_connections_that_stay() {
        assert_eq!(parse("tcp://127.0.0.1:1").ok().and_then(|options| options.rate), None);
        let fixed = parse("http://127.0.0.1:1/ --rate 20000 --connections 64 --seconds 2 --warmup 0.2");
        assert_eq!(fixed.ok().and_then(|options| options.rate), Some(20_000));
        assert!(parse("tcp://127.0.0.1:1 --rate 0").is_err());
        assert!(parse("tcp://127.0.0.1:1 --rate some").is_err());
        assert!(parse("tcp://127.0.0.1:1 --rate 100 --requests 1000").is_err());
        assert!(parse("tcp://127.0.0.1:1 --rate 100 --seconds 0").is_err());
        assert!(parse("tcp://127.0.0.1:1 --rate 100 --lockstep").is_err());
        assert!(parse("tls://127.0.0.1:1 --trust a.pem --anew full --rate 100").is_err());
    }
}
