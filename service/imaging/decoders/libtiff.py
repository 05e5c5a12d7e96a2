"""Call libtiff directly, to silence its messages and to detect damaged faxes.

libtiff writes each error to standard error unless a program sets a handler for the whole process. Pillow sets none. Its
fax decoder only reports invalid rows, fills them, and returns success. So this module sets the handler, and decodes
faxes with handlers of their own, in the library that Pillow's extension is linked with.
If that library hides its functions, as in Pillow's wheels for Windows, Pillow decodes faxes without this check.
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

# <tiffio.h>: TIFFErrorHandlerExtR and the procedures of TIFFClientOpenExt. A `va_list` is passed on, never read.
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
# Percentage of rows that may be invalid, because noise on the line damaged single rows of many faxes.
MAX_BAD_PERCENT = 1


class DamagedFax(ValueError):
    """Too many rows are invalid, or rows are missing."""


@functools.cache
def library() -> Any:
    """Return Pillow's libtiff with its errors silenced; None if its functions can't be called.

    Python's lock is held during calls, because they are short and each message calls back into Python.
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
    """Return the rows of a 1-bit TIFF with fax compression, packed, uint8 [height, bytes of a row]; a set bit is black.

    tile: width and height of its tiles, multiples of 8 that divide the picture's, or None for strips. Returns None if
    libtiff can't be called. Raises DamagedFax if rows are missing or more than MAX_BAD_PERCENT are invalid. In tiles,
    no row may be invalid.
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
    """Open the file, and collect its messages as format strings. Raises DamagedFax if it can't be opened."""
    position = 0

    def keep(_handle: int, _own: int, _module: bytes, text: bytes, _arguments: int) -> int:
        messages.append(text)
        return 1  # no other handler is called

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
        # One message may be about all the remaining rows of the tile.
        if done != buffer.nbytes or messages:
            raise DamagedFax(messages)
        top, left = divmod(number, across)
        rows[top * height : (top + 1) * height, left * width : (left + 1) * width] = buffer


library()
