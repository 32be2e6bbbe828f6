//! The Python class of the datagram transport: asyncio.DatagramTransport on top of [`super::Datagram`].

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyType;

use super::{Datagram, ThisDatagram};
use crate::cpython::args::Args;
use crate::cpython::class::{self, Definition};
use crate::cpython::errors::new_error;
use crate::cpython::module::{add, import};
use crate::cpython::object::Object;
use crate::intern;
use crate::transports::methods::{self, none, polling};
use crate::{
    attribute, method, method0, method1, reading_methods, repr_slot, socket_attributes, transport_attributes,
    transport_methods, writing_methods,
};

fn sendto<'py>(this: ThisDatagram<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    let ([data], [address]) = args.parse()?;
    let bound = data.bind(this.py());
    if !methods::is_bytes_like(&bound) {
        let name = bound.get_type().name()?;
        let message = format!("data argument must be a bytes-like object, not '{name}'");
        return Err(new_error::<PyTypeError>(this.py(), message));
    }
    Datagram::send(this, &data, address.filter(|address| !address.is_none()))?;
    none(this)
}

fn repr(this: ThisDatagram<'_, '_>) -> PyResult<Object> {
    methods::repr(this, None, || {
        let (reading, writing) =
            (polling(this.registration.wants_read()), polling(this.registration.is_blocked()));
        format!("read={reading} write=<{writing}, bufsize={}>", this.queued.get())
    })
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let base =
        import(py, "hotloop._support")?.getattr(intern!(py, "DatagramTransport"))?.cast_into::<PyType>()?;
    let mut methods = transport_methods!(Datagram);
    methods.extend(reading_methods!(Datagram));
    methods.extend(writing_methods!(Datagram));
    methods.push(method!(
        Datagram,
        "sendto", "data, addr=None",
        sendto,
        "Send a datagram to addr, or to the peer of a connected socket.\n\n\
         What the socket does not take is buffered: see set_write_buffer_limits(). An error of the network goes to \
         the protocol's error_received(). Raise TypeError for what is not bytes-like, ValueError for another address \
         than the one that the endpoint was made for."
    ));
    let mut attributes = transport_attributes!(Datagram);
    attributes.extend(socket_attributes!(Datagram));
    attributes.push(attribute!(Datagram, "_address", |this| {
        Ok(this.address.clone().unwrap_or_else(|| Object::none(this.py())))
    }));
    let definition = Definition {
        name: c"hotloop._core.DatagramTransport",
        doc: c"A transport over a datagram socket: asyncio.DatagramTransport.",
        base,
        methods,
        attributes,
        slots: vec![repr_slot!(Datagram, repr)],
        open: true,
    };
    let class = class::make::<Datagram>(definition)?;
    methods::set_max_size(&class)?;
    add(module, "DatagramTransport", class)
}
