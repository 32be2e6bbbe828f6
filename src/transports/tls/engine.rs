//! What encrypts and decrypts: the connection's SSL, which CPython's `wrap_bio()` has made.
//!
//! - `direct`: OpenSSL itself, by [`Connection`]. For data only: handshakes and shutdowns are the ssl object's own.
//! - `portable`: the methods of `_ssl`'s objects, or those of the ssl object if its class overrides them.
//!
//! Both do what the ssl object does, and its errors are the ones that are raised.

use std::cell::Cell;

use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::{PyMemoryView, PySlice};

use super::imports::tls_imports;
use crate::core::{Core, LEAST};
use crate::cpython::buffer::{Bytes, new_bytes, with_buffer, with_writable_buffer};
use crate::cpython::class::Visitor;
use crate::cpython::errors::no_memory;
use crate::cpython::names::Name;
use crate::cpython::object::Object;
use crate::cpython::openssl::{Connection, Read};
use crate::cpython::received::UninitBytes;
use crate::intern;
use crate::reactor::memory::MemoryMut;
use crate::reserve::{try_extend, zeroes};

/// The most plaintext of a record.
const RECORD: usize = 16 * 1024;
/// How much plaintext is made before it is copied: what one receive brings, and what was kept of a record.
const PLAIN_BUFFER: usize = 256 * 1024 + RECORD;
/// The least that the interpreter's object is asked for.
const LEAST_READ: usize = 256;
/// From so much ciphertext on, it is decrypted into the bytes object that the program gets, which has at most a quarter more memory
/// than it needs.
const LARGE_READ: usize = 56 * 1024;
/// Memory for what is to be sent that the loop keeps for the next connection.
const OUTPUT_BUFFER: usize = 128 * 1024;

enum Kind {
    Direct(Connection),
    Portable(Portable),
}

/// The MemoryBIOs, and bound methods, which are looked up once.
struct Portable {
    incoming: Object,
    outgoing: Object,
    write_incoming: Object,
    read_outgoing: Object,
    /// Those of `_ssl`'s object, which cannot be replaced.
    read: Option<Object>,
    write: Option<Object>,
    /// How many bytes came last.
    fed: Cell<usize>,
    /// Whether they are known to be read.
    is_consumed: Cell<bool>,
}

impl Portable {
    fn new(py: Python<'_>, incoming: Object, outgoing: Object, raw: Option<&Object>) -> PyResult<Portable> {
        let method = |object: &Object, name: &'static Name| -> PyResult<Object> {
            Ok(object.bind(py).getattr(name.get(py)?)?.into())
        };
        Ok(Portable {
            write_incoming: method(&incoming, &WRITE)?,
            read_outgoing: method(&outgoing, &READ)?,
            read: raw.map(|raw| method(raw, &READ)).transpose()?,
            write: raw.map(|raw| method(raw, &WRITE)).transpose()?,
            fed: Cell::new(0),
            is_consumed: Cell::new(true),
            incoming,
            outgoing,
        })
    }

    /// How many bytes have come that were not read.
    fn incoming(&self, py: Python<'_>) -> PyResult<usize> {
        if self.is_consumed.get() {
            return Ok(0);
        }
        let size = pending(py, &self.incoming)?;
        self.is_consumed.set(size == 0);
        Ok(size)
    }

    fn traverse(&self, visitor: &mut Visitor) {
        for object in [&self.incoming, &self.outgoing, &self.write_incoming, &self.read_outgoing] {
            visitor.object(object);
        }
        visitor.optional(&self.read);
        visitor.optional(&self.write);
    }
}

pub struct Engine {
    /// What the context's `wrap_bio()` has returned.
    pub ssl_object: Object,
    /// What reads and writes: the ssl object, or `_ssl`'s behind it.
    io: Object,
    /// Whether that is `_ssl`'s, whose pending() tells of all that a read finds. A class of the program's may keep data itself.
    is_raw: bool,
    kind: Kind,
}

/// What an operation came to.
pub enum Progress<T> {
    Done(T),
    /// OpenSSL needs more of the peer.
    Again,
}

/// What was decrypted.
pub struct Plain {
    /// A bytes object; None if there is nothing.
    pub data: Option<Object>,
    /// Whether the peer has ended its direction.
    pub closed: bool,
}

/// Why reading ends.
#[derive(Clone, Copy, PartialEq)]
enum End {
    /// There is no more for now.
    Nothing,
    /// The peer has ended its direction.
    Closed,
    /// There is no more room.
    Full,
}

