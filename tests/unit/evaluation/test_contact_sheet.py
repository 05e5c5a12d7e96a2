from pathlib import Path

import cv2
import numpy as np
import pytest

from model_export.data import sources
from model_export.evaluation import contact_sheet
from model_export.evaluation.evaluate import Figures, Measurement, Predictor, Report, Sample

BLUE = np.array([[[5.0]], [[-40.0]]], np.float32)


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[sources.Entry]:
    """Twelve photographs, each of one gray: 0, 20, .. 220."""
    folder = tmp_path_factory.mktemp("photographs") / "grays"
    folder.mkdir()
    for number in range(12):
        cv2.imwrite(str(folder / f"{number:02d}.png"), np.full((30, 40, 3), 20 * number, np.uint8))
    return sources.find([folder.parent])


def report(harm: np.ndarray) -> Report:
    def row(de00: np.ndarray) -> Measurement:
        nothing = Sample(
            np.empty((0, 0), np.uint8), np.empty((2, 0, 0), np.float32), np.empty((0, 0, 3), np.uint8), "lab"
        )
        figures = Figures(**dict.fromkeys(Figures.__dataclass_fields__, 0.0))
        return Measurement(nothing, figures, de00, np.zeros(len(de00)), {})

    return Report({"gray": row(np.full(len(harm), 20.0)), "ours": row(20 + harm)}, "ours", "")


def test_a_triple_is_gray_answer_and_truth(entries: list[sources.Entry]) -> None:
    picture = contact_sheet.draw(entries[6:7], Predictor(lambda _: BLUE, "lab"), columns=1, size=(60, 80))
    assert picture.shape == (60 + contact_sheet.GAP, 3 * 80 + contact_sheet.GAP, 3)
    gray, answer, truth = (picture[30, column].astype(int) for column in (40, 120, 200))
    assert gray.tolist() == truth.tolist() == [120, 120, 120]
    assert answer[2] > answer[0] + 40
    assert (picture[60:] == 255).all()


def test_captions_are_under_their_triples(entries: list[sources.Entry]) -> None:
    captions = ["a", "", "long " * 100]
    picture = contact_sheet.draw(
        entries[:3], Predictor(lambda _: BLUE, "lab"), columns=2, size=(60, 80), captions=captions
    )
    row, column = 60 + contact_sheet.CAPTION_HEIGHT + contact_sheet.GAP, 3 * 80 + contact_sheet.GAP
    assert picture.shape == (2 * row, 2 * column, 3)
    strips = [picture[top + 60 : top + row, left : left + column] for top in (0, row) for left in (0, column)]
    written = [int((strip < 128).any(axis=2).sum()) for strip in strips]
    assert 0 < written[0] < 100 < written[2]
    assert written[1] == written[3] == 0
    assert (strips[2][:, -contact_sheet.GAP :] == 255).all(), "cut before the next triple"


def test_the_best_and_the_worst_are_drawn_of_what_may_be_shown(
    entries: list[sources.Entry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[list[str], list[str]]] = []
    draw = contact_sheet.draw

    def spy(chosen: list[sources.Entry], *args: object, captions: list[str] = [], **options: int) -> np.ndarray:  # noqa: B006
        shown.append(([entry.name for entry in chosen], list(captions)))
        return draw(chosen, *args, captions=captions, **options)

    monkeypatch.setattr(contact_sheet, "draw", spy)
    harm = np.array([3.0, -1, 4, -1.5, 9, -2, 6, 5, -3, 5.5, 8, 9.5])
    may_be_shown = {number: entry for number, entry in enumerate(entries) if number != 11}
    contact_sheet.save_all(may_be_shown, report(harm), Predictor(lambda _: BLUE, "lab"), 4, tmp_path)
    (random, none), (best, captions), (worst, _) = shown
    assert len(random) == 4
    assert none == []
    assert best[:3] == ["grays/08.png", "grays/05.png", "grays/03.png"]
    assert worst[:3] == ["grays/04.png", "grays/10.png", "grays/06.png"]
    assert len(best) == len(worst) == contact_sheet.RANKED
    assert captions[0] == "grays/08.png: CIEDE2000 17.0, gray 20.0; hue 0 degrees off"
    for name in ("best", "worst"):
        picture = cv2.imread(str(tmp_path / f"{name}.jpg"))
        assert picture is not None
        assert picture.shape == (
            5 * (150 + contact_sheet.CAPTION_HEIGHT + contact_sheet.GAP),
            2 * (600 + contact_sheet.GAP),
            3,
        )
    assert (tmp_path / "sheet.jpg").exists()


def test_a_picture_that_can_not_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises((OSError, cv2.error)):
        contact_sheet.save(np.zeros((4, 4, 3), np.uint8), tmp_path / "picture.nothing")
