"""A tiny network is trained for a few steps, exported and served, on artificial photographs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest

from model_export.cli import RECIPES
from model_export.data import batching, sources
from model_export.weights import checkpoint, onnx_weights
from model_export.weights.quantization import INT8_TOLERANCE
from service.imaging.color import split
from service.inference.contract import Contract
from service.inference.session import Engine
from tests.conftest import Serve
from tests.unit.data.test_batching import photographs, write_folder, write_shard

RECIPE = """
name = "tiny"
color_space = "{space}"
views = {views}
validate_on = 8
curriculum = [{{ until = 0.5, side = 32 }}, {{ until = 1.0, side = 64 }}]
[network]
kind = "compact"
widths = [4, 6, 8, 10, 12]
blocks = [1, 1, 1, 1]
context = 8
bin_size = {bin_size}
[optimizer]
batch = 4
"""


def model_export(*arguments: object, code: int = 0) -> str:
    return python("-m", "model_export", *arguments, code=code)


def python(*arguments: object, code: int) -> str:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, check=False)
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    made = photographs(40)
    half = dict(list(made.items())[:30])
    rest = {name: content for name, content in made.items() if name not in half}
    return write_shard(folder / "train.tar", half), write_folder(folder / "held-out", rest)


@pytest.mark.slow
@pytest.mark.parametrize(("space", "bin_size"), [("lab", 20.0), pytest.param("hsv", 0.25, marks=pytest.mark.long)])
def test_train_resume_export_evaluate_and_serve(
    tmp_path: Path, shards: tuple[Path, Path], serve: Serve, jpeg: bytes, space: str, bin_size: float
) -> None:
    training, held_out = shards
    recipe, run = tmp_path / "tiny.toml", tmp_path / "run"
    recipe.write_text(RECIPE.format(space=space, bin_size=bin_size, views=200))
    options = ["--data", training, held_out, "--run", run]

    first = model_export("train", recipe, *options)
    assert "200 views" in first
    state = json.loads((run / "state.json").read_text())
    assert state["progress"] == 1
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert np.isfinite(history[-1]["validation_loss"])

    # A finished run does nothing. A run that is set back resumes from its weights, and only with its own recipe.
    assert "the run is finished; to train further, start a new run" in model_export("train", recipe, *options)
    (run / "state.json").write_text(json.dumps(state | {"views": 100, "progress": 0.5}))
    assert "200 views" in model_export("train", recipe, *options)
    recipe.write_text(recipe.read_text() + "\nlearning_rate = 1e-5\n")
    assert "another recipe" in model_export("train", recipe, *options, code=1)
    # Another run can start from it, with the same bins and held-out photographs.
    model_export("train", recipe, "--init", run, "--data", training, held_out, "--run", tmp_path / "second")
    for file in ("bins.json", "held-out.json"):
        assert (tmp_path / "second" / file).read_text() == (run / file).read_text()

    models = tmp_path / "models"
    file = models / "tiny.onnx"
    export = ["export", "--run", run, "--output", file, "--data", held_out, "--gain", 1.5, "--cast", 0.2]
    assert "differs from the network by" in model_export(*export)
    proto = onnx.load(file)
    assert {port.name for port in proto.graph.input} == {"lightness"}, "no constant became an input"
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    kernels = [tensor for tensor in proto.graph.initializer if len(tensor.dims) == 4]
    assert kernels
    assert onnx.TensorProto.FLOAT16 in {tensor.data_type for tensor in kernels}
    engine = Engine(file, file.read_bytes(), "cpu")
    assert engine.contract == Contract("tiny", "1", space, 64, engine.contract.license, engine.contract.data)

    # The file has the run's weights. A run can start from it, or from the mean of several files.
    weights, setup = onnx_weights.load(file)
    assert setup.held_out == [sources.name_digest(name) for name in json.loads((run / "held-out.json").read_text())]
    for read, saved in zip(weights, checkpoint.read_weights(run / "best.npz"), strict=True):
        np.testing.assert_allclose(read, saved, atol=INT8_TOLERANCE * max(np.abs(saved).max(), 1e-3))
    more = ["--data", training, held_out, "--run", tmp_path / "third"]
    assert "200 views" in model_export("train", recipe, "--init", file, run, *more)
    for file_name in ("bins.json", "held-out.json"):
        assert (tmp_path / "third" / file_name).read_text() == (run / file_name).read_text()
    assert len(json.loads((tmp_path / "third" / "origins.json").read_text())) == 2

    output = tmp_path / "evaluation"
    model_export(
        "evaluate",
        "--model",
        file,
        "--data",
        held_out,
        "--output",
        output,
        "--sheet",
        4,
        "--held-out-of",
        run,
        "--gains",
        1,
        2,
    )
    figures = json.loads((output / "figures.json").read_text())
    assert list(figures) == ["gray", "constant", "tiny"]
    assert figures["gray"]["hue"] == 90
    assert (output / "sheet.jpg").stat().st_size > 1000

    with serve(models=models, default_model="tiny") as server:
        answer = httpx.post(f"{server.url}/colorize", files={"file": jpeg}, timeout=30)
        assert answer.headers["x-tomau-model"] == "tiny/1"
        assert answer.headers["content-type"] == "image/jpeg"


SMALL = {
    r"views = [\d_]+": "views = 300",
    r"side = \d+": "side = 64",
    r"batch = \d+": "batch = 2",
    r'(color_space = "\w+")': r"\1\nvalidate_on = 4",
}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", ["resnet50-fcn", "unet-gan-resnet18"])
def test_the_tutorials_train_resume_export_and_serve(
    tmp_path: Path, shards: tuple[Path, Path], serve: Serve, jpeg: bytes, name: str
) -> None:
    text = (RECIPES / f"{name}.toml").read_text()
    for pattern, small in SMALL.items():
        text = re.sub(pattern, small, text)
    recipe, run, models = tmp_path / "small.toml", tmp_path / "run", tmp_path / "models"
    recipe.write_text(text)
    options = ["--data", shards[0], "--run", run]
    # Each call runs one step, so that the adversarial part starts in a resumed run, and is resumed, too.
    for set_back in ({}, {"progress": 0.6}, {"views": 290}):
        model_export("train", recipe, *options, "--stop-after", 0)
        state = json.loads((run / "state.json").read_text())
        (run / "state.json").write_text(json.dumps(state | set_back))
    assert "300 views" in model_export("train", recipe, *options)
    assert (run / "discriminator.npz").exists() == name.startswith("unet")
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["validation_loss"]) for line in history)

    file = models / f"{name}.onnx"
    assert "differs from the network by" in model_export("export", "--run", run, "--output", file, "--data", shards[1])
    space = "hsv" if name.startswith("resnet50") else "lab"
    contract = Engine(file, file.read_bytes(), "cpu").contract
    assert (contract.color_space, contract.input_size) == (space, 64)
    with serve(models=models, default_model=name) as server:
        answer = httpx.post(f"{server.url}/colorize", files={"file": jpeg}, timeout=60)
        assert answer.headers["x-tomau-model"] == f"{name}/1"


@pytest.mark.slow
@pytest.mark.long
def test_a_run_can_be_repeated_however_often_it_checks_itself(tmp_path: Path, shards: tuple[Path, Path]) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE.format(space="lab", bin_size=20.0, views=600))
    for name, minutes in (("often", 0), ("once", 1000)):
        options = ["--data", shards[0], "--run", tmp_path / name, "--checkpoint-minutes", minutes]
        model_export("train", recipe, *options)
    assert (tmp_path / "often" / "data.json").read_text() == (tmp_path / "once" / "data.json").read_text()
    with np.load(tmp_path / "often" / "weights.npz") as often, np.load(tmp_path / "once" / "weights.npz") as once:
        for name in often.files:
            np.testing.assert_array_equal(often[name], once[name])


# The program sends itself a signal in its third step, during a checkpoint, or during set-up.
INTERRUPTED = """
import os, signal, sys
from model_export import cli
from model_export.run import train
from model_export.weights import checkpoint

