"""What an answer must no longer say: how the upload was stored, and what was in its file beside the picture."""

import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.formats import containers
from service.formats.geometry import Transform
from service.formats.registry import Format
from service.imaging import encoding
from service.imaging.photo import Pixels
from service.inference.registry import ModelRegistry
from service.metadata import exif, iptc, transfer, xmp
from service.metadata.reader import IMAGEMAGICK_COPIES
from service.metadata.transfer import Comment, Metadata
from service.pipeline.colorizer import Colorizer
from service.pipeline.options import Options
from service.settings import Settings
from tests.conftest import encoded
from tests.samples.packets import every, full_name, names, packet
from tests.unit.metadata.test_transfer import IIM, directory, resource

ORDERS = pytest.mark.parametrize("order", ["<", ">"])
SAME = Transform(47, 33)
PROFILE = b"a profile that says how gray a gray is" * 20


def corrected(data: bytes, transform: Transform = SAME) -> bytes:
    changed = xmp.corrected(data, transform, "compact", "1")
    assert changed is not None
    return changed


def structure(name: str, fields: str) -> str:
    return f'<{name} rdf:parseType="Resource">{fields}</{name}>'


def item(semantic: str, mime: str, length: int) -> str:
    fields = f'Item:Semantic="{semantic}" Item:Mime="{mime}" Item:Length="{length}"'
    return f'<rdf:li rdf:parseType="Resource"><Container:Item {fields}/></rdf:li>'


MOTION = 'GCamera:MotionPhoto="1" GCamera:MotionPhotoVersion="1" GCamera:MotionPhotoPresentationTimestampUs="0" '
MICRO = 'GCamera:MicroVideo="1" GCamera:MicroVideoVersion="1" GCamera:MicroVideoOffset="5024" '
ITEMS = item("Primary", "image/jpeg", 0) + item("GainMap", "image/jpeg", 900) + item("MotionPhoto", "video/mp4", 5024)
GONE = {
    "a motion photo": packet(attributes=MOTION),
    "an older motion photo": packet(attributes=MICRO),
    "a motion photo in elements": packet(
        "<GCamera:MotionPhoto>1</GCamera:MotionPhoto>", "<GCamera:MicroVideoOffset>5024</GCamera:MicroVideoOffset>"
    ),
    "its items": packet(f"<Container:Directory><rdf:Seq>{ITEMS}</rdf:Seq></Container:Directory>"),
    "OPPO's": packet(attributes='OpCamera:OLivePhotoVersion="2" OpCamera:VideoLength="5024"'),
    "vivo's": packet(attributes='VCamera:VMotionPhotoVersion="1" VCamera:VMediaKitVersion="1.0.0.5"'),
    "Xiaomi's": packet(attributes='MiCamera:XMPMeta="&lt;subimage offset=&apos;5024&apos;/&gt;"'),
    "a namespace that nobody knows": packet(attributes='q:MotionPhoto="1" q:MicroVideoOffset="2" q:LivePhoto="1"'),
    "a depth map": packet(attributes='GDepth:Format="RangeInverse" GDepth:Near="1.5" GDepth:Data="AAAA"'),
    "the picture for it": packet(attributes='GImage:Mime="image/jpeg"', prefixes={"GImage": "i"}),
    "its focus": packet("<GFocus:BlurAtInfinity>0.02</GFocus:BlurAtInfinity>"),
    "a sound": packet(attributes='GAudio:Mime="audio/mp4a-latm" GAudio:Data="AAAA"'),
    "dynamic depth": packet("<Device:Profiles><rdf:Seq><rdf:li/></rdf:Seq></Device:Profiles>"),
    "a spatial pair": packet(attributes='LImage:Mime="image/jpeg"'),
    "a gain map": packet(attributes='hdrgm:Version="1.0" hdrgm:GainMapMax="3.5"'),
    "a gain map in elements": packet("<hdrgm:GainMapMax><rdf:Seq><rdf:li>3</rdf:li></rdf:Seq></hdrgm:GainMapMax>"),
    "Apple's gain map": packet("<HDRGainMap:HDRGainMapVersion>131072</HDRGainMap:HDRGainMapVersion>"),
    "Apple's other pictures": packet(attributes='apdi:AuxiliaryImageType="urn:com:apple:photo:2020:aux:hdrgainmap"'),
    "a second part": packet(attributes='xmpNote:HasExtendedXMP="0123"'),
    "thumbnails": packet(
        "<xmp:Thumbnails><rdf:Alt>"
        + structure("rdf:li", "<xmpGImg:image>AAAA</xmpGImg:image>")
        + "</rdf:Alt></xmp:Thumbnails>"
    ),
    "a gray mode": packet(attributes='photoshop:ColorMode="1" photoshop:ICCProfile="Dot Gain 20%"'),
    "a digest": packet(attributes='photoshop:LegacyIPTCDigest="0" tiff:NativeDigest="1" exif:NativeDigest="2"'),
    "samples": packet(
        "<tiff:BitsPerSample><rdf:Seq><rdf:li>16</rdf:li></rdf:Seq></tiff:BitsPerSample>",
        attributes='tiff:SamplesPerPixel="1" tiff:PhotometricInterpretation="1" tiff:Compression="1" '
        'tiff:PlanarConfiguration="1" tiff:YCbCrPositioning="1" exif:CompressedBitsPerPixel="4/1"',
    ),
    "primaries": packet(
        "<tiff:WhitePoint><rdf:Seq><rdf:li>1/3</rdf:li></rdf:Seq></tiff:WhitePoint>",
        "<tiff:PrimaryChromaticities><rdf:Seq/></tiff:PrimaryChromaticities><tiff:TransferFunction/>",
        attributes='exif:Gamma="22/10" exifEX:Gamma="22/10" exifEX:InteroperabilityIndex="R03"',
    ),
    "a converter's settings": packet(
        "<crs:ToneCurve/>", attributes='crs:HasCrop="True" crs:CropTop="0.1" crs:ConvertToGrayscale="True"'
    ),
    "the name of the file": packet(attributes='xmpMM:InstanceID="xmp.iid:1"'),
    "the format": packet("<dc:format>image/tiff</dc:format>"),
}


