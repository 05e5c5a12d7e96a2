"""Small files that mean to cost much: each has its outcome at once, in bounded memory.

They are decoded in a process of their own, so that the most memory that each one took can be seen. Time is counted in
decodings of an ordinary photo, which take longer, too, where a machine is slow or busy.
"""

import functools
import io
import json
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.errors import Problem
from service.formats import containers, decoding_limits
from service.imaging import decoding, identification
from service.imaging.photo import Photo
from service.metadata import transfer
from tests.conftest import encoded
from tests.samples.heif_attacks import ATTACKS

MIB = 1 << 20
LIMITS = decoding_limits.Limits(100_000_000, 65_500)
NOISE = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
# Sixteen megapixels.
ORDINARY = encoded(np.tile(NOISE, (64, 64)), "JPEG", quality=50)
JPEG, PNG = encoded(NOISE, "JPEG"), encoded(NOISE, "PNG")
LOSSY, LOSSLESS = encoded(np.dstack([NOISE] * 3), "WEBP"), encoded(np.dstack([NOISE] * 3), "WEBP", lossless=True)
PNG_HEAD = 33
ANIMATION = 2
# Decodings of an ordinary photo that a bomb may take. Without the checks, most take hundreds.
MOST_TIME = 20


def taken(data: bytes) -> Photo:
    """Decode as the colorizer does."""
    file = identification.identify(data, LIMITS)
    said = transfer.read(data, file.source)
    return decoding.decode(file, icc=said.icc, detect_tone=True)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body), kind) + body + zlib.crc32(kind + body).to_bytes(4)


