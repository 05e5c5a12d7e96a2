"""The photo of an AVIF or HEIC is found, measured and decoded, whatever else is in the file."""

import struct
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from service import boxes, decoding, header, still
from service.photo import Photo
from service.problems import Problem, TooManyPixels, UnreadableImage, UnsupportedType
from service.refusals import Limits
from tests.heif_files import Item, alpha_type, av1, box, coded, full, grid, heif, hevc, size

LIMITS = Limits(1_000_000, 65_500)
CODECS = pytest.mark.parametrize("codec", ["hvc1", "av01"])
BRANDS = {"hvc1": b"heicmif1heic", "av01": b"avifavifmif1miaf"}
SIDE = 64
EDGES = {"hvc1": [(2 * SIDE, 3 * SIDE), (2 * SIDE - 1, 3 * SIDE - 31)], "av01": [(2 * SIDE, 3 * SIDE)]}


def gradient(shift: int, side: int = SIDE) -> np.ndarray:
    down, across = np.mgrid[:side, :side]
    return np.asarray((down * 2 + across + 20 * shift) % 200 + 20, np.uint8)


def rgb(shift: int) -> np.ndarray:
    return np.dstack([gradient(shift)] * 3)


def decode(data: bytes, limits: Limits = LIMITS) -> Photo:
    return decoding.decode(data, header.source_of(data), limits)


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).mean() < 3


def tiled(codec: str, height: int, width: int) -> tuple[dict[int, Item], np.ndarray]:
    """A photo of two rows and three columns of tiles as item 1, and what it shows."""
    tiles = {10 + place: coded(rgb(place), codec, is_hidden=True) for place in range(6)}
    wanted = np.vstack([np.hstack([gradient(row * 3 + column) for column in range(3)]) for row in range(2)])
    return {1: grid(2, 3, width, height, list(tiles)), **tiles}, wanted[:height, :width]


@pytest.mark.parametrize(("codec", "height", "width"), [(codec, *edge) for codec in EDGES for edge in EDGES[codec]])
def test_tiles(codec: str, height: int, width: int) -> None:
    items, wanted = tiled(codec, height, width)
    close(decode(heif(items, brands=BRANDS[codec])).luma, wanted)


@CODECS
def test_what_a_telephone_adds(codec: str) -> None:
    items, wanted = tiled(codec, 2 * SIDE, 3 * SIDE)
    small = coded(rgb(9), codec)
    depth = [*small.properties, (b"auxC", bytes(4) + b"urn:mpeg:hevc:2015:auxid:2\0")]
    items |= {
        2: replace(small, references={b"thmb": [1]}),
        3: replace(small, properties=depth, references={b"auxl": [1]}),
        # A gain map, and the picture that it makes of the photo where there is a screen for it.
        4: replace(small, is_hidden=True),
        5: Item(b"tmap", bytes(62), [size(3 * SIDE, 2 * SIDE)], {b"dimg": [1, 4]}),
        6: Item(b"Exif", b"\xff" * 9, references={b"cdsc": [1]}),
        7: Item(b"uri ", b"\0" * 30),
    }
    groups = box(b"grpl", full(b"altr", struct.pack(">IIII", 100, 2, 5, 1)))
    data = heif(items, brands=BRANDS[codec] + b"tmap", last=groups)
    close(decode(data).luma, wanted)


@CODECS
@pytest.mark.parametrize("where", ["photo", "tiles"])
def test_alpha_of_tiles(codec: str, where: str) -> None:
    items, wanted = tiled(codec, 2 * SIDE, 3 * SIDE)
    alphas = {20 + place: coded(gradient(place + 1), codec, is_hidden=True) for place in range(6)}
    for number, alpha in alphas.items():
        own = [*alpha.properties, alpha_type()]
        items[number] = (
            replace(alpha, properties=own, references={b"auxl": [number - 10]}) if where == "tiles" else alpha
        )
    if where == "photo":
        properties = [size(3 * SIDE, 2 * SIDE), alpha_type()]
        items[2] = grid(2, 3, 3 * SIDE, 2 * SIDE, list(alphas), properties=properties)
        items[2] = replace(items[2], references={b"dimg": list(alphas), b"auxl": [1]})
    if codec == "hvc1" and where == "tiles":
        # libheif keeps the alpha of whole pictures only.
        assert decode(heif(items, brands=BRANDS[codec])).luma.shape == wanted.shape
        return
    photo = decode(heif(items, brands=BRANDS[codec]))
    close(photo.luma, wanted)
    assert photo.alpha is not None
    close(
        photo.alpha, np.vstack([np.hstack([gradient(row * 3 + column + 1) for column in range(3)]) for row in range(2)])
    )


