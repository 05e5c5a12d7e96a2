"""Fuzz the decoder and the readers of metadata with damaged files: python -m tests.fuzz.decoder --help

libFuzzer, through atheris, changes valid files, and keeps the changes that reach new code. It looks for exceptions
other than problems of the client, crashes of a library, ten seconds, and two gigabytes.
"""

import logging
import struct
import sys
import warnings
import zlib

import atheris

from tests.fuzz import corpus
from tests.fuzz.run import run

with atheris.instrument_imports(include=["service"]):
    from service.errors import Problem
    from service.formats import decoding_limits
    from service.formats.registry import FORMATS
    from service.imaging import decoding, encoding, identification, resizing
    from service.metadata import transfer

LIMITS = decoding_limits.Limits(max_pixels=1_000_000, max_side=5000)
CRC_IS_RIGHT = 0.75


def one_file(data: bytes) -> None:
    """Send a file through all its readers, and write what was read into an output."""
    try:
        file = identification.identify(data, LIMITS)
        said = transfer.read(data, file.source)
        detect_tone = bool(len(data) % 2)
        photo = decoding.decode(file, icc=said.icc, detect_tone=detect_tone)
        pixels = decoding.decode_pixels(file, icc=said.icc)
    except Problem as problem:
        if not 400 <= problem.status < 500:
            raise
        return
    format_ = FORMATS[len(data) % len(FORMATS)]
    upright = photo.size[1], photo.size[0]
    photo = resizing.fit(photo, format_, 16)
    pixels = resizing.fit_pixels(pixels, format_, 16)
    height, width = photo.size
    kept = transfer.for_output(said, width=width, height=height, model="fuzz", version="1", upright=upright)
    answer = encoding.encode_pixels(pixels, format_, 80, avif_options=transfer.avif_options(kept))
    decoding.decode(identification.identify(transfer.write(answer, format_, kept), LIMITS))


def change(data: bytes, largest: int, seed: int) -> bytes:
    """Change a file as libFuzzer does. A PNG mostly gets valid checksums, so that the code behind them is reached."""
    changed = bytes(atheris.Mutate(data, largest))
    if changed[:4] != b"\x89PNG" or seed % 100 >= 100 * CRC_IS_RIGHT:
        return changed
    fixed = bytearray(changed)
    position = 8
    while position + 12 <= len(fixed):
        (size,) = struct.unpack_from(">I", fixed, position)
        end = position + 8 + size
        if end + 4 > len(fixed):
            break
        struct.pack_into(">I", fixed, end, zlib.crc32(fixed[position + 4 : end]))
        position = end + 4
    return bytes(fixed)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable()
    run(one_file, corpus.files(), largest=12_000, custom_mutator=change, name=sys.argv[0])