def png_of(side: int, pixels: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return PNG[:8] + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def png_with(added: bytes) -> bytes:
    return PNG[:PNG_HEAD] + added + PNG[PNG_HEAD:]


def jpeg_with(added: bytes) -> bytes:
    return JPEG[:2] + added + JPEG[2:]


def jpeg_that_says(data: bytes, height: int, width: int) -> bytes:
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def progressive(side: int, scans: int) -> bytes:
    """Return an even gray JPEG. Its later scans say, in a few bytes for 32,767 blocks each, that nothing changes."""
    blocks = ((side + 7) // 8) ** 2
    codes = "0" + "1" * 14
    bits = codes * -(-blocks // 32_767)
    bits += "1" * (-len(bits) % 8)
    empty = int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\0")

    def scan(first: int, last: int, before: int, after: int) -> bytes:
        return segment(0xDA, bytes([1, 1, 0, first, last, before << 4 | after]))

    parts = [
        b"\xff\xd8",
        segment(0xDB, b"\0" + bytes([1] * 64)),
        segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0"),
        segment(0xC4, b"\0" + bytes([1]) + bytes(15) + b"\0"),
        segment(0xC4, b"\x10" + bytes([1]) + bytes(15) + b"\xe0"),
        scan(0, 0, 0, 0) + bytes((blocks + 7) // 8),
        *[
            scan(1, 63, max(13 - number, 0) + 1 if number else 0, max(13 - number, 0)) + empty
            for number in range(scans)
        ],
        b"\xff\xd9",
    ]
    return b"".join(parts)


def webp_of(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(
        struct.pack("<4sI", kind, len(content)) + content + bytes(len(content) % 2) for kind, content in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def canvas(side: int, flags: int = 0) -> tuple[bytes, bytes]:
    return b"VP8X", bytes([flags, 0, 0, 0]) + (side - 1).to_bytes(3, "little") * 2


def frame(data: bytes, side: int | None = None) -> tuple[bytes, bytes]:
    """Return the only chunk of a WebP, with another size in its header."""
    kind, (size,) = data[12:16], struct.unpack_from("<I", data, 16)
    body = data[20 : 20 + size]
    if side is None:
        return kind, body
    if kind == b"VP8 ":
        return kind, body[:6] + struct.pack("<HH", side, side) + body[10:]
    return kind, body[:1] + (side - 1 | side - 1 << 14).to_bytes(4, "little") + body[5:]


def bmp_of(header: bytes) -> bytes:
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 14 + len(header)) + header + bytes(64)


def info(width: int, height: int, size: int = 40) -> bytes:
    return struct.pack("<IiiHHI", size, width, height, 1, 24, 0).ljust(size, b"\0")


def gif_of(*blocks: bytes, screen: tuple[int, int] = (64, 64)) -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + bytes(3) + b"\xff" * 3 + b"".join(blocks) + b";"


def gif_frame(left: int = 0, top: int = 0, width: int = 64, height: int = 64, parts: bytes = b"\2\4\1") -> bytes:
    """Return a GIF picture with little data. parts: its data, in parts of up to 255 bytes."""
    return b"," + struct.pack("<HHHHB", left, top, width, height, 0) + b"\2" + parts + b"\0"


def gif_comment(parts: bytes) -> bytes:
    return b"!\xfe" + parts + b"\0"


@functools.cache
def gif_whole() -> bytes:
    """Return the only picture of a valid GIF."""
    data = encoded(NOISE, "GIF")
    return next(data[start:end] for kind, start, end in containers.gif_blocks(data) if kind == containers.GIF_IMAGE)


def gif_with(added: bytes) -> bytes:
    """Return a valid GIF with more blocks before its picture."""
    return gif_of(added, gif_whole())


def arithmetic(size: int) -> bytes:
    """Return a JPEG with arithmetic coding, whose scan has `size` bytes."""
    start = jpeg_that_says(JPEG, 4000, 6000).replace(b"\xff\xc0", b"\xff\xc9", 1)
    return start[:-2] + b"\x55" * size + start[-2:]


def multi_picture(height: int, width: int) -> bytes:
    """Return an MPO whose first picture declares that size."""
    stream = io.BytesIO()
    Image.fromarray(NOISE).save(stream, "MPO", save_all=True, append_images=[Image.fromarray(NOISE)])
    return jpeg_that_says(stream.getvalue(), height, width)


INFLATES = zlib.compress(bytes(500 * MIB))

# What it is, its outcome ("ok" or a code), and the most MiB that it may take. Where the header claims nearly as many
# pixels as there may be, it is believed: they have to be there before it is known that they are not in the file.
BOMBS: dict[str, tuple[Callable[[], bytes], str, int]] = {
    "a png of 60,000 x 60,000": (lambda: png_of(60_000, b""), "too_many_pixels", 16),
    "a png without its pixels": (lambda: png_of(9999, zlib.compress(b"")), "unreadable_image", 120),
    "a png with a thousand times its pixels": (lambda: png_of(64, INFLATES), "ok", 16),
    "a jpeg that says it is tiny": (
        lambda: jpeg_that_says(encoded(np.tile(NOISE, (40, 40)), "JPEG"), 8, 8),
        "ok",
        16,
    ),
    "a jpeg that says it is huge": (lambda: jpeg_that_says(JPEG, 65_500, 65_500), "too_many_pixels", 16),
    "a jpeg that says it is large": (lambda: jpeg_that_says(JPEG, 9999, 9999), "unreadable_image", 120),
    "a jpeg without width": (lambda: jpeg_that_says(JPEG, 64, 0), "unreadable_image", 16),
    "15,000 scans": (lambda: progressive(64, 15_000), "too_many_scans", 16),
    "90 scans of 100 megapixels": (lambda: progressive(9999, 90), "too_many_scans", 16),
    "nine scans of 100 megapixels": (lambda: progressive(9999, 8), "ok", 320),
    "a profile that inflates": (lambda: png_with(chunk(b"iCCP", b"x\0\0" + INFLATES)), "ok", 16),
    "a text that inflates": (lambda: png_with(chunk(b"zTXt", b"x\0\0" + INFLATES)), "ok", 16),
    "xmp that inflates": (
        lambda: png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + INFLATES)),
        "ok",
        16,
    ),
    "ten thousand texts that inflate": (
        lambda: png_with(chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(MIB - 9))) * 10_000),
        "ok",
        32,
    ),
    "a webp with a canvas that lies": (lambda: webp_of(canvas(9999), frame(LOSSY)), "unreadable_image", 32),
    "a webp with a canvas of 281 terapixels": (lambda: webp_of(canvas(1 << 24), frame(LOSSY)), "too_many_pixels", 16),
    "a webp with a tiny canvas": (lambda: webp_of(canvas(1), frame(LOSSLESS)), "unreadable_image", 16),
    "a lossy webp that says it is large": (lambda: webp_of(frame(LOSSY, 9999)), "unreadable_image", 450),
    "a lossless webp that says it is large": (lambda: webp_of(frame(LOSSLESS, 9999)), "unreadable_image", 450),
    "a lossless webp that says it is huge": (lambda: webp_of(frame(LOSSLESS, 16_383)), "too_many_pixels", 16),
    "a million texts": (lambda: png_with(chunk(b"tEXt", b"") * 1_000_000), "unreadable_image", 16),
    "a million unknown chunks": (lambda: png_with(chunk(b"teSt", b"") * 1_000_000), "unreadable_image", 16),
    "a hundred thousand chunks of pixels": (lambda: png_with(chunk(b"IDAT", b"") * 90_000), "ok", 16),
    "a million segments": (lambda: jpeg_with(segment(0xFE, b"") * 1_000_000), "unreadable_image", 16),
    "megabytes between segments": (lambda: jpeg_with(b"\xff" * 8 * MIB), "unreadable_image", 16),
    "megabytes of restarts": (lambda: jpeg_with(b"\xff\xd0" * 4 * MIB), "unreadable_image", 16),
    "megabytes of zeros behind the scan": (lambda: JPEG[:-2] + b"\xff" * 8 * MIB + JPEG[-2:], "ok", 16),
    "a million chunks of a webp": (lambda: webp_of(canvas(64), frame(LOSSY), *[(b"test", b"")] * 1_000_000), "ok", 80),
    "a jpeg with two sizes": (
        lambda: jpeg_with(segment(0xC0, struct.pack(">BHHB", 8, 65_500, 65_500, 1) + b"\1\x11\0")),
        "too_many_pixels",
        16,
    ),
    "an mpo that says it is huge": (lambda: multi_picture(65_500, 65_500), "too_many_pixels", 16),
    "25 megabytes of arithmetic coding": (lambda: arithmetic(25 * MIB), "too_many_bytes", 16),
    "60,000 segments of applications": (lambda: jpeg_with(segment(0xE5, b"x") * 60_000), "unreadable_image", 16),
    "40 megabytes of one application": (
        lambda: jpeg_with(segment(0xE2, b"MPF\0" + bytes(65_000)) * 640),
        "ok",
        120,
    ),
    "40 megabytes of exif": (
        lambda: jpeg_with(segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 640),
        "unreadable_image",
        16,
    ),
    "a bmp of 65,535 x 65,535": (
        lambda: bmp_of(struct.pack("<IHHHH", 12, 65_535, 65_535, 1, 24)),
        "too_many_pixels",
        16,
    ),
    "a bmp that is huge": (lambda: bmp_of(info(40_000, 40_000)), "too_many_pixels", 16),
    "a bmp that is huge from its top": (lambda: bmp_of(info(40_000, -40_000)), "too_many_pixels", 16),
    "a bmp of the least height": (lambda: bmp_of(info(1, -(2**31), 108)), "too_many_pixels", 16),
    "a bmp that says it is large": (lambda: bmp_of(info(9999, 9999)), "unreadable_image", 330),
    "a gif with a huge screen": (lambda: gif_of(gif_frame(), screen=(65_535, 65_535)), "too_many_pixels", 16),
    "a gif with a huge frame": (lambda: gif_of(gif_frame(0, 0, 65_535, 65_535)), "too_many_pixels", 16),
    "a gif with a frame far away": (lambda: gif_of(gif_frame(65_535, 65_535)), "too_many_pixels", 16),
    "a gif with a huge second frame": (
        lambda: gif_of(gif_whole(), gif_frame(0, 0, 65_535, 65_535)),
        "unsupported_type",
        16,
    ),
    "a gif that says it is large": (lambda: gif_of(gif_frame(), screen=(9999, 9999)), "unreadable_image", 330),
    "a gif of a million frames": (lambda: gif_of(gif_frame() * 1_000_000), "unsupported_type", 16),
    "40 megabytes of comments": (lambda: gif_with(gif_comment(b"\xff" * 256 * 160_000)), "ok", 120),
    "a million comments": (lambda: gif_with(gif_comment(b"\1x") * 900_000), "unreadable_image", 16),
    "comments byte by byte": (lambda: gif_with(gif_comment(b"\1x" * 10_000_000)), "unreadable_image", 16),
    "comments behind the picture": (lambda: gif_of(gif_whole(), gif_comment(b"\1x" * 900_000)), "ok", 16),
    "megabytes between a gif's blocks": (lambda: gif_with(bytes(40 * MIB)), "ok", 16),
    "a picture byte by byte": (lambda: gif_of(gif_frame(parts=b"\1x" * 10_000_000)), "unreadable_image", 16),
    "a webp whose frame is huge": (
        lambda: webp_of(
            canvas(64, ANIMATION), (b"ANMF", bytes(6) + b"\xff" * 6 + bytes(4) + webp_of(frame(LOSSY))[12:])
        ),
        "unreadable_image",
        16,
    ),
    "a webp of a million frames": (
        lambda: webp_of(canvas(64, ANIMATION), *[(b"ANMF", bytes(16))] * 1_000_000),
        "unsupported_type",
        80,
    ),
    "a webp whose picture is larger than its canvas": (
        lambda: webp_of(canvas(64), frame(LOSSLESS, 16_383)),
        "too_many_pixels",
        16,
    ),
    "profiles in 255 parts": (
        lambda: jpeg_with(b"".join(segment(0xE2, b"ICC_PROFILE\0%c\xff" % n + bytes(65_000)) for n in range(1, 256))),
        "ok",
        80,
    ),
}

# Of those that test_still tells apart. Its limits are lower; these are refused at any.
HEIF_BOMBS = (
    *("overlays", "identities", "tiles of tiles", "65,535 times one tile", "a canvas without end"),
    *(
        "a size that is huge",
        "a picture that is huge",
        "a picture that is huge inside",
        "an av1 that is huge",
        "frames",
    ),
    *("30,000 items", "items that are not counted", "5,000 items", "a million properties", "boxes without end"),
    *(
        "associations without end",
        "references without end",
        "parts without end",
        "units without end",
        "alphas of alphas",
    ),
)
BOMBS |= {
    f"heif: {name}": (make, "ok" if problem is None else problem.code, 100)
    for name, (make, problem, _) in ATTACKS.items()
    if name in HEIF_BOMBS
}

CHILD = """
import json, pathlib, sys, time
from service.errors import Problem
from tests.unit.imaging.test_bombs import ORDINARY, taken

def peak():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024

def spent(work):
    started = time.process_time()
    work()
    return time.process_time() - started

taken(ORDINARY)
for line in sys.stdin:
    # The shorter of two, so that a pause in one of them does not count.
    usual = min(spent(lambda: taken(ORDINARY)) for _ in range(2))
    data = pathlib.Path(line.strip()).read_bytes()
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, started = peak(), time.process_time()
    try:
        taken(data)
        outcome = "ok"
    except Problem as problem:
        outcome = problem.code
    print(json.dumps([outcome, (time.process_time() - started) / usual, peak() - before]), flush=True)
"""


@pytest.fixture(scope="module")
def child():
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux tells the peak")
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.stdin.close()


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb(name: str, child: subprocess.Popen[str], tmp_path: Path) -> None:
    make, expected, most = BOMBS[name]
    file = tmp_path / "bomb"
    file.write_bytes(make())
    child.stdin.write(f"{file}\n")
    child.stdin.flush()
    outcome, times, mebibytes = json.loads(child.stdout.readline())
    assert outcome == expected
    assert times < MOST_TIME
    assert mebibytes < most


def small_files() -> dict[str, bytes]:
    rgb = np.dstack([NOISE[:24, :20], NOISE[24:48, :20], NOISE[40:64, 20:40]])
    palette = io.BytesIO()
    Image.fromarray(rgb).quantize(16).save(palette, "PNG")
    return {
        "jpeg": encoded(rgb, "JPEG"),
        "progressive": encoded(rgb, "JPEG", progressive=True),
        "jpeg with exif": encoded(rgb, "JPEG", exif=Image.Exif(), comment="here"),
        "png": encoded(rgb, "PNG"),
        "gray png": encoded(rgb[..., 0], "PNG"),
        "palette": palette.getvalue(),
        "alpha": encoded(np.dstack([rgb, rgb[..., 0]]), "PNG"),
        "lossy": encoded(rgb, "WEBP"),
        "lossless": encoded(rgb, "WEBP", lossless=True),
        "webp with alpha": encoded(np.dstack([rgb, rgb[..., 0]]), "WEBP"),
    }


@pytest.mark.parametrize("name", small_files())
def test_a_file_cut_at_any_byte_is_a_problem_or_all_there(name: str) -> None:
    data = small_files()[name]
    whole = taken(data)
    readable, statuses = 0, set()
    with warnings.catch_warnings(action="ignore"):
        for end in range(len(data)):
            try:
                photo = taken(data[:end])
            except Problem as problem:
                statuses.add(problem.status)
            else:
                readable += 1
                np.testing.assert_array_equal(photo.luma, whole.luma)
    assert statuses <= {400, 415}
    assert readable <= 24, "but for its last few bytes, which are no pixels"
