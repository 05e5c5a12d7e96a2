"""The metrics of one app, without HTTP."""

import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from service.errors import DeadlineExceeded, InvalidRequest
from service.observability.metrics import ALL, METHODS, OTHER, REASONS, STAGES, Metrics, table
from service.settings import Settings
from service.web.app import create_app
from service.web.state import State

ROOT = Path(__file__).parents[3]
METRICS = Metrics()


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text, media_type = metrics.render("")
    assert media_type.startswith("text/plain; version=0.0.4")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics).get((name, frozenset(labels.items())))


@pytest.fixture(scope="module")
def state(models: Path) -> State:
    found: State = create_app(Settings(models=models, device="cpu")).state.tomau
    return found


def test_the_operations_page_lists_every_metric() -> None:
    assert (ROOT / "docs" / "operations.md").read_text("utf-8").endswith(f"\n\n{table()}")


def test_every_metric_that_is_named_somewhere_exists() -> None:
    known = {series.name for series in ALL}
    known |= {
        f"{series.name}_{part}" for series in ALL for part in ("bucket", "sum", "count") if series.kind == "histogram"
    }
    folders = ROOT / "docker" / "prometheus", ROOT / "docker" / "grafana"
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    for page in (ROOT / "docs" / "operations.md", *files):
        named = set(re.findall(r"\btomau_[a-z_]+\b", page.read_text("utf-8")))
        assert named <= known, f"{page.name}: {named - known}"


