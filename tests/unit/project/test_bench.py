import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from model_export.data import sources
from model_export.export.fp16 import emulate_fp16, to_fp16
from service.inference import half_precision
from service.inference.registry import ModelRegistry
from service.inference.session import Engine
from service.pipeline.colorizer import Colorizer
from service.pipeline.options import Options
from service.settings import Settings
from tests.bench import (
    check,
    data,
    floor,
    gpu,
    gpu_results,
    load,
    loop,
    model,
    photos,
    report,
    servers,
    serving,
    storm,
    tree,
)
from tests.bench.bars import Bar, bars
from tests.bench.gpu_measures import photos_a_second
from tests.bench.gpu_results import BOUND, FP16, FP32, PINNED, PLAIN, Bare, Batched, Served
from tests.bench.results import TOMAU, Cell, Failure, Floor, Results, percentile

SIZE = (512, 384)


def test_fewer_photographs_than_a_batch_are_measured(tmp_path: Path) -> None:
    entries = sources.find([data.write_shard(tmp_path / "made.tar", 3, 64)])
    assert data.stream(entries, 32, 1) == 3


def test_the_data_benchmark_runs_on_few_photographs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--photographs 2 --rounds 1 --threads 1 --short 64"
    monkeypatch.setattr("sys.argv", ["data", *options.split()])
    data.main()
    assert len(capsys.readouterr().out.splitlines()) == 3 + len(data.SIDES)


def test_no_photographs_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["data", "--photographs", "0"])
    with pytest.raises(SystemExit):
        data.main()
    assert "--photographs: at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([5.0], 99, 5), ([1, 2, 3, 4], 50, 2), ([4, 3, 2, 1], 99, 4), (range(1, 101), 95, 95), (range(1, 101), 99, 99)],
)
def test_a_percentile_is_the_nearest_rank(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == expected


def test_a_percentile_of_nothing_is_not_a_number() -> None:
    assert math.isnan(percentile([], 50))


def test_arrivals_are_poisson_and_the_same_for_a_seed() -> None:
    times = load.arrivals(50, 40, seed=1)
    gaps = np.diff([0, *times])
    assert times == load.arrivals(50, 40, seed=1) != load.arrivals(50, 40, seed=2)
    assert np.all(gaps > 0)
    assert times[-1] < 40
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.1)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.1), "an exponential law's spread is its mean"


