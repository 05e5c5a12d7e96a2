import hashlib
import os
import threading
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from service.errors import UnknownModel
from service.imaging.color import Floats
from service.inference.contract import ContractError
from service.inference.executor import Batch, CpuExecutor, EngineError
from service.inference.registry import Model, ModelRegistry, ModelRegistryError
from service.inference.session import Engine, batch_sizes, select_device
from service.settings import Settings
from tests.conftest import contract, tint_model, unrunnable_model


def settings(folder: Path, **changes: object) -> Settings:
    return Settings(models=folder, default_model="tint", device="cpu", **changes)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tint.onnx").write_bytes(tint_model(contract(), (10, 20)))
    return tmp_path


def test_a_model_is_listed_with_its_hash(folder: Path) -> None:
    registry = ModelRegistry(settings(folder))
    model = registry.get(None)
    assert model is registry.get("tint")
    assert model.sha256 == hashlib.sha256((folder / "tint.onnx").read_bytes()).hexdigest()
    assert [each.contract for each in registry] == [contract()]


def test_an_unknown_model_is_a_problem(folder: Path) -> None:
    with pytest.raises(UnknownModel, match="tint"):
        ModelRegistry(settings(folder)).get("../../etc/passwd")


def test_a_changed_file_is_refused(folder: Path) -> None:
    digest = hashlib.sha256((folder / "tint.onnx").read_bytes()).hexdigest()
    (folder / "tint.onnx.sha256").write_text(f"{digest}  tint.onnx\n")
    ModelRegistry(settings(folder))
    (folder / "tint.onnx").write_bytes(tint_model(contract(), (10, 21)))
    with pytest.raises(ModelRegistryError, match="SHA-256"):
        ModelRegistry(settings(folder))


def test_no_default_is_refused_with_what_there_is(folder: Path) -> None:
    with pytest.raises(ModelRegistryError, match=r"'other'.*found: tint"):
        ModelRegistry(Settings(models=folder, default_model="other", device="cpu"))


def test_two_models_of_one_name_are_refused(folder: Path) -> None:
    (folder / "again.onnx").write_bytes(tint_model(contract(version="2"), (1, 2)))
    with pytest.raises(ModelRegistryError, match="already"):
        ModelRegistry(settings(folder))


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\x00" * 1000])
def test_a_file_that_is_no_model_is_refused_by_name(folder: Path, content: bytes) -> None:
    (folder / "broken.onnx").write_bytes(content)
    with pytest.raises(EngineError, match=r"broken\.onnx"):
        ModelRegistry(settings(folder))


def test_a_model_that_loads_but_can_not_run_is_refused_by_name(folder: Path) -> None:
    (folder / "broken.onnx").write_bytes(unrunnable_model())
    with pytest.raises(EngineError, match=r"broken\.onnx: can't be run on cpu"):
        ModelRegistry(settings(folder))


def test_a_model_without_the_contract_is_refused_by_name(folder: Path) -> None:
    (folder / "foreign.onnx").write_bytes(tint_model(contract(), (1, 2), metadata={"author": "somebody"}))
    with pytest.raises(ContractError, match=r"foreign\.onnx.*tomau\.contract"):
        ModelRegistry(settings(folder))


def test_cuda_refuses_to_start_without_a_gpu(folder: Path) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is a GPU")
    is_for_cpus = "CUDAExecutionProvider" not in ort.get_available_providers()
    how = r"make serve TARGET=gpu VENV=\.venv-gpu.*GPU image.*onnxruntime-gpu" if is_for_cpus else ""
    with pytest.raises(EngineError, match=f"cuda.*{how}"):
        ModelRegistry(Settings(models=folder, default_model="tint", device="cuda"))
    assert select_device("auto") == "cpu"


def test_an_engine_answers_what_its_graph_says() -> None:
    engine = Engine(Path("tint.onnx"), tint_model(contract(), (10, -20)), "cpu")
    lightness = np.full((1, 1, 32, 32), 0.5, np.float32)
    chroma = engine.predict(lightness)
    assert chroma.shape == (1, 2, 8, 8)
    np.testing.assert_allclose(chroma[:, 0], 5)
    np.testing.assert_allclose(chroma[:, 1], -10)


def test_a_spread_photo_gets_the_very_same_colours() -> None:
    shipped = Settings().models / "compact.onnx"
    engine = Engine(shipped, shipped.read_bytes(), "cpu", spread=3)
    engine.warm_up()
    size = engine.contract.input_size
    lightness = np.random.default_rng(0).random((1, 1, size, size), np.float32)
    assert engine.spread is not None
    np.testing.assert_array_equal(engine.spread.predict(lightness), engine.predict(lightness))