def queries() -> list[str]:
    """Return the queries of the operations page, the alerts and the dashboard, each in one line."""
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    alerts = yaml.safe_load((ROOT / "docker" / "prometheus" / "alerts.yml").read_text("utf-8"))
    dashboard = json.loads((ROOT / "docker" / "grafana" / "dashboards" / "tomau.json").read_text("utf-8"))
    found = re.findall(r"```promql\n(.*?)```", page, re.DOTALL)
    found += re.findall(r"`([^`\n]*\b(?:tomau|process)_[^`\n]*)`", page)
    found += [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    found += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return [" ".join(query.split()) for query in found]


# Labels that Prometheus adds to each series.
SCRAPED = {"job", "instance"}


def labels_of(query: str, known: dict[str, set[str]]) -> set[str]:
    """Return the labels of a query's result, if it is a sum or a series."""
    if summed := re.match(r"sum(?: by \(([^)]*)\))? ?\(", query):
        return set((summed[1] or "").split(", ")) - {""}
    return SCRAPED.union(*(known[name] for name in re.findall(r"\b(?:tomau|process)_\w+", query)))


@pytest.mark.parametrize("query", queries())
def test_queries_ask_for_labels_that_there_are(query: str, state: State) -> None:
    state.metrics.request("/colorize", "POST", 503, "overloaded", 0.1)
    state.metrics.request("/colorize", "POST", 504, "deadline_exceeded", 0.1)
    state.metrics._photos.labels("compact").inc()
    page = samples(state.metrics)
    values = [(name, dict(labels)) for name, labels in page]
    known = {name: set(labels) for name, labels in values}
    for name, matchers in re.findall(r"\b((?:tomau|process)_\w+)\{([^}]*)\}", query):
        for label, how, value in re.findall(r'(\w+)(=~|!=|=)"([^"]*)"', matchers):
            assert label in known[name] | SCRAPED, label
            there = [labels[label] for one, labels in values if one == name and label in labels]
            pattern = value if how == "=~" else re.escape(value)
            matches = [bool(re.fullmatch(pattern, one)) is (how != "!=") for one in there]
            assert label in SCRAPED or any(matches), f"{label}{how}{value}"
    for summed in re.findall(r"by \(([^)]*)\)", query):
        there = set().union(*(known[name] for name in re.findall(r"\b(?:tomau|process)_\w+", query)))
        assert set(summed.split(", ")) <= there | SCRAPED
    left, divided, right = query.partition(" / ")
    if divided and not right.startswith("on "):
        assert labels_of(left, known) == labels_of(right.lstrip("("), known), "else no two series meet"


def test_every_alert_has_its_chapter() -> None:
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    alerts = ["Down", "InstanceDown", "NotReady", "Errors", "Overloaded", "Slow", "Memory", "ReloadFailed"]
    chapters = re.findall(r"^### Tomau(\w+)\n\n```promql\n(.*?)```", page, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in chapters] == alerts
    rules = ROOT / "docker" / "prometheus" / "alerts.yml"
    if rules.is_file():
        deployed = " ".join(rules.read_text("utf-8").replace("expr: >", "expr:").split())
        for name, expression in chapters:
            assert f"alert: Tomau{name} expr: {' '.join(expression.split())}" in deployed, name


def test_every_metric_that_is_listed_is_there_with_its_labels(state: State) -> None:
    state.metrics.request("/colorize", "POST", 200, "", 0.1)
    state.metrics._photos.labels("compact").inc()
    families = {family.name: family for family in text_string_to_metric_families(state.metrics.render("")[0].decode())}
    for series in ALL:
        family = families.pop(series.name.removesuffix("_total"))
        assert (family.type, family.documentation) == (series.kind, series.meaning)
        assert family.samples, series.name
        assert all(set(sample.labels) - {"le"} == set(series.labels) for sample in family.samples), series.name
    assert all(name.startswith("process_") for name in families), "nothing is there that is not listed"
    assert "process_resident_memory_bytes" in families


def test_what_can_happen_is_zero_before_it_does() -> None:
    metrics = Metrics()
    assert {"client_gone", "deadline_exceeded", "overloaded", "draining", "internal_error"} <= set(REASONS)
    for reason in REASONS:
        assert value(metrics, "tomau_dropped_total", reason=reason) == 0
    for stage in STAGES:
        assert value(metrics, "tomau_stage_seconds_count", stage=stage) == 0
    for result in ("success", "failure"):
        assert value(metrics, "tomau_reloads_total", result=result) == 0
    assert value(metrics, "tomau_photos_total", model="") == 0


def test_two_apps_do_not_count_together() -> None:
    one, other = Metrics(), Metrics()
    one.drop("overloaded")
    assert value(one, "tomau_dropped_total", reason="overloaded") == 1
    assert value(other, "tomau_dropped_total", reason="overloaded") == 0


def test_a_methods_name_is_a_label_only_when_it_is_known() -> None:
    metrics = Metrics()
    for number in range(100):
        metrics.request("/colorize", f"BREW{number}", 405, "method_not_allowed", 0.0)
    labels = {"route": "/colorize", "status": "405", "code": "method_not_allowed"}
    assert value(metrics, "tomau_requests_total", method=OTHER, **labels) == 100
    assert "GET" in METHODS


def test_the_route_of_a_request() -> None:
    class Route:
        path = "/jobs/{id}"

    metrics = Metrics(["/colorize", "/docs/assets"])
    assert metrics.route_of({"path": "/jobs/7", "root_path": "", "route": Route()}) == "/jobs/{id}"
    assert metrics.route_of({"path": "/colorize", "root_path": ""}) == "/colorize", "refused before it was routed"
    assert metrics.route_of({"path": "/docs/assets/a.js", "root_path": "/docs/assets"}) == "/docs/assets"
    assert metrics.route_of({"path": "/wp-login.php", "root_path": ""}) == OTHER


def test_problems_of_requests_and_of_what_never_was_one() -> None:
    metrics = Metrics()
    metrics.request("/colorize", "POST", 504, DeadlineExceeded.code, 30.0)
    metrics.request("/colorize", "POST", 422, "invalid_option", 0.1)
    metrics.refuse(InvalidRequest("junk"))
    assert value(metrics, "tomau_dropped_total", reason="deadline_exceeded") == 1
    assert sum(value(metrics, "tomau_dropped_total", reason=reason) or 0 for reason in REASONS) == 1
    nothing = {"route": "none", "method": "none", "status": "400", "code": "invalid_request"}
    assert value(metrics, "tomau_requests_total", **nothing) == 1
    assert value(metrics, "tomau_request_seconds_bucket", route="/colorize", le="30.0") == 2


def test_batches_and_their_padding() -> None:
    metrics = Metrics()
    for photos, slots in [(1, 1), (3, 4), (20, 32)]:
        metrics.batch(photos, slots)
    assert value(metrics, "tomau_batch_padding_total") == 13
    assert value(metrics, "tomau_batch_size_bucket", le="4.0") == 2
    assert value(metrics, "tomau_batch_size_sum") == 24


def test_gauges_are_read_when_they_are_asked_for(state: State) -> None:
    assert value(state.metrics, "tomau_ready") == 1
    before = value(state.metrics, "tomau_photos_inside")
    state.workers.slots.acquire(3)
    state.upload_bytes.acquire(1000)
    state.unread.acquire(2000)
    state.connections.acquire(7)
    try:
        assert value(state.metrics, "tomau_photos_inside") == before + 3
        assert value(state.metrics, "tomau_upload_bytes_inflight") == 1000
        assert value(state.metrics, "tomau_unread_bytes") == 2000
        assert value(state.metrics, "tomau_connections") == 7
        state.draining = True
        assert value(state.metrics, "tomau_ready") == 0
    finally:
        state.draining = False
        state.workers.slots.release(3)
        state.upload_bytes.release(1000)
        state.unread.release(2000)
        state.connections.release(7)
    assert value(state.metrics, "tomau_photos_inside") == before


def test_the_models_are_told_apart(state: State) -> None:
    found = {
        tuple(dict(labels)[key] for key in ("name", "version", "color_space", "device", "default"))
        for name, labels in samples(state.metrics)
        if name == "tomau_model_info"
    }
    assert found == {("compact", "1", "lab", "cpu", "true"), ("warm", "1", "hsv", "cpu", "false")}
    assert value(state.metrics, "tomau_queue_depth", model="warm") == 0


def test_warming_up_is_not_counted(models: Path) -> None:
    metrics = create_app(Settings(models=models, device="cpu")).state.tomau.metrics
    assert value(metrics, "tomau_batch_size_count") == 0


def test_openmetrics_for_who_asks_for_it() -> None:
    text, media_type = Metrics().render("application/openmetrics-text; version=1.0.0")
    assert media_type.startswith("application/openmetrics-text")
    assert text.endswith(b"# EOF\n")


TYPES = st.sampled_from(["text/plain", "application/openmetrics-text", "*/*", "x", ""])
NUMBERS = st.lists(st.sampled_from(["0", "1", "2", "x", "-1", "1e9", ""]), max_size=4).map(".".join)
PARAMETERS = st.sampled_from(["escaping=dots", "escaping=x", "q=0.5", "=", "x", ""]) | NUMBERS.map("version={}".format)
ACCEPTS = st.tuples(TYPES, PARAMETERS, PARAMETERS).map(";".join)


@given(st.lists(ACCEPTS, max_size=3).map(",".join))
@example("text/plain;version=x")
@example("text/plain;escaping=dots;version=1.0.0")
@example("application/openmetrics-text; version=2.x")
def test_whatever_is_accepted_gets_a_page(accept: str) -> None:
    text, media_type = METRICS.render(accept)
    assert text.startswith(b"# HELP tomau_"), "its names may be escaped, with more underscores"
    assert media_type.startswith(("text/plain", "application/openmetrics-text"))
