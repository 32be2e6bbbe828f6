//! What an echo server can reach at most: it reads all sockets that are ready, then answers, and does nothing
//! else. No event loop can be faster by much, so its rate is what theirs are to be seen against.

mod datagrams;
mod streams;

use std::net::SocketAddr;
use std::process::ExitCode;

const USAGE: &str = "usage: limit ADDRESS

ADDRESS is tcp://HOST:PORT or udp://HOST:PORT, the host a numeric address. Prints \"ready\" and the process's
number, and serves until it is killed.";

fn main() -> ExitCode {
    let address = std::env::args().nth(1).unwrap_or_default();
    match serve(&address) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("limit: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn serve(address: &str) -> Result<(), String> {
    let (scheme, host) = address.split_once("://").ok_or(USAGE)?;
    let host: SocketAddr = host.parse().map_err(|_| format!("not a numeric address and port: {host}"))?;
    let served = match scheme {
        "tcp" => streams::serve(host, ready),
        "udp" => datagrams::serve(host, ready),
        _ => return Err(format!("not an address: {address}\n{USAGE}")),
    };
    served.map_err(|error| error.to_string())
}

fn ready() {
    println!("ready {}", std::process::id());
}
