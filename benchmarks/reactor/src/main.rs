//! Does one case a number of times and prints the nanoseconds of one. Counters of instructions are put around this program.

use std::process::ExitCode;
use std::time::Instant;

use reactor_benchmark::cases::{NAMES, case};
use reactor_benchmark::sides::{Hotloop, Mio};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [side, name, times] = &arguments[..] else {
        eprintln!("usage: reactor-benchmark hotloop|mio CASE TIMES\ncases: {}", NAMES.join(" "));
        return ExitCode::FAILURE;
    };
    let work = match side.as_str() {
        "hotloop" => case::<Hotloop>(name),
        "mio" => case::<Mio>(name),
        _ => None,
    };
    let (Some(mut work), Ok(times)) = (work, times.parse::<u32>()) else {
        eprintln!("no such side, case or number: {}", arguments.join(" "));
        return ExitCode::FAILURE;
    };
    let start = Instant::now();
    for _ in 0..times {
        work();
    }
    println!("{:.1}", start.elapsed().as_nanos() as f64 / f64::from(times.max(1)));
    ExitCode::SUCCESS
}
