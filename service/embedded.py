"""What a file says beside its pixels, read from and written into JPEG, PNG and WebP. No picture is decoded.

Kept: EXIF, XMP, IPTC-IIM with its other Photoshop resources, comments, density. Read but never written: the colour
profile, since answers are sRGB. Not read at all, since they would no longer be true of the answer: thumbnails, further
pictures (MPF), the rest of a long XMP packet, C2PA's signed claims (JUMBF, caBX), segments of one maker's own.
"""

import itertools
import logging
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from service import segments, xmp
from service.photo import Format, Source

log = logging.getLogger(__name__)

MIB = 1 << 20
MAX_BLOCK = 4 * MIB
# Packets of an image editor that lists every ancestor of a picture; they are read element by element.
MAX_XMP = 2 * MIB
MAX_COMMENTS = 1000
MAX_RESOURCES = 1000
MAX_DENSITY = 65_535

APP0, APP1, APP2, APP13, COM = 0xE0, 0xE1, 0xE2, 0xED, 0xFE
JFIF, EXIF, XMP = b"JFIF\0", b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
ICC, PHOTOSHOP = b"ICC_PROFILE\0", b"Photoshop 3.0\0"
XMP_KEYWORD = "XML:com.adobe.xmp"
# How ImageMagick, and others after it, put blocks into a PNG: as hexadecimal text.
RAW_PROFILE = "Raw profile type "
PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
RESOURCE_KINDS = (b"8BIM", b"MeSa", b"AgHg", b"PHUT", b"DCSR")
IPTC_RESOURCE = 0x0404
# Two kinds of thumbnail; the profile; copies of EXIF and XMP, which nobody would put right.
STALE_RESOURCES = frozenset({1033, 1036, 1039, 1058, 1059, 1060})
PER_METRE = {"inch": 0.0254, "centimetre": 0.01, "metre": 1.0}
JFIF_UNITS: tuple[Literal["shape", "inch", "centimetre"], ...] = ("shape", "inch", "centimetre")


@dataclass(frozen=True, slots=True)
class Density:
    """Pixels per unit, across and down, as the file says it; `shape` tells only a pixel's proportions."""

    x: int
    y: int
    unit: Literal["inch", "centimetre", "metre", "shape"]


@dataclass(frozen=True, slots=True)
class Comment:
    """A text. The keyword is a PNG's; a JPEG's comment has `Comment`, and what is not UTF-8 in it as surrogates."""

    keyword: str
    text: str
    language: str = ""
    translated: str = ""


@dataclass(frozen=True, slots=True)
class Metadata:
    """What is known of one photo; None or empty where there is nothing.

    exif: a TIFF block. xmp: a packet; spare_xmp: one to write where that has no room. iptc: Photoshop's resources.
    icc: the profile, which is for the decoder only.
    """

    exif: bytes | None = None
    xmp: bytes | None = None
    spare_xmp: bytes | None = None
    iptc: bytes | None = None
    comments: tuple[Comment, ...] = ()
    density: Density | None = None
    icc: bytes | None = None


def read(data: bytes, format_: Source) -> Metadata:
    """The metadata of a file of that format. Never raises: what can't be read is left out."""
    match format_:
        case "jpeg":
            found = _read_jpeg(data)
        case "png":
            found = _read_png(data)
        case "webp":
            found = _read_webp(data)
        case _:
            found = Metadata()
    return _bounded(found)


def _bounded(found: Metadata) -> Metadata:
    return replace(
        found,
        exif=_small(found.exif, "EXIF", MAX_BLOCK),
        xmp=_small(found.xmp, "XMP", MAX_XMP),
        iptc=_small(found.iptc, "IPTC", MAX_BLOCK),
        icc=_small(found.icc, "a profile", MAX_BLOCK),
    )


def _small(block: bytes | None, name: str, limit: int) -> bytes | None:
    if block and len(block) <= limit:
        return block
    if block:
        log.debug("%s of %d bytes is left out", name, len(block))
    return None


