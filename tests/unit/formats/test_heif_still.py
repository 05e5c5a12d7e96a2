"""Tests of finding, measuring and copying the photo of an AVIF or HEIC file."""

import struct
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from service.errors import UnreadableImage, UnsupportedType
from service.formats import heif_boxes, heif_still
from service.formats.decoding_limits import Limits
from service.imaging import decoding, identification
from service.imaging.photo import Photo
from tests.samples.heif_attacks import ATTACKS, BRANDS, SIDE, gradient, rgb, with_properties
from tests.samples.heif_files import Item, alpha_type, box, coded, full, grid, heif, size

LIMITS = Limits(1_000_000, 65_500)
CODECS = pytest.mark.parametrize("codec", ["hvc1", "av01"])
EDGES = {"hvc1": [(2 * SIDE, 3 * SIDE), (2 * SIDE - 1, 3 * SIDE - 31)], "av01": [(2 * SIDE, 3 * SIDE)]}


def decode(data: bytes, limits: Limits = LIMITS) -> Photo:
    return decoding.decode(identification.identify(data, limits))


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).mean() < 3


def tiled(codec: str, height: int, width: int) -> tuple[dict[int, Item], np.ndarray]:
    """Return items with a photo of 2 x 3 tiles as item 1, and its pixels."""
    tiles = {10 + place: coded(rgb(place), codec, is_hidden=True) for place in range(6)}
    wanted = np.vstack([np.hstack([gradient(row * 3 + column) for column in range(3)]) for row in range(2)])
    return {1: grid(2, 3, width, height, list(tiles)), **tiles}, wanted[:height, :width]


@pytest.mark.parametrize(("codec", "height", "width"), [(codec, *edge) for codec in EDGES for edge in EDGES[codec]])
def test_tiles(codec: str, height: int, width: int) -> None:
    items, wanted = tiled(codec, height, width)
    close(decode(heif(items, brands=BRANDS[codec])).luma, wanted)


@CODECS
def test_a_list_of_items_of_version_2(codec: str) -> None:
    data = heif({1: coded(rgb(0), codec)}, brands=BRANDS[codec])
    close(decode(data.replace(b"iinf\x01", b"iinf\x02")).luma, gradient(0))


@CODECS
def test_what_a_telephone_adds(codec: str) -> None:
    items, wanted = tiled(codec, 2 * SIDE, 3 * SIDE)
    small = coded(rgb(9), codec)
    depth = [*small.properties, (b"auxC", bytes(4) + b"urn:mpeg:hevc:2015:auxid:2\0")]
    items |= {
        2: replace(small, references={b"thmb": [1]}),
        3: replace(small, properties=depth, references={b"auxl": [1]}),
        # A gain map, and the image for HDR screens that is derived from it.
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
        # libheif keeps the alpha of whole images only, not that of tiles.
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
    # The first of two lists is used, and the first of two primary items in a list.
    for data in (
        heif(items, brands=BRANDS[codec], first=full(b"pitm", b"\0\1"), primary=2),
        heif(items, brands=BRANDS[codec]) + second,
    ):
        close(decode(data).luma, gradient(0))
    close(decode(second).luma, gradient(5, 128))


@pytest.mark.parametrize(("brands", "codec"), [(b"mif1mif1", "av01"), (b"mif1mif1", "hvc1"), (b"avifavif", "hvc1")])
def test_the_codec_counts_not_the_brand(brands: bytes, codec: str) -> None:
    close(decode(heif({1: coded(rgb(0), codec)}, brands=brands)).luma, gradient(0))


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
    found = heif_boxes.read(data)
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
    alone = heif_still.extract_still(heif(items), LIMITS)
    found = heif_boxes.read(alone.data)
    assert [item.kind for item in found.items.values()] == [b"grid", *[b"hvc1"] * 6]
    assert b"secret" not in alone.data
    assert len(alone.data) < len(heif(items))


def test_pillow_sees_no_exif_but_the_turn() -> None:
    picture = coded(rgb(0), "av01")
    turned = replace(picture, properties=[*picture.properties, (b"irot", b"\3")])
    items = {1: turned, 2: Item(b"Exif", bytes(4) + b"II*\0broken", references={b"cdsc": [1]})}
    opened = identification.identify(heif(items, brands=BRANDS["av01"]), LIMITS).structure
    assert isinstance(opened, Image.Image)
    assert dict(opened.getexif()) == {0x112: 6}
