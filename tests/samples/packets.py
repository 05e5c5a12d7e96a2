"""XMP packets as programs write them, for tests."""

from collections.abc import Iterator
from xml.etree import ElementTree as ET

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
URIS = {
    "rdf": RDF,
    "acdsee-rs": "http://ns.acdsee.com/regions/",
    "apdi": "http://ns.apple.com/pixeldatainfo/1.0/",
    "apple-fi": "http://ns.apple.com/faceinfo/1.0/",
    "Container": "http://ns.google.com/photos/1.0/container/",
    "crs": "http://ns.adobe.com/camera-raw-settings/1.0/",
    "dc": "http://purl.org/dc/elements/1.1/",
    "Device": "http://ns.google.com/photos/dd/1.0/device/",
    "exif": "http://ns.adobe.com/exif/1.0/",
    "exifEX": "http://cipa.jp/exif/1.0/",
    "GAudio": "http://ns.google.com/photos/1.0/audio/",
    "GCamera": "http://ns.google.com/photos/1.0/camera/",
    "GDepth": "http://ns.google.com/photos/1.0/depthmap/",
    "GFocus": "http://ns.google.com/photos/1.0/focus/",
    "GImage": "http://ns.google.com/photos/1.0/image/",
    "GPano": "http://ns.google.com/photos/1.0/panorama/",
    "HDRGainMap": "http://ns.apple.com/HDRGainMap/1.0/",
    "hdrgm": "http://ns.adobe.com/hdr-gain-map/1.0/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "Item": "http://ns.google.com/photos/1.0/container/item/",
    "LImage": "http://ns.leiainc.com/photos/1.0/image/",
    "MiCamera": "http://ns.xiaomi.com/photos/1.0/camera/",
    "MP": "http://ns.microsoft.com/photo/1.2/",
    "MPReg": "http://ns.microsoft.com/photo/1.2/t/Region#",
    "MPRI": "http://ns.microsoft.com/photo/1.2/t/RegionInfo#",
    "mwg-rs": "http://www.metadataworkinggroup.com/schemas/regions/",
    "OpCamera": "http://ns.oplus.com/photos/1.0/camera/",
    "photomechanic": "http://ns.camerabits.com/photomechanic/1.0/",
    "photoshop": "http://ns.adobe.com/photoshop/1.0/",
    "q": "urn:somebody",
    "stArea": "http://ns.adobe.com/xmp/sType/Area#",
    "stDim": "http://ns.adobe.com/xap/1.0/sType/Dimensions#",
    "tiff": "http://ns.adobe.com/tiff/1.0/",
    "VCamera": "http://ns.vivo.com/photos/1.0/camera/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "xmpGImg": "http://ns.adobe.com/xap/1.0/g/img/",
    "xmpMM": "http://ns.adobe.com/xap/1.0/mm/",
    "xmpNote": "http://ns.adobe.com/xmp/note/",
}


def packet(*properties: str, attributes: str = "", prefixes: dict[str, str] | None = None) -> bytes:
    """Return a packet with one description for each property element, and with attributes in the first one.

    prefixes: other ones in the place of the usual.
    """
    changed = prefixes or {}
    names = " ".join(f'xmlns:{changed.get(prefix, prefix)}="{uri}"' for prefix, uri in URIS.items())
    descriptions = "".join(
        f'<rdf:Description rdf:about="" {"" if number else attributes}>{text}</rdf:Description>\n'
        for number, text in enumerate(properties or ("",))
    )
    for old, new in changed.items():
        for before in ("<", "</", " "):
            descriptions = descriptions.replace(f"{before}{old}:", f"{before}{new}:")
    text = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF {names}>{descriptions}</rdf:RDF></x:xmpmeta>'
    return f'<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>{text}<?xpacket end="w"?>'.encode()


def full_name(name: str) -> str:
    prefix, local = name.split(":")
    return f"{{{URIS[prefix]}}}{local}"


def every(data: bytes | None, name: str) -> list[str]:
    """Return the texts of all elements and attributes with a name."""
    assert data is not None
    full = full_name(name)
    return [
        text
        for element in ET.fromstring(data.decode()).iter()
        for text in ([element.attrib[full]] if full in element.attrib else [])
        + ([element.text or ""] if element.tag == full else [])
    ]


def names(data: bytes | None) -> Iterator[str]:
    """Return the names of all elements and attributes, with the namespace in braces."""
    assert data is not None
    for element in ET.fromstring(data.decode()).iter():
        yield element.tag
        yield from element.attrib
