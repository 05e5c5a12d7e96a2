"""Decode the pixels of a JPEG. Damaged or truncated scans are refused, all other oddities of a file are tolerated."""

import io
import re
from dataclasses import replace
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image

from service.errors import UnreadableImage, UnsupportedType
from service.formats import jpeg_structure
from service.formats.decoding_limits import library_call, unreadable
from service.imaging.color import Bytes

Kind = Literal["GRAY", "RGB", "CMYK"]
Mode = Literal["GRAY", "RGB", "CMYK", "YCbCr"]

# libjpeg's warning of more data than it needs before a marker. It comes after everything before it is decoded.
EXTRA = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")
END_OF_IMAGE = "d9"
INTERVAL = b"\xff\xdd"
RESTARTS = [f"d{number}" for number in range(8)]
# TurboJPEG's older interface, which simplejpeg uses, knows only the common sampling factors.
UNNAMED_SAMPLING = "Could not determine subsampling"
# Pillow's decoder does not warn of damage. If the data of a scan is complete, these bytes after it change no pixel.
TAIL = bytes(range(1, 255)) * 2
# Bytes in libjpeg's bit buffer.
READ_AHEAD = 8
# Limit of scans times pixels, over all decodings that search for needless bytes between scans.
MAX_SCANNED_PIXELS = 1_000_000_000


class _LibjpegError(Exception):
    """A message of libjpeg: an error, or a warning if decoding is strict."""


