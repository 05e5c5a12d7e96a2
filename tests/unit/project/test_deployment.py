"""The deployment files agree with the service: settings, limits, metrics, codes, and the schema of Kubernetes."""

import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service import errors
from service.observability import metrics
from service.observability.middleware import LAST_DRAIN_S
from service.observability.tracing import EXPORT_S
from service.runtime import memory
from service.settings import SHIPPED_MODELS, Settings, environment
from service.web.watchdog import LAST_WORKERS_S

ROOT = Path(__file__).parents[3]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text("utf-8")
COMPOSE_FILES = [ROOT / "docker-compose.yml", *DOCKER.glob("compose.*.yml"), DOCKER / "photo-app" / "compose.yml"]
COMPOSE = yaml.safe_load(COMPOSE_FILES[0].read_text("utf-8"))
NGINX = (DOCKER / "nginx" / "nginx.conf").read_text("utf-8")
RULES = yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text("utf-8"))["groups"][0]["rules"]
PROMETHEUS = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text("utf-8"))
EXAMPLE = (ROOT / ".env.example").read_text("utf-8")
VARIABLES = dict(re.findall(r"^#([A-Z][A-Z0-9_]+)=(.*)$", EXAMPLE, re.MULTILINE))
MANIFESTS = [
    pytest.param(manifest, id=f"{file.name}-{manifest['kind']}")
    for file in sorted((DOCKER / "kubernetes").glob("*.yaml"))
    for manifest in yaml.safe_load_all(file.read_text("utf-8"))
]
DEPLOYMENTS = [given.values[0] for given in MANIFESTS if given.values[0]["kind"] == "Deployment"]
# The most memory of a photo that is processed, bytes per pixel, and of a process (docs/deployment.md).
BYTES_A_PIXEL = 22
PROCESS_BYTES = {"gpu": 2e9, "cpu": 0.4e9}
# Set in the image and by compose, so that .env can't change them.
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
    assert environment["MALLOC_TRIM_THRESHOLD_"] == str(memory.KEPT_BYTES)
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
    lasts = next(rule["for"] for rule in RULES if rule["alert"] == "TomauNotReady")
    seen = sum(float(time.removesuffix("s")) for time in (lasts, PROMETHEUS["global"]["scrape_interval"]))
    assert seen <= Settings().stuck_s - Settings().deadline_s


def test_times_fit_the_services() -> None:
    default = Settings()
    last = 2 * LAST_DRAIN_S + EXPORT_S + LAST_WORKERS_S
    assert last == 12, "as .env.example and the pages have it"
    longest = default.drain_delay_s + max(default.deadline_s + 5, default.drain_batch_s) + last
    assert float(VARIABLES["COLORIZE_STOP_GRACE"].removesuffix("s")) > longest
    assert float(VARIABLES["GATEWAY_READ_TIMEOUT"].removesuffix("s")) > default.deadline_s
    assert int(VARIABLES["GATEWAY_MAX_BODY"].removesuffix("m")) == default.max_bytes // memory.MIB + 1
    assert int(VARIABLES["GATEWAY_MAX_BATCH_BODY"].removesuffix("m")) == default.max_batch_bytes // memory.MIB + 1
    assert directive("send_timeout") == f"{default.write_s:g}s"
    graces = [float(VARIABLES["COLORIZE_STOP_GRACE"].removesuffix("s"))]
    for deployment in DEPLOYMENTS:
        pod = deployment["spec"]["template"]["spec"]
        delay = float(
            next(given["value"] for given in pod["containers"][0]["env"] if given["name"] == "TOMAU_DRAIN_DELAY_S")
        )
        assert pod["terminationGracePeriodSeconds"] > longest - default.drain_delay_s + delay
        graces.append(pod["terminationGracePeriodSeconds"])
    # The alert must not fire for an instance that stops.
    lasts = next(rule["for"] for rule in RULES if rule["alert"] == "TomauInstanceDown")
    assert 60 * float(lasts.removesuffix("m")) > max(graces)


