//! What TLS needs of Python: loaded with the first connection, since not every Python has the ssl module.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use crate::cpython::module::{attribute, import};
use crate::cpython::object::Object;

pub struct TlsImports {
    /// asyncio's SSLAgainErrors: OpenSSL needs more of the peer.
    pub again: Object,
    pub ssl_error: Object,
    pub certificate_error: Object,
    /// Functions of hotloop._tls.
    pub complete_handshake: Object,
    pub report_error: Object,
    pub warn_unclosed: Object,
    pub incoming: Object,
    /// Whether asyncio's is_closing() asks the transport below, too.
    pub is_closing_asks_below: bool,
    /// Whether asyncio limits the time until connection_lost(), too, when the shutdown is complete.
    pub keeps_shutdown_timeout: bool,
}

// SAFETY: the references are made once, used by attached threads, and never dropped.
unsafe impl Send for TlsImports {}
// SAFETY: see above.
unsafe impl Sync for TlsImports {}

static IMPORTS: PyOnceLock<TlsImports> = PyOnceLock::new();

pub fn tls_imports(py: Python<'_>) -> PyResult<&'static TlsImports> {
    match IMPORTS.get(py) {
        Some(imports) => Ok(imports),
        None => IMPORTS.get_or_try_init(py, || load(py)),
    }
}

#[cold]
fn load(py: Python<'_>) -> PyResult<TlsImports> {
    let tls = import(py, "hotloop._tls")?;
    let is = |name| attribute(&tls, name).and_then(|value| value.bind(py).is_truthy());
    Ok(TlsImports {
        again: attribute(&tls, "AGAIN")?,
        ssl_error: attribute(&tls, "SSL_ERROR")?,
        certificate_error: attribute(&tls, "CERTIFICATE_ERROR")?,
        complete_handshake: attribute(&tls, "complete_handshake")?,
        report_error: attribute(&tls, "report_error")?,
        warn_unclosed: attribute(&tls, "warn_unclosed")?,
        incoming: attribute(&tls, "Incoming")?,
        is_closing_asks_below: is("IS_CLOSING_ASKS_BELOW")?,
        keeps_shutdown_timeout: is("KEEPS_SHUTDOWN_TIMEOUT")?,
    })
}