@pytest.mark.parametrize("kind", GONE)
@pytest.mark.parametrize("model", ["compact", None])
def test_what_is_not_in_the_answer_is_not_in_its_xmp(kind: str, model: str | None) -> None:
    before = set(names(GONE[kind])) - {full_name(name) for name in ("rdf:about", "rdf:Description", "rdf:RDF")}
    changed = xmp.corrected(GONE[kind], SAME, model, "1")
    assert len(before) > 1
    assert set(names(changed)) & before <= {"{adobe:ns:meta/}xmpmeta"}


KEPT = (
    'xmpMM:DocumentID="xmp.did:1" xmp:Rating="5" xmp:CreatorTool="a scanner" photoshop:City="Müritz" '
    'photoshop:DateCreated="1931-05-04" exif:DateTimeOriginal="1931-05-04" tiff:Make="Leica" q:MotionOf="hands"'
)


def test_what_stays_true_stays() -> None:
    changed = corrected(packet("<dc:title><rdf:Alt><rdf:li>Lake</rdf:li></rdf:Alt></dc:title>", attributes=KEPT))
    for each in KEPT.replace("Müritz", "M").split('" ')[:3]:
        assert each.encode() in changed
    assert set(names(packet("<dc:title/>", attributes=KEPT))) <= set(names(changed))


def test_a_value_with_a_qualifier_is_left_out() -> None:
    value = structure("tiff:Orientation", "<rdf:value>6</rdf:value><q:by>a person</q:by>")
    assert not every(corrected(packet(value, "<exif:ColorSpace/>")), "tiff:Orientation")


def test_descriptions_of_other_forms_are_looked_at() -> None:
    typed = (
        f'<r:RDF xmlns:r="{xmp.RDF_URI}"><p:Photo xmlns:p="urn:p" xmlns:t="{xmp.TIFF_URI}" t:Orientation="6"/></r:RDF>'
    )
    again = f'<x><r:RDF xmlns:r="{xmp.RDF_URI}"></r:RDF>{typed}</x>'
    for text in (typed, again):
        assert every(corrected(text.encode()), "tiff:Orientation") == ["1"]


def test_a_name_in_two_parts_is_not_taken_for_another() -> None:
    text = f'<r:RDF xmlns:r="{xmp.RDF_URI}"><r:Description xmlns:a="{xmp.TIFF_URI} Orientation" a:b="6"/></r:RDF>'
    assert b'a:b="6"' in corrected(text.encode())


