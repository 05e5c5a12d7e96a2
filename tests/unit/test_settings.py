"""Settings, and the number of cores that follows from the processor limit of a container."""

import re

import pytest
from pydantic import ValidationError

from service import settings
from service.cli import main
from service.settings import (
    GPU_SETTINGS,
    KEY_SETTINGS,
    Settings,
    renamed_variables,
    unknown_variables,
    warn_about_unused,
)
from service.web.auth import AccessError, key_digests


@pytest.mark.parametrize(("quota", "expected"), [(None, 8), (0.5, 1), (2.5, 3), (64.0, 8)])
def test_cores_are_whole_and_never_more_than_there_are(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int
) -> None:
    monkeypatch.setattr(settings.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(settings, "cpu_quota", lambda: quota)
    assert Settings().cores == expected


@pytest.mark.parametrize("given", [{"stuck_s": "30"}, {"deadline_s": "90"}])
def test_readiness_has_to_turn_red_before_the_process_ends(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(f"TOMAU_{name.upper()}", value)
    with pytest.raises(
        ValidationError, match=r"(?s)stuck_s.* is too small: must be more than TOMAU_DEADLINE_S, which is [39]0"
    ):
        Settings()


@pytest.mark.parametrize("given", [{"max_upload_bytes": "10000"}, {"max_bytes": str(600 << 20)}])
def test_all_uploads_together_have_room_for_a_photo(monkeypatch: pytest.MonkeyPatch, given: dict[str, str]) -> None:
    for name, value in given.items():
        monkeypatch.setenv(f"TOMAU_{name.upper()}", value)
    with pytest.raises(
        ValidationError, match=r"(?s)max_upload_bytes.* must be at least .* one photo of TOMAU_MAX_BYTES"
    ):
        Settings()


FLOATS = [name for name, field in Settings.model_fields.items() if field.annotation is float]


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_a_time_is_finite(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"TOMAU_{name.upper()}", value)
    with pytest.raises(ValidationError, match=rf"{name}\n.* finite number"):
        Settings()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("TOMAU_API_KEY", ["TOMAU_API_KEY is not a setting; did you mean TOMAU_API_KEYS?"]),
        ("TOMAU_MAX_BATC", ["TOMAU_MAX_BATC is not a setting; did you mean TOMAU_INFERENCE_BATCH_SIZE?"]),
        ("tomau_max_btyes", ["tomau_max_btyes is not a setting; did you mean TOMAU_MAX_BYTES?"]),
        ("TOMAU_QQQ", ["TOMAU_QQQ is not a setting"]),
        ("TOMAU_PORT", []),
        ("tomau_port", []),
        ("TOMAU_TARGET", []),
        ("COLORIZE_PORT", []),
    ],
)
def test_a_variable_that_is_no_setting_is_told(name: str, told: list[str]) -> None:
    assert unknown_variables(["PATH", name]) == told


RENAMED = "TOMAU_MAX_BATCH was renamed TOMAU_INFERENCE_BATCH_SIZE; the old name works until version 0.3.0"
IGNORED = "TOMAU_MAX_BATCH is ignored: it was renamed TOMAU_INFERENCE_BATCH_SIZE, which is set, too"


@pytest.mark.parametrize(
    ("given", "batch_size", "warnings"),
    [
        ({"TOMAU_MAX_BATCH": "8"}, 8, [RENAMED]),
        ({"tomau_max_batch": "8"}, 8, [RENAMED]),
        ({"TOMAU_MAX_BATCH": "8", "TOMAU_INFERENCE_BATCH_SIZE": "4"}, 4, [IGNORED]),
        ({"TOMAU_MAX_BATCH": "8", "TOMAU_INFERENCE_BATCH_SIZE": ""}, 8, [RENAMED]),
        ({"TOMAU_MAX_BATCH": "", "TOMAU_INFERENCE_BATCH_SIZE": "4"}, 4, []),
        ({"TOMAU_MAX_BATCH": ""}, 32, []),
        ({"TOMAU_INFERENCE_BATCH_SIZE": "4"}, 4, []),
    ],
)
def test_a_renamed_setting_keeps_its_former_name(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], batch_size: int, warnings: list[str]
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert Settings().inference_batch_size == batch_size
    assert renamed_variables(given) == warnings
    assert unknown_variables(given) == []