def _read_jpeg(data: bytes) -> Metadata:
    blocks: dict[bytes, bytes] = {}
    profile: dict[int, bytes] = {}
    resources: list[bytes] = []
    comments: list[bytes] = []
    for marker, body in segments.jpeg_bodies(data, (APP0, APP1, APP2, APP13, COM)):
        if marker == COM:
            comments.append(body)
        elif marker == APP13 and body.startswith(PHOTOSHOP):
            resources.append(body[len(PHOTOSHOP) :])
        elif marker == APP2 and body.startswith(ICC) and len(body) > len(ICC) + 2:
            profile.setdefault(body[len(ICC)], body[len(ICC) + 1 :])
        else:
            # Of several, the first: a second one is a leftover, and readers don't agree on it.
            for owner, start in ((APP0, JFIF), (APP1, EXIF), (APP1, XMP)):
                if marker == owner and body.startswith(start):
                    blocks.setdefault(start, body[len(start) :])
    return Metadata(
        exif=blocks.get(EXIF),
        xmp=blocks.get(XMP),
        iptc=_resources(b"".join(resources)),
        comments=_jpeg_comments(comments),
        density=_jfif_density(blocks.get(JFIF, b"")),
        icc=_profile(profile),
    )


def _jpeg_comments(bodies: list[bytes]) -> tuple[Comment, ...]:
    """The comments of a JPEG; all of them together may have `MAX_BLOCK` bytes."""
    ends = itertools.accumulate(len(body) for body in bodies)
    kept = [body for body, end in zip(bodies, ends, strict=True) if end <= MAX_BLOCK]
    return _few([Comment("Comment", body.decode("utf-8", "surrogateescape")) for body in kept])


def _profile(parts: dict[int, bytes]) -> bytes | None:
    """A profile from its numbered segments, each beginning with how many there are."""
    if not parts:
        return None
    count = next(iter(parts.values()))[0]
    if sorted(parts) != list(range(1, count + 1)):
        log.debug("a colour profile with missing parts is left out")
        return None
    return b"".join(parts[number][1:] for number in range(1, count + 1))


def _resources(data: bytes) -> bytes | None:
    """Photoshop's image resources as they are, but for those that would no longer be true; up to the first damage."""
    kept = []
    position = 0
    for _ in range(MAX_RESOURCES):
        if data[position : position + 4] not in RESOURCE_KINDS or position + 12 > len(data):
            break
        name_end = position + 7 + data[position + 6]
        name_end += name_end % 2 != position % 2
        if name_end + 4 > len(data):
            break
        (size,) = struct.unpack_from(">I", data, name_end)
        end = name_end + 4 + size
        if end > len(data):
            break
        if int.from_bytes(data[position + 4 : position + 6]) not in STALE_RESOURCES:
            kept.append(data[position:end] + bytes(size % 2))
        position = end + size % 2
    return b"".join(kept) or None


def _density(x: int, y: int, unit: Literal["inch", "centimetre", "metre", "shape"]) -> Density | None:
    says_nothing = not x or not y or (unit == "shape" and x == y)
    return None if says_nothing else Density(x, y, unit)


def _jfif_density(body: bytes) -> Density | None:
    if len(body) < 7 or body[2] >= len(JFIF_UNITS):
        return None
    x, y = struct.unpack_from(">HH", body, 3)
    return _density(x, y, JFIF_UNITS[body[2]])


def _few(comments: list[Comment]) -> tuple[Comment, ...]:
    if len(comments) > MAX_COMMENTS:
        log.debug("all but %d of %d comments are left out", MAX_COMMENTS, len(comments))
    return tuple(comments[:MAX_COMMENTS])


def _inflate(packed: bytes, limit: int) -> bytes | None:
    """The content of a zlib stream; None when it is damaged, cut short, or longer than the limit, bytes."""
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(packed, limit + 1)
    except zlib.error:
        return None
    return content if unpacker.eof and len(content) <= limit else None


