"""The XMP packet of a coloured photo: what no longer holds is put right, and a note says its colours are synthetic.

A packet is read by expat and changed as bytes, at the places that expat tells: so everything else, comments, prefixes
and processing instructions too, stays byte for byte as a person or a program wrote it. Only UTF-8 without a document
type is read: there is no entity that could be expanded or fetched.

The note is three properties of the IPTC Photo Metadata Standard 2025.1: `DigitalSourceType`, `AISystemUsed` and
`AISystemVersionUsed`. Being standard, programs show them by name, which they would not with a namespace of our own,
and a second pass finds and replaces them, where an entry in `xmpMM:History` would be added again.
"""

import re
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree as ET
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

Name = tuple[str, str]

RDF_URI = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
IPTC_URI = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
TIFF_URI = "http://ns.adobe.com/tiff/1.0/"
EXIF_URI = "http://ns.adobe.com/exif/1.0/"
RDF, DESCRIPTION, ABOUT = (RDF_URI, "RDF"), (RDF_URI, "Description"), (RDF_URI, "about")
SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
SYNTHETIC_COLORS = SOURCE_TYPES + "compositeWithTrainedAlgorithmicMedia"
# Of a picture that was wholly synthetic before its colours were.
SYNTHETIC = SOURCE_TYPES + "trainedAlgorithmicMedia"
NOTE: tuple[Name, ...] = tuple(
    (IPTC_URI, name) for name in ("DigitalSourceType", "AISystemUsed", "AISystemVersionUsed")
)
# What is not in the answer: thumbnails, the second part of a long packet, a profile, C2PA's and gain maps' references.
GONE: tuple[Name, ...] = (
    ("http://ns.adobe.com/xap/1.0/", "Thumbnails"),
    ("http://ns.adobe.com/xmp/note/", "HasExtendedXMP"),
    ("http://ns.adobe.com/photoshop/1.0/", "ICCProfile"),
    ("http://purl.org/dc/terms/", "provenance"),
    ("http://ns.adobe.com/hdr-gain-map/1.0/", "Version"),
    ("http://ns.google.com/photos/1.0/container/", "Directory"),
)
MAX_ELEMENTS = 100_000
ATTRIBUTE = re.compile(rb"""\s+([^\s=]+)\s*=\s*("[^"]*"|'[^']*')""")
TAG_END = re.compile(rb"""(?:[^"'>]|"[^"]*"|'[^']*')*+>""")
# What XML 1.0 has no place for.
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


class _Refused(ValueError):
    """The packet is larger or stranger than any that a program writes."""


class _Finder:
    """Reads a packet and collects what is to be changed: (start, end, replacement), in bytes.

    changes: what becomes of a property, None: it is taken out.
    """

    def __init__(self, packet: bytes, changes: Mapping[Name, str | None]) -> None:
        self.packet = packet
        self.changes = changes
        self.edits: list[tuple[int, int, bytes]] = []
        self.about = ""
        self.rdf_end: int | None = None
        self._elements = 0
        self._path: list[Name] = []
        self._rdf_level = 0
        self._tag = (0, 0)
        self._parser = expat.ParserCreate("utf-8", " ")
        self._parser.namespace_prefixes = True
        self._parser.StartDoctypeDeclHandler = self._refuse
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end

    def read(self) -> None:
        """Raises ExpatError when the packet is not well-formed, _Refused when it is none that we read."""
        self._parser.Parse(self.packet, True)
        if self.rdf_end is None:
            raise _Refused("no RDF")

    def _refuse(self, *_: object) -> None:
        raise _Refused("a document type")

    def _start(self, raw_name: str, attributes: dict[str, str]) -> None:
        self._elements += 1
        if self._elements > MAX_ELEMENTS:
            raise _Refused("too many elements")
        name = _name(raw_name)
        self._path.append(name)
        if name == RDF and not self._rdf_level:
            self._rdf_level = len(self._path)
        elif self._is_description(len(self._path)):
            self._read_attributes(attributes)
        elif self._is_property():
            self._tag = self._current_tag()

    def _end(self, _: str) -> None:
        if self._is_property():
            self._change_element()
        if len(self._path) == self._rdf_level and self.rdf_end is None:
            self.rdf_end = self._parser.CurrentByteIndex
            if not self.packet.startswith(b"</", self.rdf_end):
                raise _Refused("an RDF element without a content")
        self._path.pop()

    def _is_description(self, level: int) -> bool:
        """Whether the element at this level of the path is one of those that hold the picture's own properties."""
        return (
            bool(self._rdf_level)
            and self.rdf_end is None
            and level == self._rdf_level + 1
            and self._path[level - 1] == DESCRIPTION
        )

    def _is_property(self) -> bool:
        return self._path[-1] in self.changes and len(self._path) > 1 and self._is_description(len(self._path) - 1)

    def _current_tag(self) -> tuple[int, int]:
        start = self._parser.CurrentByteIndex
        end = TAG_END.match(self.packet, start)
        if end is None:
            raise _Refused("a tag without an end")
        return start, end.end()

    def _read_attributes(self, attributes: dict[str, str]) -> None:
        """A property may stand as an attribute."""
        names = {_written(raw): _name(raw) for raw in attributes}
        for match in ATTRIBUTE.finditer(self.packet, *self._current_tag()):
            name = names.get(match[1])
            if name is not None and name in self.changes:
                value = self.changes[name]
                start, end = match.span() if value is None else match.span(2)
                self.edits.append((start, end, b"" if value is None else quoteattr(value).encode()))
        self.about = next((value for raw, value in attributes.items() if _name(raw) == ABOUT), self.about)

    def _change_element(self) -> None:
        value = self.changes[self._path[-1]]
        start, tag_end = self._tag
        is_empty = self.packet[tag_end - 2 : tag_end] == b"/>"
        content_end = tag_end if is_empty else self._parser.CurrentByteIndex
        end = tag_end if is_empty else self.packet.index(b">", content_end) + 1
        if value is None:
            self.edits.append((start, end, b""))
        elif not is_empty:
            self.edits.append((tag_end, content_end, escape(value).encode()))


