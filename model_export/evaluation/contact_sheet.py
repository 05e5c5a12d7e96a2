"""Contact sheets: each photograph in gray, as coloured by a model, and in its true colours."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from model_export.data import sources
from model_export.evaluation.evaluate import Predictor, Report
from service.imaging import color
from service.imaging.color import Bytes

# Height and width of each image, pixels.
SIZE = (150, 200)
GAP = 4
CAPTION_HEIGHT = 20
CAPTION_SCALE = 0.4
# Number of photographs on the sheets of the best and of the worst ones.
RANKED = 10


def _fit(rgb: Bytes, height: int, width: int) -> Bytes:
    """Return the largest centred part with the aspect ratio height:width, resized to it."""
    scale = max(height / rgb.shape[0], width / rgb.shape[1])
    size = (max(width, round(rgb.shape[1] * scale)), max(height, round(rgb.shape[0] * scale)))
    large = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    top, left = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
    return np.asarray(large[top : top + height, left : left + width], np.uint8)


def _caption(text: str, width: int) -> Bytes:
    """Return a line of text on white, uint8 [CAPTION_HEIGHT, width, 3]. Text that is too long is cut off."""
    # OpenCV's stroke fonts have ASCII letters only.
    text = text.encode("ascii", "replace").decode("ascii")
    font = cv2.FONT_HERSHEY_SIMPLEX
    while text and cv2.getTextSize(text, font, CAPTION_SCALE, 1)[0][0] > width - 2 * GAP:
        text = text[:-1]
    strip = np.full((CAPTION_HEIGHT, width, 3), 255, np.uint8)
    cv2.putText(strip, text, (GAP, CAPTION_HEIGHT - 7), font, CAPTION_SCALE, (40, 40, 40), 1, cv2.LINE_AA)
    return strip


def draw(
    entries: Sequence[sources.Entry],
    predictor: Predictor,
    *,
    columns: int = 3,
    size: tuple[int, int] = SIZE,
    captions: Sequence[str] = (),
) -> Bytes:
    """Return a contact sheet, RGB uint8 [H, W, 3], with `columns` triples per row.

    size: height and width of each image, pixels. captions: one below each triple, or none at all.
    """
    height, width = size
    triples = []
    for number, entry in enumerate(entries):
        rgb = entry.read()
        luma = color.luma_of_rgb(rgb)
        colored = color.merge_rgb(luma, predictor.predict(luma), predictor.color_space)
        cells = [_fit(image, height, width) for image in (np.dstack([luma] * 3), colored, rgb)]
        edge = np.full((height, GAP, 3), 255, np.uint8)
        triple = np.hstack([*cells, edge])
        triples.append(np.vstack([triple, _caption(captions[number], triple.shape[1])]) if captions else triple)
    triples += [np.full_like(triples[0], 255)] * (-len(triples) % columns)
    rows = [np.hstack(triples[start : start + columns]) for start in range(0, len(triples), columns)]
    line = np.full((GAP, rows[0].shape[1], 3), 255, np.uint8)
    return np.vstack([part for row in rows for part in (row, line)])


def save(image: Bytes, path: Path) -> None:
    """Write an RGB image in the format of the path's suffix. Raises OSError if it can't be written."""
    is_encoded, content = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not is_encoded:
        raise OSError(f"{path} can't be written")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.tobytes())


def save_all(
    shown: Mapping[int, sources.Entry], report: Report, predictor: Predictor, drawn: int, folder: Path
) -> None:
    """Write the three contact sheets of a report. shown: the photographs that may be shown, by their index in it.

    `sheet.jpg` has `drawn` random photographs. `best.jpg` has those whose CIEDE2000 the model reduces most compared to
    gray, and `worst.jpg` those whose CIEDE2000 it increases most.
    """
    _, random = sources.hold_out(list(shown.values()), min(drawn, len(shown)))
    save(draw(random, predictor), folder / "sheet.jpg")
    ranked = sorted(shown, key=report.de00_change().tolist().__getitem__)
    for name, numbers in (("best", ranked[:RANKED]), ("worst", ranked[::-1][:RANKED])):
        chosen = [shown[number] for number in numbers]
        captions = [f"{shown[number].name}: {report.caption(number)}" for number in numbers]
        sheet = draw(chosen, predictor, columns=2, captions=captions)
        save(sheet, folder / f"{name}.jpg")
