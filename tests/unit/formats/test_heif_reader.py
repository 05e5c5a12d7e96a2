"""Tests of the metadata and the pixels of AVIF and HEIC files."""

import base64
import io
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from service.errors import Problem
from service.formats import heif_reader, heif_still
from service.formats.decoding_limits import Limits
from service.formats.registry import Format
from service.imaging import decoding, identification
from service.metadata import exif, transfer
from service.metadata.transfer import Metadata
from tests.samples.metadata import (
    CAPTION,
    FULL,
    MAKER_NOTE,
    ORDERS,
    PACKET,
    answer,
    encoded_avif,
    exif_block,
    loaded,
    noise,
    opened,
    written,
)

LIMITS = Limits(100_000_000, 65_500)


# 128 x 64 pixels: red and green above blue and white. Its boxes and its EXIF turn it to the right.
HEIC = base64.b85decode(
    "0000SW^{RQXk}?*00000ZE0pPXk}?*ZE0a<0004@ZDn*}000000000XXk=`10000000000aA{+700000000000000000000G-+&aV*mgE07O6l"
    "0ssL300001#Q*^S00000002t>0ssI200IyI0RR9100000Bme*aIB98aW&i*H00062000$fZf0cy000000RRAKc4ILB0000LX>Mj^0ssI300IC2"
    "MR;ju000004sdC7Z2$lO00031007`=aB^?}006*gaAR)(004Msc4I>U18@KU0FVFx0000U@BsY%`1k+-4+CHT0RR|40Sp2E{{wIU00RJ!00093"
    "00RIXx&lC90096iLID8-Z~y=U0FVFx0{{R603M(aAVFoil1givfQEwt00093G5`Pr00IzV00968L;=Baup&SJ000wXZ)|dIV{CW;0RRmE27mwn"
    "02FC+aAg1h000000Du4h06+i$01$9#cxeCt0009B2nYZG010VwZ*&6y000<iaBX1#00000000310R@2q0|bQt000_ka%E-!00000000hSWOHKx"
    "0ssL30RR91cWq>0bN~PVM<@ZW6M*KZaMS<(CX|2uI_HP!<<iiWfBn;Y3;f)nfAQlrbN}?F)WEEMImzGN#=rdO`rHIyf8=)Q|C$Fd=Zqua{-*D6"
    "00006MR;ju002!*04e|g00;m90TKWM0000100sa600000"
)


@ORDERS
def test_the_orientation_of_an_avif_is_its_files_own(order: str) -> None:
    data = encoded_avif(noise(), Metadata(exif=exif_block(order, 6), xmp=PACKET))
    found = transfer.read(data, "avif")
    assert found.exif == exif.without_orientation(exif_block(order, 6))
    assert 0x112 not in loaded(found.exif)
    assert found.xmp == PACKET
    assert loaded(found.exif).get_ifd(ExifTags.IFD.Exif)[0x927C] == MAKER_NOTE
    assert exif.without_orientation(b"II*\0 damaged") == b"II*\0 damaged"


def heic(items: list[tuple[bytes, bytes]], profile: bytes = b"") -> bytes:
    """Return the boxes of a HEIC with metadata, but without an image that could be decoded."""

    def box(kind: bytes, *parts: bytes) -> bytes:
        body = b"".join(parts)
        return struct.pack(">I4s", 8 + len(body), kind) + body

    def full(kind: bytes, *parts: bytes, version: int = 0, flags: int = 0) -> bytes:
        return box(kind, bytes([version]) + flags.to_bytes(3), *parts)

    contents = [b"\0\0\0\0", *(content for _, content in items)]
    kinds = [b"hvc1\0", *(kind for kind, _ in items)]
    configuration = bytes([1, 1, 0x60, 0, 0, 0, 0x90, 0, 0, 0, 0, 0, 90, 0xF0, 0, 0xFC, 0xFD, 0xF8, 0xF8, 0, 0, 15, 0])
    properties = [full(b"ispe", struct.pack(">II", 64, 64)), box(b"hvcC", configuration)]
    if profile:
        properties.append(box(b"colr", b"prof", profile))
    association = struct.pack(">IHB", 1, 1, len(properties)) + bytes(range(1, len(properties) + 1))
    start, head = 0, b""
    for _ in range(2):
        places = b""
        at = start
        for number, content in enumerate(contents, 1):
            places += struct.pack(">HHHII", number, 0, 1, at, len(content))
            at += len(content)
        entries = [
            full(b"infe", struct.pack(">HH", number, 0) + kind, version=2) for number, kind in enumerate(kinds, 1)
        ]
        references = [box(b"cdsc", struct.pack(">HHH", number, 1, 1)) for number in range(2, len(contents) + 1)]
        meta = full(
            b"meta",
            full(b"hdlr", bytes(4), b"pict", bytes(13)),
            full(b"pitm", struct.pack(">H", 1)),
            full(b"iloc", b"\x44\0", struct.pack(">H", len(contents)), places),
            full(b"iinf", struct.pack(">H", len(contents)), *entries),
            full(b"iref", *references),
            box(b"iprp", box(b"ipco", *properties), full(b"ipma", association)),
        )
        head = box(b"ftyp", b"heic", bytes(4), b"mif1heic") + meta
        start = len(head) + 8
    return head + box(b"mdat", *contents)


