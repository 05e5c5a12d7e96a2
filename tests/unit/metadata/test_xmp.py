"""Tests of correcting XMP packets and of the note in them."""

import time
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.formats.geometry import Transform
from service.metadata import transfer, xmp
from service.metadata.transfer import Metadata
from tests.samples.metadata import FULL, MOTION, NAMESPACES, PACKET, SAME, answer, image_of, tree, values
from tests.samples.packets import every, full_name, names, packet


def test_a_packet_keeps_all_but_what_no_longer_holds() -> None:
    packet = answer(FULL).xmp
    assert packet is not None
    assert values(packet, "tiff:Orientation") == ["1"]
    assert values(packet, "exif:ColorSpace") == ["1"]
    assert values(packet, "exif:PixelXDimension") == ["47"]
    assert values(packet, "xmp:Thumbnails") == []
    assert values(packet, "xmp:CreatorTool") == ["a > b"]
    assert b"HasExtendedXMP" not in packet
    about = {d.attrib[f"{{{xmp.RDF_URI}}}about"] for d in tree(packet).findall("rdf:RDF/rdf:Description", NAMESPACES)}
    assert about == {'uuid:1931 & "more"'}
    # Everything else is unchanged, byte for byte.
    before, after = PACKET.splitlines(), packet.splitlines()
    assert len([line for line in before if line not in after]) == 4


def test_the_note_is_there_once_after_two_passes(pixels: np.ndarray) -> None:
    kept = FULL
    for model, format_ in (("first", "jpeg"), ("second", "png"), ("third", "webp"), ("fourth", "jpeg")):
        data = transfer.write(image_of(pixels, format_), format_, answer(kept, model=model))  # type: ignore[arg-type]
        kept = transfer.read(data, format_)  # type: ignore[arg-type]
    assert kept.xmp is not None
    assert values(kept.xmp, "ext:DigitalSourceType") == [xmp.SYNTHETIC_COLORS]
    assert values(kept.xmp, "ext:AISystemUsed") == ["tomau, model fourth"]
    assert kept.exif == answer(FULL).exif


@pytest.mark.parametrize("is_attribute", [False, True])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (xmp.SOURCE_TYPES + "negativeFilm", xmp.SYNTHETIC_COLORS),
        (xmp.SYNTHETIC_COLORS, xmp.SYNTHETIC_COLORS),
        (xmp.SYNTHETIC, xmp.SYNTHETIC),
    ],
)
def test_a_source_type_that_was_there(before: str, after: str, is_attribute: bool) -> None:
    note = f' q:DigitalSourceType="{before}"/>'
    if not is_attribute:
        note = f"><q:DigitalSourceType>{before}</q:DigitalSourceType></r:Description>"
    text = f'<r:RDF xmlns:r="{xmp.RDF_URI}"><r:Description xmlns:q="{xmp.IPTC_URI}"{note}</r:RDF>'
    packet = xmp.corrected(f'<x xmlns="adobe:ns:meta/">{text}</x>'.encode(), Transform(1, 1), "compact", "1")
    assert packet is not None
    assert values(packet, "ext:DigitalSourceType") == [after]


def test_properties_of_other_pictures_inside_a_packet_stay() -> None:
    inner = b'<q:Of xmlns:q="urn:q"><rdf:Description tiff:Orientation="8"/></q:Of>'
    packet = xmp.corrected(
        PACKET.replace(b"<dc:description>", inner + b"<dc:description>"), Transform(1, 1), "compact", "1"
    )
    assert packet is not None
    assert inner in packet


