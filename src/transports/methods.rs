//! The methods that the Python classes of several transports have in common.

use pyo3::Borrowed;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyMemoryView, PyString, PyType};

use super::endpoint::{self, Phase, Transport};
use super::flow::HIGH_WATER;
use crate::core::RECEIVE_BUFFER;
use crate::cpython::args::Args;
use crate::cpython::buffer::Bytes;
use crate::cpython::class::{self, This};
use crate::cpython::object::{Object, boolean, dict, tuple};
use crate::cpython::ownership::locked;
use crate::imports::imports;
use crate::intern;
use crate::reactor::clock;

pub fn none<T: Transport>(this: This<'_, '_, T>) -> PyResult<Object> {
    Ok(Object::none(this.py()))
}

/// What a method without a value returns after `result`.
pub fn none_after<T: Transport>(this: This<'_, '_, T>, result: PyResult<()>) -> PyResult<Object> {
    result.map(|()| Object::none(this.py()))
}

/// Ends a transport by `end`, or has the loop of another thread do so by the transport's `method`. Destructors of the program's objects
/// close transports, and the collector of any thread may run them.
#[inline(always)]
pub fn end<T: Transport>(
    this: This<'_, '_, T>,
    method: &str,
    exception: Option<Object>,
    end: impl FnOnce(Option<Object>) -> PyResult<()>,
) -> PyResult<Object> {
    match this.core.owner.enter() {
        Some(_entered) => none_after(this, end(exception)),
        None => end_by_loop(this, method, exception),
    }
}

#[cold]
fn end_by_loop<T: Transport>(
    this: This<'_, '_, T>,
    method: &str,
    exception: Option<Object>,
) -> PyResult<Object> {
    if this.is_lost() {
        return none(this);
    }
    call_by_loop(this.as_any(), &this.event_loop, method, exception)?;
    this.note_ended_elsewhere();
    none(this)
}

/// Has the loop of another thread call a method of an object.
#[cold]
pub fn call_by_loop(
    object: Borrowed<'_, '_, PyAny>,
    event_loop: &Object,
    method: &str,
    argument: Option<Object>,
) -> PyResult<()> {
    let py = object.py();
    let method = Object::from_str(py, method)?;
    let method = Object::from(object.getattr(method.bind(py).cast::<PyString>()?)?);
    let arguments: Vec<_> = std::iter::once(&method).chain(&argument).collect();
    event_loop.call_method(py, intern!(py, "call_soon_threadsafe"), &arguments).map(drop)
}

/// The bytes of an argument of write(): exact bytes by reference, anything else copied. None if it is not bytes-like.
pub fn chunk(py: Python<'_>, data: &Object) -> PyResult<Option<Bytes>> {
    if let Some(bytes) = Bytes::from_exact(data) {
        return Ok(Some(bytes));
    }
    if is_bytes_like(&data.bind(py)) { Bytes::copy_of(py, data).map(Some) } else { Ok(None) }
}

pub fn is_bytes_like(data: &Bound<'_, PyAny>) -> bool {
    data.is_instance_of::<PyBytes>()
        || data.is_instance_of::<PyByteArray>()
        || data.is_instance_of::<PyMemoryView>()
}

/// A transport that does not read learns only by sending that its peer is gone, so it sends first: StreamWriter.drain() calls this
/// after each write.
pub fn is_closing<T: Transport>(this: This<'_, '_, T>) -> PyResult<Object> {
    if let Some(_entered) = this.core.owner.try_enter()
        && !this.registration.wants_read()
        && !this.is_closing()
    {
        T::send_now(this)?;
    }
    Ok(boolean(this.py(), this.is_said_to_close()))
}

pub fn get_protocol<T: Transport>(this: This<'_, '_, T>) -> PyResult<Object> {
    let protocol = locked(this.as_any(), || this.protocol.get());
    Ok(protocol.unwrap_or_else(|| Object::none(this.py())))
}

pub fn set_protocol<'py, T: Transport>(
    this: This<'_, 'py, T>,
    protocol: Borrowed<'_, 'py, PyAny>,
) -> PyResult<Object> {
    none_after(this, T::set_protocol(this, Object::from(protocol)))
}

pub fn get_extra_info<'py, T: Transport>(this: This<'_, 'py, T>, args: Args<'_, 'py>) -> PyResult<Object> {
    let py = this.py();
    if let Some(replaced) = replaced_extra_info(this)? {
        let method = replaced.call_method(py, intern!(py, "__get__"), &[&this.object()])?;
        return method.forward(args);
    }
    let ([name], [default]) = args.parse()?;
    let found = original_extra_info(this, &name.bind(py))?;
    Ok(found.or(default).unwrap_or_else(|| Object::none(py)))
}

fn original_extra_info<T: Transport>(
    this: This<'_, '_, T>,
    name: &Bound<'_, PyAny>,
) -> PyResult<Option<Object>> {
    let py = this.py();
    if let Some(extra) = locked(this.as_any(), || this.extra.get())
        && let Some(found) = extra.bind(py).cast::<PyDict>()?.get_item(name)?
    {
        return Ok(Some(found.into()));
    }
    let found = T::extra_info(this, name)?;
    if let Some(found) = &found {
        extra_dict(this)?.set_item(name, found.bind(py))?;
    }
    Ok(found)
}