@CODECS
def test_a_picture_that_is_turned(codec: str) -> None:
    picture = coded(rgb(0), codec)
    turned = replace(picture, properties=[*picture.properties, (b"irot", b"\1")])
    close(decode(heif({1: turned}, brands=BRANDS[codec])).luma, np.rot90(gradient(0)))


def test_a_picture_by_another_name() -> None:
    one = {
        1: Item(b"iden", b"", [size(SIDE, SIDE), (b"irot", b"\1")], {b"dimg": [2]}),
        2: coded(rgb(0), "hvc1", is_hidden=True),
    }
    close(decode(heif(one)).luma, np.rot90(gradient(0)))


LAYOUTS: dict[str, dict[str, object]] = {
    "in the list of items": {"is_inside": True},
    "before the list": {"is_large": True},
    "in parts": {"has_parts": True},
    "in a file with other boxes": {"before": box(b"free", bytes(9)) + box(b"uuid", bytes(16))},
    "behind an empty list": {"last": full(b"pitm", b"\0\7") + full(b"iinf", bytes(2))},
}


@CODECS
@pytest.mark.parametrize("layout", LAYOUTS)
def test_where_contents_may_be(codec: str, layout: str) -> None:
    data = heif({3: coded(rgb(0), codec)}, primary=3, brands=BRANDS[codec], **LAYOUTS[layout])
    close(decode(data).luma, gradient(0))


@CODECS
def test_the_picture_that_is_measured_is_the_one_that_is_decoded(codec: str) -> None:
    small, other = coded(rgb(0), codec), coded(np.dstack([gradient(5, 128)] * 3), codec, is_hidden=True)
    items = {1: replace(small, is_hidden=True), 2: other}
    second = heif(items, primary=2, brands=BRANDS[codec])
    # Of two lists, the first counts, and of two main pictures in one list, too.
    for data in (
        heif(items, brands=BRANDS[codec], first=full(b"pitm", b"\0\1"), primary=2),
        heif(items, brands=BRANDS[codec]) + second,
    ):
        close(decode(data).luma, gradient(0))
    close(decode(second).luma, gradient(5, 128))


@pytest.mark.parametrize(("brands", "codec"), [(b"mif1mif1", "av01"), (b"mif1mif1", "hvc1"), (b"avifavif", "hvc1")])
def test_the_codec_counts_not_the_brand(brands: bytes, codec: str) -> None:
    close(decode(heif({1: coded(rgb(0), codec)}, brands=brands)).luma, gradient(0))


def nested(kind: bytes, depth: int, width: int = 1) -> dict[int, Item]:
    """Pictures that are made of pictures, the deepest of them a coded one."""
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
    """Each picture is the alpha of the one before; only that of the photo counts."""
    picture = coded(gradient(0), "hvc1", is_hidden=True)
    own = replace(picture, properties=[*picture.properties, alpha_type()])
    items = {number: replace(own, references={b"auxl": [number - 1]}) for number in range(2, depth)}
    return heif({1: coded(rgb(0), "hvc1"), **items})


def frames(count: int) -> bytes:
    picture = coded(np.dstack([gradient(0, 512)] * 3), "av01")
    return heif({1: replace(picture, content=picture.content * count)}, brands=BRANDS["av01"])