@pytest.mark.parametrize(
    "packet",
    [
        b"not XML",
        b"<x",
        PACKET[:700],
        PACKET.replace(b"</dc:description>", b""),
        PACKET.decode().encode("utf-16"),
        b'<!DOCTYPE x [<!ENTITY a "aaaa">]>' + PACKET[PACKET.index(b"<x:") :],
        b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]><x>&a;</x>',
        b"<x/>",
        f'<rdf:RDF xmlns:rdf="{xmp.RDF_URI}"/>'.encode(),
        b"<a>" * 500_000,
        f'<r:RDF xmlns:r="{xmp.RDF_URI}">'.encode() + b"<a/>" * 200_000 + b"</r:RDF>",
    ],
    ids=range(11),
)
def test_a_packet_that_can_not_be_read_gives_way_to_a_fresh_one(packet: bytes) -> None:
    started = time.thread_time()
    assert answer(Metadata(xmp=packet)).xmp == xmp.new_packet("compact", "1")
    assert answer(Metadata(xmp=packet), model=None).xmp is None
    assert time.thread_time() - started < 2


def test_names_that_need_escaping() -> None:
    packet = xmp.new_packet('<a & "b">\x00\ud800', "]]>")
    assert values(packet, "ext:AISystemUsed") == ['tomau, model <a & "b">']
    assert values(packet, "ext:AISystemVersionUsed") == ["]]>"]


@settings(max_examples=200, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 2**16), st.binary(max_size=4), st.integers(0, 4)), max_size=3))
def test_a_packet_is_well_formed_whatever_came(changes: list[tuple[int, bytes, int]]) -> None:
    packet = PACKET
    for place, new, removed in changes:
        start = place % (len(packet) + 1)
        packet = packet[:start] + new + packet[start + removed :]
    found = answer(Metadata(xmp=packet)).xmp
    assert found is not None
    assert xmp.SYNTHETIC_COLORS.encode() in found
    ET.fromstring(found)


def corrected_packet(data: bytes, transform: Transform = SAME) -> bytes:
    changed = xmp.corrected(data, transform, "compact", "1")
    assert changed is not None
    return changed


def structure(name: str, fields: str) -> str:
    return f'<{name} rdf:parseType="Resource">{fields}</{name}>'


def container_item(semantic: str, mime: str, length: int) -> str:
    fields = f'Item:Semantic="{semantic}" Item:Mime="{mime}" Item:Length="{length}"'
    return f'<rdf:li rdf:parseType="Resource"><Container:Item {fields}/></rdf:li>'


MICRO = 'GCamera:MicroVideo="1" GCamera:MicroVideoVersion="1" GCamera:MicroVideoOffset="5024" '
ITEMS = (
    container_item("Primary", "image/jpeg", 0)
    + container_item("GainMap", "image/jpeg", 900)
    + container_item("MotionPhoto", "video/mp4", 5024)
)


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
    changed = corrected_packet(packet("<dc:title><rdf:Alt><rdf:li>Lake</rdf:li></rdf:Alt></dc:title>", attributes=KEPT))
    for each in KEPT.replace("Müritz", "M").split('" ')[:3]:
        assert each.encode() in changed
    assert set(names(packet("<dc:title/>", attributes=KEPT))) <= set(names(changed))


def test_a_value_with_a_qualifier_is_left_out() -> None:
    value = structure("tiff:Orientation", "<rdf:value>6</rdf:value><q:by>a person</q:by>")
    assert not every(corrected_packet(packet(value, "<exif:ColorSpace/>")), "tiff:Orientation")


def test_descriptions_of_other_forms_are_looked_at() -> None:
    typed = (
        f'<r:RDF xmlns:r="{xmp.RDF_URI}"><p:Photo xmlns:p="urn:p" xmlns:t="{xmp.TIFF_URI}" t:Orientation="6"/></r:RDF>'
    )
    again = f'<x><r:RDF xmlns:r="{xmp.RDF_URI}"></r:RDF>{typed}</x>'
    for text in (typed, again):
        assert every(corrected_packet(text.encode()), "tiff:Orientation") == ["1"]


def test_a_name_in_two_parts_is_not_taken_for_another() -> None:
    text = f'<r:RDF xmlns:r="{xmp.RDF_URI}"><r:Description xmlns:a="{xmp.TIFF_URI} Orientation" a:b="6"/></r:RDF>'
    assert b'a:b="6"' in corrected_packet(text.encode())