def size(text: str) -> int:
    """Return the bytes of a size as compose, nginx or Kubernetes writes it."""
    number, unit = re.fullmatch(r"(\d+)([kmgMG])i?", text).groups()
    return int(number) << {"k": 10, "m": 20, "g": 30}[unit.lower()]


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_the_largest_photos_fit_the_memory(kind: str) -> None:
    default = Settings()
    rest = PROCESS_BYTES[kind] + default.max_upload_bytes + default.max_unread_bytes
    limit = size(VARIABLES["COLORIZE_GPU_MEMORY" if kind == "gpu" else "COLORIZE_MEMORY"])
    assert int(VARIABLES["COLORIZE_CPUS"]) * BYTES_A_PIXEL * default.max_pixels + rest < limit
    container = next(
        deployment["spec"]["template"]["spec"]["containers"][0]
        for deployment in DEPLOYMENTS
        if deployment["metadata"]["labels"]["app.kubernetes.io/component"] == kind
    )
    limits = container["resources"]["limits"]
    given = {variable["name"]: variable["value"] for variable in container["env"]}
    pixels = int(given.get("TOMAU_MAX_PIXELS", default.max_pixels))
    assert int(limits["cpu"]) * BYTES_A_PIXEL * pixels + rest < size(limits["memory"])


def directive(name: str) -> str:
    """Return the first value of the directive in nginx.conf."""
    return re.search(rf"^ *{name} (.*);$", NGINX, re.MULTILINE)[1]


def test_what_is_filled_into_the_gateways_configuration_is_what_compose_gives() -> None:
    start = (DOCKER / "nginx" / "start.sh").read_text("utf-8")
    filled = dict(re.findall(r"s\|@(\w+)@\|\$(\w+)\|g", start))
    directives = re.sub(r"^ *#.*", "", NGINX, flags=re.MULTILINE)
    assert set(re.findall(r"@(\w+)@", directives)) == filled.keys()
    assert set(filled.values()) == COMPOSE["services"]["gateway"]["environment"].keys()


def test_one_client_leaves_room_in_the_gateway_for_others() -> None:
    connections, batches = int(VARIABLES["GATEWAY_CONNECTIONS"]), int(VARIABLES["GATEWAY_BATCHES"])
    # Each request has two connections, and all requests of a client may reach the same worker process.
    assert 8 * 2 * connections <= int(directive("worker_connections"))
    assert 8 * batches <= Settings().max_uploads
    places = {
        place: re.findall(r"limit_conn (\w+) @(\w+)@;", body)
        for place, body in re.findall(r"\n        (location [^{]*|limit_req)(.*?)\n        }", NGINX, re.DOTALL)
    }
    every = ("requests", "CONNECTIONS")
    assert places["limit_req"] == [every]
    # A location that has limits of its own inherits none.
    assert places["location = /colorize/batch "] == [every, ("batches", "BATCHES")]
    number, buffer = directive("proxy_buffers").split()
    # Linux doubles the size of a send buffer that is set.
    kernel = 2 * size(re.search(r"sndbuf=(\w+)", directive("listen"))[1])
    buffers = int(number) * size(buffer) + size(directive("client_body_buffer_size")) + kernel
    assert size(VARIABLES["GATEWAY_UPLOADS"]) + connections * buffers < size(VARIABLES["GATEWAY_MEMORY"])


def test_answers_take_none_of_the_room_for_uploads() -> None:
    assert directive("proxy_max_temp_file_size") == "0"


def test_the_gateway_promises_no_answer_that_nginx_does_not_give() -> None:
    """nginx closes the connection if a body stops, and ignores error_page."""
    assert "408" not in {status for line in re.findall(r"error_page ([^/@=]*)", NGINX) for status in line.split()}


def nginx_problems() -> list[dict[str, Any]]:
    return [json.loads(text.replace("\\'", "'")) for text in re.findall(r"'(\{.*?\})'", NGINX)]


@pytest.mark.parametrize("problem", nginx_problems(), ids=lambda problem: problem["code"])
def test_the_gateways_problems_are_shaped_as_the_services(problem: dict[str, Any]) -> None:
    members = errors.InternalError("").body("$id")
    assert members.keys() <= problem.keys() <= members.keys() | {"field", "limit"}
    assert problem["type"] == f"urn:tomau:problem:{problem['code']}"
    assert problem["instance"] == members["instance"]
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.Problem)]
    known = {kind.code: (kind.status, kind.title) for kind in kinds}
    page = (ROOT / "docs" / "deployment.md").read_text("utf-8")
    own = {code: int(status) for status, code in re.findall(r"^\| (\d+) \| `(\w+)` \|", page, re.MULTILINE)}
    if problem["code"] in known:
        assert (problem["status"], problem["title"]) == known[problem["code"]]
    else:
        assert own[problem["code"]] == problem["status"]


