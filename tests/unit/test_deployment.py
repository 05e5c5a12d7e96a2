"""What is deployed agrees with the service: settings, limits, metrics, codes, and the schema of Kubernetes."""

import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service import memory, metrics, problems
from service.app import LAST_PHOTOS_S
from service.settings import SHIPPED_MODELS, Settings, environment

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text("utf-8")
COMPOSE_FILES = [ROOT / "docker-compose.yml", *DOCKER.glob("compose.*.yml"), DOCKER / "photo-app" / "compose.yml"]
COMPOSE = yaml.safe_load(COMPOSE_FILES[0].read_text("utf-8"))
NGINX = (DOCKER / "nginx" / "nginx.conf").read_text("utf-8")
EXAMPLE = (ROOT / ".env.example").read_text("utf-8")
VARIABLES = dict(re.findall(r"^#([A-Z][A-Z0-9_]+)=(.*)$", EXAMPLE, re.MULTILINE))
MANIFESTS = [
    pytest.param(manifest, id=f"{file.name}-{manifest['kind']}")
    for file in sorted((DOCKER / "kubernetes").glob("*.yaml"))
    for manifest in yaml.safe_load_all(file.read_text("utf-8"))
]
# Set in the image or by compose: they can't be chosen.
FIXED = {"TOMAU_HOST": "0.0.0.0", "TOMAU_PORT": "8000", "TOMAU_MODELS": "/models"}


def test_the_environment_file_has_every_setting_with_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"TOMAU_{name.upper()}", raising=False)
    expected = environment(Settings()).replace(str(SHIPPED_MODELS), "service/models")
    assert EXAMPLE.endswith("\n\n" + expected)
    listed = {name for name in VARIABLES if name.startswith("TOMAU_")}
    assert listed - {"TOMAU_TARGET"} == {f"TOMAU_{name.upper()}" for name in Settings.model_fields}


def test_the_environment_file_has_every_variable_of_compose_with_its_default() -> None:
    used = {
        (name, default)
        for file in COMPOSE_FILES
        for name, default in re.findall(r"\$\{([A-Z_]+)(?::-([^}]*)|:\?[^}]*)?\}", file.read_text("utf-8"))
    }
    assert used == {(name, value) for name, value in VARIABLES.items() if name in dict(used)}
    rest = {name for name in VARIABLES if not name.startswith("TOMAU_")}
    assert rest == {name for name, _ in used if name != "TOMAU_TARGET"}


def test_the_images_heap_is_set_as_the_service_sets_it() -> None:
    environment = dict(re.findall(r"^(?:ENV )? +(\w+)=(\S+)", DOCKERFILE, re.MULTILINE))
    assert environment["MALLOC_ARENA_MAX"] == "1"
    assert environment["MALLOC_MMAP_THRESHOLD_"] == str(1024 * memory.MIB)
    assert environment["MALLOC_TRIM_THRESHOLD_"] == str(memory.KEPT)
    assert environment["ORT_DISABLE_TELEMETRY"] == "1"
    assert {name: environment[name] for name in FIXED} == FIXED


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_container_is_hardened(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"mem_limit", "cpus", "pids_limit"} <= service.keys()
    for port in service["ports"]:
        assert port.startswith(("127.0.0.1:", "${GATEWAY_ADDRESS:-127.0.0.1}:"))


def test_a_service_that_is_stuck_is_told_before_it_ends() -> None:
    prometheus = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text("utf-8"))
    rules = yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text("utf-8"))["groups"][0]["rules"]
    lasts = next(rule["for"] for rule in rules if rule["alert"] == "TomauNotReady")
    seen = sum(float(time.removesuffix("s")) for time in (lasts, prometheus["global"]["scrape_interval"]))
    assert seen <= Settings().stuck_s - Settings().deadline_s


def test_times_fit_the_services() -> None:
    default = Settings()
    longest = default.drain_delay_s + max(default.deadline_s + 5, default.drain_batch_s) + LAST_PHOTOS_S
    assert float(VARIABLES["COLORIZE_STOP_GRACE"].removesuffix("s")) > longest
    assert float(VARIABLES["GATEWAY_READ_TIMEOUT"].removesuffix("s")) > default.deadline_s
    assert int(VARIABLES["GATEWAY_MAX_BODY"].removesuffix("m")) == default.max_bytes // memory.MIB + 1
    assert int(VARIABLES["GATEWAY_MAX_BATCH_BODY"].removesuffix("m")) == default.max_batch_bytes // memory.MIB + 1
    for file in ("tomau.yaml", "gpu.yaml"):
        deployment = next(yaml.safe_load_all((DOCKER / "kubernetes" / file).read_text("utf-8")))
        pod = deployment["spec"]["template"]["spec"]
        delay = float(
            next(given["value"] for given in pod["containers"][0]["env"] if given["name"] == "TOMAU_DRAIN_DELAY_S")
        )
        assert pod["terminationGracePeriodSeconds"] > longest - default.drain_delay_s + delay


def nginx_problems() -> list[dict[str, Any]]:
    return [json.loads(text.replace("\\'", "'")) for text in re.findall(r"'(\{.*?\})'", NGINX)]


@pytest.mark.parametrize("problem", nginx_problems(), ids=lambda problem: problem["code"])
def test_the_gateways_problems_are_shaped_as_the_services(problem: dict[str, Any]) -> None:
    members = problems.InternalError("").body("$id")
    assert members.keys() <= problem.keys() <= members.keys() | {"field", "limit"}
    assert problem["type"] == f"urn:tomau:problem:{problem['code']}"
    assert problem["instance"] == members["instance"]
    kinds = [kind for kind in vars(problems).values() if isinstance(kind, type) and issubclass(kind, problems.Problem)]
    known = {kind.code: (kind.status, kind.title) for kind in kinds}
    page = (ROOT / "docs" / "deployment.md").read_text("utf-8")
    own = {code: int(status) for status, code in re.findall(r"^\| (\d+) \| `(\w+)` \|", page, re.MULTILINE)}
    if problem["code"] in known:
        assert (problem["status"], problem["title"]) == known[problem["code"]]
    else:
        assert own[problem["code"]] == problem["status"]


def series() -> set[str]:
    """Every name that the service's metrics go by in a query."""
    names = {"up"} | {f"process_{name}" for name in ("resident_memory_bytes", "cpu_seconds_total", "open_fds")}
    for metric in metrics.ALL:
        suffixes = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        names |= {metric.name + suffix for suffix in suffixes}
    return names


def queries() -> list[str]:
    dashboard = json.loads((DOCKER / "grafana" / "dashboards" / "tomau.json").read_text("utf-8"))
    alerts = yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text("utf-8"))
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]] + [
        rule["expr"] for group in alerts["groups"] for rule in group["rules"]
    ]


@pytest.mark.parametrize("query", queries())
def test_queries_ask_for_what_there_is(query: str) -> None:
    asked = set(re.findall(r"\b(?:tomau|process)_\w+", query))
    assert asked <= series()


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_manifests_keep_the_schema_of_kubernetes(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, "1.33", strict=True)


def test_a_broken_manifest_would_be_found() -> None:
    deployment = next(given.values[0] for given in MANIFESTS if given.values[0]["kind"] == "Deployment")
    spoiled = json.loads(json.dumps(deployment))
    spoiled["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(spoiled, "1.33", strict=True)
