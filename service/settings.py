"""Every knob of the service, read from `TOMAU_*` variables."""

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

# What a form may have beside its photos: boundaries, part headers, options.
FORM_OVERHEAD = 64 * 1024
SHIPPED_MODELS = Path(__file__).parent / "models"
# Empty, they are a mistake that would let everyone call.
KEYS = frozenset({"api_keys", "api_keys_file"})
# What only one of the devices has a use for.
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
# In .env for docker-compose.yml, which passes all of it on.
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
        """The value of a field; None where there is none."""
        if value == "" and field_name not in KEYS:
            return None
        return super().prepare_field_value(field_name, field, value, value_is_complex)


class Settings(BaseSettings):
    """The service's settings; the variable of a field is `TOMAU_` and its name in capitals."""

    model_config = SettingsConfigDict(env_prefix="TOMAU_", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
    log_format: Literal["text", "json"] = Field("text", description="lines for people, or one JSON object a line")
    otlp_endpoint: str | None = Field(
        None,
        pattern="^https?://",
        description="OpenTelemetry collector that gets spans, as `http://collector:4318`; needs `tomau[otel]`",
    )

    api_keys: SecretStr | None = Field(
        None, description="keys, comma separated; one is needed for every call but `/livez` and `/readyz`"
    )
    api_keys_file: Path | None = Field(
        None, description="file of further keys, one a line, read at start; what follows a `#` is a comment"
    )
    cors_origins: str | None = Field(
        None, description="origins whose web pages may call, as `https://example.org,http://localhost:3000`, or `*`"
    )

    models: Path = Field(SHIPPED_MODELS, description="folder of the .onnx models")
    default_model: str = Field("compact", description="name of the model that is used when none is named")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="cuda refuses to start without a GPU; auto takes one where there is one"
    )
    gpus: str = Field(
        "0", pattern=r"^\d+(,\d+)*$", description="numbers of the GPUs to use, as `0,1`; they share one queue"
    )
    inference_batch_size: int = Field(
        32, ge=1, description="GPU only. Most photos that one run of a model takes; memory grows with it"
    )
    precision: Literal["auto", "fp32", "fp16"] = Field(
        "auto",
        description="on a GPU: fp16 takes NAME.fp16.onnx and refuses to start when it is missing or differs; auto does"
        " so where it is there and right; a CPU always takes NAME.onnx",
    )
    tf32: bool = Field(True, description="whether a GPU may round factors to 10 bits in float32 models; faster")
    cuda_graphs: bool = Field(False, description="whether a GPU replays each batch size as one recorded graph")
    gpu_arena_mib: int | None = Field(
        None, ge=1, description="MiB of a GPU that one session may take; each model has one for every batch size"
    )
    cuda_options: dict[str, str] = Field(
        {}, description='further options of ONNX Runtime\'s CUDA provider, as JSON: `{"prefer_nhwc": "1"}`'
    )
    tensorrt_options: dict[str, str] | None = Field(
        None, description="uses ONNX Runtime's TensorRT provider with these options, as JSON; untested"
    )
    workers: int | None = Field(
        None, ge=1, description="threads that colour photos; by default cores, or 2 x inference_batch_size for each GPU"
    )

    max_bytes: int = Field(50 * MIB, ge=1, description="bytes a photo")
    max_pixels: int = Field(100_000_000, ge=1, description="pixels a photo")
    max_side: int = Field(65_500, ge=1, description="pixels a side of a photo")
    max_batch_photos: int = Field(100, ge=1, description="photos a batch upload")
    max_batch_bytes: int = Field(
        500 * MIB,
        ge=1,
        description="bytes of all photos of a batch upload; at most max_upload_bytes without a photo's max_bytes",
    )
    max_photos: int | None = Field(
        None,
        ge=1,
        description="photos inside, waiting or at work; by default 32 or 4 a core, or 4 x inference_batch_size for each"
        " GPU",
    )
    spread_model_mib: int = Field(
        64,
        ge=0,
        description="on a CPU, a photo that is alone runs on up to four cores if its model's file has at most so many"
        " MiB: it takes the model's memory twice",
    )
    max_wait_s: float = Field(
        0.4, gt=0, description="when photos have waited so many seconds for a worker, no more are taken for now"
    )
    max_uploads: int = Field(256, ge=1, description="photos being received at once")
    max_batch_uploads: int = Field(32, ge=1, description="batches being received at once, beside them")
    max_upload_bytes: int = Field(
        576 * MIB, ge=1, description="bytes of all uploads being received; batches leave those of a photo to others"
    )
    min_upload_rate: int = Field(1024, ge=0, description="bytes a second that an upload has to come with")
    upload_grace_s: float = Field(15.0, ge=0, description="seconds that an upload may be silent, or behind its rate")
    max_upload_s: float = Field(1800.0, gt=0, description="seconds that a whole upload may take, however steady it is")
    head_s: float = Field(10.0, gt=0, description="seconds that a request's headers may take")
    keep_alive_s: int = Field(
        75, ge=1, description="seconds that a connection is kept open after an answer; longer than a proxy's before it"
    )
    max_connections: int = Field(
        1000,
        ge=1,
        description="connections at once; one more takes the place of one without a request, or else only /livez,"
        " /readyz and /metrics are answered on it",
    )
    write_s: float = Field(
        30.0, gt=0, description="seconds that a client may take nothing of its answer, or be behind the rate for it"
    )
    min_read_rate: int = Field(
        8192, ge=1, description="bytes a second that a client has to take of its answer, else it is dropped"
    )
    max_unread_bytes: int = Field(
        512 * MIB, ge=1, description="when answers not read yet have so many bytes, no more photos are taken for now"
    )
    deadline_s: float = Field(30.0, gt=0, description="seconds from a request's last byte to its answer")
    drain_delay_s: float = Field(1.0, ge=0, description="seconds that requests are still taken after SIGTERM")
    drain_batch_s: float = Field(
        300.0, ge=0, description="seconds that batch uploads inside may take to finish when the service stops"
    )
    stuck_s: float = Field(
        60.0,
        gt=0,
        description="all workers busy with one photo each for so long, or all executors of a model with one run each:"
        " the process ends; more than deadline_s, after which it is not ready any more. A model that fails on every"
        " photo for so long ends it, too, and so does an event loop that stands still (10 seconds at least). A reload"
        " that takes longer is overdue: another may begin",
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
        """pydantic: the environment is read in our way."""
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
            raise ValueError(f"{max_upload_bytes:,} are too few for one photo: TOMAU_MAX_BYTES needs {least:,}")
        return max_upload_bytes

    @field_validator("stuck_s")
    @classmethod
    def _after_deadline(cls, stuck_s: float, given: ValidationInfo) -> float:
        deadline_s = given.data.get("deadline_s", 0.0)
        if stuck_s <= deadline_s:
            raise ValueError(f"{stuck_s:g} is not more than TOMAU_DEADLINE_S, which is {deadline_s:g}")
        return stuck_s

    @property
    def max_form_bytes(self) -> int:
        """Bytes of a photo's whole upload."""
        return self.max_bytes + FORM_OVERHEAD

    @cached_property
    def gpu_ids(self) -> list[int]:
        """The numbers of the GPUs to use, each once."""
        return list(dict.fromkeys(int(number) for number in self.gpus.split(",")))

    @cached_property
    def cores(self) -> int:
        """Processor cores that this process may use; of a container's share of time, whole ones."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(cores, math.ceil(cpu_quota() or cores))


def variable(name: str) -> str:
    """Return the environment variable of a setting."""
    return f"TOMAU_{name.upper()}"


def warn_about_unused(settings: Settings, device: Literal["cpu", "cuda"]) -> None:
    """Warn of variables that are set and have no effect on the device in use."""
    used, other, in_vain = ("the CPU", "a GPU", GPU_SETTINGS) if device == "cpu" else ("a GPU", "a CPU", CPU_SETTINGS)
    names = ", ".join(variable(name) for name in in_vain if name in settings.model_fields_set)
    if names:
        log.warning(
            "%s: no effect, as the models run on %s (TOMAU_DEVICE=%s); only %s has a use for that",
            *(names, used, settings.device, other),
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
    former = [name.upper() for name in FORMER_NAMES.values()]
    told = []
    for name in sorted(names):
        prefix, _, rest = name.upper().partition("_")
        if prefix == "TOMAU" and rest not in [*known, *former, *COMPOSE_VARIABLES]:
            likely = difflib.get_close_matches(rest, known, 1)
            told.append(f"{name} is no setting" + "".join(f": is TOMAU_{one} meant?" for one in likely))
    return told


def table(settings: Settings) -> str:
    """The settings' variables, values and meanings, as a Markdown table."""
    lines = ["| variable | value | meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        shown = "" if value is None else f"`{value}`"
        lines.append(f"| `{variable(name)}` | {shown} | {field.description} |")
    return "\n".join(lines) + "\n"


def environment(settings: Settings) -> str:
    """The same as an environment file, every variable commented out."""
    lines = []
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        shown = "" if value is None else json.dumps(value) if isinstance(value, bool | dict) else str(value)
        lines += [f"# {line}" for line in textwrap.wrap(field.description or "", 116, break_on_hyphens=False)]
        lines.append(f"#{variable(name)}={shown}")
    return "\n".join(lines) + "\n"
