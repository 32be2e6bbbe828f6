"""Key updates and renegotiations, which the ssl module does not offer: by OpenSSL's own functions.

Where these cannot be called (OpenSSL is linked into the interpreter, or its objects are laid out otherwise),
nothing happens.
"""

import _ssl
import ctypes

# Lets a server's peer ask for a renegotiation. Before 3.0 it may without.
ALLOW_CLIENT_RENEGOTIATION = 1 << 8


def _load():
    try:
        library = ctypes.CDLL(_ssl.__file__)
        library.SSL_key_update.argtypes = [ctypes.c_void_p, ctypes.c_int]
        library.SSL_renegotiate.argtypes = [ctypes.c_void_p]
        library.SSL_do_handshake.argtypes = [ctypes.c_void_p]
        library.ERR_clear_error.argtypes = []
        library.ERR_clear_error.restype = None
    except (AttributeError, OSError):
        return None
    return library


_library = _load()


def _address(ssl_object):
    """Where an SSLObject has its SSL. `_ssl`'s object has it between a weak reference and the context."""
    raw = ssl_object._sslobj
    _, address, context = (ctypes.c_void_p * 3).from_address(id(raw) + object.__basicsize__)
    return address if context == id(raw.context) else None


def _call(ssl_object, name, *args):
    """Call a function, and begin what it asks for. Returns its result."""
    address = _address(ssl_object) if _library is not None else None
    if address is None:
        return None
    result = getattr(_library, name)(address, *args)
    _library.SSL_do_handshake(address)
    # What failed here must not be taken for an error of the next call.
    _library.ERR_clear_error()
    return result


def key_update(ssl_object, ask_peer):
    """Go on with another key, and perhaps ask the peer for the same. For TLS 1.3."""
    return _call(ssl_object, "SSL_key_update", int(ask_peer))


def renegotiate(ssl_object):
    """Begin another handshake. For TLS 1.2."""
    return _call(ssl_object, "SSL_renegotiate")
