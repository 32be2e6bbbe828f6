//! The socket of a transport: what owns the descriptor, and which socket.socket Python gets for it.
//!
//! Any thread may ask for the socket and its addresses. The owner of the event loop closes it, and alone uses the descriptor without
//! the lock.

use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;

use super::address::Address;
use crate::cpython::class::Visitor;
use crate::cpython::object::{Object, has_other_threads, thread_ident};
use crate::cpython::socket::DescriptorPlace;
use crate::imports::imports;
use crate::intern;
use crate::reactor::published::Published;
use crate::reactor::socket::{self, identity};

/// What owns the descriptor.
pub enum Socket {
    /// No Python object has been asked for yet.
    Native(OwnedFd),
    /// A thread is making the socket.socket, which can run Python code, and lets other threads run.
    Making(u64),
    /// A socket.socket.
    Python(Object),
    Closed,
}

/// Bound the wait for a socket.socket that another thread is making: in a forked child there may be no such thread.
const WAITS: u32 = 1000;
pub const WAIT: Duration = Duration::from_micros(100);

/// A socket.socket that owns a descriptor. If there can be none, the descriptor is returned, unless it was closed by what
/// did not become a socket.
pub fn socket_of(py: Python<'_>, fd: OwnedFd) -> Result<Object, (PyErr, Option<OwnedFd>)> {
    let file = identity(fd.as_raw_fd());
    let result = imports(py).and_then(|imports| {
        let number = Object::from_int(py, fd.as_raw_fd())?;
        imports.make_socket.call(py, &[&number])
    });
    match result {
        Ok(socket) => {
            // It is the socket's now.
            let _ = fd.into_raw_fd();
            Ok(socket)
        }
        Err(error) => {
            // A socket object that was made, and then failed, lives no longer than the frames that the traceback keeps.
            error.set_traceback(py, None);
            if identity(fd.as_raw_fd()) == file {
                return Err((error, Some(fd)));
            }
            // The number may be another file's by now.
            let _ = fd.into_raw_fd();
            Err((error, None))
        }
    }
}

pub struct SocketFile {
    /// No Python code runs while it is locked.
    socket: Mutex<Socket>,
    fd: RawFd,
    /// Where the socket.socket keeps its descriptor, if there is one, since the program can close it; [`DescriptorPlace::CLOSED`]
    /// once the transport has. Set while the socket is locked.
    place: Published<Option<DescriptorPlace>>,
    peer: Option<Address>,
    /// The local address, noted when the socket is closed.
    local: Mutex<Option<Address>>,
}

