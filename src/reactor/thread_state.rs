//! What a thread of this process does, as the system tells without asking the thread.
//!
//! Only Linux tells: elsewhere, and where /proc is not there or no descriptor is free, all is None. Nothing here allocates.
//!
//! Called by the watchdog for the thread of a loop, and by that thread at the end of what the watchdog has noticed.

/// What a thread has used so far, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct ThreadTimes {
    pub processor: f64,
    /// Time in which it could have run and had no processor. None if the system does not tell.
    pub not_scheduled: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadState {
    /// It has a processor, or could run.
    Runnable,
    /// It waits in futex(2) for this address.
    Futex {
        address: usize,
        has_timeout: bool,
    },
    Asleep,
}

/// The times of a thread; None if they are not known, or if it has ended.
pub fn times(thread: u64) -> Option<ThreadTimes> {
    let processor = system::processor_time(thread)?;
    Some(ThreadTimes { processor, not_scheduled: system::run_queue_delay(thread) })
}

pub use system::{current_thread, state};

#[cfg(target_os = "linux")]
mod system {
    use std::fs::File;
    use std::io::{Read, Write};

    use super::ThreadState;

    /// The system's number of the calling thread.
    pub fn current_thread() -> u64 {
        // SAFETY: the call has no arguments and cannot fail.
        unsafe { libc::syscall(libc::SYS_gettid) as u64 }
    }

    /// Reads the clock that Linux has for each thread. A thread that has ended has none.
    pub fn processor_time(thread: u64) -> Option<f64> {
        // Linux derives the clock's number from the thread's: CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED.
        const SCHEDULED_OF_THREAD: libc::clockid_t = 0b110;
        let clock = (!(thread as libc::clockid_t) << 3) | SCHEDULED_OF_THREAD;
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` outlives the call.
        let read = unsafe { libc::clock_gettime(clock, &mut time) } == 0;
        read.then_some(time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9)
    }

    /// Seconds in which a thread has waited for a processor. Complete when the thread itself asks.
    pub fn run_queue_delay(thread: u64) -> Option<f64> {
        with_file(thread, "schedstat", |text| {
            // Nanoseconds on processors, nanoseconds in run queues, and how often it was given a processor. A kernel that does not
            // count has zeros.
            let mut fields = text.split_ascii_whitespace().map(str::parse::<u64>);
            let (_, delay, turns) = (fields.next()?.ok()?, fields.next()?.ok()?, fields.next()?.ok()?);
            (turns > 0).then_some(delay as f64 * 1e-9)
        })
    }

    /// What a thread does now. Linux lets threads of the same process see it.
    pub fn state(thread: u64) -> Option<ThreadState> {
        with_file(thread, "syscall", parse_state)
    }

    /// Reads `running`, or the number of a system call and six arguments, or -1 for a thread that is blocked elsewhere, as in a page
    /// fault.
    pub fn parse_state(text: &str) -> Option<ThreadState> {
        let mut fields = text.split_ascii_whitespace();
        let call = fields.next()?;
        if call == "running" {
            return Some(ThreadState::Runnable);
        }
        if call.parse() != Ok(libc::SYS_futex) {
            return call.parse::<libc::c_long>().ok().map(|_| ThreadState::Asleep);
        }
        let mut arguments = fields.map(|field| usize::from_str_radix(field.strip_prefix("0x")?, 16).ok());
        let (address, timeout) = (arguments.next()??, arguments.nth(2)??);
        Some(ThreadState::Futex { address, has_timeout: timeout != 0 })
    }

    /// Calls `parse` with the beginning of a file about a thread. None if it can't be read.
    fn with_file<R>(thread: u64, name: &str, parse: impl FnOnce(&str) -> Option<R>) -> Option<R> {
        let mut path = [0; 64];
        let mut rest = &mut path[..];
        write!(rest, "/proc/self/task/{thread}/{name}").ok()?;
        let unused = rest.len();
        let path = std::str::from_utf8(&path[..path.len() - unused]).ok()?;
        let mut text = [0; 256];
        let size = File::open(path).ok()?.read(&mut text).ok()?;
        parse(std::str::from_utf8(&text[..size]).ok()?)
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use super::ThreadState;

    pub fn current_thread() -> u64 {
        0
    }

    pub fn processor_time(_thread: u64) -> Option<f64> {
        None
    }

    pub fn run_queue_delay(_thread: u64) -> Option<f64> {
        None
    }

    pub fn state(_thread: u64) -> Option<ThreadState> {
        None
    }
}

#[cfg(all(test, not(loom), target_os = "linux"))]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    /// Others may have the processors for a while.
    fn until(mut condition: impl FnMut() -> bool, what: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(Instant::now() < deadline, "{what}");
        }
    }

    #[test]
    fn times_are_those_of_the_thread() {
        let thread = current_thread();
        let before = times(thread).unwrap().processor;
        std::thread::sleep(Duration::from_millis(50));
        let slept = times(thread).unwrap().processor - before;
        assert!(slept < 0.03, "{slept} s while it slept");
        until(|| times(thread).unwrap().processor - before > slept + 0.05, "no processor time while it ran");
        let ended = std::thread::scope(|scope| scope.spawn(current_thread).join().unwrap());
        until(|| times(ended).is_none(), "a thread that has ended has no clock");
        assert_eq!(state(ended), None);
    }

    #[test]
    fn a_thread_that_waits_and_one_that_runs() {
        let (send, receive) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let waits = std::thread::spawn(move || {
            send.send(current_thread()).unwrap();
            ended.recv().ok();
            std::thread::sleep(Duration::from_secs(2));
        });
        let thread = receive.recv().unwrap();
        until(|| matches!(state(thread), Some(ThreadState::Futex { has_timeout: false, .. })), "it waits");
        drop(end);
        until(|| state(thread) == Some(ThreadState::Asleep), "it sleeps");
        waits.join().unwrap();
    }

    #[test]
    fn what_the_kernel_writes() {
        let parse = system::parse_state;
        let futex = libc::SYS_futex;
        assert_eq!(parse("running\n"), Some(ThreadState::Runnable));
        assert_eq!(parse("-1 0x7ffc9e54bb88 0x7f1b517242ad\n"), Some(ThreadState::Asleep));
        assert_eq!(parse("0 0x3 0x7f 0x2 0x7 0xf 0x0 0x7 0x7\n"), Some(ThreadState::Asleep));
        let waits = format!("{futex} 0x7f319d14e6f4 0x89 0x0 0x7f319c7fbae0 0x0 0xffffffff 0x7 0x7\n");
        let state = ThreadState::Futex { address: 0x7f31_9d14_e6f4, has_timeout: true };
        assert_eq!(parse(&waits), Some(state));
        for text in ["", "\n", "what", &format!("{futex}"), &format!("{futex} 1 2 3 4")] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