@ORDERS
@pytest.mark.parametrize("target", ["jpeg", "png", "tiff", "avif"])
def test_a_heic(order: str, target: Format) -> None:
    block = struct.pack(">I", 6) + b"Exif\0\0" + exif_block(order)
    data = heic([(b"Exif\0", block), (b"mime\0application/rdf+xml\0", PACKET)], b"profile" * 20)
    found = transfer.read(data, "heic")
    assert (found.exif, found.xmp, found.icc) == (exif_block(order), PACKET, b"profile" * 20)
    tags = opened(written(noise(), target, answer(found))).getexif()
    assert (tags[0x10E], tags.get(0x112, 1)) == (CAPTION, 1)


def quadrants(array: np.ndarray) -> str:
    """Return the initials of the colours of the quadrants, from the upper left."""
    height, width = array.shape[:2]
    names = {(True, False, False): "R", (False, True, False): "G", (False, False, True): "B", (True, True, True): "W"}
    places = [(y, x) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]
    return "".join(names[tuple(bool(level > 128) for level in array[place][:3])] for place in places)


def test_a_heic_is_upright_already() -> None:
    picture = heif_reader.decode(heif_still.extract_still(HEIC, LIMITS).data)
    assert (picture.size, picture.mode) == ((64, 128), "RGB")
    assert quadrants(np.asarray(picture)) == "BRWG"
    assert loaded(transfer.read(HEIC, "heic").exif)[0x112] == 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_avif_is_turned_by_what_pillow_makes_of_its_exif(orientation: int) -> None:
    array = np.zeros((64, 128, 3), np.uint8)
    array[:32, :64], array[:32, 64:], array[32:, :64], array[32:, 64:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), 255
    upright = ImageOps.exif_transpose(Image.fromarray(array))
    stored = io.BytesIO()
    tags = Image.Exif()
    tags[0x112] = orientation
    Image.fromarray(array).save(stored, "AVIF", exif=tags.tobytes(), quality=90)
    image = opened(stored.getvalue())
    assert quadrants(np.asarray(image)) == quadrants(np.asarray(upright)) == "RGBW"
    assert image.getexif().get(0x112, 1) == orientation


HEIF_SEEDS = [
    HEIC,
    heic([(b"Exif\0", bytes(4) + exif_block()), (b"mime\0application/rdf+xml\0", PACKET)], b"profile"),
    encoded_avif(noise(size=(8, 9)), FULL),
]


SMALL = noise(size=(8, 9))


# Pillow warns of values that lie outside a damaged block. They are kept unchanged.
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=200, deadline=2000, suppress_health_check=[HealthCheck.too_slow])
@given(
    data=st.sampled_from(HEIF_SEEDS),
    changes=st.lists(st.tuples(st.integers(0, 2**16), st.binary(max_size=8)), max_size=8),
    removed=st.integers(0, 3),
)
def test_no_mutation_of_a_heif_makes_it_raise(data: bytes, changes: list[tuple[int, bytes]], removed: int) -> None:
    for place, new in changes:
        start = place % (len(data) + 1)
        data = data[:start] + new + data[start + len(new) + removed :]
    found = answer(transfer.read(data, "heic"))
    for target in ("jpeg", "tiff"):
        opened(written(SMALL, target, found))
    try:
        assert decoding.decode(identification.identify(data, LIMITS)).luma.size
    except Problem:
        return
