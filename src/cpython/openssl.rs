//! OpenSSL as the interpreter's `_ssl` uses it: the SSL behind an `_ssl._SSLSocket`, driven without a Python object for each record.
//!
//! The library is the one that `_ssl` is linked to, never one of ours: its functions are looked up in `_ssl` itself. Where they are not
//! found there (they may be linked into the interpreter), another OpenSSL is in front of it, or an object is not laid out as expected,
//! there is no [`Connection`].
//!
//! The SSL stays the interpreter's: settings, certificates, sessions, callbacks and errors are those of its object. Only the BIOs are
//! exchanged, for one that takes from a [`Records`] and adds to it.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int, c_long, c_void};
use std::mem::{size_of, transmute_copy};
use std::ptr::NonNull;
use std::sync::OnceLock;
#[cfg(Py_GIL_DISABLED)]
use std::sync::{Mutex, PoisonError};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use super::module::import;
use super::object::Object;
use super::ownership::Shared;
use super::ways_in::enter;
use crate::intern;
use crate::reactor::memory::{Memory, MemoryMut};
use crate::reserve::{try_box, try_extend};

// Opaque types of the library.
type Ssl = c_void;
type Bio = c_void;
type BioMethod = c_void;

const SSL_ERROR_WANT_READ: c_int = 2;
const SSL_ERROR_ZERO_RETURN: c_int = 6;
const SSL_RECEIVED_SHUTDOWN: c_int = 2;
const SSL_CTRL_SET_MODE: c_int = 33;
const SSL_CTRL_CLEAR_MODE: c_int = 78;
const SSL_MODE_RELEASE_BUFFERS: c_long = 0x10;
/// What SSL_rstate_string() says between records.
const READING_HEADER: &CStr = c"RH";
const BIO_TYPE_SOURCE_SINK: c_int = 0x0400;
const BIO_FLAGS_READ: c_int = 0x01;
const BIO_FLAGS_RETRY: c_int = 0x0f;
const BIO_FLAGS_SHOULD_RETRY: c_int = 0x08;
const BIO_CTRL_PENDING: c_int = 10;
const BIO_CTRL_FLUSH: c_int = 11;
const BIO_CTRL_DUP: c_int = 12;
const BIO_CTRL_WPENDING: c_int = 13;

