"""Contact sheets: each photograph gray, as a model colours it, and as it was."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from model_export import sources
from model_export.evaluate import Predict
from service import color
from service.color import Bytes, ColorSpace

GAP = 4


def _fit(rgb: Bytes, height: int, width: int) -> Bytes:
    """The largest middle part of the wanted shape, resized to it."""
    scale = max(height / rgb.shape[0], width / rgb.shape[1])
    size = (max(width, round(rgb.shape[1] * scale)), max(height, round(rgb.shape[0] * scale)))
    large = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    top, left = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
    return np.asarray(large[top : top + height, left : left + width], np.uint8)


def draw(
    entries: Sequence[sources.Entry],
    predict: Predict,
    color_space: ColorSpace,
    *,
    columns: int = 3,
    height: int = 150,
    width: int = 200,
) -> Bytes:
    """RGB, uint8 [H, W, 3]: `columns` triples a row."""
    triples = []
    for entry in entries:
        rgb = entry.read()
        luma = color.luma_of_rgb(rgb)
        answer = color.merge_rgb(luma, predict(luma), color_space)
        cells = [_fit(picture, height, width) for picture in (np.dstack([luma] * 3), answer, rgb)]
        edge = np.full((height, GAP, 3), 255, np.uint8)
        triples.append(np.hstack([*cells, edge]))
    triples += [np.full_like(triples[0], 255)] * (-len(triples) % columns)
    rows = [np.hstack(triples[start : start + columns]) for start in range(0, len(triples), columns)]
    line = np.full((GAP, rows[0].shape[1], 3), 255, np.uint8)
    return np.vstack([part for row in rows for part in (row, line)])


def save(picture: Bytes, path: Path) -> None:
    """Writes an RGB picture; the format goes by the suffix. Raises OSError when it can't be written."""
    done, content = cv2.imencode(path.suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not done:
        raise OSError(f"{path}: can't be written")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.tobytes())
