"""Every kind of BMP is decoded, or refused for what it is."""

import struct

import numpy as np
import pytest

from service.errors import TooManyPixels, UnreadableImage, UnsupportedType
from service.formats import decoding_limits
from service.imaging import color, decoding, identification
from service.imaging.photo import Photo

LIMITS = decoding_limits.Limits(max_pixels=100_000_000, max_side=65_500)
COLOR = np.random.default_rng(4).integers(0, 256, (31, 43, 3), np.uint8)
ALPHA = COLOR[::-1, :, 1].copy()
HEIGHT, WIDTH, _ = COLOR.shape
LUMA = color.luma_of_rgb(COLOR).astype(int)


def decode(data: bytes) -> Photo:
    return decoding.decode(identification.identify(data, LIMITS))


def bmp(rows: np.ndarray, bits: int, **options: object) -> bytes:
    """A BMP around rows of bytes, uint8 [HEIGHT, N], that are not padded yet."""
    given = {"size": 40, "compression": 0, "top_down": False, "behind": b"", "colors": 0, "gap": 0, "less": 0} | options
    stored = np.zeros((HEIGHT, (WIDTH * bits + 31) // 32 * 4), np.uint8)
    stored[:, : rows.shape[1]] = rows
    size, top_down = int(given["size"]), bool(given["top_down"])
    if size == 12:
        head = struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, bits)
    else:
        height = -HEIGHT if top_down else HEIGHT
        sides = struct.pack("<IiiHH", size, WIDTH, height, 1, bits)
        head = sides + struct.pack("<IIiiII", int(given["compression"]), 0, 2835, 2835, int(given["colors"]), 0)
    behind = bytes(given["behind"])
    head += behind if size <= 40 else behind.ljust(size - 40, b"\0")
    start = 14 + len(head) + int(given["gap"])
    body = (stored if top_down else stored[::-1]).tobytes()
    body = body[: len(body) - int(given["less"])]
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + head + bytes(int(given["gap"])) + body


def fields(bits: int, masks: tuple[int, ...], *, alpha: np.ndarray = ALPHA, **options: object) -> bytes:
    """A BMP with bit fields: red, green, blue and, as a fourth, alpha."""
    words = np.zeros((HEIGHT, WIDTH), np.uint64)
    for channel, mask in zip((*np.moveaxis(COLOR, -1, 0), alpha), masks, strict=False):
        if mask:
            lowest = mask & -mask
            words |= np.rint(channel / 255 * (mask // lowest)).astype(np.uint64) * np.uint64(lowest)
    rows = words.astype("<u8").view(np.uint8).reshape(HEIGHT, WIDTH, 8)[..., : bits // 8].reshape(HEIGHT, -1)
    behind = struct.pack(f"<{len(masks)}I", *masks)
    return bmp(rows, bits, **({"compression": 3, "behind": behind} | options))


def test_bit_fields_of_ten_bits_are_exact() -> None:
    for masks in ((0x3FF00000, 0xFFC00, 0x3FF), (0x3FF, 0xFFC00, 0x3FF00000), (0xFFC00000, 0x3FF000, 0xFFC)):
        for top_down in (False, True):
            photo = decode(fields(32, masks, top_down=top_down))
            np.testing.assert_array_equal(photo.luma, LUMA)
            assert photo.alpha is None


@pytest.mark.parametrize(
    ("bits", "masks", "off"),
    [
        (16, (0xF800, 0x7E0, 0x1F), 4),
        (16, (0x7C00, 0x3E0, 0x1F), 5),
        (16, (0x1F, 0x7E0, 0xF800), 4),
        (16, (0xF00, 0xF0, 0xF), 9),
        (16, (0xE0, 0x1C, 0x3), 25),
        (24, (0xFF0000, 0xFF00, 0xFF), 0),
        (24, (0xFF, 0xFF00, 0xFF0000), 0),
        (32, (0xFF0000, 0xFF00, 0xFF), 0),
        (32, (0xFF000000, 0xFF0000, 0xFF00), 0),
        (32, (0xFFFFF000, 0xFF0, 0xF), 2),
    ],
)
@pytest.mark.parametrize("options", [{}, {"size": 52}, {"gap": 6}, {"top_down": True}])
def test_bit_fields(bits: int, masks: tuple[int, ...], off: int, options: dict[str, object]) -> None:
    assert np.abs(decode(fields(bits, masks, **options)).luma - LUMA).max() <= off


@pytest.mark.parametrize(
    ("bits", "masks", "off"),
    [
        (32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000), 0),
        (32, (0x3FF, 0xFFC00, 0x3FF00000, 0xC0000000), 43),
        (16, (0xF00, 0xF0, 0xF, 0xF000), 9),
        (16, (0x7C00, 0x3E0, 0x1F, 0x8000), 128),
    ],
)
@pytest.mark.parametrize("options", [{"size": 56}, {"size": 108}, {"size": 124}, {"compression": 6}])
def test_alpha_of_bit_fields(bits: int, masks: tuple[int, ...], off: int, options: dict[str, object]) -> None:
    alpha = decode(fields(bits, masks, **options)).alpha
    assert alpha is not None
    assert np.abs(alpha.astype(int) - ALPHA).max() <= off
    assert decode(fields(bits, masks, alpha=np.zeros_like(ALPHA), **options)).alpha is None


def test_masks_of_zeros_are_the_usual_ones() -> None:
    rows = np.dstack([COLOR[..., ::-1], ALPHA]).reshape(HEIGHT, -1)
    np.testing.assert_array_equal(decode(bmp(rows, 32, compression=3, behind=bytes(12))).luma, LUMA)


RAMP = b"".join(bytes([level, level, level, 0]) for level in range(256))
TINTED = b"".join(bytes([level // 2, level, level, 0]) for level in range(256))
TINTED_LUMA = color.luma_of_rgb(np.frombuffer(TINTED, np.uint8).reshape(1, 256, 4)[..., 2::-1].copy())[0]
ONES = np.packbits(COLOR[..., 1] > 128, axis=1)


@pytest.mark.parametrize(
    ("data", "luma"),
    [
        (bmp(COLOR[..., 1], 8, behind=RAMP), COLOR[..., 1]),
        (bmp(COLOR[..., 1] % 16, 8, behind=RAMP[:64], colors=16), COLOR[..., 1] % 16),
        (bmp(COLOR[..., 1], 8, behind=RAMP + RAMP[:40], colors=266), COLOR[..., 1]),
        (bmp(COLOR[..., 1], 8, behind=TINTED + TINTED[:40], colors=266), TINTED_LUMA[COLOR[..., 1]]),
        (bmp(COLOR[..., 1], 8, behind=TINTED, colors=0x7FFFFFFF), TINTED_LUMA[COLOR[..., 1]]),
        (bmp(ONES, 1, behind=b"\0\0\0\0\xff\xff\xff\0"), (COLOR[..., 1] > 128) * 255),
        (bmp(ONES * 0, 1, behind=b"\7\7\7\0", colors=1), ONES[:1, :1] * 0 + np.full_like(ALPHA, 7)),
        (bmp(COLOR[..., ::-1].reshape(HEIGHT, -1), 24), LUMA),
        (bmp(COLOR[..., ::-1].reshape(HEIGHT, -1), 24, size=12), LUMA),
        (bmp(COLOR[..., ::-1].reshape(HEIGHT, -1), 24, size=124), LUMA),
        (bmp(COLOR[..., ::-1].reshape(HEIGHT, -1), 24, top_down=True), LUMA),
        (bmp(COLOR[..., ::-1].reshape(HEIGHT, -1), 24, behind=bytes(20), colors=5), LUMA),
        (bmp(COLOR[..., ::-1].reshape(HEIGHT, -1), 24, less=3), LUMA),
        (bmp(np.dstack([COLOR[..., ::-1], ALPHA]).reshape(HEIGHT, -1), 32), LUMA),
    ],
)
def test_kinds_without_bit_fields(data: bytes, luma: np.ndarray) -> None:
    assert np.abs(decode(data).luma - luma.astype(int)).max() <= 1


NOTHING = np.zeros((HEIGHT, 1), np.uint8)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (bmp(NOTHING, 24, compression=4), "a JPEG inside"),
        (bmp(NOTHING, 24, compression=5), "a PNG inside"),
        (bmp(NOTHING, 8, compression=1), "run-length"),
        (bmp(NOTHING, 4, compression=2), "run-length"),
        (bmp(NOTHING, 24, compression=4, size=64), "run-length"),
        (bmp(NOTHING, 1, compression=3, size=64), "fax"),
        (bmp(NOTHING, 24, compression=99), "type 99"),
        (bmp(NOTHING, 2), "2 bits"),
        (bmp(NOTHING, 64), "64 bits"),
        (bmp(NOTHING, 8, compression=3), "8 bits"),
        (bmp(NOTHING, 24, size=200), "200 bytes"),
        (bmp(NOTHING, 16, compression=3, behind=struct.pack("<III", 0xE1, 0x1C, 0x2)), "gaps"),
    ],
)
def test_other_kinds_are_refused_by_name(data: bytes, reason: str) -> None:
    with pytest.raises(UnsupportedType, match=reason) as caught:
        decode(data)
    assert "damaged" not in str(caught.value)


def test_damage_is_called_damage() -> None:
    whole = fields(16, (0xF800, 0x7E0, 0x1F))
    for size in (10, 20, 50, 60, len(whole) - 40):
        with pytest.raises(UnreadableImage):
            decode(whole[:size])
    for place in (18, 22):
        with pytest.raises(UnreadableImage):
            decode(whole[:place] + bytes(4) + whole[place + 4 :])
    with pytest.raises(TooManyPixels):
        decode(whole[:18] + struct.pack("<ii", 60_000, -60_000) + whole[26:])
