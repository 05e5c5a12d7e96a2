"""JPEGs whose picture is whole are decoded, whatever else is odd about them; damaged and cut scans are refused."""

import base64
import io
import re
import struct
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from PIL import Image

from service.errors import TooManyPixels, UnreadableImage, UnsupportedType
from service.formats import decoding_limits, jpeg_structure
from service.imaging import decoding, identification
from service.imaging.photo import Photo
from service.metadata import transfer
from tests.conftest import encoded
from tests.samples.jpegs import END, Factors, before, jpeg_of, planes_of, segment

LIMITS = decoding_limits.Limits(max_pixels=100_000_000, max_side=65_500)
SIZE = 70, 90
CHANCE = np.random.default_rng(11)
NOISE = CHANCE.integers(0, 256, 3000, np.uint8).tobytes()
# 40 x 24 pixels, arithmetic-coded; libjpeg-turbo's cjpeg wrote it.
ARITHMETIC = base64.b85decode(
    "|JeWF01!$>Nk#wx0RR9200961|JwjV00;&K2L=TQ2L}fU2?z=d6b%du3k(?&6Au&}8Xq1V8XO!TBrYc)A}k{u94I#_EHE)NG&CP4IXyTsJT5adGXKc{"
    "3kU!h04M<g5di<p00saM5C#9*00;pA002J#{{YX1WhgJa+;;xl_MuHoF~ueu$o~Ma!piL~!~y<U5ZzM_$~WDZ;|0p3p-Qko|Je"
)


def decode(data: bytes, **options: object) -> Photo:
    icc = transfer.read(data, "jpeg").icc
    return decoding.decode(identification.identify(data, LIMITS), icc=icc, **options)  # type: ignore[arg-type]


