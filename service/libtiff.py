"""The messages of the libtiff that Pillow decodes with: they never reach standard error, and damage is counted.

libtiff writes each message to standard error unless a program sets a handler for the whole process. Pillow sets none
for errors. The handler is set through ctypes, in the library that Pillow's own extension module is linked with. Where
that library hides its functions, as in Pillow's wheels for Windows, nothing is set, and nothing else changes.
"""

import ctypes
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

log = logging.getLogger(__name__)

# TIFFErrorHandler(module, format, arguments). The arguments are a C `va_list`, which is not looked at.
Handler = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)


def _setter() -> Any:
    """Return libtiff's `TIFFSetErrorHandler`, or None where it can't be reached."""
    try:
        setter = ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler  # type: ignore[attr-defined]
    except (AttributeError, OSError, TypeError):
        log.debug("libtiff's messages can't be caught: they go to standard error")
        return None
    setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
    return setter


_set_handler = _setter()
# One thread at a time listens, since a handler counts for the whole process.
_listening = threading.Lock()
_listener = 0
_heard: list[str] = []


def _keep_first(_module: bytes, text: bytes, _arguments: int) -> None:
    """Keep the first error of the thread that listens, then stop: a garbled fax has an error in every row."""
    if threading.get_ident() == _listener:
        _heard.append((text or b"").decode("ascii", "replace"))
        _set_handler(None)


_handler = Handler(_keep_first)


def silence() -> bool:
    """Discard libtiff's errors from now on. Returns whether that could be done."""
    if _set_handler is None:
        return False
    _set_handler(None)
    return True


@contextmanager
def first_error() -> Iterator[list[str]]:
    """Yield a list that gets the first error of this thread, as libtiff's format string; one thread at a time.

    A decoder of faxes reports bad code words and goes on, so that no return value tells of them.
    """
    global _listener, _heard
    with _listening:
        _listener, _heard = threading.get_ident(), []
        if _set_handler is not None:
            _set_handler(ctypes.cast(_handler, ctypes.c_void_p))
        try:
            yield _heard
        finally:
            silence()
            _listener = 0


silence()