@ORDERS
def test_what_exif_says_of_storage_is_gone(order: str) -> None:
    def short(*values: int) -> bytes:
        return struct.pack(f"{order}{len(values)}H", *values)

    caption = b"My grandmother\0"
    first = [
        (0x100, 3, 1, short(4000)),
        (0x101, 3, 1, short(3000)),
        (0x102, 3, 3, short(16, 16, 16)),
        (0x103, 3, 1, short(1)),
        (0x106, 3, 1, short(1)),
        (0x10E, 2, len(caption), caption),
        (0x111, 4, 1, struct.pack(order + "I", 9)),
        (0x115, 3, 1, short(1)),
        (0x116, 3, 1, short(3000)),
        (0x117, 4, 1, struct.pack(order + "I", 9)),
        (0x11C, 3, 1, short(1)),
        (0x12D, 3, 4, short(1, 2, 3, 4)),
        (0x13E, 5, 1, struct.pack(order + "II", 1, 3)),
        (0x13F, 5, 1, struct.pack(order + "II", 1, 3)),
        (0x140, 3, 4, short(1, 2, 3, 4)),
        (0x14A, 4, 1, struct.pack(order + "I", 8)),
        (0x152, 3, 1, short(0)),
        (0x212, 3, 2, short(2, 2)),
        (0x213, 3, 1, short(2)),
        (0x214, 5, 1, struct.pack(order + "II", 1, 3)),
        (0x2BC, 1, 8, b"<x:xmpme"),
        (0x83BB, 4, 2, b"\x1c\2\x78\0\3cap"),
        (0x8649, 1, 8, b"8BIM\4\4\0\0"),
        (0x8769, 4, 1, bytes(4)),
        (0x8773, 7, len(PROFILE), PROFILE),
        (0xC612, 1, 4, b"\1\4\0\0"),
        (0xC68F, 7, len(PROFILE), PROFILE),
    ]
    at = 8 + len(directory(order, 8, first))
    first[-4] = (0x8769, 4, 1, struct.pack(order + "I", at))
    taken = b"1931:05:04 10:00:00\0"
    details = [
        (0x102, 3, 1, short(16)),
        (0x8773, 7, len(PROFILE), PROFILE),
        (0x8897, 1, 1, b"\1"),
        (0x9003, 2, len(taken), taken),
        (0x9101, 7, 4, b"\1\0\0\0"),
        (0x9102, 5, 1, struct.pack(order + "II", 4, 1)),
        (0x9286, 7, 21, b"ASCII\0\0\0oplus_8388608"),
        (0xA001, 3, 1, short(2)),
        (0xA500, 5, 1, struct.pack(order + "II", 22, 10)),
    ]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    block = head + directory(order, 8, first) + directory(order, at, details)
    changed = exif.corrected(block, SAME)
    assert changed is not None
    tags = Image.Exif()
    tags.load(changed)
    assert dict(tags) == {0x100: 47, 0x101: 33, 0x10E: "My grandmother", 0x8769: at}
    assert tags.get_ifd(0x8769) == {0x9003: "1931:05:04 10:00:00", 0xA001: 1}
    # Nor are its bytes there.
    for gone in (PROFILE, b"oplus", b"<x:xmp", b"8BIM"):
        assert gone not in changed
    assert changed.index(taken) == block.index(taken)


@ORDERS
@pytest.mark.parametrize("index", [b"R03\0", b"R98\0", b"THM\0"])
def test_what_interoperability_says_of_colours(order: str, index: bytes) -> None:
    first = [(0x8769, 4, 1, struct.pack(order + "I", 26))]
    details = [(0xA005, 4, 1, struct.pack(order + "I", 44))]
    interop = [(1, 2, 4, index), (0x1001, 3, 1, struct.pack(order + "H", 4000)), (0x1002, 4, 1, bytes(4))]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    block = head + directory(order, 8, first) + directory(order, 26, details) + directory(order, 44, interop)
    changed = exif.corrected(block, SAME)
    assert changed is not None
    tags = Image.Exif()
    tags.load(changed)
    found = tags.get_ifd(0xA005)
    assert found[1] == ("R98" if index == b"R03\0" else index[:3].decode())
    assert (found[0x1001], found[0x1002]) == (47, 33)


def ascii_value(block: bytes, tag: int) -> bytes:
    """The bytes that a block counts to a value."""
    (at,) = struct.unpack_from("<I", block, 4)
    (count,) = struct.unpack_from("<H", block, at)
    entries = (struct.unpack_from("<HHII", block, at + 2 + 12 * number) for number in range(count))
    size, place = next((size, place) for found, _, size, place in entries if found == tag)
    return block[place : place + size]