def series() -> set[str]:
    """Return every name that the service's metrics have in a query."""
    names = {"up"} | {f"process_{name}" for name in ("resident_memory_bytes", "cpu_seconds_total", "open_fds")}
    for metric in metrics.ALL:
        suffixes = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        names |= {metric.name + suffix for suffix in suffixes}
    return names


def queries() -> list[str]:
    dashboard = json.loads((DOCKER / "grafana" / "dashboards" / "tomau.json").read_text("utf-8"))
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]] + [
        rule["expr"] for rule in RULES
    ]


@pytest.mark.parametrize("query", queries())
def test_queries_ask_for_what_there_is(query: str) -> None:
    asked = set(re.findall(r"\b(?:tomau|process)_\w+", query))
    assert asked <= series()


def test_every_fault_of_the_service_is_in_an_alert() -> None:
    watched = {
        reason
        for rule in RULES
        for reasons in re.findall(r'(?:reason|code)=~?"([^"]*)"', rule["expr"])
        for reason in reasons.split("|")
    }
    # A stop is intended, and faults of clients need no alert.
    assert {kind.code for kind in metrics.DROPS if kind.status >= 500} - {"draining"} == watched


def test_the_tests_of_alerts_expect_their_summaries() -> None:
    """promtool checks them only where containers can run."""
    summaries = {rule["alert"]: rule["annotations"]["summary"] for rule in RULES}
    tests = yaml.safe_load((DOCKER / "prometheus" / "alerts.test.yml").read_text("utf-8"))["tests"]
    for alert in (alert for test in tests for alert in test["alert_rule_test"]):
        pattern = re.sub(r"\\\{\\\{.*?\\\}\\\}", ".+", re.escape(summaries[alert["alertname"]]))
        for expected in alert.get("exp_alerts", ()):
            assert re.fullmatch(pattern, expected["exp_annotations"]["summary"])


def test_each_container_of_the_service_is_asked_by_itself() -> None:
    (job,) = PROMETHEUS["scrape_configs"]
    assert job["dns_sd_configs"][0]["names"] == ["colorize"]
    assert "static_configs" not in job


def test_the_job_is_called_the_same_everywhere() -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text("utf-8")
    shown = yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])
    names = {job["job_name"] for config in (PROMETHEUS, shown) for job in config["scrape_configs"]}
    assert names == {job for query in queries() for job in re.findall(r'job="(\w+)"', query)}
    label = next(rule["regex"] for rule in shown["scrape_configs"][0]["relabel_configs"] if "regex" in rule)
    for deployment in DEPLOYMENTS:
        assert deployment["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"] == label
        # With annotations, a cluster that scrapes by them would scrape each pod twice.
        assert "annotations" not in deployment["spec"]["template"]["metadata"]


def test_an_ingress_may_be_let_in() -> None:
    text = (DOCKER / "kubernetes" / "tomau.yaml").read_text("utf-8")
    lines = re.sub(r"^( +)# (- namespaceSelector:|    matchLabels:)", r"\1\2", text, flags=re.MULTILINE)
    policy = next(manifest for manifest in yaml.safe_load_all(lines) if manifest["kind"] == "NetworkPolicy")
    kubernetes_validate.validate(policy, "1.33", strict=True)
    labels = [given["namespaceSelector"]["matchLabels"] for given in policy["spec"]["ingress"][0]["from"][1:]]
    assert [label["kubernetes.io/metadata.name"] for label in labels] == ["ingress-nginx", "monitoring"]


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_manifests_keep_the_schema_of_kubernetes(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, "1.33", strict=True)


def test_a_broken_manifest_would_be_found() -> None:
    spoiled = json.loads(json.dumps(DEPLOYMENTS[0]))
    spoiled["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(spoiled, "1.33", strict=True)