def picture() -> np.ndarray:
    """Smooth colours with some texture, uint8 RGB [70, 90, 3]."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    waves = np.dstack([np.sin(x / 9 + y / 17), np.cos(y / 7), np.sin(x / 23 - y / 11)])
    return np.clip(128 + 90 * waves + np.random.default_rng(1).normal(0, 6, (*SIZE, 3)), 0, 255).astype(np.uint8)


def ycbcr() -> np.ndarray:
    return cv2.cvtColor(picture(), cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]


def cmyk() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture()).convert("CMYK").save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


USUAL: Factors = ((2, 2), (1, 1), (1, 1))
FILES: dict[str, bytes] = {
    "gray": encoded(picture()[..., 0], "JPEG"),
    "colour": encoded(picture(), "JPEG", subsampling=0),
    "halved": encoded(picture(), "JPEG", subsampling=2),
    "progressive": encoded(picture(), "JPEG", progressive=True),
    "restarts": encoded(picture(), "JPEG", restart_marker_blocks=3),
    "progressive with restarts": encoded(picture(), "JPEG", restart_marker_rows=1, progressive=True),
    "rgb": encoded(picture(), "JPEG", keep_rgb=True),
    "cmyk": cmyk(),
    "a scan each": jpeg_of(planes_of(ycbcr(), USUAL), USUAL, SIZE, apart=True),
    "a scan each with restarts": jpeg_of(planes_of(ycbcr(), USUAL), USUAL, SIZE, apart=True, interval=2),
}


def icc(number: int, count: int, body: bytes = b"x" * 200) -> bytes:
    return segment(0xE2, b"ICC_PROFILE\0" + bytes([number, count]) + body)


def with_adobe(data: bytes, transform: int) -> bytes:
    place = data.find(b"Adobe")
    if place >= 0:
        return data[: place + 11] + bytes([transform]) + data[place + 12 :]
    return before(data, 0xDB, segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform])))


Change = Callable[[bytes], bytes]
HEADERS: dict[str, Change] = {
    "junk before a table": lambda data: before(data, 0xDB, b"junk between segments"),
    "junk before the scan": lambda data: before(data, 0xDA, bytes(30)),
    "fill bytes": lambda data: before(data, 0xDB, b"\xff" * 9),
    "part 0 of 1 of a profile": lambda data: before(data, 0xDB, icc(0, 1)),
    "part 1 of 2 of a profile": lambda data: before(data, 0xDB, icc(1, 2)),
    "part 2 of 1 of a profile": lambda data: before(data, 0xDB, icc(2, 1)),
    "parts that disagree": lambda data: before(data, 0xDB, icc(1, 1) + icc(2, 3)),
    "a part twice": lambda data: before(data, 0xDB, icc(1, 1) * 2),
    "an empty part": lambda data: before(data, 0xDB, icc(1, 1, b"")),
    "a profile without number": lambda data: before(data, 0xDB, segment(0xE2, b"ICC_PROFILE\0")),
    "JFIF 0.00": lambda data: data.replace(b"JFIF\0\1\1", b"JFIF\0\0\0"),
    "JFIF 2.01": lambda data: data.replace(b"JFIF\0\1\1", b"JFIF\0\2\1"),
    "a short JFIF": lambda data: before(data, 0xDB, segment(0xE0, b"JFIF\0")),
    "a short APP0": lambda data: before(data, 0xDB, segment(0xE0, b"JF")),
    "a short Adobe": lambda data: before(data, 0xDB, segment(0xEE, b"Adobe")),
    "a length of 0": lambda data: before(data, 0xDB, b"\xff\xe5\0\0"),
    "a length of 1": lambda data: before(data, 0xDB, b"\xff\xe5\0\1"),
    "MPF that is none": lambda data: before(data, 0xDB, segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff")),
    "EXIF that is none": lambda data: before(data, 0xDB, segment(0xE1, b"Exif\0\0XX*\0\xff\xff")),
    "segments of no known kind": lambda data: before(data, 0xDB, segment(0xF5, b"more") + segment(0x02, b"more")),
    "an interval of 0": lambda data: data if b"\xff\xdd" in data else before(data, 0xDA, segment(0xDD, b"\0\0")),
    "an interval too long": lambda data: (
        data if b"\xff\xdd" in data else before(data, 0xDA, segment(0xDD, b"\xff\xff"))
    ),
    "an interval with more behind": lambda data: (
        data if b"\xff\xdd" in data else before(data, 0xDA, segment(0xDD, b"\xff\xff\0\0"))
    ),
    "odd settings of a scan": lambda data: data.replace(b"\0\x3f\0", b"\0\0\0", 1) if b"\xff\xc0" in data else data,
    "lines told again": lambda data: data[:-2] + segment(0xDC, struct.pack(">H", SIZE[0])) + END,
}
ENDS: dict[str, Change] = {
    "more before the end": lambda data: data[:-2] + bytes(40) + END,
    "more behind the end": lambda data: data + NOISE,
    "another file behind": lambda data: data + data,
    "no end": lambda data: data[:-2],
    "half an end": lambda data: data[:-1],
    "Samsung's trailer": lambda data: (
        data[:-2] + b"\0\0\1\x0a\x0e\0\0\0Image_UTC_Data1700000000000SEFHj\0\0\0\1\0\0\0SEFT"
    ),
    "another file instead of the end": lambda data: data[:-2] + FILES["colour"],
    "noise instead of the end": lambda data: data[:-2] + NOISE,
    "zeros instead of the end": lambda data: data[:-2] + bytes(500),
    "many zeros instead of the end": lambda data: data[:-2] + bytes(9000),
    "a video with markers of all kinds instead of the end": lambda data: (
        data[:-2] + b"\0\0\0\x18ftypmp42" + 150 * b"\xff\xda\0\x08\1\x77\xff\xc0\0\x0b\x7c\0\1\xff\xc3\0\4ab"
    ),
    "fill bytes instead of the end": lambda data: data[:-2] + b"\xff" * 99,
    "restarts instead of the end": lambda data: data[:-2] + b"\xff\xd0\xff\xd1 and more",
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", HEADERS | ENDS)
def test_what_is_odd_beside_the_scans_does_no_harm(name: str, change: str) -> None:
    changed = (HEADERS | ENDS)[change](FILES[name])
    found, expected = decode(changed, detect_tone=True), decode(FILES[name], detect_tone=True)
    np.testing.assert_array_equal(found.luma, expected.luma)
    assert found.tone == expected.tone
    pixels = decoding.decode_pixels(identification.identify(changed, LIMITS)).rgb
    np.testing.assert_array_equal(pixels, decoding.decode_pixels(identification.identify(FILES[name], LIMITS)).rgb)


@pytest.mark.parametrize("name", [name for name in FILES if name != "rgb"])
@pytest.mark.parametrize("transform", [3, 9, 255])
def test_an_unknown_transform_of_adobe_is_the_usual_one(name: str, transform: int) -> None:
    usual = with_adobe(FILES[name], 2 if name == "cmyk" else 1)
    np.testing.assert_array_equal(decode(with_adobe(FILES[name], transform)).luma, decode(usual).luma)


def start_of_last_scan(data: bytes) -> int:
    start = data.rindex(b"\xff\xda")
    return start + 2 + int.from_bytes(data[start + 2 : start + 4])


@pytest.mark.parametrize("tail", [b"", END, b"\xff", b"SEFT"])
@pytest.mark.parametrize("name", FILES)
def test_a_scan_that_is_cut_short_is_damage(name: str, tail: bytes) -> None:
    data = FILES[name]
    # A few bytes more can be taken for the data of the last blocks.
    last = len(data) - (8 if tail in (b"", END, b"\xff") else 60)
    for cut in np.linspace(start_of_last_scan(data) + 1, last, 12).astype(int):
        with pytest.raises(UnreadableImage):
            decode(data[:cut].removesuffix(b"\xff") + tail)


@pytest.mark.parametrize("name", FILES)
def test_a_scan_that_was_filled_up_with_zeros_is_damage(name: str) -> None:
    data = FILES[name]
    for cut in np.linspace(start_of_last_scan(data) + 1, len(data) - 60, 6).astype(int):
        with pytest.raises(UnreadableImage):
            decode(data[:cut].removesuffix(b"\xff") + bytes(9000))


@pytest.mark.parametrize("name", ["progressive", "progressive with restarts", "a scan each"])
def test_missing_scans_are_damage_where_the_end_is_missing_too(name: str) -> None:
    data = FILES[name]
    for number in range(1, data.count(b"\xff\xda")):
        place = -1
        for _ in range(number + 1):
            place = data.index(b"\xff\xda", place + 1)
        with pytest.raises(UnreadableImage, match=r"scans are missing|no scan"):
            decode(data[:place])


def test_a_component_without_its_scan_is_damage() -> None:
    data = FILES["a scan each"]
    odd = data[: data.rindex(b"\xff\xda")] + END
    with pytest.raises(UnreadableImage):
        decode(before(odd, 0xDB, b"junk"))


@pytest.mark.parametrize("name", ["progressive", "a scan each"])
def test_bytes_between_scans_hide_no_damage_behind_them(name: str) -> None:
    data = FILES[name]
    scans = jpeg_structure.plain(data).scans
    place = data.index(scans[0].data) + len(scans[0].data)
    padded = data[:place] + bytes(60) + data[place:]
    np.testing.assert_array_equal(decode(padded).luma, decode(data).luma)
    with pytest.raises(UnreadableImage):
        decode(padded[: start_of_last_scan(padded) + 30] + END)


def test_bytes_before_restarts_do_no_harm() -> None:
    data = FILES["restarts"]
    place = data.index(b"\xff\xd2", data.index(b"\xff\xda"))
    np.testing.assert_array_equal(decode(data[:place] + bytes(40) + data[place:]).luma, decode(data).luma)
    with pytest.raises(UnreadableImage):
        decode(data[:place] + bytes(40) + data[place + 2 :])


@pytest.mark.parametrize("name", ["restarts", "a scan each with restarts"])
def test_missing_and_exchanged_restarts_are_damage(name: str) -> None:
    data = FILES[name]
    places = [match.start() for match in re.finditer(rb"\xff[\xd0-\xd7]", data)]
    assert len(places) > 8
    for place in places[:: len(places) // 6]:
        other = 0xD0 + (data[place + 1] + 3) % 8
        for broken in (data[:place] + data[place + 2 :], data[: place + 1] + bytes([other]) + data[place + 2 :]):
            with pytest.raises(UnreadableImage):
                decode(broken)


SAMPLINGS: tuple[Factors, ...] = (
    ((4, 2), (1, 1), (1, 1)),
    ((3, 1), (1, 1), (1, 1)),
    ((1, 3), (1, 1), (1, 1)),
    ((1, 4), (1, 1), (1, 1)),
    ((3, 2), (1, 1), (1, 1)),
    ((2, 2), (1, 2), (2, 1)),
    ((2, 2), (2, 2), (1, 1)),
    ((2, 1), (1, 1), (2, 1)),
    ((4, 1), (2, 1), (1, 1)),
    ((3, 1), (2, 1), (1, 1)),
    ((3, 3), (1, 1), (2, 2)),
    ((4, 4), (3, 3), (1, 1)),
    ((2, 2), (2, 2), (2, 2)),
    ((1, 1), (2, 2), (2, 2)),
    ((1, 2), (2, 2), (2, 1)),
    ((1, 1), (2, 1), (1, 1)),
    ((1, 1), (4, 4), (1, 2)),
)


@pytest.mark.parametrize("interval", [0, 2])
@pytest.mark.parametrize("factors", SAMPLINGS)
def test_any_sampling_factors(factors: Factors, interval: int) -> None:
    planes = planes_of(ycbcr(), factors)
    is_large = sum(across * down for across, down in factors) > 10
    data = jpeg_of(planes, factors, SIZE, apart=is_large, interval=interval)
    luma = decode(data).luma
    if planes[0].shape == SIZE:
        np.testing.assert_allclose(luma, planes[0], atol=2)
    else:
        ways = [cv2.resize(planes[0], SIZE[::-1], interpolation=way) for way in (cv2.INTER_LINEAR, cv2.INTER_NEAREST)]
        assert min(np.abs(luma.astype(int) - enlarged).mean() for enlarged in ways) < 4
    np.testing.assert_array_equal(decode(data[:-2] + b"SEFT").luma, luma)


@pytest.mark.parametrize("factors", [((2, 2),), ((3, 3),), ((1, 4),), ((4, 1),)])
def test_the_sampling_factors_of_a_gray_jpeg_mean_nothing(factors: Factors) -> None:
    planes = [ycbcr()[..., 0]]
    np.testing.assert_allclose(decode(jpeg_of(planes, factors, SIZE)).luma, planes[0], atol=2)


@pytest.mark.parametrize("factors", [SAMPLINGS[0], SAMPLINGS[5], SAMPLINGS[13]])
def test_a_cut_scan_with_any_sampling_factors(factors: Factors) -> None:
    # Without blocks beyond the edge: what these lack is no damage.
    data = jpeg_of(planes_of(ycbcr()[:64, :64], factors), factors, (64, 64))
    for cut in np.linspace(data.index(b"\xff\xda") + 20, len(data) - 8, 12).astype(int):
        for tail in (b"", END):
            with pytest.raises(UnreadableImage):
                decode(data[:cut].removesuffix(b"\xff") + tail)


@pytest.mark.parametrize("factors", SAMPLINGS)
@pytest.mark.parametrize("end", [b"", END])
def test_missing_restarts_with_any_sampling_factors_are_damage(factors: Factors, end: bytes) -> None:
    data = jpeg_of(planes_of(ycbcr(), factors), factors, SIZE, apart=True, interval=2)
    restarts = [match.start() for match in re.finditer(rb"\xff[\xd0-\xd7]", data)]
    first, second, last = restarts[0], restarts[1], restarts[-1]
    for damaged in (data[:last] + end, data[: last + 2] + end, data[:first] + data[second:-2] + end):
        with pytest.raises(UnreadableImage):
            decode(damaged)


def test_the_tone_and_colours_of_any_sampling_factors() -> None:
    factors: Factors = ((4, 2), (1, 1), (1, 1))
    data = jpeg_of(planes_of(ycbcr(), factors), factors, SIZE)
    assert decode(data, detect_tone=True).tone == "color"
    rgb = decoding.decode_pixels(identification.identify(data, LIMITS)).rgb
    assert np.abs(rgb.astype(int) - picture()).mean() < 25


def test_luma_of_no_whole_number_of_pixels_is_refused_by_name() -> None:
    factors: Factors = ((2, 1), (3, 1), (3, 1))
    with pytest.raises(UnsupportedType, match="2x1, 3x1, 3x1"):
        decode(jpeg_of(planes_of(ycbcr(), factors), factors, SIZE))
    # Its luma can be decoded, but not its colours.
    factors = ((3, 1), (2, 1), (1, 1))
    with pytest.raises(UnsupportedType, match="3x1, 2x1, 1x1"):
        decode(jpeg_of(planes_of(ycbcr(), factors), factors, SIZE), detect_tone=True)


def test_two_components_are_refused_by_name() -> None:
    planes = [ycbcr()[..., 0]] * 2
    with pytest.raises(UnsupportedType, match="2 components"):
        decode(jpeg_of(planes, ((1, 1), (1, 1)), SIZE))


@pytest.mark.parametrize("name", ["gray", "halved", "progressive", "restarts"])
def test_a_height_that_only_a_dnl_segment_tells(name: str) -> None:
    data = FILES[name]
    frame = next(place for marker in (0xC0, 0xC2) if (place := data.find(bytes([0xFF, marker]))) > 0)
    headless = data[: frame + 5] + b"\0\0" + data[frame + 7 :]
    first = jpeg_structure.plain(data).scans[0].data
    end = data.index(first) + len(first)
    with_lines = headless[:end] + segment(0xDC, struct.pack(">H", SIZE[0])) + headless[end:]
    np.testing.assert_array_equal(decode(with_lines).luma, decode(data).luma)
    with pytest.raises(UnreadableImage, match="no height"):
        decode(headless)
    # The limits hold for such a height, too.
    with_lines = headless[:end] + segment(0xDC, struct.pack(">H", 65_535)) + headless[end:]
    with pytest.raises(TooManyPixels):
        decode(with_lines)


def test_an_arithmetic_jpeg_is_whole_only_with_its_end() -> None:
    y, x = np.mgrid[:24, :40]
    np.testing.assert_allclose(decode(ARITHMETIC).luma, (y * 5 + x * 3).astype(np.uint8), atol=16)
    for change in ("junk before a table", "JFIF 0.00"):
        np.testing.assert_array_equal(decode(HEADERS[change](ARITHMETIC)).luma, decode(ARITHMETIC).luma)
    for data in (ARITHMETIC[:-2], ARITHMETIC[:-12], ARITHMETIC[:-2] + b"SEFT"):
        with pytest.raises(UnreadableImage):
            decode(data)


def test_random_damage_is_decoded_or_a_problem_of_the_file() -> None:
    for number in range(150):
        name = list(FILES)[number % len(FILES)]
        data = bytearray(FILES[name])
        for place in CHANCE.integers(2, len(data), 3):
            data[place] = CHANCE.integers(0, 256)
        try:
            photo = decode(bytes(data), detect_tone=True)
        except (UnreadableImage, UnsupportedType, TooManyPixels):
            continue
        assert photo.tone is not None
