"""Small TIFFs that mean to cost much: each has its outcome soon, in bounded memory, and writes nothing.

They are decoded in a process of their own, so that the time and the most memory that each one took can be seen. Times
are of the processor, and bounds are several times what was measured, since a busy machine's caches make it slower.
"""

import io
import json
import lzma
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.formats import tiff_tags
from tests.samples import tiffs
from tests.samples.tiffs import COMPRESSORS, assembled

MIB = 1 << 20
DEFLATE, LZW, JPEG, PACKBITS, LZMA, ZSTD = 8, 5, 7, 32773, 34925, 50000
ROWS = 65_500


def header(
    width: int, height: int, compression: int, rows: int = 1, tile: tuple[int, int] | None = None, kind: int = 1
) -> tiffs.Tags:
    channels = 3 if kind in (2, 6) else 1
    tags: tiffs.Tags = {
        tiff_tags.IMAGE_WIDTH: (4, [width]),
        tiff_tags.IMAGE_LENGTH: (4, [height]),
        tiff_tags.BITS_PER_SAMPLE: (3, [1 if compression in (2, 3, 4) else 8] * channels),
        tiff_tags.COMPRESSION: (3, [compression]),
        tiff_tags.PHOTOMETRIC_INTERPRETATION: (3, [kind]),
        tiff_tags.SAMPLES_PER_PIXEL: (3, [channels]),
    }
    sides: tiffs.Tags = {tiff_tags.ROWS_PER_STRIP: (4, [rows])}
    return tags | ({tiff_tags.TILE_WIDTH: (4, [tile[0]]), tiff_tags.TILE_LENGTH: (4, [tile[1]])} if tile else sides)


def jpeg(width: int, height: int, mode: str = "L") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (width, height), 128 if mode == "L" else (1, 2, 3)).save(stream, "JPEG", subsampling=0)
    return stream.getvalue()


def overlapping(content: bytes, compression: int, changes: tiffs.Tags | None = None, *, big: bool = False) -> bytes:
    """Return a TIFF with 65,500 strips of one row that all are the same megabyte."""
    content = content.ljust(MIB, b"\0")
    start = 16 if big else 8
    kind = tiff_tags.LONG8 if big else tiff_tags.LONG
    tags = header(1, ROWS, compression)
    tags |= {tiff_tags.STRIP_OFFSETS: (kind, [start] * ROWS), tiff_tags.STRIP_BYTE_COUNTS: (kind, [MIB] * ROWS)}
    return assembled([content], header(1, ROWS, compression), tags | (changes or {}), big=big)


def overlapping_tiles(planes: int) -> bytes:
    number = 4096 * planes
    tags = header(1024, 1024, DEFLATE, tile=(16, 16), kind=2 if planes == 3 else 1)
    tags |= {tiff_tags.PLANAR_CONFIGURATION: (3, [2])} if planes == 3 else {}
    changes: tiffs.Tags = {tiff_tags.TILE_OFFSETS: (4, [8] * number), tiff_tags.TILE_BYTE_COUNTS: (4, [MIB] * number)}
    return assembled([zlib.compress(bytes(256)).ljust(MIB, b"\0")], tags, changes, is_tiled=True)


