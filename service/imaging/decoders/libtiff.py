"""libtiff, as far as Pillow does not show it: its messages, and how a fax went wrong.

libtiff writes each error to standard error unless a program sets a handler for the whole process, and Pillow sets none.
Its decoder of faxes reports rows that make no sense, fills them with something, and returns success. So the handler is
set here, and faxes are decoded here, with handlers of their own, in the library that Pillow's extension is linked with.
Where that library hides its functions, as in Pillow's wheels for Windows, Pillow decodes faxes, damaged or not.
"""

import ctypes
import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, c_char_p, c_int, c_ssize_t, c_uint16, c_uint32, c_uint64, c_void_p
from typing import Any

import numpy as np
from PIL import Image

from service.imaging.color import Bytes

log = logging.getLogger(__name__)

# <tiffio.h>: TIFFErrorHandlerExtR and the procedures of TIFFClientOpenExt. A `va_list` is passed on, never looked at.
Message = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_char_p, c_char_p, c_void_p)
ReadWrite = ctypes.CFUNCTYPE(c_ssize_t, c_void_p, c_void_p, c_ssize_t)
Seek = ctypes.CFUNCTYPE(c_uint64, c_void_p, c_uint64, c_int)
Close = ctypes.CFUNCTYPE(c_int, c_void_p)
Size = ctypes.CFUNCTYPE(c_uint64, c_void_p)
Map = ctypes.CFUNCTYPE(c_int, c_void_p, POINTER(c_void_p), POINTER(c_uint64))
Unmap = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_uint64)
FUNCTIONS: dict[str, tuple[list[Any], Any]] = {
    "TIFFSetErrorHandler": ([c_void_p], c_void_p),
    "TIFFOpenOptionsAlloc": ([], c_void_p),
    "TIFFOpenOptionsFree": ([c_void_p], None),
    "TIFFOpenOptionsSetErrorHandlerExtR": ([c_void_p, Message, c_void_p], None),
    "TIFFOpenOptionsSetWarningHandlerExtR": ([c_void_p, Message, c_void_p], None),
    "TIFFClientOpenExt": (
        [c_char_p, c_char_p, c_void_p, ReadWrite, ReadWrite, Seek, Close, Size, Map, Unmap, c_void_p],
        c_void_p,
    ),
    "TIFFReadScanline": ([c_void_p, c_void_p, c_uint32, c_uint16], c_int),
    "TIFFReadEncodedTile": ([c_void_p, c_uint32, c_void_p, c_ssize_t], c_ssize_t),
    "TIFFClose": ([c_void_p], None),
}
# Rows of a hundred that may make no sense: noise on the line spoilt single rows of many a fax.
MAX_BAD_PERCENT = 1


class DamagedFax(ValueError):
    """Too many rows make no sense."""


@functools.cache
def library() -> Any:
    """Return Pillow's libtiff, its errors silenced; None where its functions can't be called.

    Python's lock is held during calls: those are short, and each message comes back to Python.
    """
    try:
        found = ctypes.PyDLL(Image.core.__file__)  # type: ignore[attr-defined]
        for name, (arguments, result) in FUNCTIONS.items():
            function = getattr(found, name)
            function.argtypes, function.restype = arguments, result
    except (AttributeError, OSError, TypeError) as error:
        log.info("libtiff can't be called (%s): its messages go to standard error, and faxes are not checked", error)
        return None
    found.TIFFSetErrorHandler(None)
    return found


def read_fax(file: bytes, width: int, height: int, tile: tuple[int, int] | None) -> Bytes | None:
    """Return the rows of a TIFF of one bit, compressed as a fax: packed, [height, bytes of a row], a set bit is black.

    tile: width and height of its tiles, multiples of 8 and parts of the picture, if it has any. Returns None where
    libtiff can't be called. Raises DamagedFax when rows are missing, or more than MAX_BAD_PERCENT make no sense (of
    tiles: any).
    """
    libtiff = library()
    if libtiff is None:
        return None
    rows = np.zeros((height, -(-width // 8)), np.uint8)
    messages: list[bytes] = []
    with _opened(libtiff, file, messages) as handle:
        if tile is None:
            _read_rows(libtiff, handle, rows, messages)
        else:
            _read_tiles(libtiff, handle, rows, tile, messages)
    return rows


@contextmanager
def _opened(libtiff: Any, file: bytes, messages: list[bytes]) -> Iterator[int]:
    """Open the file, and collect messages about it, as their formats. Raises DamagedFax when it can't be opened."""
    position = 0

    def keep(_handle: int, _own: int, _module: bytes, text: bytes, _arguments: int) -> int:
        messages.append(text)
        return 1  # Nobody else is told.

    def read(_own: int, buffer: int, size: int) -> int:
        nonlocal position
        part = file[position : position + size]
        ctypes.memmove(buffer, part, len(part))
        position += len(part)
        return len(part)

    def seek(_own: int, offset: int, whence: int) -> int:
        nonlocal position
        position = offset + (0, position, len(file))[whence]
        return position

    def shown(_own: int, base: Any, size: Any) -> int:
        base[0], size[0] = ctypes.cast(c_char_p(file), c_void_p).value, len(file)
        return 1

    message = Message(keep)
    procedures = (
        *(ReadWrite(read), ReadWrite(lambda *_: -1), Seek(seek), Close(lambda _: 0)),
        *(Size(lambda _: len(file)), Map(shown), Unmap(lambda *_: None)),
    )
    options = libtiff.TIFFOpenOptionsAlloc()
    libtiff.TIFFOpenOptionsSetErrorHandlerExtR(options, message, None)
    libtiff.TIFFOpenOptionsSetWarningHandlerExtR(options, message, None)
    handle = libtiff.TIFFClientOpenExt(b"fax", b"r", None, *procedures, options)
    libtiff.TIFFOpenOptionsFree(options)
    if not handle:
        raise DamagedFax(messages)
    try:
        messages.clear()
        yield handle
    finally:
        libtiff.TIFFClose(handle)


def _read_rows(libtiff: Any, handle: int, rows: Bytes, messages: list[bytes]) -> None:
    bad = 0
    for number, row in enumerate(rows):
        messages.clear()
        done = libtiff.TIFFReadScanline(handle, row.ctypes.data, number, 0)
        bad += bool(messages)
        if done != 1 or 100 * bad > MAX_BAD_PERCENT * len(rows):
            raise DamagedFax(messages)


def _read_tiles(libtiff: Any, handle: int, rows: Bytes, tile: tuple[int, int], messages: list[bytes]) -> None:
    width, height = tile[0] // 8, tile[1]
    buffer = np.zeros((height, width), np.uint8)
    across, down = rows.shape[1] // width, len(rows) // height
    for number in range(across * down):
        done = libtiff.TIFFReadEncodedTile(handle, number, buffer.ctypes.data, buffer.nbytes)
        # One message may be about all the rows that are left of the tile.
        if done != buffer.nbytes or messages:
            raise DamagedFax(messages)
        top, left = divmod(number, across)
        rows[top * height : (top + 1) * height, left * width : (left + 1) * width] = buffer


library()
