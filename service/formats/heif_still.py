"""Measure the photo of an AVIF or HEIC file, and copy it into a new file without anything else.

A few bytes in such a file can cause a decoder to do any amount of work: derived images, thousands of items, nested
properties. Therefore the photo is found here, and the cost of decoding it is added up. Only then does a library get
it, in a new file. That file holds the photo, its tiles and its alpha, and nothing that was not checked.
"""

import itertools
import struct
from dataclasses import dataclass
from typing import Literal, NoReturn

from service.errors import TooManyPixels, UnsupportedType
from service.formats import decoding_cost, heif_boxes, heif_codecs, heif_writer
from service.formats.decoding_limits import ANIMATED, Limits, check_size
from service.formats.heif_boxes import Damaged, Item, Items
from service.formats.heif_writer import NewItem, Property

Codec = Literal["hvc1", "av01"]
CONFIGURATIONS: dict[Codec, bytes] = {"hvc1": b"hvcC", "av01": b"av1C"}
BRANDS: dict[Codec, tuple[bytes, ...]] = {
    "hvc1": (b"heic", b"mif1", b"heic"),
    "av01": (b"avif", b"avif", b"mif1", b"miaf"),
}
# libheif accepts 1,000 items.
MAX_TILES = 900
# Encoders pad images to whole blocks, so a small photo has more coded pixels than its size says.
PADDING, PADDED_SIDE = 1 << 20, 128
# Most coded pixels per allowed pixel of a photo: colour, alpha, and tiles that reach over the edge.
MAX_CODED_RATIO = 3
TRANSFORMATIONS = (b"irot", b"imir", b"clap")
# Properties of layered AV1: which layers are shown, and where they begin.
LAYERS = (b"a1op", b"lsel", b"a1lx")
KEPT = (b"ispe", b"hvcC", b"av1C", b"colr", b"pixi", b"auxC", *TRANSFORMATIONS, *LAYERS)
ALPHA_TYPES = (
    b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha",
    b"urn:mpeg:hevc:2015:auxid:1",
    b"urn:mpeg:avc:2015:auxid:1",
)
OTHER_CODECS = {
    b"jpeg": "JPEG",
    b"avc1": "AVC",
    b"vvc1": "VVC",
    b"j2k1": "JPEG 2000",
    b"unci": "uncompressed pixels",
    b"lhv1": "layered HEVC",
    b"evc1": "EVC",
}
DERIVED = (b"grid", b"iden", b"iovl")
PICTURES = (*DERIVED, b"hvc1", b"av01", *OTHER_CODECS)


@dataclass(frozen=True, slots=True)
class Still:
    """A file that holds one photo only, and the codec of its pixels."""

    data: bytes
    codec: Codec


@dataclass(frozen=True, slots=True)
class _Picture:
    """The photo or an alpha: its item, and the coded items that it consists of, in order and perhaps repeated."""

    item: int
    tiles: list[int]


def extract_still(data: bytes, limits: Limits) -> Still:
    """Return the photo of an AVIF or HEIC file.

    Raises boxes.Damaged, boxes.Excessive, UnsupportedType, TooManyPixels and TooManyBytes.
    """
    items = heif_boxes.read(data)
    if items.has_movie:
        raise UnsupportedType(ANIMATED, field="file")
    return _Photo(items, limits).extract()


