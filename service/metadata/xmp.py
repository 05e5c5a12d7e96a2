"""Correct an XMP packet so that it is true of the output, and add a note that its colours are synthetic.

The note has three properties of the IPTC Photo Metadata Standard 2025.1: `DigitalSourceType`, `AISystemUsed` and
`AISystemVersionUsed`. They are standard, so programs show them by name. When an output is coloured again, its note is
replaced. An entry in `xmpMM:History` would be added a second time.
"""

import re
from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

from service.formats.geometry import Transform
from service.metadata import xmp_packet, xmp_regions
from service.metadata.xmp_packet import RDF_URI, Edit, InvalidPacket, Name, Packet
from service.metadata.xmp_regions import EXIF_URI, IPTC_URI, PANORAMA_URI, TIFF_URI

XMP_URI = "http://ns.adobe.com/xap/1.0/"
PHOTOSHOP_URI = "http://ns.adobe.com/photoshop/1.0/"
EXIF_EX_URI = "http://cipa.jp/exif/1.0/"
SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
SYNTHETIC_COLORS = SOURCE_TYPES + "compositeWithTrainedAlgorithmicMedia"
# The type of a picture that was already synthetic before it was coloured.
SYNTHETIC = SOURCE_TYPES + "trainedAlgorithmicMedia"
NOTE: tuple[Name, ...] = tuple(
    (IPTC_URI, name) for name in ("DigitalSourceType", "AISystemUsed", "AISystemVersionUsed")
)
# Properties of the storage of pixels and colours in the upload, and digests of such properties.
STORAGE_PROPERTIES = {
    TIFF_URI: "BitsPerSample Compression PhotometricInterpretation SamplesPerPixel PlanarConfiguration NativeDigest"
    " YCbCrSubSampling YCbCrPositioning YCbCrCoefficients TransferFunction WhitePoint PrimaryChromaticities"
    " ReferenceBlackWhite",
    EXIF_URI: "ComponentsConfiguration CompressedBitsPerPixel Gamma NativeDigest",
    EXIF_EX_URI: "Gamma InteroperabilityIndex",
    PHOTOSHOP_URI: "ICCProfile ColorMode LegacyIPTCDigest",
}
DROPPED: frozenset[Name] = frozenset(
    {
        *((uri, name) for uri, names in STORAGE_PROPERTIES.items() for name in names.split()),
        # The format, thumbnails, the second part of a long packet, references to C2PA claims.
        ("http://purl.org/dc/elements/1.1/", "format"),
        *((XMP_URI, name) for name in ("Thumbnails", "PageInfo")),
        ("http://ns.adobe.com/xmp/note/", "HasExtendedXMP"),
        ("http://purl.org/dc/terms/", "provenance"),
        # It identifies one file, and the output is another. `DocumentID` is common to all versions of a picture.
        ("http://ns.adobe.com/xap/1.0/mm/", "InstanceID"),
    }
)
# Namespaces that describe parts of the upload that the output lacks: the video of a motion photo, a depth map, a gain
# map, the other picture of a spatial pair. Most makers of phones have a namespace like Google's. Settings of a raw
# converter are dropped too, because programs would apply them to the output, grayscale and crop among them.
DROPPED_URIS = re.compile(
    r"https?://ns\.(?:[^/]+/(?:photos|videos)/|(?:apple|samsung)\.com/|xdm\.org/"
    r"|adobe\.com/(?:hdr-|camera-raw-))"
)
# Exceptions that stay true of the output: the projection of a panorama, and how Google made a collage.
KEPT_URIS = (PANORAMA_URI, "http://ns.google.com/photos/1.0/creations/")
# Names of properties that are dropped in every namespace.
VIDEO = re.compile("V?MotionPhoto|MicroVideo|O?LivePhoto")
# Characters that XML 1.0 does not allow.
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def _description(about: str, values: Sequence[str]) -> bytes:
    """Return the note as an rdf:Description that declares its own prefixes. values: of the properties in NOTE."""
    properties = "".join(
        f"<Iptc4xmpExt:{name}>{escape(CONTROLS.sub('', value))}</Iptc4xmpExt:{name}>"
        for (_, name), value in zip(NOTE, values, strict=True)
        if value
    )
    return (
        f'<rdf:Description xmlns:rdf="{RDF_URI}" xmlns:Iptc4xmpExt="{IPTC_URI}" rdf:about={quoteattr(about)}>'
        f"{properties}</rdf:Description>\n"
    ).encode()