def empty_blocks(size: int) -> bytes:
    """Return a Deflate stream of empty stored blocks."""
    return b"\x78\x01" + b"\0\0\0\xff\xff" * (size // 5) + b"\1\1\0\xfe\xff\x80" + b"\0\x81\0\x81"


def with_dictionary(data: bytes, byte: int) -> bytes:
    """Return an xz stream whose block declares another dictionary size: 40 is 4 GiB."""
    compressed = bytearray(lzma.compress(data))
    block = 12
    length = (compressed[block] + 1) * 4
    place = compressed.index(b"\x21\x01", block) + 2
    compressed[place] = byte
    compressed[block + length - 4 : block + length] = zlib.crc32(compressed[block : block + length - 4]).to_bytes(
        4, "little"
    )
    return bytes(compressed)


def zstandard(size: int) -> bytes:
    """Return a Zstandard frame with a window of 128 MiB, and blocks that repeat a byte."""
    whole, rest = divmod(size, 128 * 1024)
    blocks = [128 * 1024] * whole + [rest] * bool(rest)
    made = b"".join(
        (size << 3 | 1 << 1 | (number == len(blocks) - 1)).to_bytes(3, "little") + b"\x80"
        for number, size in enumerate(blocks)
    )
    return b"\x28\xb5\x2f\xfd\0" + bytes([17 << 3]) + made


def one_strip(width: int, height: int, compression: int, content: bytes, kind: int = 1) -> bytes:
    return assembled([content], header(width, height, compression, height, kind=kind), {})


def rows_of_their_own(width: int, compression: int, kind: int = 1, planes: int = 1) -> bytes:
    """Return a valid picture with a strip for each of its 65,500 rows."""
    channels = 3 if kind in (2, 6) and planes == 1 else 1
    row = np.full(width * channels, 128, np.uint8).tobytes()
    content = jpeg(width, 1, "RGB" if channels == 3 else "L") if compression == JPEG else COMPRESSORS[compression](row)
    tags = header(width, ROWS, compression, kind=kind)
    tags |= {tiff_tags.PLANAR_CONFIGURATION: (3, [2])} if planes > 1 else {}
    return assembled([content] * ROWS * planes, tags, {})


def scans(number: int) -> bytes:
    """Return a gray JPEG of 2048 x 2048 pixels with this many scans. All but the first have no data."""
    data = jpeg(2048, 2048)
    start = data.index(b"\xff\xda")
    return data[:-2] + (data[start : start + 10]) * number + data[-2:]


def arithmetic() -> bytes:
    return jpeg(64, 64).replace(b"\xff\xc0", b"\xff\xc9")


def many_tables() -> bytes:
    data = jpeg(64, 64)
    start = data.index(b"\xff\xc4")
    size = int.from_bytes(data[start + 2 : start + 4]) + 2
    return data[:start] + data[start : start + size] * 200_000 + data[start:]


def fax(width: int, rows: int, content: bytes, compression: int = 4) -> bytes:
    return one_strip(width, rows, compression, content, kind=0)


NOISE = np.random.default_rng(0).integers(0, 256, 400_000, np.uint8).tobytes()

# What it is, its outcome ("ok" or a code), the most seconds, and the most MiB.
BOMBS: dict[str, tuple[Callable[[], bytes], str, float, int]] = {
    "overlapping deflate": (lambda: overlapping(empty_blocks(MIB - 100), DEFLATE), "unreadable_image", 1, 32),
    "overlapping lzw": (lambda: overlapping(b"\x80", LZW), "unreadable_image", 1, 32),
    "overlapping packbits": (lambda: overlapping(b"\x80" * MIB, PACKBITS), "unreadable_image", 1, 32),
    "overlapping jpeg": (lambda: overlapping(jpeg(1, 1), JPEG), "unsupported_type", 1, 32),
    "overlapping lzma": (lambda: overlapping(lzma.compress(b"1"), LZMA), "unreadable_image", 1, 32),
    "overlapping zstandard": (lambda: overlapping(zstandard(1), ZSTD), "unreadable_image", 1, 32),
    "overlapping fax": (lambda: overlapping(NOISE, 4), "unreadable_image", 1, 32),
    "overlapping in a BigTIFF": (lambda: overlapping(b"", DEFLATE, big=True), "unreadable_image", 1, 32),
    "overlapping, with sizes of 2^32 - 1": (
        lambda: overlapping(b"", DEFLATE, {tiff_tags.STRIP_BYTE_COUNTS: (4, [2**32 - 1] * ROWS)}),
        "unreadable_image",
        1,
        32,
    ),
    "overlapping, with sizes of 2^64 - 1": (
        lambda: overlapping(b"", DEFLATE, {tiff_tags.STRIP_BYTE_COUNTS: (16, [2**64 - 1] * ROWS)}, big=True),
        "unreadable_image",
        1,
        32,
    ),
    "overlapping, without sizes": (
        lambda: overlapping(empty_blocks(MIB), DEFLATE, {tiff_tags.STRIP_BYTE_COUNTS: None}),
        "unreadable_image",
        1,
        32,
    ),
    "overlapping, with sizes of 0": (
        lambda: overlapping(empty_blocks(MIB), DEFLATE, {tiff_tags.STRIP_BYTE_COUNTS: (4, [0] * ROWS)}),
        "unreadable_image",
        1,
        32,
    ),
    "overlapping tiles": (lambda: overlapping_tiles(1), "unreadable_image", 1, 32),
    "overlapping tiles of planes": (lambda: overlapping_tiles(3), "unreadable_image", 1, 32),
    "a deflated strip that is too long": (
        lambda: one_strip(64, 64, DEFLATE, zlib.compress(bytes(500 * MIB))),
        "ok",
        1,
        32,
    ),
    "an xz strip that is too long": (
        lambda: one_strip(64, 64, LZMA, lzma.compress(bytes(50 * MIB), preset=0)),
        "ok",
        1,
        32,
    ),
    "a Zstandard strip that is too long": (lambda: one_strip(64, 64, ZSTD, zstandard(500 * MIB)), "ok", 1, 32),
    "a dictionary of 4 GiB": (lambda: one_strip(64, 64, LZMA, with_dictionary(bytes(4096), 40)), "ok", 1, 32),
    "a million empty blocks": (lambda: one_strip(1, 1, DEFLATE, empty_blocks(5 * MIB)), "unreadable_image", 1, 32),
    "a picture without its strip": (
        lambda: one_strip(9999, 9999, DEFLATE, zlib.compress(b"")),
        "unreadable_image",
        1,
        400,
    ),
    "an uncompressed picture without its strip": (lambda: one_strip(9999, 9999, 1, b""), "unreadable_image", 1, 16),
    "tiles of a pixel": (
        lambda: assembled([b"x"], header(9999, 9999, DEFLATE, tile=(1, 1)), {}, is_tiled=True),
        "unsupported_type",
        1,
        16,
    ),
    "a tile of four gigapixels": (
        lambda: assembled([zlib.compress(b"x")], header(9, 9, DEFLATE, tile=(65_536, 65_536)), {}, is_tiled=True),
        "unsupported_type",
        1,
        16,
    ),
    "65,535 channels": (
        lambda: assembled(
            [zlib.compress(b"x")], header(9999, 9999, DEFLATE) | {tiff_tags.SAMPLES_PER_PIXEL: (3, [65_535])}, {}
        ),
        "unsupported_type",
        1,
        16,
    ),
    "16 channels of 100 megapixels": (
        lambda: assembled(
            [b"x"],
            header(9999, 9999, DEFLATE, rows=9999)
            | {tiff_tags.SAMPLES_PER_PIXEL: (3, [16]), tiff_tags.BITS_PER_SAMPLE: (3, [8] * 16)},
            {},
        ),
        "too_many_pixels",
        1,
        16,
    ),
    "a JPEG of 1,000 scans": (lambda: one_strip(2048, 2048, JPEG, scans(1000)), "too_many_scans", 1, 16),
    "an arithmetic-coded JPEG": (lambda: one_strip(64, 64, JPEG, arithmetic()), "unsupported_type", 1, 16),
    "a JPEG of 200,000 tables": (lambda: one_strip(64, 64, JPEG, many_tables()), "unreadable_image", 1, 32),
    "a JPEG larger than its strip": (lambda: one_strip(64, 64, JPEG, jpeg(9999, 9999)), "unreadable_image", 1, 64),
    "a fax of noise": (lambda: fax(1500, 65_436, NOISE, 3), "unreadable_image", 5, 300),
    "a fax of noise in two dimensions": (lambda: fax(1728, 55_000, NOISE), "unreadable_image", 5, 300),
    "a blank fax of 95 megapixels": (lambda: fax(1728, 55_000, b"\xff" * (55_000 // 8 + 1)), "ok", 5, 400),
}


def _reports(process: subprocess.Popen[str], file: Path) -> list[object]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{file}\n")
    process.stdin.flush()
    found: list[object] = json.loads(process.stdout.readline())
    return found


CHILD = """
import json, pathlib, sys, time
from service.errors import Problem
from service.formats import decoding_limits
from service.imaging import decoding, identification
from service.metadata import transfer

def peak():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024

limits = decoding_limits.Limits(100_000_000, 65_500)
for line in sys.stdin:
    data = pathlib.Path(line.strip()).read_bytes()
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, started = peak(), time.process_time()
    try:
        file = identification.identify(data, limits)
        said = transfer.read(data, file.source)
        decoding.decode(file, icc=said.icc, detect_tone=True)
        outcome = "ok"
    except Problem as problem:
        outcome = problem.code
    print(json.dumps([outcome, time.process_time() - started, peak() - before]), flush=True)
"""


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux tells the peak")
    errors = tmp_path_factory.mktemp("child") / "errors"
    with (
        errors.open("w") as file,
        subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True
        ) as process,
    ):
        yield process, errors
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb(name: str, child: tuple[subprocess.Popen[str], Path], tmp_path: Path) -> None:
    make, expected, most_seconds, most_mebibytes = BOMBS[name]
    file = tmp_path / "bomb"
    file.write_bytes(make())
    process, errors = child
    outcome, seconds, mebibytes = _reports(process, file)
    assert outcome == expected
    assert seconds < most_seconds
    assert mebibytes < most_mebibytes
    assert errors.read_text() == ""


@pytest.mark.parametrize("compression", [1, LZW, DEFLATE, PACKBITS, LZMA, ZSTD])
def test_a_sound_photo_of_many_strips(
    compression: int, child: tuple[subprocess.Popen[str], Path], tmp_path: Path
) -> None:
    """The maximum number of strips takes a few seconds, whatever their compression."""
    process, _ = child
    for kind, planes in ((1, 1), (2, 1), (2, 3)):
        file = tmp_path / "photo"
        file.write_bytes(rows_of_their_own(8, compression, kind, planes))
        outcome, seconds, mebibytes = _reports(process, file)
        assert outcome == "ok"
        assert seconds < 20
        assert mebibytes < 300
