"""Parse an XMP packet, and edit it as bytes.

expat gives the byte offsets of the properties, and only these spans are edited. All other bytes stay the same, with
comments, prefixes and processing instructions. Packets must be UTF-8 without a document type, so that no entity can
be expanded or fetched.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

# A namespace and a local name.
Name = tuple[str, str]
# The start and end of an edit, as byte offsets in the packet, and the bytes that replace that span.
Edit = tuple[int, int, bytes]

RDF_URI = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
RDF, ABOUT, RESOURCE = (RDF_URI, "RDF"), (RDF_URI, "about"), (RDF_URI, "resource")
MAX_ELEMENTS = 100_000
# Elements and attributes of all wanted properties. A thousand faces have about ten thousand.
MAX_NODES = 20_000
MAX_DEPTH = 200
MAX_ABOUT = 1000
# Characters of a property's text that are kept. Only numbers and short names are needed.
MAX_TEXT = 1000
# It separates the parts of a name. No XML document can contain it.
SEPARATOR = "\x1f"
ATTRIBUTE = re.compile(rb"""\s++([^\s=]++)\s*+=\s*+("[^"]*+"|'[^']*+')""")
TAG_NAME = re.compile(rb"<[^\s/>]++")
TAG_END = re.compile(rb"""(?:[^"'>]++|"[^"]*+"|'[^']*+')*+>""")


class InvalidPacket(ValueError):
    """Raised for a packet that is not well-formed, or that exceeds the limits of this module."""


@dataclass(slots=True)
class Node:
    """A property or a part of one: an element or an attribute, with its children.

    start, end: byte offsets in the packet. value: start and end of its text, with the quotes of an attribute; None for
    an element without content. text: the first characters of the text.
    """

    name: Name
    start: int
    end: int
    value: tuple[int, int] | None
    text: str = ""
    is_attribute: bool = False
    children: list["Node"] = field(default_factory=list)

    def walk(self) -> Iterator["Node"]:
        """Yield this node and all nodes below it."""
        rest = [self]
        while rest:
            node = rest.pop()
            yield node
            rest += node.children

    @property
    def content(self) -> str:
        """The text, or the URI in an rdf:resource attribute."""
        resource = next((node.text for node in self.children if node.name == RESOURCE), "")
        return self.text.strip() or resource.strip()

    @property
    def is_plain(self) -> bool:
        """Return whether the node has a text and no children."""
        return self.value is not None and not self.children

    def removed(self) -> Edit:
        """Return the edit that removes the node."""
        return self.start, self.end, b""

    def replaced(self, text: str) -> Edit:
        """Return the edit that replaces the text, or removes the node if it is not plain."""
        if self.value is None or self.children:
            return self.removed()
        return *self.value, (quoteattr(text) if self.is_attribute else escape(text)).encode()


@dataclass(frozen=True, slots=True)
class Packet:
    """A parsed packet.

    properties: the wanted ones. about: the name of the picture in the packet. end: offset of the end tag of the first
    RDF element, where properties can be added.
    """

    data: bytes
    properties: list[Node]
    about: str
    end: int


def read(packet: bytes, wanted: Callable[[Name], bool]) -> Packet:
    """Return the packet with its wanted properties, in their order. Raises InvalidPacket."""
    data = packet.strip(b"\0 \t\r\n")
    reader = _Reader(data, wanted)
    try:
        end = reader.read()
    except expat.ExpatError as error:
        raise InvalidPacket(str(error)) from error
    return Packet(data, reader.properties, reader.about, end)


def edited(packet: Packet, edits: list[Edit]) -> bytes:
    """Return the bytes of the packet with the edits applied. An edit inside another one is left out."""
    parts = []
    position = 0
    for start, end, new in sorted(edits, key=lambda edit: (edit[0], -edit[1])):
        if start >= position:
            parts += [packet.data[position:start], new]
            position = end
    return b"".join([*parts, packet.data[position:]])


class _Reader:
    """A collector of the wanted properties while expat parses the packet."""

    def __init__(self, data: bytes, wanted: Callable[[Name], bool]) -> None:
        self.data = data
        self.properties: list[Node] = []
        self.about = ""
        self._wanted = wanted
        self._end: int | None = None
        self._elements = 0
        self._nodes = 0
        self._path: list[Name] = []
        # The depth of the open RDF element; 0 outside.
        self._rdf_level = 0
        # The wanted property that is being parsed, and its nodes down to the current one.
        self._open: list[Node] = []
        self._parser = expat.ParserCreate("utf-8", SEPARATOR)
        self._parser.namespace_prefixes = True
        self._parser.buffer_text = True
        self._parser.StartDoctypeDeclHandler = self._reject_doctype
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._finish
        self._parser.CharacterDataHandler = self._add_text

    def read(self) -> int:
        """Parse the packet, and return the offset of the end tag of the first RDF element."""
        self._parser.Parse(self.data, True)  # noqa: FBT003 - expat has no keywords
        if self._end is None:
            raise InvalidPacket("the RDF element is missing")
        return self._end

    def _reject_doctype(self, *_: object) -> None:
        raise InvalidPacket("a document type is not allowed")

    def _count_node(self) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise InvalidPacket("the properties have too many nodes")

    def _start(self, raw_name: str, attributes: dict[str, str]) -> None:
        name = _name(raw_name)
        self._elements += 1
        self._path.append(name)
        depth = len(self._path)
        if self._elements > MAX_ELEMENTS or depth > MAX_DEPTH:
            raise InvalidPacket("there are too many elements, or they are nested too deeply")
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
            raise InvalidPacket("the name of the picture is too long")

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
            raise InvalidPacket("a tag has no end")
        return match.end()

    def _attributes(self, attributes: dict[str, str], wanted: Callable[[Name], bool]) -> Iterator[Node]:
        """Yield the wanted attributes of the current tag."""
        known = {_raw_name(raw): (_name(raw), value) for raw, value in attributes.items()}
        start = self._parser.CurrentByteIndex
        end = self._tag_end(start)
        name_end = TAG_NAME.match(self.data, start)
        match = name_end and ATTRIBUTE.match(self.data, name_end.end(), end)
        # Each match begins at the end of the last one. A search would scan the same blanks repeatedly.
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
        offset = self._parser.CurrentByteIndex
        if self._open:
            node = self._open.pop()
            if node.value is not None:
                node.value = (node.value[0], offset)
                node.end = self.data.index(b">", offset) + 1
        elif len(self._path) == self._rdf_level:
            self._rdf_level = 0
            if self._end is None:
                if not self.data.startswith(b"</", offset):
                    raise InvalidPacket("the RDF element is empty")
                self._end = offset
        self._path.pop()


def _name(raw: str) -> Name:
    """Return the namespace and the local name of a name from expat, which also has a prefix."""
    parts = raw.split(SEPARATOR)
    return (parts[0], parts[1]) if len(parts) > 1 else ("", raw)


def _raw_name(raw: str) -> bytes:
    """Return a name as it is written in the packet."""
    parts = raw.split(SEPARATOR)
    return (f"{parts[2]}:{parts[1]}" if len(parts) == 3 else parts[-1]).encode()