static READ: Name = Name::new("read");
static WRITE: Name = Name::new("write");
static PENDING: Name = Name::new("pending");

/// None for the exceptions that asyncio calls SSLAgainErrors.
fn unless_again<T>(py: Python<'_>, result: PyResult<T>) -> PyResult<Progress<T>> {
    match result {
        Ok(value) => Ok(Progress::Done(value)),
        Err(error) if error.is_instance_of::<PyException>(py) && is_again(py, &error)? => Ok(Progress::Again),
        Err(error) => Err(error),
    }
}

fn is_again(py: Python<'_>, error: &PyErr) -> PyResult<bool> {
    let again = &tls_imports(py)?.again;
    error.value(py).is_instance(&again.bind(py))
}

/// A memoryview of all but the first `skip` bytes of an object's buffer.
fn rest_of(py: Python<'_>, object: &Object, skip: usize) -> PyResult<Object> {
    let view = PyMemoryView::from(&object.bind(py))?;
    if skip == 0 {
        return Ok(Object::from(view.into_any()));
    }
    let slice = PySlice::new(py, skip as isize, isize::MAX, 1);
    Ok(view.get_item(slice)?.into())
}

impl Engine {
    /// `raw`: `_ssl`'s object, if the ssl object's own methods only pass on to it. `direct`: whether OpenSSL may be called itself.
    pub fn new(
        py: Python<'_>,
        ssl_object: Object,
        raw: Option<Object>,
        [incoming, outgoing]: [Object; 2],
        direct: bool,
    ) -> PyResult<Engine> {
        let connection = match &raw {
            Some(raw) if direct => Connection::take_over(py, raw, &incoming)?,
            _ => None,
        };
        let kind = match connection {
            Some(connection) => Kind::Direct(connection),
            None => Kind::Portable(Portable::new(py, incoming, outgoing, raw.as_ref())?),
        };
        let is_raw = raw.is_some();
        Ok(Engine { io: raw.unwrap_or_else(|| ssl_object.clone()), is_raw, ssl_object, kind })
    }

