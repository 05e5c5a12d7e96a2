"""Read the metadata of a file of any format. No pixels are decoded.

EXIF, XMP, IPTC-IIM with the other Photoshop resources, comments and density are kept. The colour profile is read but
never written, because outputs are sRGB. Blocks that can't be true of an output are not read: thumbnails, further
images (MPF), extended XMP, the signed claims of C2PA (JUMBF, caBX), private segments of a maker.
"""

import itertools
import logging
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from service.formats import containers, heif_reader, tiff_reader, tiff_tags, tiff_writer
from service.formats.registry import Source
from service.metadata import exif, iptc

log = logging.getLogger(__name__)

MAX_BLOCK = 4 * 1024 * 1024
# An image editor may list every ancestor of a picture. Packets are parsed element by element, which takes time.
MAX_XMP = 2 * 1024 * 1024
MAX_COMMENTS = 1000
# A metadata block may have at most the size of the file and these bytes, after decompression too.
EXTRA_BYTES = 64 * 1024
# Keywords of texts in which ImageMagick copies properties of the source file into a PNG. Nothing would correct them.
IMAGEMAGICK_COPIES = re.compile(
    r"(?:icc|jpeg|png|tiff|Thumb:?):|exif:(?:thumbnail:|(?:Orientation|ColorSpace|BitsPerSample|SamplesPerPixel|Compression"
    r"|PhotometricInterpretation|(?:Exif)?Image(?:Width|Length)|PixelXDimension|PixelYDimension)$)"
)

APP0, APP1, APP2, APP13, COM = 0xE0, 0xE1, 0xE2, 0xED, 0xFE
JFIF, EXIF, XMP = b"JFIF\0", b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
ICC, PHOTOSHOP = b"ICC_PROFILE\0", b"Photoshop 3.0\0"
XMP_KEYWORD = "XML:com.adobe.xmp"
# The form in which Pillow finds the orientation.
XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
# ImageMagick and others store blocks in a PNG as hexadecimal text with this keyword.
RAW_PROFILE = "Raw profile type "
PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
JFIF_UNITS: tuple[Literal["shape", "inch", "centimetre"], ...] = ("shape", "inch", "centimetre")


@dataclass(frozen=True, slots=True)
class Density:
    """Pixels per unit, horizontal and vertical, as in the file. `shape` means that only the ratio is known."""

    x: int
    y: int
    unit: Literal["inch", "centimetre", "metre", "shape"]


@dataclass(frozen=True, slots=True)
class Comment:
    """A comment with the keyword of a PNG text; comments of a JPEG have the keyword `Comment`.

    Bytes of a JPEG comment that are not UTF-8 are stored as surrogates.
    """

    keyword: str
    text: str
    language: str = ""
    translated: str = ""


@dataclass(frozen=True, slots=True)
class Metadata:
    """The metadata of one photo. Missing parts are None or empty.

    exif: a TIFF block. xmp: a packet; spare_xmp: a short one, used if that does not fit. iptc: Photoshop's resources.
    icc: the colour profile, for the decoder only. orientation: the EXIF orientation that makes the picture upright; 0
    if it is unknown. All other parts describe the picture before it is turned upright.
    """

    exif: bytes | None = None
    xmp: bytes | None = None
    spare_xmp: bytes | None = None
    iptc: bytes | None = None
    comments: tuple[Comment, ...] = ()
    density: Density | None = None
    icc: bytes | None = None
    orientation: int = 1


def read(data: bytes, source: Source) -> Metadata:
    """Return the metadata of a file of a format. Unreadable parts are left out; nothing is raised."""
    limit = EXTRA_BYTES + len(data)
    match source:
        case "jpeg":
            found = _read_jpeg(data)
        case "png":
            found = _read_png(data, limit)
        case "webp":
            found = _read_webp(data)
        case "tiff":
            found = _read_tiff(data)
        case "avif" | "heic":
            return _limited(_read_heif(data), limit)
        case "bmp":
            found = Metadata(density=_bmp_density(data))
        case "gif":
            found = Metadata(comments=_plain_comments(containers.gif_comments(data)))
    return _limited(replace(found, orientation=_orientation(found)), limit)


def _limited(found: Metadata, limit: int) -> Metadata:
    """Return the metadata without blocks that are larger than `limit`, in bytes."""
    return replace(
        found,
        exif=_within_limit(found.exif, "EXIF", min(MAX_BLOCK, limit)),
        xmp=_within_limit(found.xmp, "XMP", min(MAX_XMP, limit)),
        iptc=_within_limit(found.iptc, "IPTC", min(MAX_BLOCK, limit)),
        icc=_within_limit(found.icc, "a profile", MAX_BLOCK),
    )


def _within_limit(block: bytes | None, name: str, limit: int) -> bytes | None:
    if block and len(block) <= limit:
        return block
    if block:
        log.debug("%s of %d bytes is left out", name, len(block))
    return None


def _orientation(found: Metadata) -> int:
    """Return the orientation that decoders apply: that of EXIF, or that of XMP if EXIF has none."""
    value = exif.orientation(found.exif) if found.exif else None
    if value is None and (match := XMP_ORIENTATION.search(found.xmp or b"")):
        value = int(match[1])
    return value if value and value <= 8 else 1


