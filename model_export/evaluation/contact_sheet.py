"""Contact sheets: each photograph gray, as a model colours it, and as it was."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from model_export.data import sources
from model_export.evaluation.evaluate import Predict, Predictor, Report
from service.imaging import color
from service.imaging.color import Bytes, ColorSpace

GAP = 4
CAPTION_HEIGHT = 20
CAPTION_SCALE = 0.4
# Photographs on the sheets of the best and of the worst.
RANKED = 10


def _fit(rgb: Bytes, height: int, width: int) -> Bytes:
    """The largest middle part of the wanted shape, resized to it."""
    scale = max(height / rgb.shape[0], width / rgb.shape[1])
    size = (max(width, round(rgb.shape[1] * scale)), max(height, round(rgb.shape[0] * scale)))
    large = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    top, left = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
    return np.asarray(large[top : top + height, left : left + width], np.uint8)


def _caption(text: str, width: int) -> Bytes:
    """A line of small print on white, uint8 [CAPTION_HEIGHT, width, 3]; cut where it is too long."""
    # OpenCV's stroke fonts have no other letters.
    text = text.encode("ascii", "replace").decode("ascii")
    font = cv2.FONT_HERSHEY_SIMPLEX
    while text and cv2.getTextSize(text, font, CAPTION_SCALE, 1)[0][0] > width - 2 * GAP:
        text = text[:-1]
    strip = np.full((CAPTION_HEIGHT, width, 3), 255, np.uint8)
    cv2.putText(strip, text, (GAP, CAPTION_HEIGHT - 7), font, CAPTION_SCALE, (40, 40, 40), 1, cv2.LINE_AA)
    return strip


def draw(
    entries: Sequence[sources.Entry],
    predict: Predict,
    color_space: ColorSpace,
    *,
    columns: int = 3,
    height: int = 150,
    width: int = 200,
    captions: Sequence[str] = (),
) -> Bytes:
    """RGB, uint8 [H, W, 3]: `columns` triples a row, each over its caption if there are any."""
    triples = []
    for number, entry in enumerate(entries):
        rgb = entry.read()
        luma = color.luma_of_rgb(rgb)
        answer = color.merge_rgb(luma, predict(luma), color_space)
        cells = [_fit(picture, height, width) for picture in (np.dstack([luma] * 3), answer, rgb)]
        edge = np.full((height, GAP, 3), 255, np.uint8)
        triple = np.hstack([*cells, edge])
        triples.append(np.vstack([triple, _caption(captions[number], triple.shape[1])]) if captions else triple)
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


def save_all(
    entries: Sequence[sources.Entry], among: Sequence[int], report: Report, way: Predictor, drawn: int, folder: Path
) -> None:
    """Writes the sheets of a report on `entries`, of photographs whose numbers are `among` those that may be shown.

    `sheet.jpg` has `drawn` of them at random; `best.jpg` and `worst.jpg` have those that the model's `way` has brought
    nearer to the truth than their gray is, and those that it has led away from it, the extremest first.
    """
    _, random = sources.hold_out([entries[number] for number in among], min(drawn, len(among)))
    save(draw(random, way.predict, way.color_space), folder / "sheet.jpg")
    ranked = sorted(among, key=report.de00_change().tolist().__getitem__)
    for name, numbers in (("best", ranked[:RANKED]), ("worst", ranked[::-1][:RANKED])):
        chosen = [entries[number] for number in numbers]
        captions = [f"{entries[number].name}: {report.caption(number)}" for number in numbers]
        picture = draw(chosen, way.predict, way.color_space, columns=2, captions=captions)
        save(picture, folder / f"{name}.jpg")
