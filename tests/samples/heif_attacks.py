"""AVIF and HEIC files that would cause far more work than their size suggests, and some harmless look-alikes."""

import struct
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from service.errors import Problem, TooManyPixels, UnreadableImage, UnsupportedType
from tests.samples.heif_files import Item, alpha_type, av1, box, coded, full, grid, heif, hevc, size

BRANDS = {"hvc1": b"heicmif1heic", "av01": b"avifavifmif1miaf"}
SIDE = 64


def gradient(shift: int, side: int = SIDE) -> np.ndarray:
    down, across = np.mgrid[:side, :side]
    return np.asarray((down * 2 + across + 20 * shift) % 200 + 20, np.uint8)


def rgb(shift: int) -> np.ndarray:
    return np.dstack([gradient(shift)] * 3)


def nested(kind: bytes, depth: int, width: int = 1) -> dict[int, Item]:
    """Return images that are derived from images, down to a coded one."""
    items = {
        number: Item(kind, bytes(2) + bytes(60), [size(SIDE, SIDE)], {b"dimg": [number + 1] * width}, number > 1)
        for number in range(1, depth + 1)
    }
    return {**items, depth + 1: coded(rgb(0), "hvc1", is_hidden=True)}


def grids(depth: int) -> dict[int, Item]:
    items = {number: grid(2, 2, SIDE, SIDE, [number + 1] * 4, is_hidden=number > 1) for number in range(1, depth + 1)}
    return {**items, depth + 1: coded(rgb(0), "hvc1", is_hidden=True)}


def many(count: int) -> bytes:
    return heif(dict.fromkeys(range(1, count + 1), coded(rgb(0), "av01", is_hidden=True)), brands=BRANDS["av01"])


def of_tiles(rows: int, columns: int, width: int, height: int, tile: Item) -> bytes:
    return heif({1: grid(rows, columns, width, height, [2] * (rows * columns)), 2: replace(tile, is_hidden=True)})


def with_properties(codec: str, *properties: tuple[bytes, bytes]) -> bytes:
    picture = coded(rgb(0), codec)
    return heif({1: replace(picture, properties=[*picture.properties, *properties])}, brands=BRANDS[codec])


def alpha_of_alpha(depth: int) -> bytes:
    """Return a file in which each image is the alpha of the previous one. Only that of the photo is used."""
    picture = coded(gradient(0), "hvc1", is_hidden=True)
    own = replace(picture, properties=[*picture.properties, alpha_type()])
    items = {number: replace(own, references={b"auxl": [number - 1]}) for number in range(2, depth)}
    return heif({1: coded(rgb(0), "hvc1"), **items})


def frames(count: int) -> bytes:
    picture = coded(np.dstack([gradient(0, 512)] * 3), "av01")
    return heif({1: replace(picture, content=picture.content * count)}, brands=BRANDS["av01"])


