"""The choice of the training precision. Slow only because Keras takes seconds to import."""

from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

X86 = "processor\t: {n}\nflags\t\t: fpu sse2 avx2 avx512f {more}\n\n"
ARM = "processor\t: {n}\nFeatures\t: fp asimd sve {more}\n\n"


def never(precision: str) -> float:
    raise AssertionError(precision)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from model_export.run import precision

    monkeypatch.setattr(precision, "_accelerator", lambda: None)
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)


def cpu(monkeypatch: pytest.MonkeyPatch, path: Path, text: str | None) -> None:
    from model_export.run import precision

    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(precision, "CPUINFO", path)


@pytest.mark.parametrize(
    ("text", "chosen", "reason"),
    [
        (X86.format(n=0, more="avx512_bf16"), "mixed_bfloat16", "avx512_bf16"),
        (X86.format(n=0, more="avx512_bf16 amx_bf16 amx_tile"), "mixed_bfloat16", "amx_bf16"),
        (X86.format(n=0, more="avx512_vnni"), "float32", "no instructions for bfloat16"),
        (ARM.format(n=0, more="bf16 i8mm"), "mixed_bfloat16", "has bf16"),
        (ARM.format(n=0, more="i8mm"), "float32", "no instructions for bfloat16"),
        # This CPU has a large core and a small one.
        (ARM.format(n=0, more="bf16") + ARM.format(n=1, more=""), "float32", "no instructions for bfloat16"),
    ],
)
def test_the_cpus_flags_decide(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_gpu: None, text: str, chosen: str, reason: str
) -> None:
    from model_export.run.precision import choose

    cpu(monkeypatch, tmp_path / "cpuinfo", text)
    choice = choose(None, never)
    assert choice.precision == chosen
    assert reason in str(choice)


@pytest.mark.parametrize("text", [None, "processor : 0\nmodel name : unknown\n"])
@pytest.mark.parametrize(("full", "mixed", "chosen"), [(1.0, 0.6, "mixed_bfloat16"), (1.0, 9.0, "float32")])
def test_a_step_of_each_decides_where_there_are_no_flags(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    no_gpu: None,
    text: str | None,
    full: float,
    mixed: float,
    chosen: str,
) -> None:
    from model_export.run import precision

    cpu(monkeypatch, tmp_path / "cpuinfo", text)
    monkeypatch.setattr(precision.platform, "system", lambda: "FreeBSD")
    seconds = {"float32": full, "mixed_bfloat16": mixed}
    choice = precision.choose(None, seconds.__getitem__)
    assert choice.precision == chosen
    assert f"{full:.2f} s in float32 and {mixed:.2f} s in mixed_bfloat16" in choice.reason


@pytest.mark.parametrize(("said", "chosen"), [("1\n", "mixed_bfloat16"), ("0\n", "float32")])
def test_macos_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_gpu: None, said: str, chosen: str) -> None:
    import subprocess

    from model_export.run import precision

    cpu(monkeypatch, tmp_path / "none", None)
    monkeypatch.setattr(precision.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(precision.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, said))
    assert precision.choose(None, never).precision == chosen


def test_what_is_asked_for_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_gpu: None) -> None:
    from model_export.run.precision import choose

    cpu(monkeypatch, tmp_path / "cpuinfo", X86.format(n=0, more=""))
    assert choose("float32", never) == ("float32", "as asked for")
    slow = choose("mixed_bfloat16", never)
    assert slow.precision == "mixed_bfloat16"
    assert "float32 may be much faster on this machine" in slow.reason


def test_without_onednn_there_is_no_fast_bfloat16(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_gpu: None
) -> None:
    from model_export.run.precision import choose

    cpu(monkeypatch, tmp_path / "cpuinfo", X86.format(n=0, more="amx_bf16"))
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert choose(None, never).precision == "float32"


@pytest.mark.parametrize(
    ("capability", "chosen"), [(None, "mixed_bfloat16"), ((9, 0), "mixed_bfloat16"), ((7, 5), "float32")]
)
def test_gpus_are_mixed_where_they_can_be(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None, chosen: str
) -> None:
    import tensorflow as tf

    from model_export.run.precision import choose

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a GPU"])
    details = {"compute_capability": capability} if capability else {}
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details)
    assert choose(None, never).precision == chosen