def test_an_invalid_value_is_reported_under_both_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOMAU_MAX_BATCH", "none")
    with pytest.raises(SystemExit, match=r"tomau: TOMAU_INFERENCE_BATCH_SIZE \(formerly TOMAU_MAX_BATCH\): Input"):
        main(["settings"])


@pytest.mark.parametrize("level", ["INFO", "Info", "info"])
def test_levels_are_taken_in_any_case(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    monkeypatch.setenv("TOMAU_LOG_LEVEL", level)
    assert Settings().log_level == "info"


def test_an_empty_variable_is_none_except_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"TOMAU_{name.upper()}", raising=False)
    default = Settings()
    for name in Settings.model_fields:
        monkeypatch.setenv(f"TOMAU_{name.upper()}", "")
    empty = Settings()
    for name in Settings.model_fields:
        if name not in KEY_SETTINGS:
            assert getattr(empty, name) == getattr(default, name), name
    with pytest.raises(AccessError, match="TOMAU_API_KEYS: there is no key"):
        key_digests(empty)
    monkeypatch.delenv("TOMAU_API_KEYS")
    with pytest.raises(AccessError, match="TOMAU_API_KEYS_FILE: "):
        key_digests(Settings())


GPU_ONLY = {
    "TOMAU_GPUS": "0,1",
    "TOMAU_INFERENCE_BATCH_SIZE": "8",
    "TOMAU_PRECISION": "fp16",
    "TOMAU_TF32": "0",
    "TOMAU_CUDA_GRAPHS": "1",
    "TOMAU_GPU_ARENA_MIB": "100",
    "TOMAU_CUDA_OPTIONS": "{}",
    "TOMAU_TENSORRT_OPTIONS": "{}",
}


def test_what_only_the_other_device_has_a_use_for_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in GPU_ONLY:
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("TOMAU_WORKERS", "3")
    for device in ("cpu", "cuda"):
        warn_about_unused(Settings(), device)
    assert not caplog.records, "an empty variable counts as not set"
    for name, value in GPU_ONLY.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TOMAU_SPREAD_MODEL_MIB", "1")
    warn_about_unused(Settings(), "cpu")
    (line,) = caplog.messages
    assert all(name in line for name in GPU_ONLY)
    assert "the models run on the CPU (TOMAU_DEVICE=auto); these settings are for a GPU" in line
    assert "SPREAD" not in line
    warn_about_unused(Settings(), "cuda")
    assert caplog.messages[1].startswith("TOMAU_SPREAD_MODEL_MIB: no effect, because the models run on a GPU")


def test_every_setting_that_speaks_of_a_gpu_alone_is_told() -> None:
    found = {name for name, field in Settings.model_fields.items() if re.search("GPU|TensorRT|CUDA", field.description)}
    assert found - {"device", "workers", "max_photos"} == set(GPU_SETTINGS)


def test_settings_of_a_gpu_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOMAU_GPUS", "0,2")
    monkeypatch.setenv("TOMAU_CUDA_OPTIONS", '{"prefer_nhwc": "1"}')
    found = Settings()
    assert found.gpu_ids == [0, 2]
    assert found.cuda_options == {"prefer_nhwc": "1"}


@pytest.mark.parametrize(("name", "value"), [("GPUS", "all"), ("GPUS", "0,"), ("CUDA_OPTIONS", "prefer_nhwc")])
def test_a_wrong_setting_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    from service.cli import main

    monkeypatch.setenv(f"TOMAU_{name}", value)
    with pytest.raises(SystemExit) as caught:
        main(["settings"])
    assert name.lower() in str(caught.value).lower()
    assert str(caught.value).startswith("tomau: ")