def signalled(where, made):
    def call(*arguments):
        if where == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGTERM)
        return made(*arguments)
    return call

def third(step):
    taken = []
    def call(*arguments):
        taken.append(None)
        if len(taken) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)
    return call

checkpoint.save = signalled("check", checkpoint.save)
train.choose_bins = signalled("set-up", train.choose_bins)
if sys.argv[1] == "step":
    train.Run._step = third(train.Run._step)
cli.main(sys.argv[2:])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "views", "left"),
    [
        ("step", 12, "finishing this step, then writing a checkpoint to"),
        ("check", 200, "finishing the checkpoint in"),
        ("set-up", None, "stopping: there was no training since the last checkpoint"),
    ],
)
def test_a_run_that_is_stopped_goes_on(
    tmp_path: Path, shards: tuple[Path, Path], where: str, views: int | None, left: str
) -> None:
    recipe, run = tmp_path / "tiny.toml", tmp_path / "run"
    recipe.write_text(RECIPE.format(space="lab", bin_size=20.0, views=600))
    command = ["train", recipe, "--data", shards[0], "--run", run, "--checkpoint-minutes", 0]
    said = python("-c", INTERRUPTED, where, *command, code=143)
    assert re.search(f"{left}.*; another Ctrl-C ends at once", said)
    assert "interrupted; the same command resumes the run" in said
    assert "Traceback" not in said
    assert (run / "data.json").exists()
    if views is None:
        assert not (run / "state.json").exists()
    else:
        assert json.loads((run / "state.json").read_text())["views"] == views
        assert len((run / "history.jsonl").read_text().splitlines()) == 1
    assert not list(run.glob("*.new"))
    said = model_export(*command)
    assert "views in" in said
    assert json.loads((run / "state.json").read_text())["progress"] == 1


