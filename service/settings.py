"""The settings of the service, read from `TOMAU_*` environment variables."""

import difflib
import json
import logging
import math
import os
import textwrap
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from service.runtime.cpu import cpu_quota
from service.runtime.memory import MIB

log = logging.getLogger(__name__)

# Most bytes of a form in addition to its photos: boundaries, headers of parts, options.
FORM_OVERHEAD = 64 * 1024
SHIPPED_MODELS = Path(__file__).parent / "models"
# An empty one is an error: without keys the service would be open to every client.
KEY_SETTINGS = frozenset({"api_keys", "api_keys_file"})
# Settings that have an effect on one device only.
GPU_SETTINGS = (
    "gpus",
    "inference_batch_size",
    "precision",
    "tf32",
    "cuda_graphs",
    "gpu_arena_mib",
    "cuda_options",
    "tensorrt_options",
)
CPU_SETTINGS = ("spread_model_mib",)
# Settings that were renamed, and their former names. The former names work until version 0.3.0.
FORMER_NAMES = {"inference_batch_size": "max_batch"}
# Variables in .env that only docker-compose.yml reads. It passes all of .env on to the service.
COMPOSE_VARIABLES = frozenset({"TARGET"})


class Environment(EnvSettingsSource):
    """The environment variables, in which an empty one counts as not set, except for keys.

    Compose passes a variable that is not set as an empty one. A renamed setting is also read from its former name.
    """

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return the raw value of a field, its key, and whether the value is complex."""
        value, key, is_complex = super().get_field_value(field, field_name)
        former = FORMER_NAMES.get(field_name)
        if not value and former:
            value = self.env_vars.get(variable(former).lower())
        return value, key, is_complex

    def prepare_field_value(self, field_name: str, field: FieldInfo, value: Any, value_is_complex: bool) -> Any:
        """Return the value of a field, or None if it is not set."""
        if value == "" and field_name not in KEY_SETTINGS:
            return None
        return super().prepare_field_value(field_name, field, value, value_is_complex)


class Settings(BaseSettings):
    """The settings of the service. The environment variable of a field is its name in capitals after `TOMAU_`."""

    model_config = SettingsConfigDict(env_prefix="TOMAU_", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level that is logged.")
    log_format: Literal["text", "json"] = Field(
        "text", description="`text` for lines that people read, `json` for one JSON object per line."
    )
    otlp_endpoint: str | None = Field(
        None,
        pattern="^https?://",
        description="URL of the OpenTelemetry collector that receives the spans, for example `http://collector:4318`."
        " Needs `tomau[otel]`.",
    )

    api_keys: SecretStr | None = Field(
        None,
        description="API keys, separated by commas. If there are keys, every request needs one, except `/livez` and"
        " `/readyz`.",
    )
    api_keys_file: Path | None = Field(
        None, description="File with further API keys, one per line, read at start. `#` begins a comment."
    )
    cors_origins: str | None = Field(
        None,
        description="Origins whose web pages may send requests, for example"
        " `https://example.org,http://localhost:3000`, or `*` for all.",
    )

    models: Path = Field(SHIPPED_MODELS, description="Folder of the .onnx models.")
    default_model: str = Field("compact", description="Name of the model for requests that name none.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="`cuda` uses a GPU, and the service does not start without one. `auto` uses a GPU if there is one.",
    )
    gpus: str = Field(
        "0",
        pattern=r"^\d+(,\d+)*$",
        description="GPU only. Numbers of the GPUs to use, for example `0,1`. They share one queue.",
    )
    inference_batch_size: int = Field(
        32,
        ge=1,
        description="GPU only. Largest number of photos in one run of a model. Memory of the GPU grows with it.",
    )
    precision: Literal["auto", "fp32", "fp16"] = Field(
        "auto",
        description="GPU only. `fp32` runs NAME.onnx. `fp16` runs NAME.fp16.onnx; the service does not start if that"
        " file is missing or its output differs. `auto` runs NAME.fp16.onnx if it is present and correct.",
    )
    tf32: bool = Field(
        default=True,
        description="GPU only. Let float32 models round factors to 10 bits (TF32), which is faster.",
    )
    cuda_graphs: bool = Field(
        default=False,
        description="GPU only. Record the run of each batch size as a CUDA graph, and replay it.",
    )
    gpu_arena_mib: int | None = Field(
        None,
        ge=1,
        description="GPU only. Limit of GPU memory for one session, in MiB. A model has a session for each batch size.",
    )
    cuda_options: dict[str, str] = Field(
        {},
        description="GPU only. Further options of ONNX Runtime's CUDA execution provider, as JSON, for example"
        ' `{"prefer_nhwc": "1"}`.',
    )
    tensorrt_options: dict[str, str] | None = Field(
        None,
        description="GPU only. Use ONNX Runtime's TensorRT execution provider with these options, as JSON. Untested.",
    )
    workers: int | None = Field(
        None,
        ge=1,
        description="Worker threads that colour photos. Default: the number of cores, or 2 x"
        " TOMAU_INFERENCE_BATCH_SIZE for each GPU.",
    )

    max_bytes: int = Field(50 * MIB, ge=1, description="Most bytes of one photo.")
    max_pixels: int = Field(100_000_000, ge=1, description="Most pixels of one photo.")
    max_side: int = Field(65_500, ge=1, description="Longest side of one photo, in pixels.")
    max_batch_photos: int = Field(100, ge=1, description="Most photos of one batch upload (`POST /colorize/batch`).")
    max_batch_bytes: int = Field(
        500 * MIB,
        ge=1,
        description="Most bytes of all photos of one batch upload. The real limit is lower if TOMAU_MAX_UPLOAD_BYTES"
        " would leave no room for a single photo.",
    )
    max_photos: int | None = Field(
        None,
        ge=1,
        description="Slots for photos that wait for a worker or are being coloured. Default: 4 per core but at least"
        " 32, or 4 x TOMAU_INFERENCE_BATCH_SIZE for each GPU.",
    )
    spread_model_mib: int = Field(
        64,
        ge=0,
        description="CPU only. When a single request is in flight, run its inference with up to four intra-op threads,"
        " for models of at most this many MiB. Loads a second session, which doubles the model's memory.",
    )
    max_wait_s: float = Field(
        0.4,
        gt=0,
        description="While a photo has waited for a worker for more than this many seconds, further photos are refused"
        " with 503.",
    )
    max_uploads: int = Field(
        256,
        ge=1,
        description="Single photos that are received concurrently; also the batch uploads that are in progress"
        " concurrently.",
    )
    max_batch_uploads: int = Field(
        32, ge=1, description="Batch uploads that are received concurrently, in addition to TOMAU_MAX_UPLOADS."
    )
    max_upload_bytes: int = Field(
        576 * MIB,
        ge=1,
        description="Bytes of all uploads that are held in memory. Batch uploads leave room for a single photo.",
    )
    min_upload_rate: int = Field(
        1024, ge=0, description="Bytes per second that a client must send at least; 0 allows any rate."
    )
    upload_grace_s: float = Field(
        15.0,
        ge=0,
        description="Seconds that an upload may be silent, or behind TOMAU_MIN_UPLOAD_RATE, before it is refused with"
        " 408.",
    )
    max_upload_s: float = Field(
        1800.0, gt=0, description="Most seconds that a whole upload may take. A longer one is refused with 408."
    )
    head_s: float = Field(10.0, gt=0, description="Most seconds that the header section of a request may take.")
    keep_alive_s: int = Field(
        75,
        ge=1,
        description="Seconds that an idle connection is kept open after a response. Must exceed the keep-alive timeout"
        " of a proxy in front of the service.",
    )
    max_connections: int = Field(
        1000,
        ge=1,
        description="Concurrent connections. A further one evicts the longest-idle connection. If none is idle, the new"
        " one can reach only `/livez`, `/readyz` and `/metrics`.",
    )
    write_s: float = Field(
        30.0,
        gt=0,
        description="Seconds that a client may read nothing of its response, or be behind TOMAU_MIN_READ_RATE. Then its"
        " connection is closed.",
    )
    min_read_rate: int = Field(
        8192, ge=1, description="Bytes per second of its response that a client must read at least."
    )
    max_unread_bytes: int = Field(
        512 * MIB,
        ge=1,
        description="Bytes of all responses that clients have not read yet. Above it, further photos are refused with"
        " 503.",
    )
    deadline_s: float = Field(
        30.0, gt=0, description="Most seconds from the last byte of a request to its response, otherwise 504."
    )
    drain_delay_s: float = Field(
        1.0, ge=0, description="Seconds after SIGTERM during which new requests are still accepted."
    )
    drain_batch_s: float = Field(
        300.0, ge=0, description="Seconds that batch uploads in progress may take to finish when the service stops."
    )
    stuck_s: float = Field(
        60.0,
        gt=0,
        description="Watchdog. If all workers, or all executors of a model, have been stuck on one job for this many"
        " seconds, the process exits. Must exceed TOMAU_DEADLINE_S. See docs/operations.md.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the environment with the class above. Called by pydantic."""
        return init_settings, Environment(settings_cls), dotenv_settings, file_secret_settings

    @field_validator("log_level", mode="before")
    @classmethod
    def _in_lower_case(cls, level: object) -> object:
        return level.lower() if isinstance(level, str) else level

    @field_validator("max_upload_bytes")
    @classmethod
    def _room_for_a_photo(cls, max_upload_bytes: int, given: ValidationInfo) -> int:
        least = given.data.get("max_bytes", 0) + FORM_OVERHEAD
        if max_upload_bytes < least:
            raise ValueError(
                f"{max_upload_bytes:,} is too small: must be at least {least:,}, to hold one photo of TOMAU_MAX_BYTES"
            )
        return max_upload_bytes

    @field_validator("stuck_s")
    @classmethod
    def _after_deadline(cls, stuck_s: float, given: ValidationInfo) -> float:
        deadline_s = given.data.get("deadline_s", 0.0)
        if stuck_s <= deadline_s:
            raise ValueError(f"{stuck_s:g} is too small: must be more than TOMAU_DEADLINE_S, which is {deadline_s:g}")
        return stuck_s

    @property
    def max_form_bytes(self) -> int:
        """Most bytes of the whole upload of a single photo."""
        return self.max_bytes + FORM_OVERHEAD

    @cached_property
    def gpu_ids(self) -> list[int]:
        """Numbers of the GPUs to use, without repetition."""
        return list(dict.fromkeys(int(number) for number in self.gpus.split(",")))

    @cached_property
    def cores(self) -> int:
        """Number of cores that this process may use. A container's share of processor time is rounded up."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(cores, math.ceil(cpu_quota() or cores))


def variable(name: str) -> str:
    """Return the environment variable of a setting."""
    return f"TOMAU_{name.upper()}"


def warn_about_unused(settings: Settings, device: Literal["cpu", "cuda"]) -> None:
    """Log a warning if variables are set that have no effect on the device in use."""
    here, there, unused = ("the CPU", "a GPU", GPU_SETTINGS) if device == "cpu" else ("a GPU", "a CPU", CPU_SETTINGS)
    names = ", ".join(variable(name) for name in unused if name in settings.model_fields_set)
    if names:
        log.warning(
            "%s: no effect, because the models run on %s (TOMAU_DEVICE=%s); these settings are for %s",
            *(names, here, settings.device, there),
        )


def renamed_variables(environ: Mapping[str, str]) -> list[str]:
    """Return a warning for each variable that is set by its former name."""
    given = {name.upper() for name, value in environ.items() if value}
    warnings = []
    for name, former in FORMER_NAMES.items():
        if variable(former) not in given:
            continue
        if variable(name) in given:
            warnings.append(f"{variable(former)} is ignored: it was renamed {variable(name)}, which is set, too")
        else:
            warnings.append(f"{variable(former)} was renamed {variable(name)}; the old name works until version 0.3.0")
    return warnings


def unknown_variables(names: Iterable[str]) -> list[str]:
    """Return a warning for each variable whose name starts as those of settings do, but is not one of them."""
    known = [name.upper() for name in Settings.model_fields]
    new_names = {former.upper(): name.upper() for name, former in FORMER_NAMES.items()}
    warnings = []
    for name in sorted(names):
        prefix, _, rest = name.upper().partition("_")
        if prefix == "TOMAU" and rest not in [*known, *new_names, *COMPOSE_VARIABLES]:
            likely = [new_names.get(one, one) for one in difflib.get_close_matches(rest, [*known, *new_names], 1)]
            warnings.append(f"{name} is not a setting" + "".join(f"; did you mean TOMAU_{one}?" for one in likely))
    return warnings


def table(settings: Settings) -> str:
    """Return a Markdown table of the variables, their values and their meanings."""
    lines = ["| variable | value | meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        shown = "" if value is None else f"`{value}`"
        lines.append(f"| `{variable(name)}` | {shown} | {field.description} |")
    return "\n".join(lines) + "\n"


def environment(settings: Settings) -> str:
    """Return an environment file of the variables and their values, all of them commented out."""
    lines = []
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        shown = "" if value is None else json.dumps(value) if isinstance(value, bool | dict) else str(value)
        lines += [f"# {line}" for line in textwrap.wrap(field.description or "", 116, break_on_hyphens=False)]
        lines.append(f"#{variable(name)}={shown}")
    return "\n".join(lines) + "\n"