def _read_heif(data: bytes) -> Metadata:
    blocks = heif_reader.read(data)
    return Metadata(exif=blocks.exif, xmp=blocks.xmp, icc=blocks.icc, orientation=blocks.orientation)


def _read_jpeg(data: bytes) -> Metadata:
    blocks: dict[bytes, bytes] = {}
    profile: list[tuple[int, int, bytes]] = []
    resources: list[bytes] = []
    comments: list[bytes] = []
    for marker, body in containers.jpeg_bodies(data, (APP0, APP1, APP2, APP13, COM)):
        if marker == COM:
            comments.append(body)
        elif marker == APP13 and body.startswith(PHOTOSHOP):
            resources.append(body[len(PHOTOSHOP) :])
        elif marker == APP2 and body.startswith(ICC) and len(body) > len(ICC) + 2:
            profile.append((body[len(ICC)], body[len(ICC) + 1], body[len(ICC) + 2 :]))
        else:
            # Only the first of several is used. A second one is a leftover, and readers treat it differently.
            for owner, start in ((APP0, JFIF), (APP1, EXIF), (APP1, XMP)):
                if marker == owner and body.startswith(start):
                    blocks.setdefault(start, body[len(start) :])
    return Metadata(
        exif=blocks.get(EXIF),
        xmp=blocks.get(XMP),
        iptc=iptc.without_stale(b"".join(resources)),
        comments=_plain_comments(comments),
        density=_jfif_density(blocks.get(JFIF, b"")),
        icc=_profile(profile),
    )


def _plain_comments(bodies: Iterable[bytes]) -> tuple[Comment, ...]:
    """Return the comments of a JPEG or GIF, MAX_BLOCK bytes of them at most."""
    whole = list(bodies)
    ends = itertools.accumulate(len(body) for body in whole)
    kept = [body for body, end in zip(whole, ends, strict=True) if end <= MAX_BLOCK]
    return _limited_comments([Comment("Comment", body.decode("utf-8", "surrogateescape")) for body in kept])


def _profile(parts: list[tuple[int, int, bytes]]) -> bytes | None:
    """Return a profile from its segments: number of the segment, count of segments, and content.

    Some writers count from 0, or not at all. Then the length inside the profile shows whether all segments are present.
    """
    if not parts:
        return None
    first = {number: body for number, _, body in reversed(parts)}
    numbered = b"".join(first[number] for number in sorted(first))
    in_order = b"".join(body for _, _, body in sorted(parts, key=lambda part: part[0]))
    as_found = b"".join(body for _, _, body in parts)
    for joined in (numbered, in_order, as_found):
        if int.from_bytes(joined[:4]) == len(joined) and joined[36:40] == b"acsp":
            return joined
    if sorted(first) == list(range(1, parts[0][1] + 1)):
        return numbered
    log.debug("a colour profile with missing parts is left out")
    return None


def _density(x: int, y: int, unit: Literal["inch", "centimetre", "metre", "shape"]) -> Density | None:
    says_nothing = not x or not y or (unit == "shape" and x == y)
    return None if says_nothing else Density(x, y, unit)


def _jfif_density(body: bytes) -> Density | None:
    if len(body) < 7 or body[2] >= len(JFIF_UNITS):
        return None
    x, y = struct.unpack_from(">HH", body, 3)
    return _density(x, y, JFIF_UNITS[body[2]])


def _limited_comments(comments: list[Comment]) -> tuple[Comment, ...]:
    if len(comments) > MAX_COMMENTS:
        log.debug("only %d of %d comments are kept", MAX_COMMENTS, len(comments))
    return tuple(comments[:MAX_COMMENTS])


def _inflate(packed: bytes, limit: int) -> bytes | None:
    """Return the content of a zlib stream; None if it is damaged, cut short, or longer than `limit` bytes."""
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(packed, limit + 1)
    except zlib.error:
        return None
    return content if unpacker.eof and len(content) <= limit else None


def _read_png(data: bytes, limit: int) -> Metadata:
    wanted = (b"eXIf", b"iCCP", b"pHYs", *PNG_TEXTS)
    blocks: dict[bytes, bytes] = {}
    texts: list[tuple[bytes, bytes]] = []
    for kind, body in containers.png_bodies(data, wanted):
        if kind in PNG_TEXTS:
            texts.append((kind, body))
        else:
            blocks.setdefault(kind, body)
    comments: list[Comment] = []
    special: dict[str, str] = {}
    for comment in _png_comments(texts, min(MAX_BLOCK, limit)):
        if comment.keyword == XMP_KEYWORD or comment.keyword.startswith(RAW_PROFILE):
            special.setdefault(comment.keyword.removeprefix(RAW_PROFILE), comment.text)
        elif not IMAGEMAGICK_COPIES.match(comment.keyword):
            comments.append(comment)
    packet = special[XMP_KEYWORD].encode("utf-8", "replace") if XMP_KEYWORD in special else None
    exif_block = blocks.get(b"eXIf") or _profile_from_text(special, "exif") or _profile_from_text(special, "APP1")
    _, _, packed = blocks.get(b"iCCP", b"").partition(b"\0")
    return Metadata(
        exif=_without_prefix(EXIF, exif_block),
        xmp=packet or _without_prefix(XMP, _profile_from_text(special, "xmp")),
        iptc=_iptc_from_text(special),
        comments=_limited_comments(comments),
        density=_png_density(blocks.get(b"pHYs", b"")),
        icc=_inflate(packed[1:], MAX_BLOCK) if packed else None,
    )


