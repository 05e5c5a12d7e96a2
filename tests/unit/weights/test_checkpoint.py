"""Checkpoints and the setup of a run. Slow only because importing Keras takes time."""

import json
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from numpy.typing import NDArray

from model_export.recipe import Recipe
from tests.training import BINS, tiny
from tests.unit.data.test_batching import photographs, write_folder

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_weights_survive_a_checkpoint(tmp_path: Path) -> None:
    import keras

    from model_export.networks import compact
    from model_export.weights import checkpoint

    tiny = Recipe.model_validate(
        {"name": "tiny", "network": {"kind": "compact", "widths": (4, 6, 8, 10, 12), "context": 8}}
    )
    bins = BINS[:5]
    network = compact.build(tiny, bins)
    checkpoint.save_weights(tmp_path / "w.npz", network)
    keras.utils.set_random_seed(1)
    other = compact.build(tiny, bins)
    picture = np.random.default_rng(0).uniform(size=(1, 64, 64, 1)).astype(np.float32)
    before = np.asarray(network(picture))
    assert not np.allclose(np.asarray(other(picture)), before, atol=0.5)
    checkpoint.load_weights(tmp_path / "w.npz", other)
    np.testing.assert_allclose(np.asarray(other(picture)), before, atol=5e-2)
    with pytest.raises(ValueError, match=r"shape|weights"):
        checkpoint.load_weights(tmp_path / "w.npz", compact.build(tiny, BINS[:6]))


def test_all_of_a_checkpoint_is_put_in_its_place_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from model_export.networks import compact
    from model_export.weights import checkpoint

    network = compact.build(tiny(), BINS[:5])
    files = (checkpoint.WEIGHTS, checkpoint.AVERAGE, checkpoint.BEST)
    checkpoint.save(tmp_path, dict.fromkeys(files, network), checkpoint.State(views=1))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert sorted(before) == sorted([*files, "state.json"])
    write, written = np.savez, []

    def killed(file: BinaryIO, **arrays: NDArray[np.float32]) -> None:
        if len(written) == 2:
            raise SystemExit
        written.append(file)
        write(file, **{name: array + 1 for name, array in arrays.items()})

    monkeypatch.setattr(np, "savez", killed)
    with pytest.raises(SystemExit):
        checkpoint.save(tmp_path, dict.fromkeys(files, network), checkpoint.State(views=2))
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def run_of(folder: Path, *, knows_contents: bool) -> Path:
    from model_export.data import filtering, sources
    from model_export.weights import checkpoint

    write_folder(folder / "data", photographs(40))
    paths = [folder / "data"]
    filtering.select(folder, paths, tiny()).save(folder)
    _, held_out = sources.hold_out(sources.find(paths), 4)
    names = [entry.name for entry in held_out]
    known = [content for content in sources.content_ids(held_out) if content and knows_contents]
    checkpoint.save_setup(folder, checkpoint.Setup(tiny(), BINS[:5], names, [], known))
    return folder


def test_only_what_a_run_has_held_out_is_measured(tmp_path: Path) -> None:
    """Photographs of other cameras may have the same names, and are not measured."""
    from model_export.weights import checkpoint

    new, old = run_of(tmp_path / "new", knows_contents=True), run_of(tmp_path / "old", knows_contents=False)
    (old / checkpoint.CONTENTS).unlink()
    names = checkpoint.load_setup(new).held_out
    for run in (new, old):
        assert sorted(entry.name for entry in checkpoint.find_held_out(run, [run / "data"])) == sorted(names)
    made = photographs(40)
    others = write_folder(tmp_path / "others", dict(zip(made, reversed([*made.values()]), strict=True)))
    found = checkpoint.find_held_out(new, [others])
    assert {entry.encoded() for entry in found} == {made[name] for name in names}
    assert not {entry.name for entry in found} & set(names)
    with pytest.raises(ValueError, match="others is not of the data of the run"):
        checkpoint.find_held_out(old, [others])
    with pytest.raises(FileNotFoundError, match="none of the 4"):
        checkpoint.find_held_out(new, [write_folder(tmp_path / "none", {"a.jpg": b"no"})])


def test_old_and_new_programs_read_a_runs_setup(tmp_path: Path) -> None:
    """Older versions read `held-out.json` as a list of names, and write no file of content identifiers."""
    from model_export.weights import checkpoint

    setup = checkpoint.Setup(tiny(), BINS[:5], ["a", "b"], ["x 12"], ["5-abc"])
    checkpoint.save_setup(tmp_path, setup)
    assert json.loads((tmp_path / "held-out.json").read_text()) == ["a", "b"]
    assert checkpoint.load_setup(tmp_path).content_ids == ["5-abc"]
    (tmp_path / checkpoint.CONTENTS).unlink()
    assert checkpoint.load_setup(tmp_path).content_ids == []