@pytest.mark.parametrize("software", ["tomau", "tomau!", "tomau, synthetic colours by compact 1", "a", "abc"])
def test_software_ends_in_one_nul(software: str) -> None:
    block = exif.with_software(None, software)
    tags = Image.Exif()
    tags.load(block)
    assert tags[0x131] == software
    if len(software) > 3:
        assert ascii_value(block, 0x131) == software.encode() + b"\0"
    other = Image.Exif()
    other[0x10E] = "odd"
    block = exif.with_software(other.tobytes()[6:], software)
    tags.load(block)
    assert (tags[0x131], tags[0x10E]) == (software, "odd")


@pytest.mark.parametrize("text", ["Müritz", "Müritz\0", "oddly\0\0", "evenly"])
def test_the_description_of_a_tiff_ends_in_one_nul(text: str) -> None:
    plain = encoding.encode_pixels(Pixels(np.zeros((8, 9, 3), np.uint8), None), "tiff", 90)
    data = transfer.write(plain, "tiff", Metadata(comments=(Comment("Comment", text),)))
    assert ascii_value(data, 0x10E) == text.rstrip("\0").encode() + b"\0"


@ORDERS
def test_what_is_kept_among_what_is_gone_is_not_wiped(order: str) -> None:
    # A profile and a caption that lie over one another.
    shared = b"shared by both" * 5
    first = [(0x10E, 2, len(shared), shared), (0x8773, 7, 4, bytes(4))]
    block = bytearray(
        (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8) + directory(order, 8, first)
    )
    start = block.index(shared)
    struct.pack_into(order + "HHII", block, 22, 0x8773, 7, len(shared) - 10, start + 10)
    changed = exif.corrected(bytes(block), SAME)
    assert changed is not None
    tags = Image.Exif()
    tags.load(changed)
    assert dict(tags) == {0x10E: shared.decode()}


def dataset(record: int, number: int, value: bytes) -> bytes:
    return struct.pack(">BBBH", 0x1C, record, number, len(value)) + value


def test_what_iptc_says_of_gray() -> None:
    newsphoto = dataset(3, 20, b"\x0f\xa0") + dataset(3, 135, b"\x10")
    iim = dataset(2, 5, b"A title") + dataset(2, 130, b"1W") + IIM + newsphoto
    digest = resource(0x0425, hashlib.md5(iim, usedforsecurity=False).digest())
    changed = iptc.corrected(resource(0x0404, iim) + digest, SAME)
    # The digest goes with what it was made of.
    assert changed == resource(0x0404, dataset(2, 5, b"A title") + IIM)
    for other in (dataset(2, 130, b"3T"), dataset(2, 5, b"no gray")):
        whole = resource(0x0404, other + IIM) + digest
        assert iptc.corrected(whole, SAME) == whole


@pytest.mark.parametrize("end", range(12))
def test_iptc_that_is_cut_short_stays(end: int) -> None:
    whole = dataset(2, 130, b"3T") + dataset(2, 130, b"1W")
    cut = whole[: len(whole) - end]
    changed = iptc.corrected(resource(0x0404, cut), SAME)
    assert changed == resource(0x0404, cut if end else dataset(2, 130, b"3T"))


def test_photoshops_resources() -> None:
    true = [1028, 1034, 1035, 1054, 1061, 4000, 7000]
    places = [1005, 1025, 1064, 2000, 2998, 2999]
    stale = [1006, 1011, 1012, 1013, 1015, 1016, 1032, 1033, 1036, 1039, 1041, 1045, 1053, 1058, 1059, 1060, 1077]
    data = b"".join(resource(number, b"x") for number in sorted(true + places + stale))
    kept = iptc.without_stale(data)
    assert kept == b"".join(resource(number, b"x") for number in sorted(true + places))
    assert iptc.corrected(kept, SAME) == kept
    turned = iptc.corrected(kept, Transform(33, 47, orientation=6))
    assert turned == b"".join(resource(number, b"x") for number in true)


@pytest.mark.parametrize(
    ("keyword", "is_copy"),
    [
        ("exif:Orientation", True),
        ("exif:PixelXDimension", True),
        ("exif:DateTimeOriginal", False),
        ("icc:description", True),
        ("jpeg:sampling-factor", True),
        ("tiff:photometric", True),
        ("png:IHDR.bit_depth", True),
        ("Thumb::Image::Width", True),
        ("Title", False),
        ("date:create", False),
    ],
)
def test_copies_in_the_texts_of_a_png(keyword: str, is_copy: bool) -> None:
    assert bool(IMAGEMAGICK_COPIES.match(keyword)) == is_copy
    data = containers.png_with_chunks(
        encoded(np.zeros((4, 4), np.uint8), "PNG"), [(b"tEXt", keyword.encode() + b"\0text")]
    )
    assert transfer.read(data, "png").comments == (() if is_copy else (Comment(keyword, "text"),))


