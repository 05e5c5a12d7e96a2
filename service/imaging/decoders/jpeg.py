"""The pixels of a JPEG: refused when its scans are damaged or cut short, and decoded whatever else is odd about it."""

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

# More data than the decoder needs, before a marker. Its warning comes once everything before it is decoded.
EXTRA = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")
END_OF_IMAGE = "d9"
INTERVAL = b"\xff\xdd"
RESTARTS = [f"d{number}" for number in range(8)]
# TurboJPEG's older interface, which simplejpeg uses, knows the usual sampling factors only.
UNNAMED_SAMPLING = "Could not determine subsampling"
# Pillow's decoder does not warn. Where the data of a scan is whole, these bytes behind it change no pixel.
TAIL = bytes(range(1, 255)) * 2
# Bytes in the decoder's bit buffer.
READ_AHEAD = 8
# Of all decodings together that look for bytes between scans, scans times pixels.
MAX_SCANNED_PIXELS = 1_000_000_000


class _Refused(Exception):
    """What libjpeg says: a warning, if it was strict, or an error."""


class Decoder:
    """Decodes one JPEG. It is not meant for several threads at once."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._odd_frame: jpeg_structure.Frame | None = None

    def pixels(self, kind: Kind) -> Bytes:
        """Return the pixels as they are stored, uint8 [H, W, C]: luma, RGB, or CMYK with 0 for full ink.

        Raises UnreadableImage for damaged or missing scans, UnsupportedType, and MemoryError.
        """
        try:
            return self._pixels(kind)
        except _Refused as error:
            raise unreadable("jpeg", error) from error

    def small(self, side: int) -> Bytes:
        """Return a smaller picture in RGB, uint8 [H, W, 3], at least that many pixels a side. Call `pixels` first."""
        if self._odd_frame is not None:
            _check_factors(self._odd_frame, self._odd_frame.components)
            return _by_pillow(self._data, "RGB", side)
        try:
            return _decoded(self._data, "RGB", strict=False, side=side)
        except _Refused as error:
            raise unreadable("jpeg", error) from error

    def _pixels(self, kind: Kind) -> Bytes:
        try:
            return _decoded(self._data, kind)
        except _Refused as error:
            # With restart intervals, it may be the end of the image that comes too early.
            if _extra_before(error) == END_OF_IMAGE and INTERVAL not in self._data:
                return _decoded(self._data, kind, strict=False)
        plain = jpeg_structure.plain(self._data)
        self._data = plain.file()
        try:
            return _decoded(self._data, kind)
        except _Refused as error:
            is_regular = all(scan.is_regular for scan in plain.scans)
            if UNNAMED_SAMPLING in str(error):
                if not is_regular:
                    raise UnreadableImage(
                        "the JPEG file is damaged: restart markers are missing", field="file"
                    ) from None
                self._odd_frame = plain.header.frame
                return _odd(plain, kind)
            marker = _extra_before(error)
            if marker is None or not is_regular:
                raise
            if marker != END_OF_IMAGE and marker not in RESTARTS:
                self._data = _trimmed(plain, error).file()
        return _decoded(self._data, kind, strict=False)


def _decoded(data: bytes, kind: Kind, *, strict: bool = True, side: int = 0) -> Bytes:
    """Decode by TurboJPEG, as small as that side allows if it is not 0. Raises _Refused, also for warnings."""
    is_small = side > 0
    try:
        pixels = simplejpeg.decode_jpeg(
            data, kind, fastdct=is_small, fastupsample=is_small, min_height=side, min_width=side, strict=strict
        )
    except MemoryError:
        raise
    except Exception as error:
        raise _Refused(str(error)) from error
    return np.asarray(pixels, np.uint8)


def _extra_before(error: _Refused) -> str | None:
    """Return the marker before which there is more data than was needed, if that is what the error says."""
    found = EXTRA.search(str(error))
    return None if found is None else found[2]


def _trimmed(plain: jpeg_structure.PlainJpeg, error: _Refused) -> jpeg_structure.PlainJpeg:
    """Return the JPEG without needless bytes between its scans.

    Only the first warning of a decoding can be read, so each scan is decoded as the last one. Raises _Refused if any
    scan is damaged, and the given one if that would take too long.
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
        # The decoder does not count the bytes that it has read ahead.
        for _ in range(READ_AHEAD if count else 0):
            shorter = replace(kept, data=kept.data[:-1])
            try:
                extra(shorter)
            except _Refused:
                break
            kept = shorter
        scans += (kept,)
    return replace(plain, scans=scans)


def _extra(plain: jpeg_structure.PlainJpeg) -> int:
    """Return how many bytes before the end of the last scan are not needed. Raises _Refused if a scan is damaged."""
    try:
        _decoded(plain.file(), "GRAY", side=1)
    except _Refused as error:
        found = EXTRA.search(str(error))
        if found is None or found[2] != END_OF_IMAGE:
            raise
        return int(found[1])
    return 0


def _odd(plain: jpeg_structure.PlainJpeg, kind: Kind) -> Bytes:
    """Decode a JPEG whose sampling factors TurboJPEG cannot name."""
    frame = plain.header.frame
    _check_factors(frame, frame.components[:1] if kind == "GRAY" else frame.components)
    # All components, where libjpeg can enlarge them: the luma may be whole where the chroma is cut short.
    mode: Mode = "YCbCr" if kind == "GRAY" and all(map(frame.is_whole, frame.components)) else kind
    pixels = _by_pillow(plain.file(), mode)
    if frame.marker not in jpeg_structure.ARITHMETIC_CODED:
        again = _by_pillow(plain.file(TAIL), mode)
        if not np.array_equal(pixels, again):
            raise UnreadableImage("the JPEG file is damaged or cut short", field="file")
    return np.ascontiguousarray(pixels[..., :1]) if kind == "GRAY" else pixels


def _check_factors(frame: jpeg_structure.Frame, needed: tuple[jpeg_structure.Component, ...]) -> None:
    if not all(map(frame.is_whole, needed)):
        factors = ", ".join(f"{one.across}x{one.down}" for one in frame.components)
        raise UnsupportedType(f"the JPEG's sampling factors ({factors}) are not supported", field="file")


def _by_pillow(data: bytes, mode: Mode, side: int = 0) -> Bytes:
    with library_call("jpeg"):
        image = Image.open(io.BytesIO(data), formats=("JPEG",))
        size = (side, side) if side else image.size
        image.draft("L" if mode == "GRAY" else mode, size)
        pixels = np.asarray(image, np.uint8)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    # Pillow turns inks around.
    return 255 - pixels if mode == "CMYK" else pixels