@pytest.mark.parametrize(("cores", "limit", "wanted"), [(1, 64, 1), (2, 64, 2), (16, 64, 4), (16, 1, 1), (16, 0, 1)])
def test_how_far_a_single_photo_is_spread(
    folder: Path, monkeypatch: pytest.MonkeyPatch, cores: int, limit: int, wanted: int
) -> None:
    path = folder / "tint.onnx"
    path.write_bytes(tint_model(contract(data="x" * (1 << 20)), (10, 20)))
    threads = []
    session = ort.InferenceSession

    def seen(model: object, options: ort.SessionOptions, **rest: object) -> ort.InferenceSession:
        threads.append(options.intra_op_num_threads)
        return session(model, options, **rest)

    monkeypatch.setattr(ort, "InferenceSession", seen)
    monkeypatch.setattr(Settings, "cores", cores)
    ModelRegistry(settings(folder, spread_model_mib=limit))
    assert threads == [1] if wanted == 1 else [1, wanted]


def test_without_threads_to_spread_over_a_model_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Settings, "cores", 4)
    monkeypatch.setattr(threading.Thread, "start", fails)
    with pytest.raises(EngineError, match="4 spread threads can't be started"):
        ModelRegistry(settings(folder))


def test_values_that_are_not_finite_are_a_fault() -> None:
    engine = Engine(Path("tint.onnx"), tint_model(contract(), (float("nan"), 1)), "cpu")
    with pytest.raises(EngineError, match="finite"):
        engine.predict(np.ones((1, 1, 32, 32), np.float32))


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="there are no files in memory")
def test_a_model_is_parsed_from_a_file_of_the_verified_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime holds Python's lock while it parses bytes, so that a reload would block every request."""
    seen: list[bytes] = []
    session = ort.InferenceSession

    def record(model: str, *arguments: object, **options: object) -> ort.InferenceSession:
        seen.append(Path(model).read_bytes())
        return session(model, *arguments, **options)

    monkeypatch.setattr(ort, "InferenceSession", record)
    before = len(list(Path("/proc/self/fd").iterdir()))
    ModelRegistry(settings(folder))
    assert set(seen) == {(folder / "tint.onnx").read_bytes()}
    assert len(list(Path("/proc/self/fd").iterdir())) == before, "it is closed again"


def test_the_padded_size_of_a_batch() -> None:
    engine = Engine(Path("tint.onnx"), tint_model(contract(), (10, -20)), "cpu")
    assert [engine.padded_size(photos) for photos in (1, 3)] == [1, 3], "nothing is padded on a CPU"
    engine.device, engine.max_batch = "cuda", 20
    assert [engine.padded_size(photos) for photos in (1, 3, 8, 17, 20)] == [1, 4, 8, 20, 20]


def test_what_is_known_is_taken_over_and_the_rest_is_fresh(folder: Path) -> None:
    old = ModelRegistry(settings(folder))
    (folder / "other.onnx").write_bytes(tint_model(contract(name="other"), (1, 2)))
    new = ModelRegistry(settings(folder), known=old)
    assert new.get("tint") is old.get("tint")
    assert new.fresh == [new.get("other")]
    assert old.fresh == [old.get("tint")]


def breaks(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the sessions of a model fail from now on, as after an error of the device."""
    broken = model.batcher._all
    predict = CpuExecutor.predict

    def perhaps(plain: CpuExecutor, lightness: Batch) -> Floats:
        if plain in broken:
            raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")
        return predict(plain, lightness)

    monkeypatch.setattr(CpuExecutor, "predict", perhaps)


def test_what_is_known_but_no_longer_runs_is_loaded_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old = ModelRegistry(settings(folder))
    breaks(old.get("tint"), monkeypatch)
    new = ModelRegistry(settings(folder), known=old)
    assert new.get("tint") is not old.get("tint")
    assert new.fresh == [new.get("tint")]
    assert new.get("tint").batcher.can_run(new.get("tint").black_photo)
    assert "no longer runs, and is loaded again" in caplog.text


def test_what_is_known_but_can_not_be_run_nor_loaded_again_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")

    old = ModelRegistry(settings(folder))
    monkeypatch.setattr(CpuExecutor, "predict", broken)
    with pytest.raises(EngineError, match=r"tint\.onnx: can't be run on cpu: CUDA failure 700"):
        ModelRegistry(settings(folder), known=old)
    assert old.get("tint").batcher.failing_executors.failing_for() > 0, "it is no longer ready"


def test_runs_are_reported_with_their_padded_size(folder: Path) -> None:
    registry = ModelRegistry(settings(folder))
    lightness = np.ones((1, 32, 32), np.float32)
    told: list[tuple[int, int]] = []
    registry.get(None).batcher.predict(lightness)
    registry.observe_runs(lambda photos, padded_size: told.append((photos, padded_size)))
    registry.get(None).batcher.predict(lightness)
    assert told == [(1, 1)]


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, [1]), (2, [1, 2]), (32, [1, 2, 4, 8, 16, 32]), (20, [1, 2, 4, 8, 16, 20])]
)
def test_batch_sizes(most: int, sizes: list[int]) -> None:
    assert batch_sizes(most) == sizes