/// The function by which the program has replaced asyncio's get_extra_info(), as tests do.
fn replaced_extra_info<T: Transport>(this: This<'_, '_, T>) -> PyResult<Option<Object>> {
    let py = this.py();
    let method = class::base_of::<T>(py).getattr(intern!(py, "get_extra_info"))?;
    Ok((!method.is(imports(py)?.original_extra_info.bind(py))).then(|| method.into()))
}

fn extra_dict<'py, T: Transport>(this: This<'_, 'py, T>) -> PyResult<Bound<'py, PyDict>> {
    let py = this.py();
    if let Some(extra) = locked(this.as_any(), || this.extra.get()) {
        return Ok(extra.into_bound(py).cast_into::<PyDict>()?);
    }
    let new = Object::from(dict(py)?);
    let extra = locked(this.as_any(), || {
        this.extra.get().unwrap_or_else(|| {
            drop(this.extra.replace(Some(new.clone())));
            new.clone()
        })
    });
    Ok(extra.into_bound(py).cast_into::<PyDict>()?)
}

/// asyncio keeps all that get_extra_info() knows in this attribute.
pub fn extra<T: Transport>(this: This<'_, '_, T>) -> PyResult<Object> {
    for name in T::EXTRA {
        original_extra_info(this, &Object::from_str(this.py(), name)?.bind(this.py()))?;
    }
    Ok(extra_dict(this)?.into())
}

pub fn set_write_buffer_limits<'py, T: Transport>(
    this: This<'_, 'py, T>,
    args: Args<'_, 'py>,
) -> PyResult<Object> {
    let ([], [high, low]) = args.parse()?;
    this.flow.set_limits(this.py(), high, low, HIGH_WATER)?;
    T::send_now(this)?;
    none_after(this, endpoint::pause_protocol(this, this.queued_size()))
}

pub fn write_buffer_limits<T: Transport>(this: This<'_, '_, T>) -> PyResult<Object> {
    match this.core.owner.try_enter() {
        Some(_entered) => this.flow.limits(this.py()),
        None => this.flow.limits_in_bytes(this.py()),
    }
}

pub fn get_write_buffer_size<T: Transport>(this: This<'_, '_, T>) -> PyResult<Object> {
    let size = match this.core.owner.try_enter() {
        Some(_entered) => {
            T::send_now(this)?;
            this.queued_size()
        }
        None => this.waiting(),
    };
    Object::from_size(this.py(), size)
}

/// A repr() in asyncio's words. It ends with `details`, with `idle` if the event loop is closed, or with neither if the transport
/// is.
pub fn repr<T: Transport>(
    this: This<'_, '_, T>,
    idle: Option<&str>,
    details: impl FnOnce() -> String,
) -> PyResult<Object> {
    let py = this.py();
    let mut params = vec![this.as_any().get_type().name()?.to_string()];
    match this.phase.get() {
        Phase::Open => {}
        Phase::Closing | Phase::Lost => params.push("closing".to_owned()),
        Phase::Closed => params.push("closed".to_owned()),
    }
    params.push(format!("fd={}", this.fd));
    // Another thread is not shown the details.
    if this.phase.get() != Phase::Closed
        && let Some(_entered) = this.core.owner.try_enter()
    {
        let closed = this.core.is_closed();
        params.extend(if closed { idle.map(str::to_owned) } else { Some(details()) });
    }
    Object::from_str(py, &format!("<{}>", params.join(" ")))
}

/// What `hotloop.snapshot()` lists of a transport: descriptor, age and idle time in seconds, bytes read, written and queued, whether
/// reading is paused, the program's protocol, and the peer's address.
pub fn traffic<T: Transport>(this: This<'_, '_, T>) -> PyResult<Object> {
    let py = this.py();
    let told = this.traffic.told(clock::now());
    let size = |bytes: u64| Object::from_size(py, usize::try_from(bytes).unwrap_or(usize::MAX));
    tuple(
        py,
        &[
            &Object::from_int(py, this.fd)?,
            &Object::from_float(py, told.age)?,
            &Object::from_float(py, told.idle)?,
            &size(told.read)?,
            &size(told.written)?,
            &Object::from_size(py, this.queued_size())?,
            &boolean(py, this.registration.is_paused()),
            &super::protocol_of(&this.object()).unwrap_or_else(|| Object::none(py)),
            &peer(this)?,
        ],
    )
}

/// The peer's address, which is not kept for get_extra_info().
fn peer<T: Transport>(this: This<'_, '_, T>) -> PyResult<Object> {
    let py = this.py();
    let name = intern!(py, "peername");
    if let Some(extra) = this.extra.get()
        && let Some(found) = extra.bind(py).cast::<PyDict>()?.get_item(name)?
    {
        return Ok(found.into());
    }
    let found = if this.is_lost() { None } else { T::extra_info(this, name.as_any())? };
    Ok(found.unwrap_or_else(|| Object::none(py)))
}

