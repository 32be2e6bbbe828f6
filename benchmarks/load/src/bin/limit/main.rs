//! What a server can reach at most: it reads all sockets that are ready, then answers, and does nothing else. With
//! TLS, OpenSSL works on the sockets, without a loop's buffers in between. No event loop can be faster by much, so its rate is what theirs are to be seen against.

mod datagrams;
#[cfg(unix)]
mod openssl;
mod streams;

use std::net::SocketAddr;
use std::process::ExitCode;

const USAGE: &str = "usage: limit ADDRESS [CERTIFICATE LIBRARY]

ADDRESS is tcp://HOST:PORT, tls://HOST:PORT, http://HOST:PORT, https://HOST:PORT or udp://HOST:PORT, the host a numeric address.
With TLS, the CERTIFICATE is a file with its key in it, the LIBRARY OpenSSL's libssl. Prints \"ready\" and the process's
number, and serves until it is killed.";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match serve(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("limit: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: &[String]) -> Result<(), String> {
    let (address, of_tls) = arguments.split_first().ok_or(USAGE)?;
    let (scheme, host) = address.split_once("://").ok_or(USAGE)?;
    let host: SocketAddr = host.parse().map_err(|_| format!("not a numeric address and port: {host}"))?;
    let served = match scheme {
        "tcp" => streams::serve(host, streams::Answer::Echo, Ok, ready),
        "http" => streams::serve(host, streams::Answer::Http, Ok, ready),
        #[cfg(unix)]
        "tls" | "https" => {
            let [certificate, library] = of_tls else { return Err(USAGE.into()) };
            let context = openssl::Context::new(library, certificate)?;
            let answer = if scheme == "tls" { streams::Answer::Echo } else { streams::Answer::Http };
            streams::serve(host, answer, |stream| context.accept(stream), ready)
        }
        "udp" => datagrams::serve(host, ready),
        _ => return Err(format!("not an address: {address}\n{USAGE}")),
    };
    served.map_err(|error| error.to_string())
}

fn ready() {
    println!("ready {}", std::process::id());
}
