//! OpenSSL, from the library that an interpreter uses: what is called of it is looked up in it.

use std::ffi::{c_char, c_int, c_long, c_void, CString};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};

use mio::net::TcpStream;

const CTRL_MODE: c_int = 33;
const CTRL_READ_AHEAD: c_int = 41;
/// A write may end after some records, and be repeated from other memory.
const PARTIAL_AND_MOVING: c_long = 1 | 2;
const PEM: c_int = 1;
const WANT_READ: c_int = 2;
const WANT_WRITE: c_int = 3;

type Pointer = *mut c_void;

/// Declares the functions and where they are looked up.
macro_rules! functions {
    ($($name:ident: $symbol:literal, fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        struct Functions {
            $($name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Functions {
            fn of(library: &str) -> Result<Self, String> {
                let path = CString::new(library).map_err(|error| error.to_string())?;
                // SAFETY: the path ends with a null byte. The library stays open.
                let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
                let handle = NonNull::new(handle).ok_or_else(|| format!("cannot load {library}"))?;
                Ok(Functions {
                    $($name: {
                        let symbol: &'static [u8] = concat!($symbol, "\0").as_bytes();
                        // SAFETY: the handle is open; the symbol ends with a null byte.
                        let found = unsafe { libc::dlsym(handle.as_ptr(), symbol.as_ptr().cast()) };
                        if found.is_null() {
                            return Err(format!("{library} has no {}", $symbol));
                        }
                        // SAFETY: OpenSSL's header has this signature for it.
                        unsafe { std::mem::transmute::<Pointer, unsafe extern "C" fn($($argument),*) $(-> $result)?>(found) }
                    },)*
                })
            }
        }
    };
}

functions! {
    server_method: "TLS_server_method", fn() -> Pointer;
    new_context: "SSL_CTX_new", fn(Pointer) -> Pointer;
    control: "SSL_CTX_ctrl", fn(Pointer, c_int, c_long, Pointer) -> c_long;
    use_certificate: "SSL_CTX_use_certificate_chain_file", fn(Pointer, *const c_char) -> c_int;
    use_key: "SSL_CTX_use_PrivateKey_file", fn(Pointer, *const c_char, c_int) -> c_int;
    new: "SSL_new", fn(Pointer) -> Pointer;
    free: "SSL_free", fn(Pointer);
    set_descriptor: "SSL_set_fd", fn(Pointer, c_int) -> c_int;
    accept_state: "SSL_set_accept_state", fn(Pointer);
    read: "SSL_read_ex", fn(Pointer, *mut u8, usize, *mut usize) -> c_int;
    write: "SSL_write_ex", fn(Pointer, *const u8, usize, *mut usize) -> c_int;
    error: "SSL_get_error", fn(Pointer, c_int) -> c_int;
    clear_errors: "ERR_clear_error", fn();
}

/// The settings of all connections, for as long as the process.
pub struct Context {
    functions: &'static Functions,
    context: Pointer,
}

impl Context {
    pub fn new(library: &str, certificate: &str) -> Result<Self, String> {
        let functions: &'static Functions = Box::leak(Functions::of(library)?.into());
        let path = CString::new(certificate).map_err(|error| error.to_string())?;
        // SAFETY: the functions are OpenSSL's, the context is new, the path ends with a null byte.
        unsafe {
            let context = (functions.new_context)((functions.server_method)());
            if context.is_null() {
                return Err("OpenSSL makes no context".into());
            }
            (functions.control)(context, CTRL_MODE, PARTIAL_AND_MOVING, ptr::null_mut());
            (functions.control)(context, CTRL_READ_AHEAD, 1, ptr::null_mut());
            let is_used = (functions.use_certificate)(context, path.as_ptr()) == 1
                && (functions.use_key)(context, path.as_ptr(), PEM) == 1;
            is_used.then_some(Context { functions, context }).ok_or_else(|| "no right certificate".into())
        }
    }

    pub fn accept(&self, stream: TcpStream) -> io::Result<Tls> {
        // SAFETY: the context is never freed; the connection has the descriptor for as long as the stream.
        let ssl = unsafe { NonNull::new((self.functions.new)(self.context)) };
        let tls = Tls { functions: self.functions, ssl: ssl.ok_or(ErrorKind::OutOfMemory)?, stream };
        // SAFETY: as before.
        unsafe {
            (self.functions.set_descriptor)(tls.ssl.as_ptr(), tls.stream.as_raw_fd());
            (self.functions.accept_state)(tls.ssl.as_ptr());
        }
        Ok(tls)
    }
}

/// The server's side of a connection. Its first read makes the handshake.
pub struct Tls {
    functions: &'static Functions,
    ssl: NonNull<c_void>,
    stream: TcpStream,
}

impl Tls {
    /// Why a call has failed, if it has.
    fn error(&self, result: c_int) -> Option<io::Error> {
        if result == 1 {
            return None;
        }
        // SAFETY: the connection is open; this is what its last call returned.
        Some(match unsafe { (self.functions.error)(self.ssl.as_ptr(), result) } {
            WANT_READ | WANT_WRITE => ErrorKind::WouldBlock.into(),
            // The client's end, too: whatever it is, the connection is over.
            _ => ErrorKind::ConnectionAborted.into(),
        })
    }
}

impl Read for Tls {
    /// Reads records until there is none, or the buffer is full.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            let rest = &mut buffer[filled..];
            let mut length = 0;
            // SAFETY: the connection is open, the buffer has that many bytes.
            let result = unsafe {
                (self.functions.clear_errors)();
                (self.functions.read)(self.ssl.as_ptr(), rest.as_mut_ptr(), rest.len(), &mut length)
            };
            match self.error(result) {
                None => filled += length,
                Some(_) if filled > 0 => break,
                Some(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

impl Write for Tls {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut length = 0;
        // SAFETY: the connection is open, the data has that many bytes.
        let result = unsafe {
            (self.functions.clear_errors)();
            (self.functions.write)(self.ssl.as_ptr(), data.as_ptr(), data.len(), &mut length)
        };
        self.error(result).map_or(Ok(length), Err)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        // SAFETY: nobody else frees it. The stream is closed after it.
        unsafe { (self.functions.free)(self.ssl.as_ptr()) }
    }
}
