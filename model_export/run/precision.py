"""The numeric precision of training: the fastest one on this machine."""

import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import keras

Precision: TypeAlias = Literal["float32", "mixed_bfloat16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
FULL, MIXED = PRECISIONS

CPUINFO = Path("/proc/cpuinfo")
# Linux's names of the bfloat16 instructions, those of x86 first, then Arm's.
FLAGS = ("amx_bf16", "avx512_bf16", "bf16")
# The same on macOS.
SYSCTL = "hw.optional.arm.FEAT_BF16"
# NVIDIA GPUs support bfloat16 from this compute capability on.
MIN_CAPABILITY = (8, 0)


class Choice(NamedTuple):
    """A precision, and the reason for it."""

    precision: Precision
    reason: str

    def __str__(self) -> str:
        return f"precision: {self.precision} ({self.reason})"


def choose(asked: Precision | None, time_step: Callable[[Precision], float]) -> Choice:
    """Return the precision that was asked for, otherwise the faster one on this machine.

    time_step: runs a training step in a precision and returns its seconds. It is called only if the processor's
    features are unknown.
    """
    found = _detect()
    if asked:
        is_slow = asked == MIXED and found is not None and found.precision == FULL
        return Choice(asked, "as asked for; float32 may be much faster on this machine" if is_slow else "as asked for")
    if found:
        return found
    seconds = {precision: time_step(precision) for precision in PRECISIONS}
    fastest = min(PRECISIONS, key=lambda precision: seconds[precision])
    timed = " and ".join(f"{seconds[precision]:.2f} s in {precision}" for precision in PRECISIONS)
    return Choice(fastest, f"a step takes {timed}")


def _detect() -> Choice | None:
    """Return the choice for the accelerator or CPU; None if its features are unknown."""
    if (accelerator := _accelerator()) is not None:
        return accelerator
    if keras.backend.backend() != "tensorflow":
        return Choice(FULL, f"{keras.backend.backend()} has no fast bfloat16 on a CPU")
    if os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "0":
        return Choice(FULL, "TF_ENABLE_ONEDNN_OPTS=0 leaves TensorFlow without fast bfloat16 on a CPU")
    has_bfloat16 = _linux_bfloat16() if CPUINFO.exists() else _macos_bfloat16()
    if has_bfloat16 is None:
        return None
    if has_bfloat16:
        return Choice(MIXED, f"the CPU has {has_bfloat16}")
    return Choice(FULL, "the CPU has no instructions for bfloat16")


def _accelerator() -> Choice | None:
    """Return the choice for a GPU or TPU; None if the machine has neither."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        capability = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability") if gpus else None
        return _gpu_choice(tuple(capability) if capability else None) if gpus else None
    devices = [name for name in keras.distribution.list_devices() if not name.startswith("cpu")]
    return _gpu_choice(_jax_capability()) if devices else None


def _jax_capability() -> tuple[int, ...] | None:
    """Return the compute capability of JAX's first GPU; None for other devices."""
    if keras.backend.backend() != "jax":
        return None
    import jax  # type: ignore[import-not-found]

    capability = getattr(jax.devices()[0], "compute_capability", None)
    return tuple(int(part) for part in str(capability).split(".")) if capability else None


def _gpu_choice(capability: tuple[int, ...] | None) -> Choice:
    """Return the choice for an accelerator; capability: None if it is not an NVIDIA GPU."""
    if capability and capability < MIN_CAPABILITY:
        return Choice(FULL, f"a GPU of compute capability {'.'.join(map(str, capability))} has no bfloat16")
    return Choice(MIXED, "a GPU or TPU")


def _linux_bfloat16() -> str | None:
    """Return the CPU flag for bfloat16; "" if there is no such flag; None if the flags can't be read."""
    try:
        lines = CPUINFO.read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    flags = [line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "features"))]
    if not flags:
        return None
    # A process can move between cores of two kinds, so all cores must have the flag.
    return next((flag for flag in FLAGS if all(flag in core for core in flags)), "")


def _macos_bfloat16() -> str | None:
    """Return the name of the feature if the CPU has it; "" if not; None if that is unknown."""
    if platform.system() != "Darwin":
        return None
    command = ["/usr/sbin/sysctl", "-n", SYSCTL]
    try:
        output: Any = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        # Macs with an Intel CPU don't know the name, and have no bfloat16.
        return "" if platform.machine() == "x86_64" else None
    return SYSCTL if output.strip() == "1" else ""