HUGE = 20_000
# What it is, how it is made, and its outcome.
ATTACKS: dict[str, tuple[Callable[[], bytes], type[Problem] | None, str]] = {
    "overlays": (lambda: heif(nested(b"iovl", 40, 2)), UnsupportedType, "overlays"),
    "one overlay": (lambda: heif(nested(b"iovl", 1)), UnsupportedType, "overlays"),
    "identities": (lambda: heif(nested(b"iden", 1000)), UnsupportedType, "derived itself"),
    "two identities": (lambda: heif(nested(b"iden", 2)), UnsupportedType, "derived itself"),
    "an identity of itself": (
        lambda: heif({1: Item(b"iden", b"", [size(9, 9)], {b"dimg": [1]})}),
        UnsupportedType,
        "derived itself",
    ),
    "an identity of an overlay": (
        lambda: heif({**nested(b"iovl", 2), 1: nested(b"iden", 1)[1]}),
        UnsupportedType,
        "derived itself",
    ),
    "tiles of tiles": (lambda: heif(grids(30)), UnsupportedType, "derived itself"),
    "tiles of itself": (lambda: heif({1: grid(1, 1, SIDE, SIDE, [1])}), UnsupportedType, "derived itself"),
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
        "derived itself",
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
        "announced",
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
        "several times",
    ),
    "mirrored twice": (
        lambda: with_properties("av01", (b"imir", b"\0"), (b"imir", b"\1")),
        UnsupportedType,
        "several times",
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
        "parts",
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
        "parts",
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


@pytest.mark.parametrize("name", ATTACKS)
def test_what_costs_too_much_is_refused(name: str) -> None:
    make, problem, words = ATTACKS[name]
    data = make()
    if problem is None:
        close(decode(data).luma, gradient(0))
        return
    with pytest.raises(problem, match=words):
        decode(data)


@CODECS
def test_a_property_that_must_be_understood(codec: str) -> None:
    data = with_properties(codec, (b"iscl", bytes(8)))
    close(decode(data).luma, gradient(0))
    found = boxes.read(data)
    place = len(found.items[1].properties)
    row = data.index(b"ipma") + 4 + 4 + 4 + 4 + 1 + 2 * (place - 1)
    with pytest.raises(UnsupportedType, match="iscl"):
        decode(data[:row] + bytes([data[row] | 0x80]) + data[row + 1 :])


@CODECS
def test_a_file_cut_at_any_byte(codec: str) -> None:
    data = heif({1: coded(rgb(0), codec)}, brands=BRANDS[codec])
    for end in range(24, len(data), 7):
        with pytest.raises(UnreadableImage, match="damaged or cut short"):
            decode(data[:end])


def test_the_file_for_the_library_has_nothing_else() -> None:
    items, _ = tiled("hvc1", 2 * SIDE, 3 * SIDE)
    items |= {
        2: Item(b"Exif", b"secret" * 9, references={b"cdsc": [1]}),
        3: replace(coded(rgb(9), "hvc1"), references={b"thmb": [1]}),
    }
    alone = still.still(heif(items), LIMITS)
    found = boxes.read(alone.data)
    assert [item.kind for item in found.items.values()] == [b"grid", *[b"hvc1"] * 6]
    assert b"secret" not in alone.data
    assert len(alone.data) < len(heif(items))


@pytest.mark.parametrize("bits", [10, 12])
def test_many_sizes_of_headers(bits: int) -> None:
    """The sizes in the bit stream are read right: else photos near the limit would be refused, or larger ones taken."""
    for width, height in [(2**bits, 16), (2**bits - 2, 64), (2**bits + 2, 18)]:
        for codec in ("hvc1", "av01"):
            picture = coded(np.full((height, width, 3), 128, np.uint8), codec)
            exact = Limits(width * height, 65_500)
            assert decode(heif({1: picture}, brands=BRANDS[codec]), exact).size == (height, width)


def test_pillow_sees_no_exif_but_the_turn() -> None:
    picture = coded(rgb(0), "av01")
    turned = replace(picture, properties=[*picture.properties, (b"irot", b"\3")])
    items = {1: turned, 2: Item(b"Exif", bytes(4) + b"II*\0broken", references={b"cdsc": [1]})}
    opened = header.opened_heif(heif(items, brands=BRANDS["av01"]), "avif", LIMITS)
    assert isinstance(opened, Image.Image)
    assert dict(opened.getexif()) == {0x112: 6}
