"""Run batches as on a GPU, but on the CPU: with the same binding, buffers and padding."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from service.inference import executor
from service.inference.executor import (
    BoundSession,
    CpuExecutor,
    DeviceRef,
    EngineError,
    PaddingExecutor,
    SingleThreadExecutor,
)
from service.inference.session import Engine, Gpu, batch_sizes, providers, select_device
from tests.conftest import contract, tint_model, unrunnable_model
from tests.waiting import WAIT_S

CPU = DeviceRef("cpu")
SIZE = 32
MODEL = tint_model(contract(), (10, -20))


def session(batch: int, model: bytes = MODEL) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_free_dimension_override_by_name("batch", batch)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def sessions(max_batch: int = 8) -> dict[int, ort.InferenceSession]:
    return {batch: session(batch) for batch in batch_sizes(max_batch)}


def photos(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 1, SIZE, SIZE), np.float32)


def plainly(lightness: np.ndarray) -> np.ndarray:
    return session(len(lightness)).run(None, {"lightness": lightness})[0]


@pytest.fixture
def bound() -> PaddingExecutor:
    return PaddingExecutor(sessions(), SIZE, CPU, "tint")


@pytest.mark.parametrize("count", range(1, 9))
def test_every_count_is_answered_as_by_a_plain_run(bound: PaddingExecutor, count: int) -> None:
    lightness = photos(count)
    np.testing.assert_array_equal(bound.predict(lightness), plainly(lightness))
    np.testing.assert_array_equal(bound.predict(list(lightness)), plainly(lightness))


def test_a_plain_executor_takes_photos_one_by_one_too() -> None:
    plain = CpuExecutor(ort.InferenceSession(MODEL, providers=["CPUExecutionProvider"]), "tint")
    np.testing.assert_array_equal(plain.predict(list(photos(3))), plainly(photos(3)))
    np.testing.assert_array_equal(plain.predict(photos(3)), plainly(photos(3)))


def test_answers_stay_what_they_are_while_buffers_are_used_again(bound: PaddingExecutor) -> None:
    inputs = [photos(count, seed) for seed, count in enumerate((4, 3, 4, 1, 8, 4))]
    answers = [bound.predict(lightness) for lightness in inputs]
    for lightness, answer in zip(inputs, answers, strict=True):
        np.testing.assert_array_equal(answer, plainly(lightness))


def test_nothing_is_allocated_for_a_run() -> None:
    one = BoundSession(session(4), 4, SIZE, CPU, "tint")
    before = [value.data_ptr() for value in (one._host_value, one._input, one._output)]
    assert one._host.ctypes.data == before[0], "a view of the buffer and no copy"
    for count in (4, 2, 3):
        one.run(photos(count))
        assert [value.data_ptr() for value in (one._host_value, one._input, one._output)] == before
        assert one._binding.get_outputs()[0].data_ptr() == before[2]


def test_no_photo_of_an_earlier_batch_is_left_in_the_padding() -> None:
    one = BoundSession(session(4), 4, SIZE, CPU, "tint")
    one.run(photos(4))
    one.run(photos(1, seed=1))
    assert not one._input.numpy()[1:].any()


def test_two_executors_of_the_same_sessions_run_beside_each_other() -> None:
    shared = sessions()
    start = threading.Barrier(2)

    def work(seed: int) -> None:
        mine = PaddingExecutor(shared, SIZE, CPU, "tint")
        start.wait(WAIT_S)
        for number in range(50):
            lightness = photos(number % 8 + 1, seed * 1000 + number)
            np.testing.assert_allclose(mine.predict(lightness)[:, 0], 10 * pooled(lightness), rtol=1e-5)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, (1, 2)))


def pooled(lightness: np.ndarray) -> np.ndarray:
    return lightness.reshape(len(lightness), SIZE // 4, 4, SIZE // 4, 4).mean(axis=(2, 4))


def test_one_executor_never_mixes_two_threads(bound: PaddingExecutor) -> None:
    def work(seed: int) -> None:
        for number in range(50):
            lightness = photos(3, seed * 1000 + number)
            np.testing.assert_allclose(bound.predict(lightness)[:, 0], 10 * pooled(lightness), rtol=1e-5)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, (1, 2)))


def test_an_answer_of_another_shape_or_not_finite_is_a_fault() -> None:
    for value in (float("nan"), float("inf"), -1e30):
        broken = tint_model(contract(), (value, 1))
        with pytest.raises(EngineError, match="finite"):
            PaddingExecutor({1: session(1, broken)}, SIZE, CPU, "tint").predict(photos(1))
    with pytest.raises(EngineError, match=r"shape \(1, 2, 8, 8\), not \[2, 2, s, s\]"):
        executor._check_shape((1, 2, 8, 8), 2, "tint")


def test_an_own_thread_is_always_the_same_and_passes_errors_on() -> None:
    class Engine:
        def __init__(self) -> None:
            self.made_in = threading.get_ident()

        def predict(self, lightness: np.ndarray) -> np.ndarray:
            if lightness.size == 0:
                raise EngineError("nothing to do")
            assert threading.get_ident() == self.made_in
            return np.full(1, threading.get_ident())

    own = SingleThreadExecutor(Engine)
    with ThreadPoolExecutor(4) as pool:
        seen = {int(answer[0]) for answer in pool.map(own.predict, [photos(1)] * 8)}
    assert len(seen) == 1
    assert threading.get_ident() not in seen
    with pytest.raises(EngineError, match="nothing to do"):
        own.predict(photos(0))


def test_without_pinned_memory_a_gpu_is_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    if select_device("auto") == "cuda":
        pytest.skip("there is a GPU")
    executor._pinned.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert executor.host_memory((1, 1, SIZE, SIZE), DeviceRef("cuda", 3)).shape() == [1, 1, SIZE, SIZE]
        executor.host_memory((2, 1, SIZE, SIZE), DeviceRef("cuda", 3))
    assert [record.getMessage()[:27] for record in caplog.records] == ["no pinned memory for GPU 3,"]


def test_the_options_of_the_providers() -> None:
    assert providers("cpu", Gpu()) == [("CPUExecutionProvider", {})]
    (name, options), cpu = providers("cuda", Gpu(id=1, tf32=False, arena_bytes=1 << 30, options={"prefer_nhwc": "1"}))
    assert (name, cpu[0]) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert options == {
        "device_id": "1",
        "use_tf32": "0",
        "enable_cuda_graph": "0",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "arena_extend_strategy": "kSameAsRequested",
        "gpu_mem_limit": "1073741824",
        "prefer_nhwc": "1",
    }
    assert "gpu_mem_limit" not in providers("cuda", Gpu())[0][1]
    first, second, _ = providers("cuda", Gpu(graphs=True, tensorrt={"trt_fp16_enable": "1"}))
    assert first == ("TensorrtExecutionProvider", {"device_id": "0", "trt_fp16_enable": "1"})
    assert second[1]["enable_cuda_graph"] == "1"


@pytest.fixture
def as_if_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, str]]]:
    """Let engines for a GPU run on the CPU; return the providers that they requested."""
    asked: list[tuple[str, dict[str, str]]] = []

    def on_the_cpu(device: str, gpu: Gpu) -> list[tuple[str, dict[str, str]]]:
        asked.append(providers(device, gpu)[0])  # type: ignore[arg-type]
        return [("CPUExecutionProvider", {})]

    monkeypatch.setattr("service.inference.session.providers", on_the_cpu)
    monkeypatch.setattr("service.inference.session.DeviceRef", lambda device, id_: DeviceRef("cpu"))
    return asked


@pytest.mark.parametrize(("graphs", "made"), [(False, 4), (True, 8)])
def test_an_engine_has_a_session_for_each_batch_size(
    as_if_on_a_gpu: list[tuple[str, dict[str, str]]], graphs: bool, made: int
) -> None:
    engine = Engine(Path("tint.onnx"), MODEL, "cuda", max_batch=8, executors=2, gpu=Gpu(id=2, graphs=graphs))
    assert len(as_if_on_a_gpu) == made
    assert {name for name, _ in as_if_on_a_gpu} == {"CUDAExecutionProvider"}
    assert {options["device_id"] for _, options in as_if_on_a_gpu} == {"2"}
    assert engine.max_batch == 8
    assert len(engine.executors) == 2
    engine.warm_up()
    for one in engine.executors:
        np.testing.assert_array_equal(one.predict(photos(5)), plainly(photos(5)))


def test_a_graph_of_a_fixed_batch_gets_no_other(as_if_on_a_gpu: list[tuple[str, dict[str, str]]]) -> None:
    engine = Engine(Path("tint.onnx"), tint_model(contract(max_batch=2), (1, 2)), "cuda", max_batch=32, executors=2)
    assert engine.max_batch == 2
    assert len(as_if_on_a_gpu) == 2


def test_a_model_that_can_not_run_is_refused_by_name(as_if_on_a_gpu: list[tuple[str, dict[str, str]]]) -> None:
    with pytest.raises(EngineError, match=r"broken\.onnx: can't be run on cuda"):
        Engine(Path("broken.onnx"), unrunnable_model(), "cuda", max_batch=8)


def test_pinned_memory_is_what_the_plug_in_of_the_gpu_names(monkeypatch: pytest.MonkeyPatch) -> None:
    class Device:
        def __init__(self, ep_name: str, id_: int | None) -> None:
            self.ep_name = ep_name
            self.info = None if id_ is None else Info(id_)

        def memory_info(self, kind: object) -> object:
            assert kind == ort.OrtDeviceMemoryType.HOST_ACCESSIBLE
            return self.info

    class Info:
        def __init__(self, id_: int) -> None:
            self.device_id = id_

    cuda = [Device("CUDAExecutionProvider", id_) for id_ in (0, 1)]
    devices = [Device("CPUExecutionProvider", None), Device("OtherProvider", 1), *cuda]
    monkeypatch.setattr(ort, "get_ep_devices", lambda: devices)
    assert executor._pinned_info(1) is cuda[1].info
