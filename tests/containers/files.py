"""The deployment files before they run: compose files, Prometheus' rules and queries, the image."""

import itertools
import json
from pathlib import Path

import pytest
import yaml

from tests.containers.project import ROOT, docker, images

LARGEST = 650 * 1000**2
OVERRIDES = (
    [],
    ["docker/compose.gpu.yml"],
    ["docker/compose.models.yml"],
    ["docker/compose.gpu.yml", "docker/compose.models.yml"],
)
PROFILES = [
    chosen for count in range(4) for chosen in itertools.combinations(("gateway", "monitoring", "grafana"), count)
]


@pytest.mark.parametrize(
    "overrides", OVERRIDES, ids=lambda files: "+".join(Path(file).stem for file in files) or "plain"
)
def test_every_combination_is_a_project(monkeypatch: pytest.MonkeyPatch, overrides: list[str]) -> None:
    monkeypatch.setenv("MODELS_FOLDER", "/srv/models")
    files = [part for file in ("docker-compose.yml", *overrides) for part in ("-f", file)]
    for profiles in PROFILES:
        chosen = [part for profile in profiles for part in ("--profile", profile)]
        config = yaml.safe_load(docker("compose", *files, *chosen, "config").stdout)
        expected = {"colorize", *({"gateway"} & {*profiles})}
        expected |= {"prometheus"} if {"monitoring", "grafana"} & {*profiles} else set()
        expected |= {"grafana"} & {*profiles}
        assert set(config["services"]) == expected
        target = "gpu" if "docker/compose.gpu.yml" in overrides else "cpu"
        assert config["services"]["colorize"]["build"]["target"] == target
        assert config["services"]["colorize"]["image"] == f"tomau:{target}"


def promtool(*arguments: str, **files: str) -> str:
    """Run promtool in Prometheus' image, in its folder, with `files` mounted."""
    image = next(name for name in images() if "prometheus" in name)
    mounts = [part for name, path in files.items() for part in ("-v", f"{path}:/{name}:ro")]
    folder = ["-v", f"{ROOT / 'docker' / 'prometheus'}:/rules:ro", "-w", "/rules"]
    return docker(
        "run", "--rm", "--network=none", *folder, *mounts, "--entrypoint", "promtool", image, *arguments
    ).stdout


def test_prometheus_takes_its_configuration() -> None:
    promtool("check", "config", "prometheus.yml")


def test_alerts_fire_when_they_must() -> None:
    assert "SUCCESS" in promtool("test", "rules", "alerts.test.yml")


def test_the_dashboards_queries_are_promql(tmp_path: Path) -> None:
    dashboard = json.loads((ROOT / "docker" / "grafana" / "dashboards" / "tomau.json").read_text("utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = [
        {"record": f"query{number}", "expr": query.replace("$__rate_interval", "1m")}
        for number, query in enumerate(queries)
    ]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    file.chmod(0o644)
    tmp_path.chmod(0o755)
    assert f"{len(queries)} rules found" in promtool("check", "rules", "/queries.yml", **{"queries.yml": str(file)})


def test_the_image_is_small_and_says_what_it_is() -> None:
    facts = json.loads(docker("image", "inspect", "tomau:cpu").stdout)[0]
    assert facts["Size"] <= LARGEST
    assert facts["Config"]["User"] == "10001:10001"
    assert facts["Config"]["Healthcheck"]["Test"] == ["CMD", "tomau", "health"]
    assert facts["Config"]["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