@pytest.fixture(scope="module")
def colorizer(models: Path) -> Colorizer:
    settings = Settings(models=models, device="cpu")
    return Colorizer(ModelRegistry(settings), settings)


LIES = packet(
    "<tiff:BitsPerSample><rdf:Seq><rdf:li>16</rdf:li></rdf:Seq></tiff:BitsPerSample>",
    attributes=MOTION + 'photoshop:ColorMode="1" dc:format="image/png" photoshop:LegacyIPTCDigest="0" xmp:Rating="5"',
)


@pytest.mark.parametrize("format_", ["jpeg", "png", "webp", "tiff", "avif"])
@pytest.mark.parametrize("source", ["JPEG", "PNG", "TIFF"])
def test_no_answer_says_what_its_upload_was(
    colorizer: Colorizer, gray: np.ndarray, source: str, format_: Format
) -> None:
    block = Image.Exif()
    block[0x102], block[0x103], block[0x106], block[0x115] = 16, 1, 1, 1
    block[0x8773], block[0x10E] = PROFILE, "Grandma"
    photo, buffer = Image.fromarray(gray[:64, :80]), io.BytesIO()
    if source == "TIFF":
        photo.save(buffer, source, tiffinfo={0x2BC: LIES, 0x10E: "Grandma"})
    elif source == "JPEG":
        photo.save(buffer, source, exif=block, xmp=LIES)
    else:
        photo.save(buffer, source, exif=block)
        text = (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + LIES)
        buffer = io.BytesIO(containers.png_with_chunks(buffer.getvalue(), [text]))
    answer = colorizer.colorize(buffer.getvalue(), Options(format=format_)).data
    said = transfer.read(answer, format_)
    assert said.xmp is not None
    assert every(said.xmp, "xmp:Rating") == ["5"]
    for name in ("photoshop:ColorMode", "tiff:BitsPerSample", "GCamera:MotionPhoto", "dc:format"):
        assert not every(said.xmp, name)
    assert PROFILE not in answer
    tags = Image.open(io.BytesIO(answer)).getexif()
    assert tags[0x10E] == "Grandma"
    if format_ != "tiff":
        assert not {0x102, 0x103, 0x106, 0x115, 0x8773} & set(tags)


def test_a_kept_photo_is_the_same_to_the_byte_and_a_changed_one_tells_no_lies(
    colorizer: Colorizer, astronaut: np.ndarray
) -> None:
    data = encoded(astronaut, "JPEG", xmp=LIES)
    assert colorizer.colorize(data, Options(if_color="keep")).data == data
    smaller = colorizer.colorize(data, Options(if_color="keep", max_side=60)).data
    assert b"MotionPhoto" not in smaller
    assert b'xmp:Rating="5"' in smaller


def test_a_chunk_beside_the_pixels_that_is_compressed_is_read() -> None:
    text = (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(LIES))
    data = containers.png_with_chunks(encoded(np.zeros((4, 4), np.uint8), "PNG"), [text])
    assert transfer.read(data, "png").xmp == LIES


@pytest.mark.parametrize("numbers", [(0, 1), (1, 0), (2, 2), (5, 9), (1, 1), (255, 255)])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_a_profile_in_oddly_numbered_segments_is_read_if_it_is_whole(numbers: tuple[int, int], count: int) -> None:
    icc = bytearray(b"a profile".ljust(36, b".") + b"acsp" + bytes(range(200)))
    icc[:4] = len(icc).to_bytes(4)
    # Those whose numbers tell an order are in that order.
    parts = [icc[:100], icc[100:]] if numbers[0] <= numbers[1] else [icc[100:], icc[:100]]
    bodies = [b"ICC_PROFILE\0" + bytes([n, count]) + part for n, part in zip(numbers, parts, strict=True)]
    data = encoded(np.zeros((8, 8), np.uint8), "JPEG")
    found = transfer.read(containers.jpeg_with_segments(data, [(0xE2, body) for body in bodies]), "jpeg")
    assert found.icc == bytes(icc)
    missing = transfer.read(containers.jpeg_with_segments(data, [(0xE2, bodies[0])]), "jpeg")
    assert missing.icc is None or numbers[0] == count == 1