BURN = "import time\nwhile time.process_time() < {}: pass\n"
PARENT = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {BURN.format(0.3)!r}])
print("ended", flush=True)
sys.stdin.read()
"""


def test_the_cpu_time_of_a_child_that_has_ended_counts() -> None:
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ended\n"
        assert len(tree.processes(parent.pid)) == 1
        assert tree.cpu_seconds(parent.pid) >= 0.29
        with tree.Watch(parent.pid) as watch:
            time.sleep(2 * tree.INTERVAL_S)
        assert 1e6 < watch.peak_bytes < 1e9
        parent.communicate()
    assert tree.cpu_seconds(parent.pid) == 0


def test_growth_is_the_last_third_against_the_middle_one() -> None:
    watch = tree.Watch(0)
    watch.samples = [(0.5, 900), (1.5, 100), (2.5, 130), (9, 5000)]
    assert watch.growth_bytes(3) == 30


@pytest.fixture(scope="module")
def bench_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "bench.onnx"
    path.write_bytes(model.build())
    return path


def test_the_model_keeps_to_the_contract_and_has_its_size(bench_model: Path) -> None:
    content = bench_model.read_bytes()
    assert model.macs(content) == pytest.approx(model.TARGET_MACS, rel=0.02)
    assert content == model.build(), "always the same"
    engine = Engine(bench_model, content, "cpu")
    assert engine.contract == model.FACTS
    random = np.random.default_rng(0).random((1, 1, 224, 224), np.float32)
    chroma = engine.predict(random)
    assert chroma.shape == (1, 2, model.GRID, model.GRID)
    session = ort.InferenceSession(content)
    assert session.run(None, {"lightness": np.repeat(random, 3, axis=0)})[0].shape[0] == 3, "the batch is dynamic"


def test_the_models_colours_are_moderate_and_smooth(bench_model: Path) -> None:
    session = floor.load(bench_model)
    for name in photos.NAMES:
        lightness = floor.LIGHTNESS[cv2.resize(photos.source(name), (224, 224), interpolation=cv2.INTER_AREA)] / 100
        chroma = session.run(None, {"lightness": lightness[np.newaxis, np.newaxis].astype(np.float32)})[0]
        assert 5 < np.abs(chroma).mean() < 30, name
        assert np.abs(chroma).max() <= 40
        assert np.abs(np.diff(chroma, axis=3)).mean() < 3, name


def test_photographs_are_gray_of_their_size_and_always_the_same() -> None:
    photo = photos.photograph(photos.NAMES[1], *SIZE)
    assert photo == photos.photograph(photos.NAMES[1], *SIZE)
    assert check.luma_of(photo).shape == SIZE[::-1]
    assert np.ptp(check.rgb_of(photo), axis=2).max() == 0
    assert 0.15 < len(photo) / (SIZE[0] * SIZE[1]) < 0.5, "bytes a pixel as a camera's"


# The peers' route converts luma there and back, and clips what leaves the gamut.
@pytest.mark.parametrize(("route", "limit", "levels"), [("planes", 1, 0.5), ("pixels", 2, 3)])
def test_the_floor_answers_what_the_service_does(bench_model: Path, route: str, limit: float, levels: float) -> None:
    photo = photos.photograph(photos.NAMES[0], *SIZE)
    settings = Settings(models=bench_model.parent, default_model=model.NAME, device="cpu")
    served = Colorizer(ModelRegistry(settings), settings).colorize(photo, Options()).data
    answer = floor.ROUTES[route](photo, floor.load(bench_model))
    assert check.de00(check.rgb_of(answer), check.rgb_of(served)) < limit
    assert check.luma_difference(answer, check.luma_of(photo))[0] < levels


def test_the_floor_tells_its_cost(bench_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(photos.photograph(photos.NAMES[0], 64, 48))
    command = [sys.executable, "-m", "tests.bench.floor", "planes", str(bench_model), str(path), "--seconds", "0"]
    ended = subprocess.run(command, cwd=servers.ROOT, stdout=subprocess.PIPE, check=True)
    assert json.loads(ended.stdout)["cpu_ms"] > 1


def cell(server: str, number: int, **changes: float) -> Cell:
    facts = {"images": 10, "rate": 10.0, "cpu_ms": 20.0, "p50_ms": 1.0, "p95_ms": 1.0, "p99_ms": 1.0, "peak_mb": 100.0}
    return Cell(server, SIZE, 1, number, **(facts | changes), refused=0, errors={}, client_cpu_ms=1.0)  # type: ignore[arg-type]


def results(*cells: Cell) -> Results:
    return Results({}, 2, ["tomau", "plain-1", "litserve"], [SIZE], [1], cells=list(cells))


def found(measured: Results, text: str) -> Bar:
    return next(bar for bar in bars(measured) if text in bar.text)


def test_ratios_are_medians_of_those_within_a_round() -> None:
    # The machine was twice as slow in the second round: the ratio does not see it.
    rounds = [(20, 30), (40, 62), (21, 31)]
    cells = [cell(TOMAU, n, cpu_ms=a) for n, (a, _) in enumerate(rounds)]
    measured = results(*cells, *(cell("plain-1", n, cpu_ms=b) for n, (_, b) in enumerate(rounds)))
    assert measured.ratio("plain-1", TOMAU, SIZE, 1, lambda c: c.cpu_ms) == statistics.median(b / a for a, b in rounds)
    measured.floors = [Floor("planes", SIZE, 1, n, 20) for n in range(3)]
    assert measured.above_floor(TOMAU, SIZE, 1) == 1.05
    assert found(measured, "512x384: CPU").met


def test_a_bar_is_held_against_the_best_peer_in_each_cell() -> None:
    measured = results(cell(TOMAU, 0, rate=10), cell("plain-1", 0, rate=5), cell("litserve", 0, rate=11, cpu_ms=19.0))
    bar = found(measured, "in every cell")
    assert bar == Bar(bar.text, "0.91 (512x384, 1 clients)", False)
    assert found(measured, "512x384: the best peer").value == "0.95 (litserve, 1 clients)"


def test_what_was_not_measured_is_not_said_to_be_met() -> None:
    measured = results(cell(TOMAU, 0))
    assert {found(measured, text).met for text in ("peak RSS", "reset", "ready", "CIEDE2000", "in every cell")} == {
        None
    }


def test_a_server_that_failed_stays_in_the_tables() -> None:
    measured = results(cell("plain-1", 0))
    measured.failures = [Failure(TOMAU, SIZE, 0, "ServerFailed: no model")]
    reached = bars(measured)
    text = report.markdown(measured, reached)
    assert "| tomau | 1 | - | - / - / - | - | - | - | 0 (0) | not measured, see Failures |" in text
    assert "- tomau, 512x384, round 1: ServerFailed: no model" in text
    assert found(measured, "no failure").met is False
    assert found(measured, "in every cell").met is False


def test_a_server_that_can_not_start_is_a_failure(tmp_path: Path) -> None:
    with (
        pytest.raises(servers.ServerFailed, match="model 'bench' is missing"),
        servers.running(TOMAU, tmp_path / "bench.onnx", tmp_path / "log"),
    ):
        pytest.fail("it is not there")


def test_the_benchmark_runs_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = f"--servers tomau --sizes 512x384 --clients 1 --rounds 1 --seconds 0.3 --overload 0.6 --output {tmp_path}"
    serving.main(options.split())
    text = capsys.readouterr().out
    assert text == (tmp_path / "bench.md").read_text("utf-8")
    measured = json.loads((tmp_path / "bench.json").read_text("utf-8"))
    assert measured["failures"] == []
    (only,) = measured["cells"]
    assert only["images"] > 0
    assert only["errors"] == {}
    assert 0 < only["cpu_ms"] < 1000
    assert measured["overloads"][0]["errors"] == {}
    assert all(found["de00"] < 1 and found["luma_mean"] < 1 for found in measured["checks"])
    assert (tmp_path / "latency.png").stat().st_size > 10_000


def test_a_storm_of_clients_that_do_not_wait_is_measured() -> None:
    ((patient, impatient),) = storm.measure((96, 64), 80, 0.5, 1)
    assert patient.refusals == 0
    assert impatient.refusals > 0
    assert impatient.rate > 0
    assert patient.cpu_ms > 0


def test_the_event_loop_is_measured_with_an_engine_that_does_nothing() -> None:
    rows = loop.measure((96, 64), [2], 0.5)
    assert [row[0] for row in rows] == [2]
    for _, rate, of_loop, of_others in rows:
        assert rate > 10
        assert 0 < of_loop < 1000
        assert 0 <= of_others < 1000


def test_photos_a_second_stops_at_the_first_error() -> None:
    images, rate = photos_a_second([lambda: 3, lambda: 1], 0.05)
    assert images >= 4
    assert images / rate >= 0.05
    with pytest.raises(ZeroDivisionError):
        photos_a_second([lambda: 1, lambda: 1 // 0], 60)


def test_the_bars_of_a_gpu() -> None:
    measured = gpu_results.Results({}, "cuda", 32)
    assert {bar.met for bar in gpu_results.bars(measured)} == {None}
    measured.bare = [
        Bare(FP32, 32, 1, 900.0),
        Bare(FP32, 32, 2, 1000.0),
        Bare(FP16, 32, 2, 1700.0),
        Bare(FP16, 1, 2, 9999.0),
        Bare(FP16, 32, 2, 9999.0, PLAIN),
    ]
    measured.batched = [Batched(FP32, 128, 940.0, 31.0, 5.0), Batched(FP16, 128, 1690.0, 31.0, 5.0)]
    measured.served = [
        Served("no HTTP", FP16, 64, 1000, 500.0, 8.0),
        Served("HTTP", FP16, 128, 1000, 360.0, 9.0, 1.0, 2.0, 0.9),
    ]
    assert [(bar.value, bar.met) for bar in gpu_results.bars(measured)] == [
        ("0.94 (fp32)", False),
        ("1.70", True),
        ("0.72", True),
    ]
    text = gpu_results.markdown(measured, gpu_results.bars(measured))
    assert "| IO binding | 32 | 2 | 1000.0 | 1700.0 |" in text
    assert "| HTTP | fp16 | 128 | 360.0 | 1 / 2 | 9.00 | 25.00 | 90% of a core, 10% of all | 0 | 0 |" in text


def test_the_gpu_benchmark_runs_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["--models", str(tmp_path / "models"), "--make"])
    gpu.main(
        f"--device cpu --max-batch 2 --seconds 0.1 --models {tmp_path / 'models'} --output {tmp_path}".split(),
    )
    text = capsys.readouterr().out
    assert text == (tmp_path / "gpu.md").read_text("utf-8")
    measured = json.loads((tmp_path / "gpu.json").read_text("utf-8"))
    kinds = (FP32, FP16)
    expected = {(variant, batch, threads) for variant in kinds for batch in (1, 2) for threads in {1, servers.CORES}}
    assert {(bare["variant"], bare["batch"], bare["threads"]) for bare in measured["bare"]} == expected
    assert {bare["way"] for bare in measured["bare"]} == {BOUND, PLAIN, PINNED}
    assert all(figure["rate"] > 0 for figure in (*measured["bare"], *measured["batched"], *measured["served"]))
    assert [(served["way"], served["precision"], served["errors"]) for served in measured["served"]] == [
        ("no HTTP", FP32, {}),
        ("HTTP", FP32, {}),
    ]
    assert 0 < measured["served"][1]["loop"] < 1
    assert {bar["met"] for bar in measured["bars"]} == {None}


def test_the_gpu_benchmarks_half_is_the_same_model(bench_model: Path) -> None:
    whole, its_half = onnx.load(bench_model), to_fp16(onnx.load(bench_model))
    assert its_half.metadata_props == whole.metadata_props
    half_precision.check_parity(
        Engine(bench_model, bench_model.read_bytes(), "cpu"), Engine(bench_model, emulate_fp16(its_half), "cpu")
    )
