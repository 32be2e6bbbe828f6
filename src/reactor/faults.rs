//! System calls of the reactor that fail on demand, with the cargo feature `faults`. Without it the functions here do nothing and
//! compile to no instruction.
//!
//! A function that makes a system call first calls [`attempt`], or [`length`] or [`slices`], which also limit how much of a buffer
//! it may transfer. A fault of `inject` holds for all threads of the process.

macro_rules! calls {
    ($($call:ident $name:literal,)*) => {
        /// The system calls that can be made to fail.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Call { $($call),* }

        /// Their names, in this order.
        #[cfg(feature = "faults")]
        const NAMES: [&str; [$($name),*].len()] = [$($name),*];
    };
}

calls! {
    Accept "accept4",
    Connect "connect",
    EpollAdd "epoll_add",
    EpollCreate "epoll_create",
    EpollDelete "epoll_del",
    EpollModify "epoll_mod",
    EpollPwait2 "epoll_pwait2",
    EpollWait "epoll_wait",
    EventFd "eventfd",
    Fcntl "fcntl",
    Fstat "fstat",
    GetPeerName "getpeername",
    GetSockName "getsockname",
    GetSockOpt "getsockopt",
    Read "read",
    Recv "recv",
    RecvMany "recvmmsg",
    RecvMessage "recvmsg",
    Send "send",
    SendMessage "sendmsg",
    SendTo "sendto",
    SetSockOpt "setsockopt",
    Shutdown "shutdown",
    Socket "socket",
    Wake "wake",
    Write "writev",
}

#[cfg(feature = "faults")]
pub use injected::{attempt, counts, inject, length, reset, slices};
#[cfg(not(feature = "faults"))]
pub use none::{attempt, length, slices};

#[cfg(not(feature = "faults"))]
mod none {
    use std::io::{self, IoSlice};

    use super::Call;

    /// Fails if the call is to fail.
    pub fn attempt(_call: Call) -> io::Result<()> {
        Ok(())
    }

    /// How many of `length` bytes or items the call may transfer.
    pub fn length(_call: Call, length: usize) -> io::Result<usize> {
        Ok(length)
    }

    /// The part of the buffers that the call may transfer.
    pub fn slices<'a>(_call: Call, slices: &'a [IoSlice<'a>]) -> io::Result<&'a [IoSlice<'a>]> {
        Ok(slices)
    }
}

#[cfg(feature = "faults")]
mod injected {
    use std::io::{self, IoSlice};
    use std::sync::{Mutex, MutexGuard};

    use super::{Call, NAMES};

    /// How often a call was made, and its faults to come.
    #[derive(Clone, Copy)]
    struct State {
        made: u64,
        /// The error; 0 limits the call to one byte or item.
        errno: i32,
        /// Calls that still succeed.
        after: u64,
        /// Calls after those that fail.
        times: u64,
    }

    const NOTHING: State = State { made: 0, errno: 0, after: 0, times: 0 };
    static STATES: Mutex<[State; NAMES.len()]> = Mutex::new([NOTHING; NAMES.len()]);

    fn states() -> MutexGuard<'static, [State; NAMES.len()]> {
        STATES.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Makes the call named `name` fail with `errno` for `times` times after the next `after` calls. If `errno` is 0, they
    /// transfer one byte or item at the most. False if there is no such call.
    pub fn inject(name: &str, errno: i32, after: u64, times: u64) -> bool {
        let Some(index) = NAMES.iter().position(|known| *known == name) else { return false };
        let mut states = states();
        states[index] = State { errno, after, times, ..states[index] };
        true
    }

    /// Removes all faults and counts.
    pub fn reset() {
        *states() = [NOTHING; NAMES.len()];
    }

    /// How often each call was made, failed ones included.
    pub fn counts() -> impl Iterator<Item = (&'static str, u64)> {
        let states = *states();
        NAMES.into_iter().zip(states).map(|(name, state)| (name, state.made))
    }

    /// Counts a call. Returns the errno of its fault, if it has one.
    fn count(call: Call) -> Option<i32> {
        let state = &mut states()[call as usize];
        state.made += 1;
        if state.times == 0 {
            None
        } else if state.after > 0 {
            state.after -= 1;
            None
        } else {
            state.times -= 1;
            Some(state.errno)
        }
    }

    fn failed(errno: i32) -> io::Error {
        // SAFETY: the pointer to the thread's own errno is valid.
        #[cfg(target_os = "linux")]
        unsafe {
            *libc::__errno_location() = errno;
        }
        io::Error::from_raw_os_error(errno)
    }

    /// Fails if the call is to fail, and sets errno.
    pub fn attempt(call: Call) -> io::Result<()> {
        match count(call) {
            None | Some(0) => Ok(()),
            Some(errno) => Err(failed(errno)),
        }
    }

    /// How many of `length` bytes or items the call may transfer.
    pub fn length(call: Call, length: usize) -> io::Result<usize> {
        match count(call) {
            None => Ok(length),
            Some(0) => Ok(length.min(1)),
            Some(errno) => Err(failed(errno)),
        }
    }

    /// The part of the buffers that the call may transfer.
    pub fn slices<'a>(call: Call, slices: &'a [IoSlice<'a>]) -> io::Result<Vec<IoSlice<'a>>> {
        match count(call) {
            None => Ok(slices.to_vec()),
            Some(0) => {
                Ok(slices.iter().take(1).map(|slice| IoSlice::new(&slice[..slice.len().min(1)])).collect())
            }
            Some(errno) => Err(failed(errno)),
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use crate::reactor::pipe;
        use std::os::fd::AsRawFd;

        #[test]
        fn a_call_fails_on_demand() {
            let (_reader, writer) = io::pipe().unwrap();
            let fd = writer.as_raw_fd();
            let data = [IoSlice::new(b"pi"), IoSlice::new(b"pe")];
            assert!(inject("writev", libc::ENOSPC, 1, 2));
            assert_eq!(pipe::write(fd, &data).unwrap(), 4);
            for _ in 0..2 {
                assert_eq!(pipe::write(fd, &data).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
            }
            assert_eq!(pipe::write(fd, &data).unwrap(), 4);
            assert!(inject("writev", 0, 0, u64::MAX));
            assert_eq!(pipe::write(fd, &data).unwrap(), 1);
            assert!(counts().any(|(name, made)| name == "writev" && made >= 5));
            reset();
            assert!(!inject("open", 1, 0, 1));
        }
    }
}