/// Sets asyncio's `max_size`: how much is received at a time.
pub fn set_max_size(class: &Bound<'_, PyType>) -> PyResult<()> {
    let py = class.py();
    class.setattr(intern!(py, "max_size"), Object::from_size(py, RECEIVE_BUFFER)?.bind(py))
}

pub fn polling(polling: bool) -> &'static str {
    if polling { "polling" } else { "idle" }
}

/// The attributes of transports over sockets.
#[macro_export]
macro_rules! socket_attributes {
    ($native:ty) => {
        [
            attribute!($native, "_sock", |this| match this.phase.get() {
                $crate::transports::endpoint::Phase::Closed => none(this),
                _ => this.file.python_socket(this.py()),
            }),
            attribute!(any_thread $native, "_sock_fd", |this| Object::from_int(this.py(), this.fd)),
        ]
    };
}

/// The methods of all transports.
#[macro_export]
macro_rules! transport_methods {
    ($native:ty) => {
        vec![
            method0!(any_thread
                $native,
                "close",
                |this| $crate::transports::methods::end(this, "close", None, |_| $crate::transports::endpoint::close(this)),
                "Close when what was written is sent; then connection_lost(None) is called."
            ),
            method0!(any_thread
                $native,
                "is_closing",
                $crate::transports::methods::is_closing,
                "Return True if the transport is closing or closed."
            ),
            method1!(
                $native,
                "set_protocol",
                "protocol",
                $crate::transports::methods::set_protocol,
                "Have another protocol called from now on."
            ),
            method0!(any_thread
                $native,
                "get_protocol",
                $crate::transports::methods::get_protocol,
                "Return the protocol."
            ),
            method!(any_thread
                $native,
                "get_extra_info", "name, default=None",
                $crate::transports::methods::get_extra_info,
                "Return what is known under a name: of a socket 'socket' (an asyncio TransportSocket), 'sockname' and \
                 'peername', of a pipe 'pipe', and what the transport was made with."
            ),
            method0!(
                $native,
                "_traffic",
                $crate::transports::methods::traffic,
                "Return what hotloop.snapshot() lists of the transport."
            ),
            method0!(any_thread
                $native,
                "__copy__",
                |this| Ok(this.object()),
                "Return the transport: two cannot share what it has."
            ),
        ]
    };
}

/// The methods of transports that read.
#[macro_export]
macro_rules! reading_methods {
    ($native:ty) => {
        vec![
            method0!(any_thread
                $native,
                "is_reading",
                |this| Ok($crate::cpython::object::boolean(this.py(), this.is_reading())),
                "Return True if the transport is neither paused nor closing."
            ),
            method0!(
                $native,
                "pause_reading",
                |this| $crate::transports::methods::none_after(
                    this,
                    $crate::transports::endpoint::pause_reading(this)
                ),
                "Stop handing what arrives to the protocol until resume_reading()."
            ),
            method0!(
                $native,
                "resume_reading",
                |this| $crate::transports::methods::none_after(
                    this,
                    $crate::transports::endpoint::resume_reading(this)
                ),
                "Resume what pause_reading() stopped."
            ),
        ]
    };
}

/// The methods of transports that write.
#[macro_export]
macro_rules! writing_methods {
    ($native:ty) => {
        vec![
            method0!(any_thread
                $native,
                "abort",
                |this| $crate::transports::methods::end(this, "abort", None, |_| {
                    $crate::transports::endpoint::force_close(this, None)
                }),
                "Close at once: what is buffered is lost. connection_lost(None) is called."
            ),
            method!(
                $native,
                "set_write_buffer_limits", "high=None, low=None",
                $crate::transports::methods::set_write_buffer_limits,
                "Set above how many buffered bytes pause_writing() is called, and at how many resume_writing().\n\n\
                 Defaults: 64 KiB or four times low, and a quarter of high. Raise ValueError unless \
                 high >= low >= 0."
            ),
            method0!(any_thread
                $native,
                "get_write_buffer_limits",
                |this| $crate::transports::methods::write_buffer_limits(this),
                "Return the limits (low, high), in bytes."
            ),
            method0!(any_thread
                $native,
                "get_write_buffer_size",
                $crate::transports::methods::get_write_buffer_size,
                "Return how many bytes could not be sent yet."
            ),
        ]
    };
}

/// The private attributes of asyncio's own transports that libraries read.
#[macro_export]
macro_rules! transport_attributes {
    ($native:ty) => {
        vec![
            attribute!($native, "_extra", $crate::transports::methods::extra),
            attribute!(any_thread $native, "_loop", |this| Ok(this.event_loop.clone())),
            attribute!(any_thread $native, "_protocol", $crate::transports::methods::get_protocol),
            attribute!(any_thread $native, "_closing", |this| Ok($crate::cpython::object::boolean(
                this.py(),
                this.is_said_to_close()
            ))),
            attribute!($native, "_paused", |this| {
                Ok($crate::cpython::object::boolean(this.py(), !this.is_closing() && !this.is_reading()))
            }),
            attribute!($native, "_protocol_paused", |this| {
                Ok($crate::cpython::object::boolean(this.py(), this.flow.is_paused()))
            }),
        ]
    };
}
