//! The system calls on pipes and character devices, on borrowed descriptors that do not block.

use std::io::{self, IoSlice};
use std::os::fd::RawFd;

use super::faults::{self, Call};
use super::socket::{MAX_SLICES, check, status};

/// Reads into `buffer` and returns the number of bytes.
pub fn read(fd: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    let length = faults::length(Call::Read, buffer.len())?;
    // SAFETY: `buffer` is valid for writes of its length, which `length` is not above.
    check(unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), length) })
}

/// Has a pipe hold as much at least, where the system can, and allows it.
pub fn enlarge(fd: RawFd, size: usize) {
    #[cfg(target_os = "linux")]
    // SAFETY: the calls change no memory.
    unsafe {
        let former = libc::fcntl(fd, libc::F_GETPIPE_SZ);
        if former >= 0 && (former as usize) < size {
            libc::fcntl(fd, libc::F_SETPIPE_SZ, size as libc::c_int);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (fd, size);
}

/// Writes as much as the descriptor takes of several buffers, of which at most [`MAX_SLICES`] are used, and
/// returns the number of bytes. SIGPIPE is the program's to ignore, as the interpreter does.
pub fn write(fd: RawFd, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    let slices = faults::slices(Call::Write, &slices[..slices.len().min(MAX_SLICES)])?;
    // SAFETY: IoSlice has the layout of iovec; the slices are valid for reads during the call.
    check(unsafe { libc::writev(fd, slices.as_ptr().cast(), slices.len() as libc::c_int) })
}

/// What kind of file a descriptor is, as far as transports care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Fifo,
    Socket,
    CharacterDevice,
    Other,
}

pub fn kind(fd: RawFd) -> io::Result<Kind> {
    faults::attempt(Call::Fstat)?;
    Ok(match status(fd)?.st_mode & libc::S_IFMT {
        libc::S_IFIFO => Kind::Fifo,
        libc::S_IFSOCK => Kind::Socket,
        libc::S_IFCHR => Kind::CharacterDevice,
        _ => Kind::Other,
    })
}

/// Whether a write can wait. [`set_nonblocking`] does not rule it out: a process that shares the open file, as a child does its
/// terminal, can make it block again.
pub fn can_wait(fd: RawFd) -> bool {
    // SAFETY: a call without pointers.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    flags >= 0 && flags & libc::O_NONBLOCK == 0
}

/// Makes reads and writes return at once.
pub fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    faults::attempt(Call::Fcntl)?;
    // SAFETY: a call without pointers.
    let flags = check(unsafe { libc::fcntl(fd, libc::F_GETFL) } as isize)? as libc::c_int;
    if flags & libc::O_NONBLOCK == 0 {
        faults::attempt(Call::Fcntl)?;
        // SAFETY: as above.
        check(unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) } as isize)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn moves_bytes_and_never_waits() {
        let (reader, writer) = io::pipe().unwrap();
        let (reader_fd, writer_fd) = (reader.as_raw_fd(), writer.as_raw_fd());
        assert!(can_wait(reader_fd));
        set_nonblocking(reader_fd).unwrap();
        assert!(!can_wait(reader_fd));
        set_nonblocking(writer_fd).unwrap();
        assert_eq!(kind(reader_fd).unwrap(), Kind::Fifo);
        assert_eq!(read(reader_fd, &mut [0; 4]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(write(writer_fd, &[IoSlice::new(b"pi"), IoSlice::new(b"pe")]).unwrap(), 4);
        let mut buffer = [0; 8];
        assert_eq!(read(reader_fd, &mut buffer).unwrap(), 4);
        assert_eq!(&buffer[..4], b"pipe");
        let flood = vec![0; 1 << 22];
        assert!(write(writer_fd, &[IoSlice::new(&flood)]).unwrap() < flood.len());
        assert_eq!(write(writer_fd, &[IoSlice::new(&flood)]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