# Fine-tuning, export and reading back run twice in one process, because TensorFlow takes seconds to import.
AROUND = """
import sys
from pathlib import Path
from model_export import cli
recipe, data, held_out, folder = sys.argv[1:]
before = None
for number in range(3):
    run, file = f"{folder}/run{number}", f"{folder}/models/{number}.onnx"
    begin = ["--init", before] if before else []
    cli.main(["train", recipe, "--data", data, "--run", run, *begin])
    asked = [] if before else sys.stdin.read().split()
    cli.main(["export", "--run", run, "--output", file, "--data", held_out, *asked])
    before = file
"""


@pytest.mark.slow
def test_what_is_exported_is_fine_tuned_and_exported_again(tmp_path: Path, shards: tuple[Path, Path]) -> None:
    """The kernels have 8 bits, and gain and cast come from the initial file."""
    recipe = tmp_path / "wide.toml"
    wide = RECIPE.replace("[4, 6, 8, 10, 12]", "[8, 16, 32, 64, 64]")
    recipe.write_text(wide.format(space="lab", bin_size=20.0, views=40) + "\nlearning_rate = 2e-3\n")
    command = [sys.executable, "-c", AROUND, *map(str, (recipe, *shards, tmp_path))]
    ended = subprocess.run(
        command, input="--gain 2.25 --cast 0.3", capture_output=True, text=True, timeout=900, check=False
    )
    said = ended.stdout + ended.stderr
    assert ended.returncode == 0, said
    assert "no run can start from this file" not in said
    assert said.count("export will use gain 2.25 and cast 0.3") == 2
    assert "gain 2.25 (as in 0.onnx, which the run started from), cast 0.3" in said
    for number in range(3):
        file = tmp_path / "models" / f"{number}.onnx"
        proto = onnx.load(file)
        assert onnx.TensorProto.INT8 in {tensor.data_type for tensor in proto.graph.initializer}
        facts = {entry.key: entry.value for entry in proto.metadata_props}
        assert (facts["tomau.gain"], facts["tomau.cast"]) == ("2.25", "0.3")
        weights, _ = onnx_weights.load(file)
        best = checkpoint.read_weights(tmp_path / f"run{number}" / "best.npz")
        for read, saved in zip(weights, best, strict=True):
            np.testing.assert_allclose(read, saved, atol=INT8_TOLERANCE * max(np.abs(saved).max(), 1e-3))


@pytest.mark.slow
def test_a_run_that_diverges_is_an_error_and_keeps_what_it_had(tmp_path: Path, shards: tuple[Path, Path]) -> None:
    recipe, run = tmp_path / "tiny.toml", tmp_path / "run"
    recipe.write_text(RECIPE.format(space="lab", bin_size=20.0, views=200) + "\nlearning_rate = 1e30\n")
    said = model_export("train", recipe, "--data", shards[0], "--run", run, code=1)
    assert re.search(r"Diverged: the loss is (nan|inf) after \d+ views: nothing was written", said)
    assert not list(run.glob("*.npz"))
    assert not (run / "state.json").exists()


