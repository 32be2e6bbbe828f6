//! Random programs.

use std::os::fd::RawFd;

use super::super::poller::Interest;
use super::machine::{ERR, HUP, IN, OUT, PRI};
use super::random::Random;

/// What a program does next. A descriptor is given by its index among those that are open or, in steps that take a closed one, too,
/// among the numbers that are watched. So any part of a program is a program.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    Open,
    OpenRegular,
    Duplicate(usize),
    DuplicateTo(usize, usize),
    DuplicateToNumber(usize, RawFd),
    /// Closes a descriptor that may be watched.
    Close(usize),
    /// Makes what a descriptor stands for ready for these flags alone, after this number of nanoseconds.
    Change(usize, u32, u64),
    Watch(usize, Direction),
    Unwatch(usize, Direction),
    /// Ends a wait for an event and keeps the registration.
    Take(usize, Direction),
    Attach(usize),
    Detach(usize),
    SetInterest(usize, Interest),
    StartTimer(u64),
    CancelTimer(usize),
    /// Another thread sends a message after the first number of nanoseconds, and wakes the poller after the second.
    Send(u64, u64),
    Signal(u64),
    /// Callbacks are ready for this number of iterations.
    Callbacks(u32),
    /// The loop may have made a descriptor ready.
    RequestPoll,
    /// One iteration, with a spin or without.
    Iterate(bool),
    /// This number of iterations, in each of which another thread answers before the spin polls.
    Chatter(u32),
    /// The next requests are refused: to add to a set, or to make a set.
    RefuseAdd(u32, i32),
    RefuseNew(u32, i32),
    /// How many events a wait reports.
    Width(usize),
    /// Goes on in a forked child.
    Fork,
    /// Closes all descriptors, the loop's too, as a daemon does.
    CloseAll,
    /// Leaves few generations to each free place in the registry.
    Age(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Read,
    Write,
}

/// Numbers that only dup2() makes.
const HIGH: [RawFd; 4] = [1000, 65_535, 65_536, RawFd::MAX];

pub fn random(random: &mut Random, length: usize) -> Vec<Step> {
    // Half of the programs meet no errors, so that errors do not excuse everything.
    let hostile = random.flip();
    (0..length).map(|_| step(random, hostile)).collect()
}

fn step(random: &mut Random, hostile: bool) -> Step {
    let which = random.below(64) as usize;
    let direction = if random.flip() { Direction::Read } else { Direction::Write };
    let delay =
        random.choose(&[0, 1_000, 20_000, 45_000, 60_000, 1_000_000, 100_000_000]) + random.below(5_000);
    match random.below(if hostile { 106 } else { 100 }) {
        0..=7 => Step::Open,
        8 => Step::OpenRegular,
        9..=11 => Step::Duplicate(which),
        12..=13 => Step::DuplicateTo(which, random.below(64) as usize),
        14 => Step::DuplicateToNumber(which, random.choose(&HIGH)),
        15..=20 => Step::Close(which),
        21..=30 => {
            let flags = [0, 0, IN, IN, OUT, IN | OUT, PRI, PRI, PRI | IN, HUP, IN | OUT | HUP | ERR];
            Step::Change(which, random.choose(&flags), if random.flip() { 0 } else { delay })
        }
        31..=41 => Step::Watch(which, direction),
        42..=46 => Step::Unwatch(which, direction),
        47..=49 => Step::Take(which, direction),
        50..=53 => Step::Attach(which),
        54..=55 => Step::Detach(which),
        56..=59 => {
            let (readable, writable) = (random.flip(), random.flip());
            Step::SetInterest(which, Interest { readable, writable, ..Interest::NONE })
        }
        60 => Step::SetInterest(which, Interest::ACCEPTING),
        61..=64 => Step::StartTimer(delay),
        65 => Step::CancelTimer(which),
        66..=71 => Step::Send(delay, random.choose(&[0, 500, 30_000, 200_000])),
        72 => Step::Signal(delay),
        73..=74 => Step::Callbacks(random.choose(&[1, 5, 150])),
        75 => Step::RequestPoll,
        76 => Step::Chatter(random.below(40) as u32),
        77..=95 => Step::Iterate(random.flip()),
        96..=97 => Step::Width(random.choose(&[1, 2, 64])),
        98..=99 => Step::Age(random.below(3) as u32),
        100..=101 => {
            Step::RefuseAdd(1 + random.below(6) as u32, random.choose(&[libc::ENOSPC, libc::ENOMEM]))
        }
        102..=103 => {
            Step::RefuseNew(1 + random.below(3) as u32, random.choose(&[libc::EMFILE, libc::ENOMEM]))
        }
        104 => Step::Fork,
        _ => Step::CloseAll,
    }
}

/// The shortest program that can be had by leaving out steps, and still `fails`.
pub fn shrink(mut program: Vec<Step>, fails: impl Fn(&[Step]) -> bool) -> Vec<Step> {
    let mut size = program.len() / 2;
    while size > 0 {
        let mut shorter = false;
        let mut start = 0;
        while start < program.len() {
            let mut candidate = program.clone();
            candidate.drain(start..(start + size).min(program.len()));
            if fails(&candidate) {
                program = candidate;
                shorter = true;
            } else {
                start += size;
            }
        }
        if !shorter || size > 1 {
            size /= 2;
        }
    }
    program
}