/// Locks for a moment, in which nothing waits.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SocketFile {
    /// What get_extra_info() knows of a socket.
    pub const EXTRA: &'static [&'static str] = &["socket", "sockname", "peername"];

    pub fn new(socket: OwnedFd, peer: Option<Address>) -> SocketFile {
        let fd = socket.as_raw_fd();
        SocketFile {
            socket: Mutex::new(Socket::Native(socket)),
            fd,
            place: Published::new(None),
            peer,
            local: Mutex::default(),
        }
    }

    /// The file of a socket object that the program, or asyncio, has made.
    pub fn of_python(
        py: Python<'_>,
        socket: Object,
        fd: RawFd,
        peer: Option<Address>,
    ) -> PyResult<SocketFile> {
        Ok(SocketFile {
            place: Published::new(DescriptorPlace::find(py, &socket, fd)?),
            socket: Mutex::new(Socket::Python(socket)),
            fd,
            peer,
            local: Mutex::default(),
        })
    }

    /// The descriptor for system calls. It is -1, which the kernel refuses, once the transport or the program has closed the
    /// socket, since the number may be another file's.
    pub fn descriptor(&self) -> RawFd {
        match self.place.get() {
            // SAFETY: the object is kept until the place is another.
            Some(place) if unsafe { place.get() } != self.fd => -1,
            _ => self.fd,
        }
    }

    /// Whether the socket is connected to a peer.
    pub fn has_peer(&self) -> bool {
        self.peer.is_some()
    }

    /// The socket.socket, which from now on owns the descriptor.
    pub fn python_socket(&self, py: Python<'_>) -> PyResult<Object> {
        for _ in 0..WAITS {
            let mut socket = lock(&self.socket);
            match std::mem::replace(&mut *socket, Socket::Closed) {
                Socket::Native(fd) => {
                    *socket = Socket::Making(thread_ident());
                    drop(socket);
                    return self.make_socket(py, fd);
                }
                Socket::Python(object) => {
                    *socket = Socket::Python(object.clone());
                    return Ok(object);
                }
                Socket::Making(thread) => {
                    *socket = Socket::Making(thread);
                    if thread == thread_ident() {
                        // A signal handler that came in between.
                        break;
                    }
                }
                Socket::Closed => break,
            }
            drop(socket);
            py.detach(|| std::thread::sleep(WAIT));
        }
        imports(py)?.closed_socket.call(py, &[])
    }

    fn make_socket(&self, py: Python<'_>, fd: OwnedFd) -> PyResult<Object> {
        let (made, socket, place) = match socket_of(py, fd) {
            Ok(made) => {
                let place = DescriptorPlace::find(py, &made, self.fd)?;
                (Ok(made.clone()), Socket::Python(made), place)
            }
            Err((error, Some(fd))) => (Err(error), Socket::Native(fd), None),
            Err((error, None)) => (Err(error), Socket::Closed, Some(DescriptorPlace::CLOSED)),
        };
        let mut current = lock(&self.socket);
        if matches!(*current, Socket::Closed) {
            // The transport was closed while the object was made.
            drop(current);
            if let Ok(made) = &made {
                made.call_method(py, intern!(py, "close"), &[])?;
            }
            return made;
        }
        *current = socket;
        self.place.set(place);
        made
    }

    pub fn extra_info(&self, py: Python<'_>, name: &Bound<'_, PyAny>) -> PyResult<Option<Object>> {
        let found = if name.eq(intern!(py, "socket"))? {
            imports(py)?.transport_socket.call(py, &[&self.python_socket(py)?])?
        } else if name.eq(intern!(py, "sockname"))? {
            self.local_address(py)?
        } else if name.eq(intern!(py, "peername"))? {
            self.peer_address(py)?
        } else {
            return Ok(None);
        };
        Ok(Some(found))
    }

    fn local_address(&self, py: Python<'_>) -> PyResult<Object> {
        let noted = lock(&self.local).clone();
        let asked = match noted {
            Some(address) => address.to_python(py)?,
            None => {
                // It is not closed by another thread meanwhile.
                let socket = lock(&self.socket);
                let address = socket::local_address(self.descriptor());
                drop(socket);
                match address {
                    Ok(address) => Address::from(address).to_python(py)?,
                    Err(_) => Some(Object::none(py)),
                }
            }
        };
        match asked {
            Some(address) => Ok(address),
            None => Ok(self.python_socket(py)?.call_method(py, intern!(py, "getsockname"), &[])?),
        }
    }

    fn peer_address(&self, py: Python<'_>) -> PyResult<Object> {
        let Some(peer) = &self.peer else { return Ok(Object::none(py)) };
        match peer.to_python(py)? {
            Some(address) => Ok(address),
            None => Ok(self.python_socket(py)?.call_method(py, intern!(py, "getpeername"), &[])?),
        }
    }

    pub fn close(&self, py: Python<'_>) -> PyResult<()> {
        let mut local = lock(&self.local);
        if local.is_none() {
            let address = socket::local_address(self.descriptor());
            *local = address.ok().map(Address::from).filter(Address::is_known);
        }
        drop(local);
        let mut current = lock(&self.socket);
        self.place.set(Some(DescriptorPlace::CLOSED));
        let socket = std::mem::replace(&mut *current, Socket::Closed);
        drop(current);
        match socket {
            Socket::Python(socket) => socket.call_method(py, intern!(py, "close"), &[]).map(drop),
            Socket::Native(fd) => {
                if has_other_threads(py) && socket::lingers(&fd) {
                    // It waits for the peer, which may be one of them.
                    py.detach(|| drop(fd));
                }
                Ok(())
            }
            Socket::Making(_) | Socket::Closed => Ok(()),
        }
    }

    pub fn traverse(&self, visitor: &mut Visitor) {
        if let Ok(socket) = self.socket.try_lock()
            && let Socket::Python(socket) = &*socket
        {
            visitor.object(socket);
        }
    }
}
