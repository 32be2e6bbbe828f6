//! The reactor on a simulated kernel: random programs, with errors and odd orders of events, and what must hold after each
//! step of them. Time, threads and peers are simulated, too, so that a program always runs in the same way.
//!
//!     HOTLOOP_TORTURE=full HOTLOOP_SEED=7 cargo test --release --no-default-features simulator
//!
//! - [`machine`]: the kernel, and what happens outside the loop's thread.
//! - [`set`]: the poller on it.
//! - [`event_loop`]: a miniature of `src/core`.
//! - [`program`]: the steps of a program, and the search for the shortest that fails.
//! - [`model`]: what must hold after each step.
//! - [`likeness`]: the simulated kernel does what the real one does.
//! - [`cases`]: single cases.

mod cases;
mod event_loop;
mod likeness;
mod machine;
mod model;
mod program;
mod random;
mod set;

use std::panic::{AssertUnwindSafe, catch_unwind};

use program::Step;
use random::Random;

/// Programs, and steps of each.
const PROGRAMS: (u64, usize) = (600, 250);
const PROGRAMS_IN_FULL: (u64, usize) = (60_000, 250);

fn is_full() -> bool {
    std::env::var_os("HOTLOOP_TORTURE").is_some_and(|effort| effort == "full")
}

fn seed() -> u64 {
    std::env::var("HOTLOOP_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

/// What is wrong with a program's run, if anything.
fn failure(program: &[Step]) -> Option<String> {
    match catch_unwind(AssertUnwindSafe(|| model::run(program))) {
        Ok(result) => result.err(),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            Some(
                text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()))
                    .unwrap_or_default(),
            )
        }
    }
}

#[test]
fn the_reactor_keeps_its_promises_in_random_programs() {
    let (programs, length) = if is_full() { PROGRAMS_IN_FULL } else { PROGRAMS };
    for number in 0..programs {
        let seed = seed().wrapping_mul(1 << 32).wrapping_add(number);
        let program = program::random(&mut Random::new(seed), length);
        if failure(&program).is_some() {
            let program = program::shrink(program, |candidate| failure(candidate).is_some());
            let failure = failure(&program).unwrap_or_default();
            let steps: Vec<_> = program.iter().map(|step| format!("    {step:?}\n")).collect();
            panic!("{failure}\nHOTLOOP_SEED={}, program {number}:\n{}", self::seed(), steps.concat());
        }
    }
}
