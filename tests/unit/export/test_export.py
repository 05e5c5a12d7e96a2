"""The export of a run. Slow only because Keras takes seconds to import."""

from pathlib import Path

import numpy as np
import pytest

from tests.training import BINS, saved_run, tiny

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_a_cast_is_taken_from_what_has_it_and_gray_stays_gray() -> None:
    from model_export.export.export import CastReduction

    chroma = np.zeros((2, 2, 2, 2), np.float32)
    chroma[0] = [[[20, 0], [8, 0]], [[0, 0], [-8, 4]]]  # their mean is (5, 1)
    answer = np.asarray(CastReduction(0.4)(chroma))
    np.testing.assert_allclose(answer[0, 0], [[18, -0.4], [6, -0.4]], atol=1e-4)
    np.testing.assert_array_equal(answer[0, 1], chroma[0, 1])
    np.testing.assert_array_equal(answer[1], 0)
    chroma[:] = 2, 1
    np.testing.assert_allclose(np.asarray(CastReduction(0.4)(chroma)), chroma * 0.6, rtol=1e-4)


class Exported(Exception):
    """The arguments of the export that a test stops."""


@pytest.mark.parametrize(
    ("asked", "of_file", "taken"),
    [
        ((None, None), None, (1.6, 0.0)),
        ((1.2, 0.3), None, (1.2, 0.3)),
        ((None, None), (2.4, 0.36), (2.4, 0.36)),
        ((1.2, None), (2.4, 0.36), (1.2, 0.36)),
        ((None, 0.0), (2.4, 0.36), (2.4, 0.0)),
    ],
)
def test_a_model_is_exported_with_the_gain_of_its_recipe_or_of_the_file_that_it_began_with(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    asked: tuple[float | None, float | None],
    of_file: tuple[float, float] | None,
    taken: tuple[float, float],
) -> None:
    from model_export.export import export
    from model_export.weights import checkpoint
    from model_export.weights.post_processing import PostProcessing

    run = saved_run(tmp_path / "run", 1)
    post = PostProcessing(*of_file) if of_file else None
    recipe = tiny().model_copy(update={"gain": 1.6})
    checkpoint.save_setup(run, checkpoint.Setup(recipe, BINS[:5], [], ["old.onnx 12ab"] * bool(post), [], post))

    def seen(network: object, setup: object, size: int, gain: float, cast: float) -> None:
        raise Exported(gain, cast)

    monkeypatch.setattr(export, "serving_model", seen)
    labels = export.Labels("x", "1", "l", "d")
    with pytest.raises(Exported) as made:
        export.export(run, tmp_path / "x.onnx", [], labels, export.Choices(64, *asked))
    assert made.value.args == taken
    said = capsys.readouterr().out
    assert ("as in old.onnx, which the run started from" in said) == (post is not None)
    assert ("as asked for" in said) == (asked != (None, None))
    for name in ("model.bin", "x.fp16.onnx"):
        with pytest.raises(ValueError, match="the service does not"):
            export.export(run, tmp_path / name, [], labels, export.Choices(64))


def test_a_file_that_training_cannot_go_on_from_is_written_and_that_is_told(caplog: pytest.LogCaptureFixture) -> None:
    import onnx

    from model_export.export import export
    from model_export.weights import checkpoint

    proto = onnx.ModelProto()
    broken = [np.full(3, np.nan, np.float32)]
    export._embed(proto, onnx.ModelProto(), broken, checkpoint.Setup(tiny(), BINS[:5], []))
    assert "no run can start from this file" in caplog.text
    assert not proto.metadata_props
