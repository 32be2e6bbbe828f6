//! A load generator. In its closed loop every connection keeps a fixed number of requests in flight and sends
//! the next one when an answer has come back, whole and right. In its open loop (`--rate`) requests are due at a
//! fixed rate. One thread, so that it can be given one processor and the server another.

mod client;
mod exchange;
mod open_loop;
mod options;
mod report;
mod run;
mod schedule;
mod socket;
mod tls;
mod websocket;

use std::process::ExitCode;

use options::Options;

fn main() -> ExitCode {
    let outcome = Options::from_args(std::env::args().skip(1)).and_then(|options| run::run(&options));
    match outcome {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(reason) => {
            eprintln!("load: {reason}");
            ExitCode::FAILURE
        }
    }
}