HUGE = 20_000
# By a description: a function that returns the file, the expected problem, and a word of its detail.
ATTACKS: dict[str, tuple[Callable[[], bytes], type[Problem] | None, str]] = {
    "overlays": (lambda: heif(nested(b"iovl", 40, 2)), UnsupportedType, "overlays"),
    "one overlay": (lambda: heif(nested(b"iovl", 1)), UnsupportedType, "overlays"),
    "identities": (lambda: heif(nested(b"iden", 1000)), UnsupportedType, "itself derived"),
    "two identities": (lambda: heif(nested(b"iden", 2)), UnsupportedType, "itself derived"),
    "an identity of itself": (
        lambda: heif({1: Item(b"iden", b"", [size(9, 9)], {b"dimg": [1]})}),
        UnsupportedType,
        "itself derived",
    ),
    "an identity of an overlay": (
        lambda: heif({**nested(b"iovl", 2), 1: nested(b"iden", 1)[1]}),
        UnsupportedType,
        "itself derived",
    ),
    "tiles of tiles": (lambda: heif(grids(30)), UnsupportedType, "itself derived"),
    "tiles of itself": (lambda: heif({1: grid(1, 1, SIDE, SIDE, [1])}), UnsupportedType, "itself derived"),
    "an alpha of tiles of tiles": (
        lambda: heif(
            {
                **grids(3),
                1: coded(rgb(0), "hvc1"),
                2: replace(
                    grids(3)[2], references={b"dimg": [3] * 4, b"auxl": [1]}, properties=[size(9, 9), alpha_type()]
                ),
            }
        ),
        UnsupportedType,
        "itself derived",
    ),
    "65,535 times one tile": (
        lambda: of_tiles(255, 256, 16_000, 16_000, hevc(64, 64, 64, 64)),
        UnsupportedType,
        "references",
    ),
    "1,000 times one tile": (lambda: of_tiles(25, 40, 640, 400, hevc(16, 16, 16, 16)), UnsupportedType, "1000 tiles"),
    "a canvas without end": (
        lambda: of_tiles(1, 1, 2**32 - 1, 2**32 - 1, hevc(64, 64, 64, 64)),
        TooManyPixels,
        "pixels",
    ),
    "a canvas larger than its size": (
        lambda: heif({1: replace(grid(1, 1, HUGE, HUGE, [2]), properties=[size(64, 64)]), 2: hevc(HUGE, HUGE, 64, 64)}),
        TooManyPixels,
        "pixels",
    ),
    "tiles larger than the canvas": (lambda: of_tiles(9, 9, 64, 64, coded(rgb(0), "hvc1")), UnreadableImage, "tiles"),
    "too few tiles": (
        lambda: heif({1: grid(9, 9, 64, 64, [2]), 2: coded(rgb(0), "hvc1")}),
        UnreadableImage,
        "are present",
    ),
    "tiles that code more than they say": (
        lambda: of_tiles(3, 3, 192, 192, hevc(64, 64, 1000, 1000)),
        TooManyPixels,
        "together",
    ),
    "a size that is huge": (lambda: heif({1: hevc(HUGE, HUGE, 64, 64)}), TooManyPixels, "pixels"),
    "a picture that is huge": (lambda: heif({1: hevc(64, 64, HUGE, HUGE)}), TooManyPixels, "pixels"),
    "a picture that is huge inside": (
        lambda: heif({1: hevc(64, 64, HUGE, HUGE, is_inside=True)}),
        TooManyPixels,
        "pixels",
    ),
    "an av1 that is huge": (
        lambda: heif({1: av1(64, 64, HUGE, HUGE)}, brands=BRANDS["av01"]),
        TooManyPixels,
        "pixels",
    ),
    "an alpha that is huge": (
        lambda: heif(
            {
                1: coded(rgb(0), "hvc1"),
                2: replace(
                    hevc(64, 64, HUGE, HUGE),
                    references={b"auxl": [1]},
                    properties=[*hevc(64, 64, HUGE, HUGE).properties, alpha_type()],
                ),
            }
        ),
        TooManyPixels,
        "pixels",
    ),
    "frames": (lambda: frames(3000), TooManyPixels, "frames"),
    "30,000 items": (lambda: many(30_000), UnsupportedType, "5,000 items"),
    "5,001 items": (lambda: many(5001), UnsupportedType, "5,000 items"),
    "items that are not counted": (
        lambda: heif({1: coded(rgb(0), "hvc1")}, first=full(b"iinf", bytes(2), full(b"infe", bytes(12)) * 1_000_000)),
        UnsupportedType,
        "boxes",
    ),
    "5,000 items": (lambda: many(5000), None, ""),
    "turned 200 times": (
        lambda: with_properties("hvc1", *[(b"irot", bytes([n % 4])) for n in range(200)]),
        UnsupportedType,
        "more than once",
    ),
    "mirrored twice": (
        lambda: with_properties("av01", (b"imir", b"\0"), (b"imir", b"\1")),
        UnsupportedType,
        "more than once",
    ),
    "a million properties": (
        lambda: heif({1: coded(rgb(0), "hvc1")}, first=box(b"iprp", box(b"ipco", box(b"free") * 1_000_000))),
        UnsupportedType,
        "boxes",
    ),
    "associations without end": (
        lambda: heif({1: coded(rgb(0), "hvc1")}, first=box(b"iprp", full(b"ipma", b"\xff" * 4, b"\0\1\0" * 1_000_000))),
        UnsupportedType,
        "properties",
    ),
    "references without end": (
        lambda: heif(
            {1: coded(rgb(0), "hvc1")}, first=full(b"iref", box(b"dimg", b"\0\1\xff\xff", bytes(131_070)) * 50)
        ),
        UnsupportedType,
        "references",
    ),
    "parts without end": (
        lambda: heif(
            {1: coded(rgb(0), "hvc1")},
            first=full(b"iloc", b"\x44\0\0\x32", (struct.pack(">HHH", 1, 0, 65_535) + bytes(8) * 65_535) * 50),
        ),
        UnsupportedType,
        "extents",
    ),
    "parts that overlap": (
        lambda: heif(
            {1: coded(rgb(0), "hvc1")},
            first=full(b"iloc", b"\x44\0\0\1", struct.pack(">HHH", 1, 0, 900) + struct.pack(">II", 0, 400) * 900),
        ),
        UnreadableImage,
        "overlap",
    ),
    "boxes without end": (
        lambda: heif({1: coded(rgb(0), "hvc1")}, before=box(b"free") * 1_000_000),
        UnsupportedType,
        "boxes",
    ),
    "lists in lists": (
        lambda: heif(
            {1: coded(rgb(0), "hvc1")}, first=full(b"meta", full(b"meta") * 1000), last=full(b"meta", bytes(9)) * 1000
        ),
        None,
        "",
    ),
    "alphas of alphas": (lambda: alpha_of_alpha(2000), None, ""),
    "units without end": (
        lambda: heif({1: replace(coded(rgb(0), "hvc1"), content=bytes(4) * 1_000_000)}),
        UnsupportedType,
        "units",
    ),
    "a movie before the list": (
        lambda: heif({1: coded(rgb(0), "hvc1")}, brands=b"msf1msf1hevcmif1heic", before=box(b"moov", bytes(100_000))),
        UnsupportedType,
        "animated",
    ),
    "a movie behind the list": (
        lambda: heif({1: coded(rgb(0), "av01")}, brands=b"avisavifavismif1") + box(b"moov", bytes(100_000)),
        UnsupportedType,
        "animated",
    ),
    "a movie alone": (
        lambda: box(b"ftyp", b"avis", bytes(4), b"avisavif") + box(b"meta", bytes(9)) + box(b"moov", bytes(9)),
        UnsupportedType,
        "animated",
    ),
    "a box of a later version": (
        lambda: heif({1: coded(rgb(0), "hvc1")}, first=full(b"iloc", bytes(99), version=3)),
        UnreadableImage,
        "version",
    ),
    "a photo that refers to its thumbnail": (
        lambda: heif({1: replace(coded(rgb(0), "hvc1"), references={b"thmb": [2]}), 2: coded(rgb(5), "hvc1")}),
        None,
        "",
    ),
    "a list that is missing": (lambda: heif({})[:20], UnreadableImage, "list of items"),
    "another codec": (lambda: heif({1: replace(coded(rgb(0), "hvc1"), kind=b"j2k1")}), UnsupportedType, "JPEG 2000"),
    "a tile of another codec": (
        lambda: heif({1: grid(1, 2, 128, 64, [2, 3]), 2: coded(rgb(0), "hvc1"), 3: coded(rgb(0), "av01")}),
        UnsupportedType,
        "av01",
    ),
    "a kind of no picture": (lambda: heif({1: Item(b"Exif", b"none")}), UnsupportedType, "Exif"),
    "a main picture that is missing": (lambda: heif({1: coded(rgb(0), "hvc1")}, primary=7), UnreadableImage, "missing"),
    "two pictures": (lambda: heif({1: coded(rgb(0), "hvc1"), 2: coded(rgb(1), "hvc1")}), UnsupportedType, "several"),
}