def _read_png(data: bytes) -> Metadata:
    wanted = (b"eXIf", b"iCCP", b"pHYs", *PNG_TEXTS)
    blocks: dict[bytes, bytes] = {}
    texts: list[tuple[bytes, bytes]] = []
    for kind, body in segments.png_bodies(data, wanted):
        if kind in PNG_TEXTS:
            texts.append((kind, body))
        else:
            blocks.setdefault(kind, body)
    comments: list[Comment] = []
    special: dict[str, str] = {}
    for comment in _png_comments(texts):
        if comment.keyword == XMP_KEYWORD or comment.keyword.startswith(RAW_PROFILE):
            special.setdefault(comment.keyword.removeprefix(RAW_PROFILE), comment.text)
        else:
            comments.append(comment)
    packet = special[XMP_KEYWORD].encode("utf-8", "replace") if XMP_KEYWORD in special else None
    _, _, packed = blocks.get(b"iCCP", b"").partition(b"\0")
    return Metadata(
        exif=_without(EXIF, blocks.get(b"eXIf") or _raw_profile(special, "exif") or _raw_profile(special, "APP1")),
        xmp=packet or _without(XMP, _raw_profile(special, "xmp")),
        iptc=_iptc_of_text(special),
        comments=_few(comments),
        density=_png_density(blocks.get(b"pHYs", b"")),
        icc=_inflate(packed[1:], MAX_BLOCK) if packed else None,
    )


def _without(start: bytes, block: bytes | None) -> bytes | None:
    """The block without the name that a JPEG has before it."""
    return None if block is None else block.removeprefix(start)


def _png_comments(texts: Iterable[tuple[bytes, bytes]]) -> Iterator[Comment]:
    """The texts of a PNG. All of them together may have `MAX_BLOCK` bytes; a damaged one counts as an eighth."""
    left = MAX_BLOCK
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
            # It took time to find that out.
            left -= MAX_BLOCK // 8
            continue
        left -= len(text)
        encoding = "utf-8" if kind == b"iTXt" else "latin-1"
        yield Comment(
            raw_keyword.decode("latin-1"),
            text.decode(encoding, "replace"),
            language.decode("latin-1"),
            translated.decode("utf-8", "replace"),
        )


def _raw_profile(texts: dict[str, str], name: str) -> bytes | None:
    """A block that is written as text: an empty line, its name, its length, then hexadecimal lines."""
    if name not in texts:
        return None
    try:
        return bytes.fromhex("".join(texts[name].split("\n")[3:]))
    except ValueError:
        log.debug("a profile written as text is left out")
        return None


def _iptc_of_text(texts: dict[str, str]) -> bytes | None:
    block = _without(PHOTOSHOP, _raw_profile(texts, "8bim") or _raw_profile(texts, "iptc"))
    if block and block[0] == 0x1C:
        # IPTC-IIM alone, without the resource that holds it in a JPEG.
        block = struct.pack(">4sHHI", b"8BIM", IPTC_RESOURCE, 0, len(block)) + block + bytes(len(block) % 2)
    return _resources(block) if block else None


def _png_density(body: bytes) -> Density | None:
    if len(body) != 9 or body[8] > 1:
        return None
    x, y = struct.unpack_from(">II", body)
    return _density(x, y, "metre" if body[8] else "shape")


def _read_webp(data: bytes) -> Metadata:
    blocks: dict[bytes, bytes] = {}
    for kind, body in segments.webp_bodies(data, (b"EXIF", b"XMP ", b"ICCP")):
        blocks.setdefault(kind, body)
    return Metadata(exif=_without(EXIF, blocks.get(b"EXIF")), xmp=blocks.get(b"XMP "), icc=blocks.get(b"ICCP"))


def write(encoded: bytes, format_: Format, metadata: Metadata) -> bytes:
    """The encoded picture with the metadata, as far as its format has a place for it; the pixels stay as they are.

    encoded: from one of our encoders, so without metadata. The profile is never written.
    """
    match format_:
        case "jpeg":
            return segments.jpeg_with(_with_jfif_density(encoded, metadata.density), _jpeg_parts(metadata))
        case "png":
            return segments.png_with(encoded, _png_parts(metadata))
        case "webp":
            if metadata.iptc or metadata.comments:
                log.debug("a WebP has no place for IPTC and comments")
            return segments.webp_with(encoded, metadata.exif, metadata.xmp)
        case _:
            return encoded


