"""Reads an XMP packet, and changes it as bytes.

expat tells the places of the properties, and only those places are edited. Everything else stays byte for byte,
comments, prefixes and processing instructions included. Only UTF-8 without a document type is read, so that there is
no entity that could be expanded or fetched.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

# A namespace and a local name.
Name = tuple[str, str]
# Where an edit starts and ends in the packet, bytes, and what replaces those bytes.
Edit = tuple[int, int, bytes]

RDF_URI = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
RDF, ABOUT, RESOURCE = (RDF_URI, "RDF"), (RDF_URI, "about"), (RDF_URI, "resource")
MAX_ELEMENTS = 100_000
# Of the properties that are looked at: elements and attributes. A thousand faces have some ten thousand.
MAX_NODES = 20_000
MAX_DEPTH = 200
MAX_ABOUT = 1000
# Of a property's text, as much as is looked at: numbers and names of kinds.
MAX_TEXT = 1000
# No XML document can contain it, so it separates the parts of a name safely.
SEPARATOR = "\x1f"
ATTRIBUTE = re.compile(rb"""\s++([^\s=]++)\s*+=\s*+("[^"]*+"|'[^']*+')""")
TAG_NAME = re.compile(rb"<[^\s/>]++")
TAG_END = re.compile(rb"""(?:[^"'>]++|"[^"]*+"|'[^']*+')*+>""")


class InvalidPacket(ValueError):
    """The packet is not well-formed, or larger or stranger than any that a program writes."""


@dataclass(slots=True)
class Node:
    """A property or a node of one, as an element or an attribute.

    start, end: all of it, as places in the packet. value: where its text stands, an attribute's with its quotes; None
    for an element without content. text: the beginning of it.
    """

    name: Name
    start: int
    end: int
    value: tuple[int, int] | None
    text: str = ""
    is_attribute: bool = False
    children: list["Node"] = field(default_factory=list)

    def walk(self) -> Iterator["Node"]:
        """Yield this node and all parts below it."""
        rest = [self]
        while rest:
            node = rest.pop()
            yield node
            rest += node.children

    @property
    def content(self) -> str:
        """Its text, or what it refers to."""
        resource = next((node.text for node in self.children if node.name == RESOURCE), "")
        return self.text.strip() or resource.strip()

    @property
    def is_plain(self) -> bool:
        """Whether it is only a text."""
        return self.value is not None and not self.children

    def removed(self) -> Edit:
        """Return the edit that takes it out."""
        return self.start, self.end, b""

    def replaced(self, text: str) -> Edit:
        """Return the edit that gives it another text, or takes it out when it is more than a text."""
        if self.value is None or self.children:
            return self.removed()
        return *self.value, (quoteattr(text) if self.is_attribute else escape(text)).encode()


@dataclass(frozen=True, slots=True)
class Packet:
    """What was read of a packet.

    data: the packet. properties: those of its picture that were wanted. about: the picture's name in it. end: where
    its first RDF element ends, which is the place for more properties.
    """

    data: bytes
    properties: list[Node]
    about: str
    end: int


def read(packet: bytes, wanted: Callable[[Name], bool]) -> Packet:
    """Return the properties of a packet that are wanted, in their order. Raises InvalidPacket."""
    data = packet.strip(b"\0 \t\r\n")
    reader = _Reader(data, wanted)
    try:
        end = reader.read()
    except expat.ExpatError as error:
        raise InvalidPacket(str(error)) from error
    return Packet(data, reader.properties, reader.about, end)


def edited(packet: Packet, edits: list[Edit]) -> bytes:
    """Return the packet with its edits. An edit inside another one is left out."""
    parts = []
    position = 0
    for start, end, new in sorted(edits, key=lambda edit: (edit[0], -edit[1])):
        if start >= position:
            parts += [packet.data[position:start], new]
            position = end
    return b"".join([*parts, packet.data[position:]])


