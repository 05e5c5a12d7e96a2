"""The choice between a model and its half-precision version, on the CPU, with small graphs."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.errors import UnknownModel
from service.inference import half_precision
from service.inference.half_precision import HalfPrecisionFileError, choose_file
from service.inference.registry import ModelRegistry, ModelRegistryError
from service.inference.session import Engine, Gpu
from service.settings import Settings
from tests.conftest import contract, tint_model


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "tint.onnx", tint_model(contract(), (20, 30)))
    write(tmp_path / "tint.fp16.onnx", tint_model(contract(), (20.01, 30)))
    return tmp_path


def load(path: Path) -> Engine:
    return Engine(path, path.read_bytes(), "cpu")


def never(path: Path) -> Engine:
    raise AssertionError(path)


def test_the_half_is_chosen_where_it_answers_the_same(folder: Path) -> None:
    path, its_half = folder / "tint.onnx", folder / "tint.fp16.onnx"
    assert choose_file(path, "auto", load) == choose_file(path, "fp16", load) == its_half
    assert choose_file(path, "fp32", never) == path
    its_half.unlink()
    assert choose_file(path, "auto", never) == path
    with pytest.raises(HalfPrecisionFileError, match=r"tint\.fp16\.onnx: there is no such file"):
        choose_file(path, "fp16", never)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (tint_model(contract(), (20, 45)), "differs by"),
        (tint_model(contract(version="2"), (20, 30)), "version='2'"),
        (tint_model(contract(), (float("nan"), 30)), "finite"),
        (tint_model(contract(), (20, 30), metadata={}), "no tomau.contract"),
        (b"not a model", "can't be loaded"),
    ],
)
def test_a_half_that_is_not_the_same_is_left_alone(
    folder: Path, content: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(folder / "tint.fp16.onnx", content)
    with caplog.at_level(logging.WARNING):
        assert choose_file(folder / "tint.onnx", "auto", load) == folder / "tint.onnx"
    assert f"{folder / 'tint.fp16.onnx'} is not used: " in caplog.text
    assert why in caplog.text
    with pytest.raises(HalfPrecisionFileError, match=why):
        choose_file(folder / "tint.onnx", "fp16", load)


def test_the_limits_are_of_the_colour_space(tmp_path: Path) -> None:
    hsv = contract(color_space="hsv")
    whole, near, far = (
        load(write(tmp_path / f"{n}.onnx", tint_model(hsv, (0.3, chroma))))
        for n, chroma in enumerate((0.3, 0.302, 0.4))
    )
    half_precision.check_parity(whole, near)
    with pytest.raises(HalfPrecisionFileError, match=r"over 0\.005 or 0\.08"):
        half_precision.check_parity(whole, far)


def settings(folder: Path, **changes: object) -> Settings:
    return Settings(models=folder, default_model="tint", inference_batch_size=4, **changes)  # type: ignore[arg-type]


def test_a_cpu_never_takes_the_half_and_it_is_no_model_of_its_own(folder: Path) -> None:
    registry = ModelRegistry(settings(folder, device="cpu", precision="fp16"))
    assert [model.contract.name for model in registry] == ["tint"]
    assert registry.get(None).sha256 == variants_sha(folder / "tint.onnx")
    with pytest.raises(UnknownModel):
        registry.get("tint.fp16")


def variants_sha(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Gpu]]:
    """Let a registry's engines for GPUs run on the CPU; return each file with the options of its GPU."""
    made: list[tuple[str, Gpu]] = []

    def on_the_cpu(path: Path, data: bytes, device: str, *, max_batch: int = 1, executors: int = 1, gpu: Gpu) -> Engine:
        assert device == "cuda"
        made.append((path.name, gpu))
        return Engine(path, data, "cpu", max_batch=max_batch, executors=executors)

    monkeypatch.setattr("service.inference.registry.Engine", on_the_cpu)
    monkeypatch.setattr("service.inference.registry.select_device", lambda device: device)
    return made


def test_a_gpu_takes_the_half_with_tensor_cores_whatever_is_said_of_tf32(
    folder: Path, gpus: list[tuple[str, Gpu]]
) -> None:
    model = ModelRegistry(settings(folder, device="cuda", tf32=False)).get(None)
    assert model.sha256 == variants_sha(folder / "tint.fp16.onnx")
    assert [name for name, _ in gpus] == ["tint.onnx", "tint.fp16.onnx", "tint.fp16.onnx"]
    assert [gpu.tf32 for _, gpu in gpus] == [False, True, True]


def test_several_gpus_have_an_engine_each_and_one_queue(folder: Path, gpus: list[tuple[str, Gpu]]) -> None:
    registry = ModelRegistry(
        settings(
            folder, device="cuda", gpus="1,0,1", precision="fp32", gpu_arena_mib=512, cuda_options={"prefer_nhwc": "1"}
        )
    )
    want = Gpu(1, arena_bytes=512 << 20, options={"prefer_nhwc": "1"})
    assert gpus == [("tint.onnx", want), ("tint.onnx", replace(want, id=0))]
    assert len(registry.get(None).batcher._free) == 4
    assert (registry.workers, registry.max_photos) == (2 * 4 * 2, 4 * 4 * 2)
    lightness = np.full((1, 32, 32), 0.5, np.float32)
    assert registry.get(None).batcher.predict(lightness).chroma[0, 0, 0] == pytest.approx(10)


def test_a_half_with_another_hash_is_refused(folder: Path, gpus: list[tuple[str, Gpu]]) -> None:
    (folder / "tint.fp16.onnx.sha256").write_text("0" * 64)
    with pytest.raises(ModelRegistryError, match=r"tint\.fp16\.onnx: its SHA-256"):
        ModelRegistry(settings(folder, device="cuda"))