/// Defines [`Functions`], and `load`, which looks them up.
macro_rules! functions {
    ($($name:ident = $symbol:literal: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// Functions of the library. Those that read and write run callbacks of the program, and of the interpreter.
        struct Functions {
            $($name: unsafe extern "C-unwind" fn($($argument),*) $(-> $result)?,)*
        }

        /// # Safety
        /// `library` is a handle of dlopen(), and what it has under these names are OpenSSL's functions.
        unsafe fn load(library: *mut c_void) -> Option<Functions> {
            Some(Functions {
                $($name: {
                    // SAFETY: the name ends with a null byte; as the caller says, it is that of a function of this type.
                    unsafe { transmute_copy(&look_up(library, concat!($symbol, "\0").as_ptr().cast())?) }
                },)*
            })
        }
    };
}

/// The function that `_ssl` calls by this name. None if it may be another one than the library's: what is visible to the whole process
/// (a library that was loaded so, or preloaded, or the program itself) comes before what `_ssl` is linked to.
///
/// # Safety
/// `library` is a handle of dlopen(), and the name ends with a null byte.
unsafe fn look_up(library: *mut c_void, name: *const c_char) -> Option<*mut c_void> {
    // SAFETY: as the caller says.
    let (address, visible) = unsafe { (libc::dlsym(library, name), libc::dlsym(libc::RTLD_DEFAULT, name)) };
    (!address.is_null() && (visible.is_null() || visible == address)).then_some(address)
}

type ReadEx = unsafe extern "C" fn(*mut Bio, *mut c_char, usize, *mut usize) -> c_int;
type WriteEx = unsafe extern "C" fn(*mut Bio, *const c_char, usize, *mut usize) -> c_int;
type Control = unsafe extern "C" fn(*mut Bio, c_int, c_long, *mut c_void) -> c_long;
type Destroy = unsafe extern "C" fn(*mut Bio) -> c_int;

functions! {
    ssl_read = "SSL_read_ex": fn(*mut Ssl, *mut c_void, usize, *mut usize) -> c_int;
    ssl_write = "SSL_write_ex": fn(*mut Ssl, *const c_void, usize, *mut usize) -> c_int;
    ssl_get_error = "SSL_get_error": fn(*const Ssl, c_int) -> c_int;
    ssl_ctrl = "SSL_ctrl": fn(*mut Ssl, c_int, c_long, *mut c_void) -> c_long;
    ssl_free_buffers = "SSL_free_buffers": fn(*mut Ssl) -> c_int;
    ssl_pending = "SSL_pending": fn(*const Ssl) -> c_int;
    ssl_has_pending = "SSL_has_pending": fn(*const Ssl) -> c_int;
    ssl_rstate_string = "SSL_rstate_string": fn(*const Ssl) -> *const c_char;
    ssl_get_shutdown = "SSL_get_shutdown": fn(*const Ssl) -> c_int;
    ssl_get_context = "SSL_get_SSL_CTX": fn(*const Ssl) -> *mut c_void;
    ssl_get_ex_data = "SSL_get_ex_data": fn(*const Ssl, c_int) -> *mut c_void;
    ssl_get_rbio = "SSL_get_rbio": fn(*const Ssl) -> *mut Bio;
    ssl_set_bio = "SSL_set_bio": fn(*mut Ssl, *mut Bio, *mut Bio);
    err_peek_error = "ERR_peek_error": fn() -> std::ffi::c_ulong;
    err_clear_error = "ERR_clear_error": fn();
    bio_get_new_index = "BIO_get_new_index": fn() -> c_int;
    bio_meth_new = "BIO_meth_new": fn(c_int, *const c_char) -> *mut BioMethod;
    bio_meth_set_read = "BIO_meth_set_read_ex": fn(*mut BioMethod, ReadEx) -> c_int;
    bio_meth_set_write = "BIO_meth_set_write_ex": fn(*mut BioMethod, WriteEx) -> c_int;
    bio_meth_set_control = "BIO_meth_set_ctrl": fn(*mut BioMethod, Control) -> c_int;
    bio_meth_set_destroy = "BIO_meth_set_destroy": fn(*mut BioMethod, Destroy) -> c_int;
    bio_new = "BIO_new": fn(*const BioMethod) -> *mut Bio;
    bio_free = "BIO_free": fn(*mut Bio) -> c_int;
    bio_up_ref = "BIO_up_ref": fn(*mut Bio) -> c_int;
    bio_set_data = "BIO_set_data": fn(*mut Bio, *mut c_void);
    bio_get_data = "BIO_get_data": fn(*mut Bio) -> *mut c_void;
    bio_set_init = "BIO_set_init": fn(*mut Bio, c_int);
    bio_set_flags = "BIO_set_flags": fn(*mut Bio, c_int);
    bio_clear_flags = "BIO_clear_flags": fn(*mut Bio, c_int);
}

/// The library, the method table of our BIO, and the class whose instances have an SSL.
struct Library {
    functions: Functions,
    method: *mut BioMethod,
    socket_class: Object,
    memory_class: Object,
}

// SAFETY: functions, a table that does not change, and classes that are used by attached threads and never dropped.
unsafe impl Send for Library {}
// SAFETY: see above.
unsafe impl Sync for Library {}

static LIBRARY: PyOnceLock<Option<Library>> = PyOnceLock::new();

/// None where `_ssl` does not lend its OpenSSL.
fn library(py: Python<'_>) -> PyResult<Option<&'static Library>> {
    match LIBRARY.get(py) {
        Some(library) => Ok(library.as_ref()),
        None => LIBRARY.get_or_try_init(py, || find(py)).map(Option::as_ref),
    }
}

#[cold]
fn find(py: Python<'_>) -> PyResult<Option<Library>> {
    let module = import(py, "_ssl")?;
    let version: String = module.getattr(intern!(py, "OPENSSL_VERSION"))?.extract()?;
    // Built into the interpreter, it has no file.
    let Ok(file) = module.getattr(intern!(py, "__file__")) else { return Ok(None) };
    let file: String = file.extract()?;
    // Its relatives have functions of the same names that do otherwise.
    let (true, Ok(file)) = (version.starts_with("OpenSSL "), CString::new(file)) else { return Ok(None) };
    // SAFETY: the module is loaded: this gives a handle of it, and of the libraries that it is linked to.
    let handle = unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
    if handle.is_null() {
        return Ok(None);
    }
    // SAFETY: they are OpenSSL's, as the module says. The handle is kept for good.
    let Some(functions) = (unsafe { load(handle) }) else { return Ok(None) };
    let Some(method) = make_method(&functions) else { return Ok(None) };
    let socket_class = module.getattr(intern!(py, "_SSLSocket"))?.into();
    let memory_class = module.getattr(intern!(py, "MemoryBIO"))?.into();
    Ok(Some(Library { functions, method, socket_class, memory_class }))
}

/// The method table of BIOs over [`Records`].
fn make_method(functions: &Functions) -> Option<*mut BioMethod> {
    const NAME: &CStr = c"hotloop";
    // SAFETY: the table is new, and lives for good.
    unsafe {
        let index = (functions.bio_get_new_index)();
        if index < 0 {
            return None;
        }
        let method = (functions.bio_meth_new)(index | BIO_TYPE_SOURCE_SINK, NAME.as_ptr());
        if method.is_null() {
            return None;
        }
        (functions.bio_meth_set_read)(method, read_records);
        (functions.bio_meth_set_write)(method, write_records);
        (functions.bio_meth_set_control)(method, control);
        (functions.bio_meth_set_destroy)(method, destroy);
        BIO_GET_DATA.get_or_init(|| functions.bio_get_data);
        Some(method)
    }
}

/// The encrypted bytes of a connection: what has come and is not read, and what is to be sent.
///
/// OpenSSL's callbacks use it, also where `_ssl` has detached the thread from the interpreter; they run in the thread that has called
/// OpenSSL.
struct Records {
    functions: &'static Functions,
    /// What was received last, in a buffer of the caller's: see [`Connection::feed`].
    lent: Cell<(*const u8, usize)>,
    /// What has come before it.
    kept: Cell<Vec<u8>>,
    /// How much of that has been read.
    taken: Cell<usize>,
    output: Cell<Vec<u8>>,
    no_memory: Cell<bool>,
}

impl Records {
    fn incoming(&self) -> usize {
        (length(&self.kept) + self.lent.get().1).saturating_sub(self.taken.get())
    }

    /// Moves up to `size` bytes into `memory`, and returns how many.
    ///
    /// # Safety
    /// There is room for them.
    unsafe fn take(&self, memory: *mut u8, size: usize) -> usize {
        // SAFETY: as the caller says; what is lent is there until it is taken back.
        unsafe {
            let kept = self.kept.take();
            let left = &kept[self.taken.get()..];
            if left.is_empty() {
                let (lent, length) = self.lent.get();
                let count = length.min(size);
                std::ptr::copy_nonoverlapping(lent, memory, count);
                self.lent.set((lent.add(count), length - count));
                return count;
            }
            let count = left.len().min(size);
            std::ptr::copy_nonoverlapping(left.as_ptr(), memory, count);
            if count < left.len() {
                self.taken.set(self.taken.get() + count);
                self.kept.set(kept);
            } else {
                self.taken.set(0);
            }
            count
        }
    }

    fn add_output(&self, data: &[u8]) -> bool {
        let mut output = self.output.take();
        let is_added = try_extend(&mut output, data);
        self.output.set(output);
        is_added
    }

    /// Keeps what is lent and was not read. False without memory.
    fn keep_lent(&self) -> bool {
        let (lent, length) = self.lent.replace((NonNull::dangling().as_ptr(), 0));
        if length == 0 {
            return true;
        }
        let mut kept = self.kept.take();
        kept.drain(..self.taken.replace(0));
        // SAFETY: it was lent until now.
        let is_kept = try_extend(&mut kept, unsafe { std::slice::from_raw_parts(lent, length) });
        self.kept.set(kept);
        is_kept
    }
}

/// Another thread may ask, which has no business here, while OpenSSL is at work in the loop's: it only looks.
fn length(bytes: &Cell<Vec<u8>>) -> usize {
    // SAFETY: the vector is not changed while this expression looks at it, but by OpenSSL in the case above: then the result is wrong.
    unsafe { (*bytes.as_ptr()).len() }
}

/// The library's function, set before there is a BIO: OpenSSL's callbacks may run in a thread that is not attached to the interpreter.
static BIO_GET_DATA: OnceLock<unsafe extern "C-unwind" fn(*mut Bio) -> *mut c_void> = OnceLock::new();

/// # Safety
/// `bio` is one that [`Connection::take_over`] has made.
unsafe fn records<'a>(bio: *mut Bio) -> &'a Records {
    // SAFETY: the BIO's data are there until it is destroyed, and the function since before it was made.
    unsafe { &*(BIO_GET_DATA.get().unwrap_unchecked())(bio).cast::<Records>() }
}

unsafe extern "C" fn read_records(
    bio: *mut Bio,
    memory: *mut c_char,
    size: usize,
    count: *mut usize,
) -> c_int {
    // SAFETY: OpenSSL calls this with a BIO of ours, and with memory of that size.
    unsafe {
        let records = records(bio);
        (records.functions.bio_clear_flags)(bio, BIO_FLAGS_RETRY);
        *count = records.take(memory.cast(), size);
        if *count > 0 || size == 0 {
            return 1;
        }
        (records.functions.bio_set_flags)(bio, BIO_FLAGS_READ | BIO_FLAGS_SHOULD_RETRY);
        -1
    }
}

unsafe extern "C" fn write_records(
    bio: *mut Bio,
    data: *const c_char,
    size: usize,
    count: *mut usize,
) -> c_int {
    // SAFETY: OpenSSL calls this with a BIO of ours, and with that many bytes.
    unsafe {
        let records = records(bio);
        (records.functions.bio_clear_flags)(bio, BIO_FLAGS_RETRY);
        if !records.add_output(std::slice::from_raw_parts(data.cast(), size)) {
            records.no_memory.set(true);
            return -1;
        }
        *count = size;
        1
    }
}

unsafe extern "C" fn control(bio: *mut Bio, command: c_int, _: c_long, _: *mut c_void) -> c_long {
    // SAFETY: OpenSSL calls this with a BIO of ours.
    let records = unsafe { records(bio) };
    match command {
        BIO_CTRL_FLUSH | BIO_CTRL_DUP => 1,
        BIO_CTRL_PENDING => records.incoming() as c_long,
        BIO_CTRL_WPENDING => length(&records.output) as c_long,
        _ => 0,
    }
}

unsafe extern "C" fn destroy(bio: *mut Bio) -> c_int {
    // SAFETY: OpenSSL calls this once, when the last reference is gone.
    unsafe {
        let records: *const Records = records(bio);
        drop(Box::from_raw(records.cast_mut()));
    }
    1
}

/// What came of reading.
pub enum Read {
    Count(usize),
    /// There is no whole record.
    Again,
    /// The peer has ended its direction.
    Closed,
    /// OpenSSL has noted an error, which the interpreter's object raises when it is asked to read.
    Failed,
}

/// The SSL of an `_ssl._SSLSocket` that reads and writes [`Records`].
///
/// Invariant: the object is the SSL's only owner, and kept; the BIO is kept by a reference of its own.
pub struct Connection {
    library: &'static Library,
    ssl: *mut Ssl,
    bio: *mut Bio,
    /// The object.
    owner: Object,
    buffers: Shared<Buffers>,
}

/// OpenSSL's buffers of a connection, of 16 KiB for each direction. CPython has them released after each record, and made anew for the
/// next one. Those of a busy connection are kept until it is idle.
pub struct Buffers {
    library: &'static Library,
    /// Null once the connection is gone.
    ssl: Cell<*mut Ssl>,
    /// Locked while the SSL is used without the connection, which another thread may drop, and while it is forgotten.
    #[cfg(Py_GIL_DISABLED)]
    ssl_lock: Mutex<()>,
    /// How often they were used since [`Buffers::since`], or since they were looked at.
    uses: Cell<u32>,
    /// When they were used first, in seconds of the loop's clock.
    since: Cell<f64>,
    are_kept: Cell<bool>,
}

/// Of more than so many bytes, a write is made room for.
const LARGE_WRITE: usize = 16 * 1024;
/// What surrounds the data in a record is less than this part of it, where the records are full.
const RECORD_SHARE: usize = 64;

/// A connection is busy that uses its buffers so often
const BUSY: u32 = 8;
/// within so many seconds.
const BUSY_TIME: f64 = 0.5;

impl Buffers {
    fn new(library: &'static Library, ssl: *mut Ssl) -> Buffers {
        Buffers {
            library,
            ssl: Cell::new(ssl),
            #[cfg(Py_GIL_DISABLED)]
            ssl_lock: Mutex::new(()),
            uses: Cell::new(0),
            since: Cell::new(0.0),
            are_kept: Cell::new(false),
        }
    }

    /// Notes a use. Returns whether they are kept from now on, until [`Buffers::release_if_idle`] releases them.
    #[inline(always)]
    fn note_use(&self, now: f64) -> bool {
        let uses = self.uses.get();
        self.uses.set(uses.saturating_add(1));
        !self.are_kept.get() && self.note_more(uses, now)
    }

    #[inline(never)]
    fn note_more(&self, uses: u32, now: f64) -> bool {
        if uses == 0 {
            self.since.set(now);
        }
        if uses < BUSY {
            return false;
        }
        self.uses.set(0);
        let is_busy = now - self.since.get() <= BUSY_TIME;
        self.are_kept.set(is_busy);
        if is_busy {
            self.control(SSL_CTRL_CLEAR_MODE, SSL_MODE_RELEASE_BUFFERS);
            // OpenSSL 3.2 and later tell the layer that reads of what is set, not of what is cleared.
            self.control(SSL_CTRL_SET_MODE, 0);
        }
        is_busy
    }

    /// The connection is there, or the SSL is locked.
    fn control(&self, command: c_int, mode: c_long) {
        // SAFETY: the SSL is there while the connection is, and is not freed while it is locked.
        unsafe { (self.library.functions.ssl_ctrl)(self.ssl.get(), command, mode, std::ptr::null_mut()) };
    }

    /// Keeps another thread from freeing the SSL during `f`, which must not run Python code.
    #[inline(always)]
    fn with_ssl_locked<R>(&self, f: impl FnOnce() -> R) -> R {
        #[cfg(Py_GIL_DISABLED)]
        let _locked = self.ssl_lock.lock().unwrap_or_else(PoisonError::into_inner);
        f()
    }

    /// The connection is about to be gone.
    fn forget_ssl(&self) {
        self.with_ssl_locked(|| self.ssl.set(std::ptr::null_mut()));
    }

    /// Releases them unless they were used since the last call. Returns whether they are kept.
    pub fn release_if_idle(&self) -> bool {
        self.with_ssl_locked(|| self.release_locked())
    }

    #[inline(always)]
    fn release_locked(&self) -> bool {
        if self.ssl.get().is_null() {
            return false;
        }
        if self.uses.replace(0) > 0 {
            return true;
        }
        self.are_kept.set(false);
        self.control(SSL_CTRL_SET_MODE, SSL_MODE_RELEASE_BUFFERS);
        if !self.has_part_of_record() {
            // SAFETY: the SSL is there while the connection is, and uses nothing of its buffers.
            unsafe { (self.library.functions.ssl_free_buffers)(self.ssl.get()) };
        }
        false
    }

    /// Whether the buffers are in use: OpenSSL before 3.0.14, 3.1.6, 3.2.2 and 3.3.1 would free them and use them further
    /// (CVE-2024-4741). They are released when the record has been read.
    fn has_part_of_record(&self) -> bool {
        let (functions, ssl) = (&self.library.functions, self.ssl.get());
        // SAFETY: the SSL is there while the connection is; the state is a string of the library's.
        unsafe {
            (functions.ssl_has_pending)(ssl) != 0
                || CStr::from_ptr((functions.ssl_rstate_string)(ssl)) != READING_HEADER
        }
    }
}

/// The pointer behind the header of an object.
///
/// # Safety
/// The object is one of `_ssl`'s, which has this many pointers there.
unsafe fn pointer(object: &Object, index: usize) -> *mut c_void {
    // SAFETY: as the caller says.
    unsafe {
        object
            .as_ptr()
            .cast::<c_void>()
            .byte_add(size_of::<ffi::PyObject>() + index * size_of::<*mut c_void>())
            .cast::<*mut c_void>()
            .read()
    }
}

fn is_exactly(py: Python<'_>, object: &Object, class: &Object) -> bool {
    object.bind(py).get_type().as_any().is(class.bind(py))
}

impl Connection {
    /// Takes over the SSL of a new `_ssl._SSLSocket` over a MemoryBIO. None if it is not known how to get there.
    pub fn take_over(py: Python<'_>, socket: &Object, incoming: &Object) -> PyResult<Option<Connection>> {
        let Some(library) = library(py)? else { return Ok(None) };
        if !is_exactly(py, socket, &library.socket_class) || !is_exactly(py, incoming, &library.memory_class)
        {
            return Ok(None);
        }
        let context = Object::from(socket.bind(py).getattr(intern!(py, "context"))?);
        let functions = &library.functions;
        // SAFETY: objects of these classes have at least so many pointers. What is taken for the SSL is used only if what comes behind
        // it is the context, as it is in the layout of which this is the place; and then it must know its owner.
        let ssl = unsafe {
            let ssl = pointer(socket, 1);
            if ssl.is_null() || pointer(socket, 2) != context.as_ptr().cast() {
                return Ok(None);
            }
            let is_proved = (functions.ssl_get_ex_data)(ssl, 0) == socket.as_ptr().cast()
                && (functions.ssl_get_context)(ssl) == pointer(&context, 0)
                && (functions.ssl_get_rbio)(ssl) == pointer(incoming, 0);
            if !is_proved {
                return Ok(None);
            }
            ssl
        };
        let records = Records {
            functions,
            lent: Cell::new((NonNull::dangling().as_ptr(), 0)),
            kept: Cell::default(),
            taken: Cell::new(0),
            output: Cell::default(),
            no_memory: Cell::new(false),
        };
        let Some(records) = try_box(records) else { return Ok(None) };
        // SAFETY: the BIO is new. Of its two references one is given to the SSL, which drops those that it had to its own.
        let bio = unsafe {
            let bio = (functions.bio_new)(library.method);
            if bio.is_null() {
                return Ok(None);
            }
            (functions.bio_set_data)(bio, Box::into_raw(records).cast());
            (functions.bio_set_init)(bio, 1);
            (functions.bio_up_ref)(bio);
            (functions.ssl_set_bio)(ssl, bio, bio);
            bio
        };
        #[cfg_attr(
            Py_GIL_DISABLED,
            allow(clippy::arc_with_non_send_sync, reason = "the owner alone touches what is not locked")
        )]
        let buffers = Shared::new(Buffers::new(library, ssl));
        Ok(Some(Connection { library, ssl, bio, owner: socket.clone(), buffers }))
    }

    fn records(&self) -> &Records {
        // SAFETY: the BIO is ours, and kept.
        unsafe { records(self.bio) }
    }

    /// Lends what was received for the time of `f`. What is not read meanwhile is kept; false without memory for that.
    pub fn feed<R>(&self, data: &[u8], f: impl FnOnce() -> R) -> (R, bool) {
        /// Takes back what is lent also if `f` panics.
        struct Lent<'a>(&'a Records);
        impl Drop for Lent<'_> {
            fn drop(&mut self) {
                self.0.keep_lent();
            }
        }

        let records = self.records();
        // A call within one: first what has come before.
        let before = records.keep_lent();
        let lent = Lent(records);
        records.lent.set((data.as_ptr(), data.len()));
        let result = f();
        let after = records.keep_lent();
        drop(lent);
        (result, before && after)
    }

    /// Notes a use of the buffers. Returns them if they are kept from now on.
    #[inline(always)]
    pub fn use_buffers(&self, now: f64) -> Option<Shared<Buffers>> {
        self.buffers.note_use(now).then(|| Shared::clone(&self.buffers))
    }

    /// How many bytes have come that OpenSSL has not looked at.
    pub fn incoming(&self) -> usize {
        self.records().incoming()
    }

    /// How many bytes are to be sent.
    pub fn outgoing(&self) -> usize {
        length(&self.records().output)
    }

    /// Takes out what is to be sent.
    pub fn take_output(&self) -> Vec<u8> {
        self.records().output.take()
    }

    /// Lends an empty vector with memory for what is to be sent, unless there is something already.
    pub fn lend_output(&self, memory: Vec<u8>) -> Option<Vec<u8>> {
        let output = self.records().output.take();
        if output.capacity() > 0 {
            self.records().output.set(output);
            return Some(memory);
        }
        self.records().output.set(memory);
        None
    }

    /// Makes room for the records of so many bytes, so that it is not made again and again while they are added.
    #[inline(always)]
    pub fn make_room(&self, size: usize) {
        if size > LARGE_WRITE {
            self.make_much_room(size);
        }
    }

    #[inline(never)]
    fn make_much_room(&self, size: usize) {
        let mut output = self.records().output.take();
        // Without memory, less may do.
        let _ = output.try_reserve(size + size / RECORD_SHARE);
        self.records().output.set(output);
    }

    /// Whether there was no memory for what is to be sent.
    pub fn has_no_memory(&self) -> bool {
        self.records().no_memory.replace(false)
    }

    /// Whether a read may find more.
    pub fn has_more(&self) -> bool {
        // SAFETY: the SSL is there while its owner is.
        self.incoming() > 0 || unsafe { (self.library.functions.ssl_pending)(self.ssl) } > 0
    }

    /// An error that another use of OpenSSL has left behind would be taken for one of the next call.
    fn clear_errors(&self) {
        let functions = &self.library.functions;
        // SAFETY: calls without arguments.
        unsafe {
            if (functions.err_peek_error)() != 0 {
                (functions.err_clear_error)();
            }
        }
    }

    /// Reads at most a record. May run Python code.
    pub fn read(&self, _py: Python<'_>, mut memory: MemoryMut<'_>) -> Read {
        let functions = &self.library.functions;
        self.clear_errors();
        let mut count = 0;
        // SAFETY: the SSL is there while its owner is; the memory has room for so many bytes.
        unsafe {
            let (pointer, length) = (memory.as_mut_ptr().cast(), memory.length());
            let result = enter(|| (functions.ssl_read)(self.ssl, pointer, length, &mut count));
            if result > 0 {
                return Read::Count(count);
            }
            match (functions.ssl_get_error)(self.ssl, result) {
                SSL_ERROR_WANT_READ => Read::Again,
                SSL_ERROR_ZERO_RETURN if (functions.ssl_get_shutdown)(self.ssl) == SSL_RECEIVED_SHUTDOWN => {
                    Read::Closed
                }
                _ => Read::Failed,
            }
        }
    }

    /// Writes a part of the data, and returns how much; None if that failed: the interpreter's object raises the error when it is asked
    /// to write. May run Python code.
    pub fn write(&self, _py: Python<'_>, data: Memory<'_>) -> Option<usize> {
        let functions = &self.library.functions;
        self.clear_errors();
        let mut count = 0;
        // SAFETY: the SSL is there while its owner is; the memory has so many bytes.
        unsafe {
            let (pointer, length) = (data.as_ptr().cast(), data.length());
            let result = enter(|| (functions.ssl_write)(self.ssl, pointer, length, &mut count));
            (result > 0).then_some(count)
        }
    }

    pub fn traverse(&self, visitor: &mut super::class::Visitor) {
        visitor.object(&self.owner);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.buffers.forget_ssl();
        // SAFETY: the reference is ours.
        unsafe { (self.library.functions.bio_free)(self.bio) };
    }
}