class _Reader:
    """Collects the wanted properties while expat reads the packet."""

    def __init__(self, data: bytes, wanted: Callable[[Name], bool]) -> None:
        self.data = data
        self.properties: list[Node] = []
        self.about = ""
        self._wanted = wanted
        self._end: int | None = None
        self._elements = 0
        self._nodes = 0
        self._path: list[Name] = []
        # The level of the RDF element that is open; 0 outside of one.
        self._rdf_level = 0
        # The wanted property that is being read, and its parts down to the current one.
        self._open: list[Node] = []
        self._parser = expat.ParserCreate("utf-8", SEPARATOR)
        self._parser.namespace_prefixes = True
        self._parser.buffer_text = True
        self._parser.StartDoctypeDeclHandler = self._reject_doctype
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._finish
        self._parser.CharacterDataHandler = self._add_text

    def read(self) -> int:
        """Return where the first RDF element ends."""
        self._parser.Parse(self.data, True)
        if self._end is None:
            raise InvalidPacket("no RDF")
        return self._end

    def _reject_doctype(self, *_: object) -> None:
        raise InvalidPacket("a document type")

    def _count_node(self) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise InvalidPacket("properties of too many parts")

    def _start(self, raw_name: str, attributes: dict[str, str]) -> None:
        name = _name(raw_name)
        self._elements += 1
        self._path.append(name)
        depth = len(self._path)
        if self._elements > MAX_ELEMENTS or depth > MAX_DEPTH:
            raise InvalidPacket("too many elements, or nested too deeply")
        if self._open:
            self._open_node(self._open[-1].children, name, attributes)
        elif name == RDF and not self._rdf_level:
            self._rdf_level = depth
        elif self._rdf_level and depth == self._rdf_level + 1:
            self._read_description(attributes)
        elif self._rdf_level and depth == self._rdf_level + 2 and self._wanted(name):
            self._open_node(self.properties, name, attributes)

    def _read_description(self, attributes: dict[str, str]) -> None:
        if attributes:
            self.properties += self._attributes(attributes, self._wanted)
        self.about = next((value for raw, value in attributes.items() if _name(raw) == ABOUT), self.about)
        if len(self.about) > MAX_ABOUT:
            raise InvalidPacket("a name of a picture that is too long")

    def _open_node(self, siblings: list[Node], name: Name, attributes: dict[str, str]) -> None:
        self._count_node()
        start = self._parser.CurrentByteIndex
        end = self._tag_end(start)
        is_empty = self.data[end - 2 : end] == b"/>"
        node = Node(name, start, end, None if is_empty else (end, end))
        if attributes:
            node.children = list(self._attributes(attributes, lambda _: True))
        siblings.append(node)
        self._open.append(node)

    def _tag_end(self, start: int) -> int:
        match = TAG_END.match(self.data, start)
        if match is None:
            raise InvalidPacket("a tag without an end")
        return match.end()

    def _attributes(self, attributes: dict[str, str], wanted: Callable[[Name], bool]) -> Iterator[Node]:
        """Yield the wanted attributes of the current tag."""
        known = {_raw_name(raw): (_name(raw), value) for raw, value in attributes.items()}
        start = self._parser.CurrentByteIndex
        end = self._tag_end(start)
        name_end = TAG_NAME.match(self.data, start)
        match = name_end and ATTRIBUTE.match(self.data, name_end.end(), end)
        # Each one begins where the last one ended: a search would go over blanks again and again.
        while match:
            name, value = known.get(match[1], (None, ""))
            if name is not None and wanted(name):
                self._count_node()
                yield Node(name, *match.span(), match.span(2), value, is_attribute=True)
            match = ATTRIBUTE.match(self.data, match.end(), end)

    def _add_text(self, text: str) -> None:
        if self._open and len(self._open[-1].text) < MAX_TEXT:
            self._open[-1].text += text[:MAX_TEXT]

    def _finish(self, _: str) -> None:
        place = self._parser.CurrentByteIndex
        if self._open:
            node = self._open.pop()
            if node.value is not None:
                node.value = (node.value[0], place)
                node.end = self.data.index(b">", place) + 1
        elif len(self._path) == self._rdf_level:
            self._rdf_level = 0
            if self._end is None:
                if not self.data.startswith(b"</", place):
                    raise InvalidPacket("an RDF element without a content")
                self._end = place
        self._path.pop()


def _name(raw: str) -> Name:
    """Return namespace and local name of what expat reports: namespace, local name, prefix."""
    parts = raw.split(SEPARATOR)
    return (parts[0], parts[1]) if len(parts) > 1 else ("", raw)


def _raw_name(raw: str) -> bytes:
    """Return a name as it stands in the packet."""
    parts = raw.split(SEPARATOR)
    return (f"{parts[2]}:{parts[1]}" if len(parts) == 3 else parts[-1]).encode()