class Decoder:
    """A decoder of one JPEG. It is not thread-safe."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._odd_frame: jpeg_structure.Frame | None = None

    def pixels(self, kind: Kind) -> Bytes:
        """Return the pixels as stored, without a rotation, uint8 [H, W, C]: luma, RGB, or CMYK with 0 for full ink.

        Raises UnreadableImage if scans are damaged or missing, UnsupportedType, and MemoryError.
        """
        try:
            return self._pixels(kind)
        except _LibjpegError as error:
            raise unreadable("jpeg", error) from error

    def small(self, side: int) -> Bytes:
        """Return a reduced picture in RGB, uint8 [H, W, 3], with sides of at least `side` pixels. Call `pixels` first.

        Raises UnreadableImage and UnsupportedType.
        """
        if self._odd_frame is not None:
            _check_factors(self._odd_frame, self._odd_frame.components)
            return _by_pillow(self._data, "RGB", side)
        try:
            return _decoded(self._data, "RGB", strict=False, side=side)
        except _LibjpegError as error:
            raise unreadable("jpeg", error) from error

    def _pixels(self, kind: Kind) -> Bytes:
        """Decode strictly; if that fails, decode a copy with a plain header. Raises _LibjpegError."""
        try:
            return _decoded(self._data, kind)
        except _LibjpegError as error:
            # With restart intervals, this message may mean that the end of the image comes too early.
            if _marker_after_extra(error) == END_OF_IMAGE and INTERVAL not in self._data:
                return _decoded(self._data, kind, strict=False)
        plain = jpeg_structure.plain(self._data)
        self._data = plain.file()
        try:
            return _decoded(self._data, kind)
        except _LibjpegError as error:
            is_regular = all(scan.is_regular for scan in plain.scans)
            if UNNAMED_SAMPLING in str(error):
                if not is_regular:
                    raise UnreadableImage(
                        "the JPEG file is damaged: restart markers are missing", field="file"
                    ) from None
                self._odd_frame = plain.header.frame
                return _decode_odd_sampling(plain, kind)
            marker = _marker_after_extra(error)
            if marker is None or not is_regular:
                raise
            if marker != END_OF_IMAGE and marker not in RESTARTS:
                self._data = _without_extra_bytes(plain, error).file()
        return _decoded(self._data, kind, strict=False)


def _decoded(data: bytes, kind: Kind, *, strict: bool = True, side: int = 0) -> Bytes:
    """Decode by TurboJPEG. side: if not 0, the picture is reduced as far as sides of that length allow.

    Raises _LibjpegError for errors, and for warnings if `strict`.
    """
    is_small = side > 0
    try:
        pixels = simplejpeg.decode_jpeg(
            data, kind, fastdct=is_small, fastupsample=is_small, min_height=side, min_width=side, strict=strict
        )
    except MemoryError:
        raise
    except Exception as error:
        raise _LibjpegError(str(error)) from error
    return np.asarray(pixels, np.uint8)


def _marker_after_extra(error: _LibjpegError) -> str | None:
    """Return the marker after needless data, as two hexadecimal digits; None for any other message."""
    found = EXTRA.search(str(error))
    return None if found is None else found[2]


def _without_extra_bytes(plain: jpeg_structure.PlainJpeg, error: _LibjpegError) -> jpeg_structure.PlainJpeg:
    """Return the JPEG without needless bytes between its scans.

    Only the first warning of a decoding can be read, so the file is decoded up to each scan in turn. Raises
    _LibjpegError if a scan is damaged. Raises the given error if the search would take too long.
    """
    left = MAX_SCANNED_PIXELS
    scans: tuple[jpeg_structure.Scan, ...] = ()

    def extra(scan: jpeg_structure.Scan) -> int:
        nonlocal left
        left -= plain.header.frame.width * plain.header.frame.height * (len(scans) + 1)
        if left < 0:
            raise error
        return _extra(replace(plain, scans=(*scans, scan)))

    for scan in plain.scans:
        count = extra(scan)
        kept = replace(scan, data=scan.data[: len(scan.data) - count])
        # libjpeg does not count the bytes that it has read ahead.
        for _ in range(READ_AHEAD if count else 0):
            shorter = replace(kept, data=kept.data[:-1])
            try:
                extra(shorter)
            except _LibjpegError:
                break
            kept = shorter
        scans += (kept,)
    return replace(plain, scans=scans)


def _extra(plain: jpeg_structure.PlainJpeg) -> int:
    """Return the number of needless bytes at the end of the last scan. Raises _LibjpegError if a scan is damaged."""
    try:
        _decoded(plain.file(), "GRAY", side=1)
    except _LibjpegError as error:
        found = EXTRA.search(str(error))
        if found is None or found[2] != END_OF_IMAGE:
            raise
        return int(found[1])
    return 0


def _decode_odd_sampling(plain: jpeg_structure.PlainJpeg, kind: Kind) -> Bytes:
    """Decode by Pillow a JPEG whose sampling factors TurboJPEG does not know."""
    frame = plain.header.frame
    _check_factors(frame, frame.components[:1] if kind == "GRAY" else frame.components)
    # All components are decoded if libjpeg can enlarge them, since the chroma may be truncated where luma is not.
    mode: Mode = "YCbCr" if kind == "GRAY" and all(map(frame.is_whole, frame.components)) else kind
    pixels = _by_pillow(plain.file(), mode)
    if frame.marker not in jpeg_structure.ARITHMETIC_CODED:
        again = _by_pillow(plain.file(TAIL), mode)
        if not np.array_equal(pixels, again):
            raise UnreadableImage("the JPEG file is damaged or cut short", field="file")
    return np.ascontiguousarray(pixels[..., :1]) if kind == "GRAY" else pixels


def _check_factors(frame: jpeg_structure.Frame, needed: tuple[jpeg_structure.Component, ...]) -> None:
    """Check that libjpeg can enlarge the needed components. Raises UnsupportedType."""
    if not all(map(frame.is_whole, needed)):
        factors = ", ".join(f"{one.across}x{one.down}" for one in frame.components)
        raise UnsupportedType(f"the JPEG's sampling factors ({factors}) are not supported", field="file")


def _by_pillow(data: bytes, mode: Mode, side: int = 0) -> Bytes:
    """Decode by Pillow, uint8 [H, W, C]. side: if not 0, the picture is reduced as far as this side allows."""
    with library_call("jpeg"):
        image = Image.open(io.BytesIO(data), formats=("JPEG",))
        size = (side, side) if side else image.size
        image.draft("L" if mode == "GRAY" else mode, size)
        pixels = np.asarray(image, np.uint8)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    # Pillow inverts CMYK.
    return 255 - pixels if mode == "CMYK" else pixels
