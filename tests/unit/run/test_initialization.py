"""The initial weights of a run, and what it holds out. Slow only because Keras takes seconds to import."""

from pathlib import Path

import numpy as np
import pytest

from tests.training import BINS, saved_run, tiny
from tests.unit.data.test_batching import photographs, write_folder

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_a_run_starts_from_the_mean_of_others(tmp_path: Path) -> None:
    from model_export.run import initialization
    from model_export.weights import checkpoint

    # `learning_blocks` may differ, because it does not change the network.
    runs = [saved_run(tmp_path / str(seed), seed, learning_blocks=seed) for seed in (1, 2)]
    begun = initialization.load(tiny(), runs)
    assert begun is not None
    assert begun.held_out == {"a", "b"}
    assert [origin.split()[0] for origin in begun.origins] == ["1", "2"]
    one, other = (checkpoint.read_weights(run / checkpoint.BEST) for run in runs)
    for mean, first, second in zip(begun.weights, one, other, strict=True):
        np.testing.assert_allclose(mean, (first + second) / 2, atol=1e-6)
    assert initialization.load(tiny(), []) is None
    with pytest.raises(ValueError, match="wider has another network"):
        initialization.load(tiny(), [runs[0], saved_run(tmp_path / "wider", 3, context=9)])
    with pytest.raises(ValueError, match="uses the colour space lab, but the recipe uses hsv"):
        initialization.load(tiny().model_copy(update={"color_space": "hsv"}), runs)
    with pytest.raises(ValueError, match="another network"):
        initialization.load(tiny(bin_size=5.0), runs)


def test_a_network_with_more_blocks_begins_as_the_one_without(tmp_path: Path) -> None:
    from model_export.networks import compact
    from model_export.run import initialization

    small, large = tiny(blocks=(1, 2, 2, 1)), tiny(blocks=(1, 2, 4, 2))
    begun = initialization.load(large, [saved_run(tmp_path / "run", 1, blocks=(1, 2, 2, 1))])
    assert begun is not None
    networks = [compact.build(recipe, BINS[:5]) for recipe in (small, large)]
    for network, recipe in zip(networks, (small, large), strict=True):
        initialization.initialize(network, recipe, begun)
    picture = np.random.default_rng(0).uniform(size=(1, 64, 64, 1)).astype(np.float32)
    answers = [np.asarray(network(picture)) for network in networks]
    np.testing.assert_allclose(answers[1], answers[0], atol=1e-5)
    assert np.abs(answers[0]).max() > 0.01
    larger = initialization.load(small, [saved_run(tmp_path / "more", 1, blocks=(1, 2, 4, 2))])
    assert larger is not None
    with pytest.raises(ValueError, match="the recipe's network has no weights"):
        initialization.initialize(networks[0], small, larger)


def test_what_is_held_out_stays_held_out(capsys: pytest.CaptureFixture[str]) -> None:
    from model_export.data.sources import Entry, name_digest
    from model_export.run.initialization import Initialization, hold_out
    from model_export.weights.checkpoint import Setup

    entries = [Entry(f"made/{number}.jpg", "shard.tar", 0, 1) for number in range(40)]
    before = {"made/3.jpg", name_digest("made/5.jpg"), "elsewhere.jpg"}
    begun = Initialization([], Setup(tiny(), BINS[:5], []), before, [])
    assert hold_out(tiny(), entries, begun) == ["made/3.jpg", "made/5.jpg"]
    assert not capsys.readouterr().out
    # None of these photographs is known, so at most a tenth of them is held out.
    own = [entry._replace(name=f"own/{number}.jpg") for number, entry in enumerate(entries)]
    assert len(hold_out(tiny().model_copy(update={"validate_on": 500}), own, begun)) == 4
    assert "none of the 3 photographs held out before is in the data: 4 others are held out" in capsys.readouterr().out
    with pytest.raises(ValueError, match="too few"):
        hold_out(tiny(), entries[:9], begun)
    every = Initialization([], begun.setup, {entry.name for entry in entries}, [])
    with pytest.raises(ValueError, match="none is left to learn from"):
        hold_out(tiny(), entries, every)


@pytest.mark.parametrize("validate_on", [20, 500])
def test_no_other_validates_than_those_held_out_before(validate_on: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The archive has grown, or the recipe asks for more held-out photographs."""
    from model_export.data.sources import Entry
    from model_export.run.initialization import Initialization, hold_out
    from model_export.weights.checkpoint import Setup

    entries = [Entry(f"{number}.jpg", "shard.tar", 0, 1) for number in range(2000)]
    first = hold_out(tiny().model_copy(update={"validate_on": 20}), entries[:400], None)
    begun = Initialization([], Setup(tiny(), BINS[:5], []), set(first), [])
    assert hold_out(tiny().model_copy(update={"validate_on": validate_on}), entries, begun) == first
    assert ("the 20 photographs held out before are held out again" in capsys.readouterr().out) == (validate_on > 20)


def test_what_was_held_out_is_known_by_other_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from model_export.data import sources
    from model_export.run.initialization import Initialization, hold_out
    from model_export.weights.checkpoint import Setup

    made = photographs(40)
    write_folder(tmp_path / "archive", made)
    recipe = tiny().model_copy(update={"validate_on": 4})
    entries = sources.find([tmp_path / "archive"])
    first = hold_out(recipe, entries, None)
    contents = sources.content_ids(sources.split_off(entries, first)[1])
    begun = Initialization(
        [], Setup(recipe, BINS[:5], []), set(first), [], {content for content in contents if content}
    )
    above = hold_out(recipe, sources.find([tmp_path]), begun)
    assert above == [f"archive/{name}" for name in first]
    # Older runs know only the names, which differ here, so a warning is printed.
    assert hold_out(recipe, sources.find([tmp_path]), Initialization([], begun.setup, set(first), [])) != above
    assert "none of the 4 photographs held out before" in capsys.readouterr().out


def test_broken_origins_are_said(tmp_path: Path) -> None:
    from model_export.run import initialization
    from model_export.weights import checkpoint

    run = saved_run(tmp_path / "run", 1)
    (run / checkpoint.BEST).write_bytes((run / checkpoint.BEST).read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"best\.npz is damaged"):
        initialization.load(tiny(), [run])
    (tmp_path / "broken.onnx").write_bytes(b"\x08no model at all")
    with pytest.raises(ValueError, match=r"broken\.onnx is not an ONNX file, or is broken"):
        initialization.load(tiny(), [tmp_path / "broken.onnx"])


def test_a_run_begins_with_the_post_processing_of_its_origins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from model_export.run import initialization
    from model_export.weights.post_processing import PostProcessing

    bold, plain = PostProcessing(2.4, 0.36), PostProcessing(1.6, 0)
    runs = [saved_run(tmp_path / name, 1) for name in ("a", "b", "c", "d")]
    for run, post in zip(runs, (bold, bold, plain, None), strict=True):
        if post:
            post.save(run)

    def begun(*origins: Path) -> PostProcessing | None:
        start = initialization.load(tiny(), origins)
        assert start is not None
        return start.post_processing

    assert begun(*runs[:2]) == bold
    assert "export will use gain 2.4 and cast 0.36, as a does" in capsys.readouterr().out
    assert begun(runs[0], runs[2]) is None
    assert "the origins differ (a: gain 2.4 and cast 0.36; c: gain 1.6 and cast 0)" in capsys.readouterr().out
    assert begun(runs[0], runs[3]) is None
    assert "d: those of its recipe" in capsys.readouterr().out
    assert begun(runs[3]) is None
    assert not capsys.readouterr().out