@pytest.mark.slow
def test_too_few_photographs_are_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE.format(space="lab", bin_size=20.0, views=200))
    few = write_folder(tmp_path / "few", photographs(6))
    assert "too few" in model_export("train", recipe, "--data", few, "--run", tmp_path / "run", code=1)


@pytest.mark.slow
def test_training_learns(tmp_path: Path, shards: tuple[Path, Path]) -> None:
    """The loss falls over five hundred steps, and the average never overwrites the trained weights."""
    recipe, run = tmp_path / "tiny.toml", tmp_path / "run"
    recipe.write_text(RECIPE.format(space="lab", bin_size=20.0, views=2000) + "\nlearning_rate = 5e-3\n")
    model_export("train", recipe, "--data", shards[0], "--run", run, "--checkpoint-minutes", 0)
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [line["views"] for line in history] == list(range(200, 2001, 200))
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    with np.load(run / "weights.npz") as raw, np.load(run / "average.npz") as average:
        kernels = [name for name in raw.files if raw[name].ndim == 4]
        assert any(not np.array_equal(raw[name], average[name]) for name in kernels)
    # The average follows the weights, and the best average is kept.
    assert history[-1]["validation_loss"] < history[0]["validation_loss"]
    best = min(line["validation_loss"] for line in history)
    assert json.loads((run / "state.json").read_text())["best_loss"] == pytest.approx(best, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "graph", "said"),
    [
        ("to_onnx", "made.graph", "the ONNX graph differs from the Keras network by"),
        ("compress_weights", "given[0]", "compressed weights change the output by"),
    ],
)
def test_an_export_that_is_off_fails_and_writes_nothing(
    tmp_path: Path, shards: tuple[Path, Path], step: str, graph: str, said: str
) -> None:
    script = f"""
import sys
from pathlib import Path
from model_export.data import batching, sources
from model_export.export import export
from model_export.export.parity import ParityError
from model_export.weights import checkpoint
from model_export.networks import compact
from model_export.recipe import Recipe
import keras, numpy as np
settings = {{"kind": "compact", "widths": [4, 6, 8, 10, 12], "context": 8}}
recipe = Recipe.model_validate({{"name": "x", "network": settings}})
bins = np.array([[0, 0], [0, 40], [40, 0]], np.float32)
run = Path({str(tmp_path)!r})
checkpoint.save_setup(run, checkpoint.Setup(recipe, bins, []))
checkpoint.save_weights(run / checkpoint.BEST, compact.build(recipe, bins))
whole = export.{step}
def spoilt(*given, **how):
    made = whole(*given, **how)
    for tensor in {graph}.initializer:
        if len(tensor.dims) == 4:
            values = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values * np.asarray(3, values.dtype), tensor.name))
    return made
import onnx
export.{step} = spoilt
photographs = sources.find([Path({str(shards[1])!r})])
try:
    labels, choices = export.Labels("x", "1", "l", "d"), export.Choices(64, gain=1.0)
    export.export(run, run / "x.onnx", photographs, labels, choices)
except ParityError as error:
    print("refused:", error)
assert not (run / "x.onnx").exists()
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert f"refused: {said}" in ended.stdout, ended.stderr


def test_bad_arguments_are_said_in_a_line(tmp_path: Path) -> None:
    assert "give a .toml file or one of the recipes compact" in model_export(
        "train", "nothing", "--data", tmp_path, "--run", tmp_path, code=2
    )
    said = model_export("train", "compact", "--data", tmp_path, "--run", tmp_path / "run", code=1)
    assert "no photographs in" in said
    assert "Traceback" not in said


def test_split_is_shared_by_training_and_service(gray: np.ndarray) -> None:
    rgb = np.dstack([gray] * 3)
    lightness, _ = batching.make_sample(rgb, 96, batching.SampleSpec("lab"))
    np.testing.assert_allclose(lightness[..., 0], split(gray, "lab", 96)[0], atol=1e-6)