class _Photo:
    """The primary image of a file with its tiles and alpha."""

    def __init__(self, items: Items, limits: Limits) -> None:
        self._items = items
        self._limits = limits
        self._contents: dict[tuple[heif_boxes.Span, ...], memoryview] = {}
        self._left = len(items.data)
        self._measured: dict[int, heif_codecs.CodedImage] = {}

    def extract(self) -> Still:
        """Measure the photo, and return it in a new file."""
        photo = self._picture(self._items.primary)
        codec = self._codec(photo)
        if codec == "hvc1" and self._count_pictures() > 1:
            raise UnsupportedType("the file holds several images; single, still photos can be coloured", field="file")
        owners = {photo.item, *photo.tiles}
        alphas = {owner: self._picture(alpha) for owner, alpha in self._alphas().items() if owner in owners}
        pictures = [photo, *alphas.values()]
        self._check_work([tile for picture in pictures for tile in picture.tiles], codec)
        wanted = itertools.chain.from_iterable((picture.item, *picture.tiles) for picture in pictures)
        indices = {number: index for index, number in enumerate(dict.fromkeys(wanted))}
        references = self._references(pictures, {owner: alpha.item for owner, alpha in alphas.items()}, indices)
        parts = [self._part(number, references[number]) for number in indices]
        return Still(heif_writer.write(parts, BRANDS[codec]), codec)

    def _count_pictures(self) -> int:
        """Return how many images the file shows. Tiles, thumbnails and auxiliary images don't count."""
        items = self._items.items
        parts = {number for item in items.values() for number in item.references.get(b"dimg", [])}
        # In files of some encoders the photo refers to its thumbnail, not the thumbnail to the photo.
        parts.update(self._item(self._items.primary).references.get(b"thmb", []))
        shown = {
            number
            for number, item in items.items()
            if item.kind in PICTURES and not item.is_hidden and not item.references.keys() & {b"thmb", b"auxl"}
        }
        return len((shown - parts) | {self._items.primary})

    def _picture(self, number: int) -> _Picture:
        """Return a coded image, or an image that is derived from coded ones. Raises UnsupportedType for others."""
        item = self._item(number)
        if item.kind == b"iovl":
            raise UnsupportedType("the photo is composed of overlays; save it as a single image", field="file")
        if item.kind not in PICTURES:
            name = item.kind.decode("latin-1")
            raise UnsupportedType(f"the primary image has a type ({name}) that is not supported", field="file")
        self._check_padded(*self._size(item))
        if item.kind not in DERIVED:
            return _Picture(number, [number])
        tiles = item.references.get(b"dimg", [])
        if any(self._item(tile).kind in DERIVED for tile in tiles):
            raise UnsupportedType("the photo is derived from an image that is itself derived", field="file")
        if item.kind == b"iden" and len(tiles) != 1:
            raise Damaged("an identity image does not refer to exactly one image")
        if item.kind == b"grid":
            self._check_grid(item, tiles)
        return _Picture(number, tiles)

    def _check_grid(self, item: Item, tiles: list[int]) -> None:
        """Raise Damaged unless the tiles cover the canvas and each row and column is part of it."""
        content = bytes(self._content(item)[:12])
        is_long = len(content) > 1 and bool(content[1] & 1)
        if len(content) < (12 if is_long else 8):
            raise Damaged("the description of its tile grid is cut short")
        rows, columns = content[2] + 1, content[3] + 1
        if len(tiles) != rows * columns:
            raise Damaged(f"its grid has {rows} x {columns} tiles, but {len(tiles)} are present")
        if len(tiles) > MAX_TILES:
            raise UnsupportedType(
                f"the photo has {len(tiles)} tiles; at most {MAX_TILES} are supported", field="file", limit=MAX_TILES
            )
        canvas: tuple[int, int] = struct.unpack_from(">II" if is_long else ">HH", content, 4)
        self._check_padded(*canvas)
        for side, count, whole in zip(self._size(self._item(tiles[0])), (columns, rows), canvas, strict=True):
            if not side * (count - 1) < whole <= side * count:
                raise Damaged("its tiles do not match its size")

    def _check_padded(self, width: int, height: int) -> None:
        """Check a padded size. The size that is shown is checked later, when the library reports it."""
        limits = self._limits
        if width * height > limits.max_pixels + PADDING or max(width, height) > limits.max_side + PADDED_SIDE:
            check_size(width, height, limits)

    def _check_work(self, coded: list[int], codec: Codec) -> None:
        """Check the cost of decoding these items. A repeated item counts each time."""
        pixels = decoded = size = 0
        for number in coded:
            item, measured = self._item(number), self._measure(number, codec)
            width, height = self._size(item)
            area = max(width * height, measured.width * measured.height)
            pixels += area
            decoded += area * max(1, measured.frames)
            size += len(self._content(item))
        most = MAX_CODED_RATIO * self._limits.max_pixels + PADDING
        if pixels > most:
            raise TooManyPixels(
                f"its tiles and alpha have {pixels:,} pixels together; at most {most:,} are decoded",
                field="file",
                limit=most,
            )
        decoding_cost.check(codec, size, decoded, self._limits)

    def _measure(self, number: int, codec: Codec) -> heif_codecs.CodedImage:
        if number in self._measured:
            return self._measured[number]
        item = self._item(number)
        if item.kind != codec.encode():
            self._refuse(item)
        configuration = self._items.property_of(item, CONFIGURATIONS[codec])
        if configuration is None:
            raise Damaged("the header of an image is missing")
        content = self._content(item)
        measured = (
            heif_codecs.measure_hevc(configuration, content) if codec == "hvc1" else heif_codecs.measure_av1(content)
        )
        self._check_padded(measured.width, measured.height)
        self._measured[number] = measured
        return measured

    def _codec(self, photo: _Picture) -> Codec:
        item = self._item(photo.tiles[0])
        codecs: dict[bytes, Codec] = {b"hvc1": "hvc1", b"av01": "av01"}
        return codecs.get(item.kind) or self._refuse(item)

    def _refuse(self, item: Item) -> NoReturn:
        name = OTHER_CODECS.get(item.kind, item.kind.decode("latin-1"))
        raise UnsupportedType(f"the photo is coded as {name}; HEVC and AV1 are supported", field="file")

    def _item(self, number: int) -> Item:
        if number not in self._items.items:
            raise Damaged("an image that it refers to is missing")
        return self._items.items[number]

    def _size(self, item: Item) -> tuple[int, int]:
        """Return width and height, in pixels, of the ispe property."""
        content = self._items.property_of(item, b"ispe")
        if content is None or len(content) < 12:
            raise Damaged("an image does not state its size")
        width, height = struct.unpack_from(">II", content, 4)
        if not width or not height:
            raise Damaged("an image has no pixels")
        return width, height

    def _content(self, item: Item) -> memoryview:
        """Return the content of an item. Items that share it get the same object.

        Raises Damaged if all contents together are longer than the file.
        """
        spans = tuple(item.spans or ())
        if spans not in self._contents:
            if not spans or any(end > len(self._items.data) for _, end in spans):
                raise Damaged("an image is missing or cut short")
            self._left -= sum(end - start for start, end in spans)
            if self._left < 0:
                raise Damaged("its images overlap each other")
            view = memoryview(self._items.data)
            parts = [view[start:end] for start, end in spans]
            self._contents[spans] = parts[0] if len(parts) == 1 else memoryview(b"".join(parts))
        return self._contents[spans]

    def _alphas(self) -> dict[int, int]:
        """Return the item number of the alpha image of each item that has one."""
        found: dict[int, int] = {}
        for number, item in self._items.items.items():
            targets = item.references.get(b"auxl", [])
            if targets and (self._items.property_of(item, b"auxC") or b"")[4:].split(b"\0")[0] in ALPHA_TYPES:
                for target in targets:
                    found.setdefault(target, number)
        return found

    def _references(
        self, pictures: list[_Picture], alphas: dict[int, int], indices: dict[int, int]
    ) -> dict[int, list[tuple[bytes, list[int]]]]:
        """Return the references of each new item: to tiles, to images whose alpha it is, to a premultiplied alpha."""
        found: dict[int, list[tuple[bytes, list[int]]]] = {number: [] for number in indices}
        for picture in pictures:
            if picture.tiles != [picture.item]:
                found[picture.item].append((b"dimg", [indices[tile] for tile in picture.tiles]))
        for alpha in dict.fromkeys(alphas.values()):
            found[alpha].append((b"auxl", [indices[owner] for owner, own in alphas.items() if own == alpha]))
        for owner, alpha in alphas.items():
            if alpha in self._item(owner).references.get(b"prem", []):
                found[owner].append((b"prem", [indices[alpha]]))
        return found

    def _part(self, number: int, references: list[tuple[bytes, list[int]]]) -> NewItem:
        """Return an item with the properties that a decoder needs, at most one of each kind."""
        item = self._item(number)
        kept: dict[bytes, Property] = {}
        for kind, content, is_essential in self._items.properties_of(item):
            if is_essential and kind not in KEPT:
                name = kind.decode("latin-1")
                raise UnsupportedType(f"the photo has a property ({name}) that is not supported", field="file")
            # An image may have two colr properties: an ICC profile, and the numbers of a colour space.
            name_ = kind + content[:4] if kind == b"colr" else kind
            if name_ in kept and kind in TRANSFORMATIONS:
                raise UnsupportedType("the photo is turned or cropped more than once", field="file")
            if kind in KEPT:
                # libavif rejects transformations that are not essential, although some encoders write them.
                kept.setdefault(name_, Property(kind, content, is_essential or kind in TRANSFORMATIONS))
        content_ = None if item.kind == b"iden" else self._content(item)
        return NewItem(item.kind, content_, list(kept.values()), references)