def _note_values(source_type: str, model: str, version: str) -> tuple[str, str, str]:
    return source_type, f"tomau, model {model}", version


def new_packet(model: str, version: str) -> bytes:
    """Return a packet that contains the note only."""
    return _packet(_note_values(SYNTHETIC_COLORS, model, version))


def synthetic_note(packet: bytes) -> bytes | None:
    """Return a packet that contains only the note of this one; None if it has no note of a synthetic picture."""
    try:
        found = xmp_packet.read(packet, NOTE.__contains__)
    except InvalidPacket:
        return None
    contents = {part.name: part.content for part in found.properties}
    values = [contents.get(name, "") for name in NOTE]
    return _packet(values) if values[0] in (SYNTHETIC, SYNTHETIC_COLORS) else None


def _packet(values: Sequence[str]) -> bytes:
    return (
        b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>\n<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        + f'<rdf:RDF xmlns:rdf="{RDF_URI}">\n'.encode()
        + _description("", values)
        + b'</rdf:RDF></x:xmpmeta>\n<?xpacket end="w"?>'
    )


def corrected(packet: bytes, transform: Transform, model: str | None, version: str | None) -> bytes | None:
    """Return the packet corrected for an upright sRGB output, with the note if there is a model.

    Returns None if the packet is not well-formed: XMP readers reject it, and its orientation can't be corrected.
    """
    changes = _changes(transform)
    try:
        found = xmp_packet.read(
            packet, lambda name: name in changes or _is_dropped(name) or name in NOTE or xmp_regions.is_positional(name)
        )
    except InvalidPacket:
        return None
    edits = [part.replaced(changes[part.name]) for part in found.properties if part.name in changes]
    edits += [part.removed() for part in found.properties if _is_dropped(part.name)]
    edits += xmp_regions.edits(found.properties, transform)
    if model is not None:
        edits += _note_edits(found, model, version or "")
    return xmp_packet.edited(found, edits)


def _changes(transform: Transform) -> dict[Name, str]:
    """Return the properties that are set if they are present, with their values for the output."""
    width, height = str(transform.width), str(transform.height)
    return {
        (TIFF_URI, "Orientation"): "1",
        (TIFF_URI, "ImageWidth"): width,
        (TIFF_URI, "ImageLength"): height,
        (EXIF_URI, "PixelXDimension"): width,
        (EXIF_URI, "PixelYDimension"): height,
        (EXIF_URI, "ColorSpace"): "1",
    }


def _is_dropped(name: Name) -> bool:
    uri, local = name
    is_dropped_uri = DROPPED_URIS.match(uri) is not None and uri not in KEPT_URIS
    return is_dropped_uri or name in DROPPED or VIDEO.match(local) is not None


def _note_edits(found: Packet, model: str, version: str) -> list[Edit]:
    """Return the edits that add the note and remove the one that the packet has."""
    old = [part for part in found.properties if part.name in NOTE]
    was_synthetic = any(part.name == NOTE[0] and part.content == SYNTHETIC for part in old)
    note = _description(found.about, _note_values(SYNTHETIC if was_synthetic else SYNTHETIC_COLORS, model, version))
    return [*(part.removed() for part in old), (found.end, found.end, note)]


def without_padding(packet: bytes) -> bytes:
    """Return the packet without the padding that is meant for editing in place."""
    end = packet.rfind(b"<?xpacket end")
    return packet if end < 0 else packet[:end].rstrip() + b"\n" + packet[end:]