def _jpeg_parts(metadata: Metadata) -> Iterator[tuple[int, bytes]]:
    if metadata.exif:
        yield from _fitting(APP1, EXIF + metadata.exif)
    if metadata.xmp:
        packets = (metadata.xmp, xmp.without_padding(metadata.xmp), metadata.spare_xmp or b"")
        room = segments.SEGMENT_BYTES - len(XMP)
        packet = next((packet for packet in packets if len(packet) <= room), b"")
        if packet:
            yield APP1, XMP + packet
        if packet is not packets[0]:
            log.debug("an XMP packet of %d bytes does not fit into a JPEG as it is", len(metadata.xmp))
    step = segments.SEGMENT_BYTES - len(PHOTOSHOP)
    resources = metadata.iptc or b""
    for start in range(0, len(resources), step):
        yield APP13, PHOTOSHOP + resources[start : start + step]
    for comment in metadata.comments:
        text = comment.text if comment.keyword == "Comment" else f"{comment.keyword}: {comment.text}"
        yield from _fitting(COM, text.encode("utf-8", "surrogateescape"))


def _fitting(marker: int, body: bytes) -> Iterator[tuple[int, bytes]]:
    if len(body) <= segments.SEGMENT_BYTES:
        yield marker, body
    else:
        log.debug("%d bytes do not fit into a segment of a JPEG and are left out", len(body))


def _with_jfif_density(encoded: bytes, density: Density | None) -> bytes:
    if density is None or encoded[6:11] != JFIF:
        return encoded
    unit, x, y = density.unit, density.x, density.y
    if unit == "metre":
        unit, x, y = "inch", round(x * PER_METRE["inch"]), round(y * PER_METRE["inch"])
    if not (1 <= x <= MAX_DENSITY and 1 <= y <= MAX_DENSITY):
        log.debug("a density that a JPEG has no room for is left out")
        return encoded
    return encoded[:13] + struct.pack(">BHH", JFIF_UNITS.index(unit), x, y) + encoded[18:]


def _png_parts(metadata: Metadata) -> Iterator[tuple[bytes, bytes]]:
    density = metadata.density
    if density is not None:
        metre = PER_METRE.get(density.unit, 1.0)
        sides = (min(2**31 - 1, round(side / metre)) for side in (density.x, density.y))
        yield b"pHYs", struct.pack(">IIB", *sides, density.unit != "shape")
    if metadata.exif:
        yield b"eXIf", metadata.exif
    if metadata.xmp:
        yield b"iTXt", XMP_KEYWORD.encode() + b"\0\0\0\0\0" + metadata.xmp
    if metadata.iptc:
        yield b"zTXt", _text_of_iptc(metadata.iptc)
    for comment in metadata.comments:
        yield _png_text(comment)


def _text_of_iptc(resources: bytes) -> bytes:
    """The resources as ImageMagick, ExifTool and others read them from a PNG, which has no chunk for them."""
    lines = resources.hex(",", -36).replace(",", "\n")
    text = f"\niptc\n{len(resources):8}\n{lines}\n"
    return f"{RAW_PROFILE}iptc".encode() + b"\0\0" + zlib.compress(text.encode())


def _png_text(comment: Comment) -> tuple[bytes, bytes]:
    keyword = comment.keyword.encode("latin-1", "replace")
    # A JPEG's comment that is not UTF-8 has no declared encoding; Latin-1 is a PNG's own.
    raw = comment.text.encode("utf-8", "surrogateescape")
    text = comment.text if _is_unicode(comment.text) else raw.decode("latin-1")
    text = text.rstrip("\0").replace("\0", " ")
    if comment.language or comment.translated or max(text, default="") > "\xff":
        middle = f"{comment.language}\0{comment.translated}\0".encode()
        return b"iTXt", keyword + b"\0\0\0" + middle + text.encode()
    return b"tEXt", keyword + b"\0" + text.encode("latin-1")


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