def _without_prefix(start: bytes, block: bytes | None) -> bytes | None:
    """Return the block without the name that precedes it in a JPEG."""
    return None if block is None else block.removeprefix(start)


def _png_comments(texts: Iterable[tuple[bytes, bytes]], limit: int) -> Iterator[Comment]:
    """Yield the texts of a PNG, `limit` bytes of them at most. A damaged text counts as an eighth of the limit."""
    left = limit
    for kind, body in texts:
        if left < 0:
            return
        raw_keyword, found, rest = body.partition(b"\0")
        if not found or not 1 <= len(raw_keyword) <= 79:
            continue
        language = translated = b""
        is_packed = kind == b"zTXt"
        if kind == b"iTXt":
            is_packed = rest[:1] == b"\1"
            parts = rest[2:].split(b"\0", 2)
            if len(parts) < 3:
                continue
            language, translated, rest = parts
        elif is_packed:
            rest = rest[1:]
        text = _inflate(rest, left) if is_packed else rest
        if text is None or len(text) > left:
            log.debug("a text of a PNG is left out: it is damaged or too long")
            # Decompressing it took time.
            left -= limit // 8
            continue
        left -= len(text)
        encoding = "utf-8" if kind == b"iTXt" else "latin-1"
        yield Comment(
            raw_keyword.decode("latin-1"),
            text.decode(encoding, "replace"),
            language.decode("latin-1"),
            translated.decode("utf-8", "replace"),
        )


def _profile_from_text(texts: dict[str, str], name: str) -> bytes | None:
    """Return a block that is stored as text: an empty line, its name, its length, then hexadecimal lines."""
    if name not in texts:
        return None
    try:
        return bytes.fromhex("".join(texts[name].split("\n")[3:]))
    except ValueError:
        log.debug("a damaged block in a text of a PNG is left out")
        return None


def _iptc_from_text(texts: dict[str, str]) -> bytes | None:
    block = _without_prefix(PHOTOSHOP, _profile_from_text(texts, "8bim") or _profile_from_text(texts, "iptc"))
    # IPTC-IIM may be stored without the resource that contains it in a JPEG.
    return iptc.without_stale(iptc.iim_resource(block) if block[:1] == iptc.IIM_START else block) if block else None


def _png_density(body: bytes) -> Density | None:
    if len(body) != 9 or body[8] > 1:
        return None
    x, y = struct.unpack_from(">II", body)
    return _density(x, y, "metre" if body[8] else "shape")


def _read_webp(data: bytes) -> Metadata:
    blocks: dict[bytes, bytes] = {}
    for kind, body in containers.webp_bodies(data, (b"EXIF", b"XMP ", b"ICCP")):
        blocks.setdefault(kind, body)
    return Metadata(exif=_without_prefix(EXIF, blocks.get(b"EXIF")), xmp=blocks.get(b"XMP "), icc=blocks.get(b"ICCP"))


def _read_tiff(data: bytes) -> Metadata:
    block = tiff_writer.compact_exif(data)
    found = tiff_reader.values(
        data, (tiff_tags.XMP, tiff_tags.IPTC_NAA, tiff_tags.IMAGE_RESOURCES, tiff_tags.ICC_PROFILE)
    )
    resources = iptc.without_stale(found.get(tiff_tags.IMAGE_RESOURCES, b"")) or b""
    iim = found.get(tiff_tags.IPTC_NAA, b"")
    if iim.startswith(iptc.IIM_START) and iptc.find_iim(resources) is None:
        resources += iptc.iim_resource(iim)
    return Metadata(
        exif=block,
        xmp=found.get(tiff_tags.XMP),
        iptc=resources,
        density=_tiff_density(block) if block else None,
        icc=found.get(tiff_tags.ICC_PROFILE),
    )


def _tiff_density(block: bytes) -> Density | None:
    found = tiff_reader.resolution(block)
    if found is None:
        return None
    x, y, unit = found
    if unit == tiff_tags.NO_UNIT:
        return _density(round(x), round(y), "shape")
    if x.denominator == y.denominator == 1:
        return _density(int(x), int(y), "inch" if unit == tiff_tags.INCH else "centimetre")
    metre = 100 if unit == tiff_tags.CENTIMETRE else 1 / Fraction("0.0254")
    return _density(round(x * metre), round(y * metre), "metre")


def _bmp_density(data: bytes) -> Density | None:
    if len(data) < 54 or struct.unpack_from("<I", data, 14)[0] < 40:
        return None
    x, y = struct.unpack_from("<ii", data, 38)
    return _density(max(0, x), max(0, y), "metre")