    /// Its name, as HOTLOOP_TLS has it.
    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Direct(_) => "direct",
            Kind::Portable(_) => "portable",
        }
    }

    /// Has `f` find what was received.
    pub fn feed(
        &self,
        py: Python<'_>,
        core: &Core,
        data: &[u8],
        f: impl FnOnce() -> PyResult<()>,
    ) -> PyResult<()> {
        match &self.kind {
            Kind::Direct(connection) => {
                let (result, is_kept) = connection.feed(data, f);
                if is_kept { result } else { result.and_then(|()| Err(no_memory(py))) }
            }
            Kind::Portable(portable) => {
                portable.is_consumed.set(false);
                portable.write_incoming.call(py, &[&core.bytes_of(py, data)?])?;
                portable.fed.set(data.len());
                f()
            }
        }
    }

    /// How many bytes have come that were not looked at.
    pub fn incoming(&self, py: Python<'_>) -> PyResult<usize> {
        match &self.kind {
            Kind::Direct(connection) => Ok(connection.incoming()),
            Kind::Portable(portable) => portable.incoming(py),
        }
    }

    /// How many encrypted bytes are to be sent.
    pub fn outgoing(&self, py: Python<'_>) -> PyResult<usize> {
        match &self.kind {
            Kind::Direct(connection) => Ok(connection.outgoing()),
            Kind::Portable(portable) => pending(py, &portable.outgoing),
        }
    }

    /// Takes out what is to be sent, less what `send` sends of it. None if that is nothing.
    #[inline(always)]
    pub fn take_output(
        &self,
        py: Python<'_>,
        core: &Core,
        send: impl FnOnce(&[u8]) -> PyResult<usize>,
    ) -> PyResult<Option<Object>> {
        match &self.kind {
            Kind::Direct(connection) => {
                let mut output = connection.take_output();
                let sent = if output.is_empty() { 0 } else { send(&output)? };
                if sent == output.len() {
                    output.clear();
                    core.keep_output(output, OUTPUT_BUFFER);
                    return Ok(None);
                }
                let data = core.bytes_of(py, &output[sent..]);
                if data.is_err() {
                    // Without a record of it, the peer could decrypt nothing that follows.
                    output.drain(..sent);
                    drop(connection.lend_output(output));
                    return data.map(Some);
                }
                output.clear();
                core.keep_output(output, OUTPUT_BUFFER);
                data.map(Some)
            }
            Kind::Portable(portable) => {
                let data = portable.read_outgoing.call(py, &[])?;
                Ok(Some(data)
                    .filter(|data| Bytes::from_exact(data).is_none_or(|data| !data.as_slice().is_empty())))
            }
        }
    }

    /// Drops what is to be sent.
    pub fn drop_output(&self, py: Python<'_>) -> PyResult<()> {
        match &self.kind {
            Kind::Direct(connection) => drop(connection.take_output()),
            Kind::Portable(portable) => drop(portable.read_outgoing.call(py, &[])?),
        }
        Ok(())
    }

    /// Whether reading may find more: asking when there is none is dear, as it raises an exception.
    fn has_more(&self, py: Python<'_>) -> PyResult<bool> {
        match &self.kind {
            Kind::Direct(connection) => Ok(connection.has_more()),
            Kind::Portable(_) if !self.is_raw => Ok(true),
            Kind::Portable(portable) => Ok(portable.incoming(py)? > 0
                || self.io.call_method(py, PENDING.get(py)?, &[])?.bind(py).is_truthy()?),
        }
    }

    /// Decrypts all that has come.
    #[inline(always)]
    pub fn read_all(&self, py: Python<'_>, core: &Core) -> PyResult<Plain> {
        match &self.kind {
            Kind::Direct(connection) => self.read_directly(py, core, connection),
            Kind::Portable(portable) => self.read_by_methods(py, portable),
        }
    }

    fn read_directly(&self, py: Python<'_>, core: &Core, connection: &Connection) -> PyResult<Plain> {
        // OpenSSL has a part of a record at the most.
        let most = connection.incoming() + RECORD;
        if most >= LARGE_READ + RECORD
            && let Ok(uninit) = core.take_bytes(py, most)
        {
            return self.read_into_bytes(py, core, connection, uninit);
        }
        self.read_through_memory(py, core, connection, Vec::new())
    }

    #[inline(never)]
    fn read_into_bytes(
        &self,
        py: Python<'_>,
        core: &Core,
        connection: &Connection,
        mut uninit: UninitBytes,
    ) -> PyResult<Plain> {
        let mut memory = MemoryMut::from(uninit.as_mut_slice());
        let filled = self.fill(py, core, connection, &mut memory);
        let (count, end) = match filled {
            Ok(filled) => filled,
            Err(error) => {
                core.recycle_bytes(uninit);
                return Err(error);
            }
        };
        if end == End::Full {
            // SAFETY: they were written.
            return self.read_more(py, core, connection, unsafe { uninit.written(count) });
        }
        let capacity = uninit.capacity();
        // SAFETY: they were written.
        let data = (count > 0).then(|| unsafe { core.freeze_bytes(py, uninit, capacity, count) });
        Ok(Plain { data, closed: end == End::Closed })
    }

    /// More has come while `before` was read.
    #[cold]
    fn read_more(
        &self,
        py: Python<'_>,
        core: &Core,
        connection: &Connection,
        before: &[u8],
    ) -> PyResult<Plain> {
        let mut kept = Vec::new();
        if !try_extend(&mut kept, before) {
            return Err(no_memory(py));
        }
        self.read_through_memory(py, core, connection, kept)
    }

    /// `before`: what is read already.
    #[inline(always)]
    fn read_through_memory(
        &self,
        py: Python<'_>,
        core: &Core,
        connection: &Connection,
        before: Vec<u8>,
    ) -> PyResult<Plain> {
        let buffer = core.plain_buffer.take().or_else(|| zeroes(PLAIN_BUFFER)).or_else(|| zeroes(LEAST));
        let mut buffer = buffer.ok_or_else(|| no_memory(py))?;
        let read = self.read_into_memory(py, core, connection, before, &mut buffer);
        if buffer.len() == PLAIN_BUFFER {
            core.plain_buffer.set(Some(buffer));
        }
        read
    }

    #[inline(always)]
    fn read_into_memory(
        &self,
        py: Python<'_>,
        core: &Core,
        connection: &Connection,
        mut before: Vec<u8>,
        buffer: &mut [u8],
    ) -> PyResult<Plain> {
        let (count, end) = loop {
            match self.fill(py, core, connection, &mut MemoryMut::from(&mut *buffer))? {
                (_, End::Full) => {
                    if !try_extend(&mut before, buffer) {
                        return Err(no_memory(py));
                    }
                }
                filled => break filled,
            }
        };
        let data = match (before.is_empty(), count) {
            (true, 0) => None,
            (true, _) => Some(core.bytes_of(py, &buffer[..count])?),
            (false, _) => Some(crate::cpython::buffer::joined(py, &before, &buffer[..count])?),
        };
        Ok(Plain { data, closed: end == End::Closed })
    }

    /// Decrypts all that has come, as far as there is room. Returns how many bytes that are.
    #[inline(always)]
    fn fill(
        &self,
        py: Python<'_>,
        core: &Core,
        connection: &Connection,
        memory: &mut MemoryMut<'_>,
    ) -> PyResult<(usize, End)> {
        let mut count = 0;
        loop {
            if count == memory.length() {
                return Ok((count, End::Full));
            }
            let read = self.lend_output(core, || connection.read(py, memory.rest(count)));
            match read {
                Read::Count(more) => count += more,
                Read::Again => return Ok((count, End::Nothing)),
                Read::Closed => return Ok((count, End::Closed)),
                // It raises the error, or does what could not be done so.
                Read::Failed => match self.read_once(py, (memory.length() - count).min(RECORD))? {
                    Progress::Again => return Ok((count, End::Nothing)),
                    Progress::Done(data) if data.as_slice().is_empty() => return Ok((count, End::Closed)),
                    Progress::Done(data) => {
                        let data = data.as_slice();
                        memory.rest(count).write(data);
                        count += data.len();
                    }
                },
            }
            if !connection.has_more() {
                return Ok((count, End::Nothing));
            }
        }
    }

    /// Calls OpenSSL with the loop's memory for what is to be sent.
    #[inline(always)]
    fn lend_output<R>(&self, core: &Core, f: impl FnOnce() -> R) -> R {
        if let Kind::Direct(connection) = &self.kind {
            if let Some(memory) = connection.lend_output(core.output_buffer.take()) {
                core.output_buffer.set(memory);
            }
            if let Some(buffers) = connection.use_buffers(core.poll_policy.polled()) {
                core.keep_tls_buffers(buffers);
            }
        }
        f()
    }

    /// One read of the object's own.
    fn read_once(&self, py: Python<'_>, limit: usize) -> PyResult<Progress<Bytes>> {
        let limit = Object::from_size(py, limit)?;
        let read = match &self.kind {
            Kind::Portable(Portable { read: Some(read), .. }) => read.call(py, &[&limit]),
            _ => self.io.call_method(py, READ.get(py)?, &[&limit]),
        };
        Ok(match unless_again(py, read)? {
            Progress::Again => Progress::Again,
            Progress::Done(data) => Progress::Done(match Bytes::from_exact(&data) {
                Some(bytes) => bytes,
                None => Bytes::copy_of(py, &data)?,
            }),
        })
    }

    fn read_by_methods(&self, py: Python<'_>, portable: &Portable) -> PyResult<Plain> {
        let mut chunks: Vec<Bytes> = Vec::new();
        // What is asked for is allocated first. A record is not longer than what came, unless it has come in parts.
        let mut limit = if self.is_raw { portable.fed.get().clamp(LEAST_READ, RECORD) } else { RECORD };
        let closed = loop {
            let length = match self.read_once(py, limit)? {
                Progress::Again => break false,
                Progress::Done(data) if data.as_slice().is_empty() => break true,
                Progress::Done(data) => {
                    let length = data.as_slice().len();
                    chunks.try_reserve(1).map_err(|_| no_memory(py))?;
                    chunks.push(data);
                    length
                }
            };
            // Less than was asked for is the rest of a record.
            let has_more =
                if self.is_raw && length < limit { portable.incoming(py)? > 0 } else { self.has_more(py)? };
            if !has_more {
                break false;
            }
            limit = RECORD;
        };
        let data = match &chunks[..] {
            [] => None,
            [data] => Some(data.as_object().clone()),
            chunks => {
                let mut all = Vec::new();
                if !chunks.iter().all(|chunk| try_extend(&mut all, chunk.as_slice())) {
                    return Err(no_memory(py));
                }
                Some(new_bytes(py, &all)?)
            }
        };
        Ok(Plain { data, closed })
    }

    /// Decrypts what has come into a buffer of the program's. Returns how many bytes there are then, and whether the peer has ended
    /// its direction.
    pub fn read_into(&self, py: Python<'_>, core: &Core, buffer: &Object) -> PyResult<(usize, bool)> {
        let size = buffer.bind(py).len()?;
        let mut count = 0;
        loop {
            let read = match &self.kind {
                Kind::Direct(connection) => with_writable_buffer(py, buffer, |memory| {
                    // Of items that are larger than bytes, it has more than its length says.
                    let memory = memory.limited(size);
                    if memory.length() <= count {
                        return Read::Closed;
                    }
                    self.lend_output(core, || connection.read(py, memory.skip(count)))
                })
                // Of what is no right buffer, the object's own method says what is wrong.
                .unwrap_or(Read::Failed),
                Kind::Portable(_) => Read::Failed,
            };
            match read {
                Read::Count(more) => count += more,
                Read::Again => return Ok((count, false)),
                Read::Closed => return Ok((count, true)),
                Read::Failed => match self.read_once_into(py, buffer, count, size)? {
                    Progress::Again => return Ok((count, false)),
                    Progress::Done(0) => return Ok((count, true)),
                    Progress::Done(more) => count += more,
                },
            }
            if count >= size || !self.has_more(py)? {
                return Ok((count, false));
            }
        }
    }

    fn read_once_into(
        &self,
        py: Python<'_>,
        buffer: &Object,
        skip: usize,
        size: usize,
    ) -> PyResult<Progress<usize>> {
        let rest = if skip == 0 { buffer.clone() } else { rest_of(py, buffer, skip)? };
        let room = Object::from_size(py, size - skip)?;
        let read = self.io.call_method(py, READ.get(py)?, &[&room, &rest]);
        Ok(match unless_again(py, read)? {
            Progress::Again => Progress::Again,
            Progress::Done(count) => Progress::Done(count.bind(py).extract()?),
        })
    }

    /// Encrypts what follows the first `written` bytes of a bytes-like object, and adds to `written` how far it got.
    #[inline(always)]
    pub fn write(
        &self,
        py: Python<'_>,
        core: &Core,
        data: &Object,
        written: &mut usize,
    ) -> PyResult<Progress<()>> {
        loop {
            let (count, size) = match &self.kind {
                Kind::Direct(connection) => with_buffer(py, data, |memory| {
                    let size = memory.length();
                    if size <= *written {
                        return (None, size);
                    }
                    let write = || {
                        connection.make_room(size - *written);
                        connection.write(py, memory.skip(*written))
                    };
                    (self.lend_output(core, write), size)
                })?,
                Kind::Portable(_) => (None, with_buffer(py, data, |memory| memory.length())?),
            };
            // An empty write is one, too: OpenSSL may have to answer a key update.
            if size <= *written && size > 0 {
                return Ok(Progress::Done(()));
            }
            match count {
                Some(count) => *written += count,
                None => match self.write_once(py, data, *written)? {
                    Progress::Again => return Ok(Progress::Again),
                    Progress::Done(count) => *written += count,
                },
            }
            if *written >= size {
                return Ok(Progress::Done(()));
            }
        }
    }

    #[inline(never)]
    fn write_once(&self, py: Python<'_>, data: &Object, skip: usize) -> PyResult<Progress<usize>> {
        if let Kind::Direct(connection) = &self.kind
            && connection.has_no_memory()
        {
            return Err(no_memory(py));
        }
        let rest = if skip == 0 { data.clone() } else { rest_of(py, data, skip)? };
        let written = match &self.kind {
            Kind::Portable(Portable { write: Some(write), .. }) => write.call(py, &[&rest]),
            _ => self.io.call_method(py, WRITE.get(py)?, &[&rest]),
        };
        Ok(match unless_again(py, written)? {
            Progress::Again => Progress::Again,
            Progress::Done(count) => Progress::Done(count.bind(py).extract()?),
        })
    }

    /// A step of the handshake.
    pub fn shake_hands(&self, py: Python<'_>) -> PyResult<Progress<()>> {
        unless_again(py, self.ssl_object.call_method(py, intern!(py, "do_handshake"), &[]).map(drop))
    }

    /// A step of the shutdown.
    pub fn shut_down(&self, py: Python<'_>) -> PyResult<Progress<()>> {
        unless_again(py, self.ssl_object.call_method(py, intern!(py, "unwrap"), &[]).map(drop))
    }

    pub fn traverse(&self, visitor: &mut Visitor) {
        visitor.object(&self.ssl_object);
        visitor.object(&self.io);
        match &self.kind {
            Kind::Direct(connection) => connection.traverse(visitor),
            Kind::Portable(portable) => portable.traverse(visitor),
        }
    }
}

fn pending(py: Python<'_>, memory: &Object) -> PyResult<usize> {
    memory.bind(py).getattr(PENDING.get(py)?)?.extract()
}
