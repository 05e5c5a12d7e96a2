"""Check the outputs against the reference, which is service.imaging.color's float32 merge at full size.

CIEDE2000 is computed on a grid of at most 250,000 pixels, luma on all pixels.
"""

import http.client
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from skimage.color import deltaE_ciede2000, rgb2lab

from service.imaging import color
from service.imaging.color import Bytes
from service.inference.session import Engine
from tests.bench import load

GRID_PIXELS = 250_000
ANSWER_S = 120.0
# Merging out-of-gamut colours in 8 bits differs by one to three. A gray output, or another photo's, differs far more.
SAME_DE00 = 5.0


class WrongAnswer(Exception):
    """A server returned something else than a coloured photo."""


@dataclass(frozen=True)
class Reference:
    """A photo, its luma, uint8 [H, W], and its expected output on the grid, uint8 [h, w, 3]."""

    photo: bytes
    luma: Bytes
    rgb: Bytes


def grid(picture: Bytes) -> Bytes:
    step = max(1, math.ceil(math.sqrt(picture.shape[0] * picture.shape[1] / GRID_PIXELS)))
    return np.ascontiguousarray(picture[::step, ::step])


def luma_of(jpeg: bytes) -> Bytes:
    return np.asarray(simplejpeg.decode_jpeg(jpeg, "GRAY")[..., 0], np.uint8)


def rgb_of(jpeg: bytes) -> Bytes:
    return np.asarray(simplejpeg.decode_jpeg(jpeg, "RGB"), np.uint8)


def reference(photo: bytes, model: Path) -> Reference:
    engine = Engine(model, model.read_bytes(), "cpu")
    space, luma = engine.contract.color_space, luma_of(photo)
    (chroma,) = engine.predict(color.split(luma, space, engine.contract.input_size)[np.newaxis])
    return Reference(photo, luma, grid(color.merge_rgb(luma, chroma, space)))


def de00(one: Bytes, other: Bytes) -> float:
    """Return the mean CIEDE2000 of two RGB images."""
    return float(np.mean(deltaE_ciede2000(rgb2lab(one), rgb2lab(other))))  # type: ignore[no-untyped-call]


def luma_difference(answer: bytes, luma: Bytes) -> tuple[float, int]:
    """Return the mean and the largest difference of an output's Y plane, in levels."""
    difference = np.abs(luma_of(answer).astype(np.int16) - luma)
    return float(difference.mean()), int(difference.max())


def compare(answer: bytes, reference: Reference) -> tuple[Bytes, float]:
    """Return the output on the grid, and its mean CIEDE2000. Raises WrongAnswer if it is another image."""
    rgb = rgb_of(answer)
    if rgb.shape[:2] != reference.luma.shape:
        raise WrongAnswer(f"{rgb.shape[1]} x {rgb.shape[0]} pixels to a photo of another size")
    shown = grid(rgb)
    difference = de00(shown, reference.rgb)
    if difference > SAME_DE00:
        raise WrongAnswer(f"the answer's mean CIEDE2000 is {difference:.1f}: it is not the same picture")
    return shown, difference


def ask(port: int, photo: bytes) -> bytes:
    """Return a server's output for one photo. Raises WrongAnswer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    try:
        connection.request("POST", load.PATH, load.form(photo), {"Content-Type": load.MEDIA_TYPE})
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise WrongAnswer(f"no answer to a single photo: {error!r}") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise WrongAnswer(f"{answer.status} to a single photo: {body[:200]!r}")
    if not simplejpeg.is_jpeg(body):
        raise WrongAnswer(f"not a JPEG, but {body[:20]!r}")
    return body