def _name(raw: str) -> Name:
    """Namespace and local name, of expat's `namespace local prefix`."""
    parts = raw.split(" ")
    return (parts[0], parts[1]) if len(parts) > 1 else ("", raw)


def _written(raw: str) -> bytes:
    """The name as it stands in the packet."""
    parts = raw.split(" ")
    return (f"{parts[2]}:{parts[1]}" if len(parts) == 3 else parts[-1]).encode()


def _description(about: str, values: Sequence[str]) -> bytes:
    """The note, of the values of its properties; it brings its own prefixes, whatever a packet binds them to."""
    properties = "".join(
        f"<Iptc4xmpExt:{name}>{escape(CONTROLS.sub('', value))}</Iptc4xmpExt:{name}>"
        for (_, name), value in zip(NOTE, values, strict=True)
        if value
    )
    return (
        f'<rdf:Description xmlns:rdf="{RDF_URI}" xmlns:Iptc4xmpExt="{IPTC_URI}" rdf:about={quoteattr(about)}>'
        f"{properties}</rdf:Description>\n"
    ).encode()


def _values(source_type: str, model: str, version: str) -> tuple[str, str, str]:
    return source_type, f"tomau, model {model}", version


def fresh(model: str, version: str) -> bytes:
    """A packet with nothing but the note."""
    return _packet(_values(SYNTHETIC_COLORS, model, version))


def note_of(packet: bytes) -> bytes | None:
    """A packet with nothing but what this one says of its picture's being synthetic; None if it says no such thing."""
    packet = packet.strip(b"\0 \t\r\n")
    try:
        _Finder(packet, {}).read()
    except (expat.ExpatError, _Refused):
        return None
    rdf = next(ET.fromstring(packet).iter(_braced(RDF)))  # noqa: S314 - there are no entities in it
    said: dict[str, str] = {}
    for description in rdf.findall(_braced(DESCRIPTION)):
        said |= description.attrib | {child.tag: child.text or "" for child in description}
    values = [said.get(_braced(name), "").strip() for name in NOTE]
    return _packet(values) if values[0] in (SYNTHETIC, SYNTHETIC_COLORS) else None


def _braced(name: Name) -> str:
    """As ElementTree writes it."""
    return f"{{{name[0]}}}{name[1]}"


def _packet(values: Sequence[str]) -> bytes:
    return (
        b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>\n<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        + f'<rdf:RDF xmlns:rdf="{RDF_URI}">\n'.encode()
        + _description("", values)
        + b'</rdf:RDF></x:xmpmeta>\n<?xpacket end="w"?>'
    )


def corrected(packet: bytes, width: int, height: int, model: str | None, version: str | None) -> bytes | None:
    """The packet for an upright sRGB picture of this size, pixels, with the note; without a model, without the note.

    None for one that is not well-formed: no XMP reader takes it, and what it says of orientation can't be put right.
    """
    packet = packet.strip(b"\0 \t\r\n")
    sizes = {(TIFF_URI, "ImageWidth"): width, (EXIF_URI, "PixelXDimension"): width}
    sizes |= {(TIFF_URI, "ImageLength"): height, (EXIF_URI, "PixelYDimension"): height}
    changes: dict[Name, str | None] = {name: str(side) for name, side in sizes.items()}
    changes |= {(TIFF_URI, "Orientation"): "1", (EXIF_URI, "ColorSpace"): "1"}
    changes |= dict.fromkeys(GONE if model is None else GONE + NOTE)
    finder = _Finder(packet, changes)
    try:
        finder.read()
    except (expat.ExpatError, _Refused):
        return None
    edits = finder.edits
    if model is not None and finder.rdf_end is not None:
        removed = b"".join(packet[start:end] for start, end, new in edits if not new)
        source_type = SYNTHETIC if SYNTHETIC.encode() in removed else SYNTHETIC_COLORS
        note = _description(finder.about, _values(source_type, model, version or ""))
        edits.append((finder.rdf_end, finder.rdf_end, note))
    return _edited(packet, edits)


def _edited(packet: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """The packet with its edits, in the order of their places."""
    parts = []
    position = 0
    for start, end, new in edits:
        parts += [packet[position:start], new]
        position = end
    return b"".join([*parts, packet[position:]])


def without_padding(packet: bytes) -> bytes:
    """The packet without the blanks that are left in it for editing in place."""
    end = packet.rfind(b"<?xpacket end")
    return packet if end < 0 else packet[:end].rstrip() + b"\n" + packet[end:]
