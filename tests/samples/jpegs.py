"""JPEG files that Pillow does not write: any sampling factors, one scan for each component, odd headers."""

import io
import math
import struct
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from PIL import Image

Factors = Sequence[tuple[int, int]]
START, END = b"\xff\xd8", b"\xff\xd9"
ZIGZAG = sorted(range(64), key=lambda i: (i // 8 + i % 8, (i % 8 if (i // 8 + i % 8) % 2 else i // 8) * -1))


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def before(data: bytes, marker: int, added: bytes) -> bytes:
    """Return the JPEG with these bytes before its first segment of a kind."""
    start = data.index(bytes([0xFF, marker]))
    return data[:start] + added + data[start:]


def _huffman_tables() -> tuple[bytes, list[dict[int, str]]]:
    """Return the standard tables for luma, DC and AC, as segments and as codes by symbol."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "JPEG")
    data, segments, codes = buffer.getvalue(), b"", []
    position = data.index(b"\xff\xc4")
    while data[position : position + 2] == b"\xff\xc4":
        (length,) = struct.unpack_from(">H", data, position + 2)
        body = data[position + 4 : position + 2 + length]
        segments += data[position : position + 2 + length]
        code, symbols, table = 0, iter(body[17:]), {}
        for bits, count in enumerate(body[1:17], 1):
            for _ in range(count):
                table[next(symbols)] = f"{code:0{bits}b}"
                code += 1
            code *= 2
        codes.append(table)
        position += 2 + length
    return segments, codes


TABLES, (DC, AC) = _huffman_tables()


def _bits(value: int) -> tuple[int, str]:
    """Return the category of a number, and its bits."""
    size = abs(value).bit_length()
    return size, f"{value if value > 0 else value + (1 << size) - 1:0{size}b}" if size else ""


def _block(block: np.ndarray, predicted: int) -> tuple[str, int]:
    levels = np.rint(cv2.dct(block.astype(np.float32) - 128)).astype(int).ravel()[ZIGZAG]
    size, bits = _bits(int(levels[0]) - predicted)
    code, run = DC[size] + bits, 0
    for level in levels[1 : np.flatnonzero(levels)[-1] + 1 if levels.any() else 1]:
        if level == 0:
            run += 1
            continue
        size, bits = _bits(int(level))
        code += AC[0xF0] * (run // 16) + AC[run % 16 << 4 | size] + bits
        run = 0
    return code + (AC[0] if levels[63] == 0 else ""), int(levels[0])


def _scan(planes: Sequence[np.ndarray], factors: Factors, units: Iterator[tuple[int, int]], interval: int) -> bytes:
    data, code, predicted = b"", "", [0] * len(planes)
    for number, (row, column) in enumerate(units):
        if interval and number and number % interval == 0:
            data += _packed(code) + bytes([0xFF, 0xD0 + (number // interval - 1) % 8])
            code, predicted = "", [0] * len(planes)
        for index, (plane, (across, down)) in enumerate(zip(planes, factors, strict=True)):
            for y in range(row * down, row * down + down):
                for x in range(column * across, column * across + across):
                    added, predicted[index] = _block(plane[8 * y : 8 * y + 8, 8 * x : 8 * x + 8], predicted[index])
                    code += added
    return data + _packed(code)


def _packed(code: str) -> bytes:
    code += "1" * (-len(code) % 8)
    return int(code, 2).to_bytes(len(code) // 8).replace(b"\xff", b"\xff\0")


def jpeg_of(
    planes: Sequence[np.ndarray],
    factors: Factors,
    size: tuple[int, int],
    *,
    ids: Sequence[int] = (1, 2, 3, 4),
    apart: bool = False,
    interval: int = 0,
) -> bytes:
    """Return a baseline JPEG whose planes are exact to one level. size: height and width, pixels.

    planes: uint8, each of the size of the picture times its factors by the largest ones, rounded up. apart: a scan for
    each component. interval: units between restart markers.
    """
    height, width = size
    most = max(across for across, _ in factors), max(down for _, down in factors)
    units = math.ceil(height / (8 * most[1])), math.ceil(width / (8 * most[0]))
    padded = [
        np.pad(
            plane,
            ((0, units[0] * down * 8 - plane.shape[0]), (0, units[1] * across * 8 - plane.shape[1])),
            "edge",
        )
        for plane, (across, down) in zip(planes, factors, strict=True)
    ]
    listed = [bytes([id_, across << 4 | down, 0]) for id_, (across, down) in zip(ids, factors, strict=False)]
    parts = [START, segment(0xFE, b"made by a test"), segment(0xDB, b"\0" + bytes([1] * 64)), TABLES]
    parts.append(segment(0xC0, struct.pack(">BHHB", 8, height, width, len(planes)) + b"".join(listed)))
    if interval:
        parts.append(segment(0xDD, struct.pack(">H", interval)))
    every = range(len(planes))
    for group in [[index] for index in every] if apart else [list(every)]:
        header = bytes([len(group)]) + b"".join(bytes([ids[index], 0]) for index in group) + b"\0\x3f\0"
        chosen, grid = [factors[index] for index in group], units
        if len(group) == 1:
            grid = math.ceil(planes[group[0]].shape[0] / 8), math.ceil(planes[group[0]].shape[1] / 8)
            chosen = [(1, 1)]
        places = ((row, column) for row in range(grid[0]) for column in range(grid[1]))
        parts += [segment(0xDA, header), _scan([padded[index] for index in group], chosen, places, interval)]
    return b"".join([*parts, END])


def planes_of(picture: np.ndarray, factors: Factors) -> list[np.ndarray]:
    """Return the planes of a picture, uint8 [H, W, C], each scaled by area to the size of its sampling factors."""
    height, width = picture.shape[:2]
    most = max(across for across, _ in factors), max(down for _, down in factors)
    return [
        cv2.resize(
            np.ascontiguousarray(picture[..., index]),
            (math.ceil(width * across / most[0]), math.ceil(height * down / most[1])),
            interpolation=cv2.INTER_AREA,
        )
        for index, (across, down) in enumerate(factors)
    ]
