"""The running deployment: compose project, gateway, monitoring and a photo app. The order of the tests matters."""

import io
import itertools
import os
import re
import socket
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import httpx
import numpy as np
import pytest
import skimage.data
from PIL import Image

from tests.conftest import decoded, encoded, luma
from tests.containers.project import PHOTO_APP, Project, docker, images, photo_app
from tests.waiting import until

MIB = 1 << 20
READY_S = 10
PHOTOS = 1000
JPEG = {"Content-Type": "image/jpeg"}


@pytest.fixture(scope="session")
def project() -> Project:
    """Start the project, wait until it is ready, and record how long that took."""
    project = Project()
    started = time.monotonic()
    project.compose("up", "--detach", "--no-build")
    project.wait_until_ready()
    project.seconds_to_ready = time.monotonic() - started
    return project


@pytest.fixture
def gateway(project: Project) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=project.gateway, timeout=60) as client:
        yield client


def problem_of(answer: httpx.Response) -> str:
    """Return the code of a response that is a problem in the service's format."""
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == answer.status_code
    assert problem["instance"] == f"urn:tomau:request:{answer.headers['X-Request-ID']}"
    return problem["code"]


def test_it_is_ready_in_time(project: Project) -> None:
    print(f"ready after {project.seconds_to_ready:.1f} s")
    assert project.seconds_to_ready < READY_S


def test_it_becomes_healthy(project: Project) -> None:
    until(lambda: project.facts()["State"]["Health"]["Status"] == "healthy", 20)


def test_the_gateways_configuration(project: Project) -> None:
    ended = docker("exec", project.container("gateway"), "/bin/sh", "/etc/nginx/tomau/start.sh", "-t")
    assert "test is successful" in ended.stderr


def test_a_photo_is_coloured_through_the_gateway(gateway: httpx.Client, jpeg: bytes) -> None:
    answer = gateway.post("/colorize", content=jpeg, headers=JPEG | {"X-Request-ID": "from.the-app_1"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["X-Request-ID"] == "from.the-app_1"
    assert answer.headers["X-Tomau-Device"] == "cpu"
    assert np.abs(luma(answer.content) - luma(jpeg)).mean() < 1
    pixels = decoded(answer.content).astype(int)
    assert np.abs(pixels[..., 0] - pixels[..., 2]).mean() > 2


def test_the_services_own_problems_pass(gateway: httpx.Client) -> None:
    answer = gateway.post("/colorize", content=b"no picture", headers=JPEG)
    assert answer.status_code == 415
    assert problem_of(answer) == "unsupported_type"


def test_too_large_is_a_problem_that_the_client_gets_to_see(gateway: httpx.Client) -> None:
    for _ in range(5):
        answer = gateway.post("/colorize", content=bytes(52 * MIB), headers=JPEG)
        assert answer.status_code == 413
        assert problem_of(answer) == "too_many_bytes"


def test_too_many_requests_of_one_client(gateway: httpx.Client) -> None:
    def ask(_: int) -> httpx.Response:
        return gateway.get("/models")

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(400)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert Counter(answer.status_code for answer in answers).keys() == {200, 429}
    assert {problem_of(answer) for answer in refused} == {"too_many_requests"}
    assert {answer.headers["Retry-After"] for answer in refused} == {"1"}
    time.sleep(2)


def test_slow_batches_leave_room_for_photos(project: Project, gateway: httpx.Client, jpeg: bytes) -> None:
    address = urlsplit(project.gateway)
    form = "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 99"
    with ExitStack() as slow:
        for _ in range(16):
            sender = slow.enter_context(socket.create_connection((address.hostname, address.port)))
            sender.sendall(f"POST /colorize/batch HTTP/1.1\r\nHost: x\r\n{form}\r\n\r\n--x".encode())
        time.sleep(1)
        refused = gateway.post("/colorize/batch", files={"file": ("a.jpg", jpeg, "image/jpeg")})
        assert refused.status_code == 429
        assert problem_of(refused) == "too_many_requests"
        assert gateway.post("/colorize", content=jpeg, headers=JPEG).status_code == 200


def test_no_request_is_a_problem_too(project: Project) -> None:
    ended = subprocess.run(
        ["curl", "-s", "-i", "-X", "GE T", f"{project.gateway}/"],
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    assert "400 Bad Request" in ended.stdout
    assert '"code":"invalid_request"' in ended.stdout


def test_a_head_that_is_too_long_is_a_problem_too(gateway: httpx.Client) -> None:
    answer = gateway.get("/models", headers={"X-Long": "x" * 40_000})
    assert answer.status_code == 431
    assert problem_of(answer) == "head_too_large"


def test_a_batch_comes_back_through_the_gateway(gateway: httpx.Client, jpeg: bytes) -> None:
    files = [("file", (f"{number}.jpg", jpeg, "image/jpeg")) for number in range(5)]
    answer = gateway.post("/colorize/batch", files=files)
    assert answer.status_code == 200, answer.text
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        photos = [archive.read(name) for name in archive.namelist() if name.endswith(".jpg")]
    assert len(photos) == len(files)
    assert all(np.abs(luma(photo) - luma(jpeg)).mean() < 1 for photo in photos)


@pytest.mark.parametrize("path", ["/metrics", "/docs", "/docs/assets/swagger-ui.css", "/openapi.json"])
def test_what_is_closed_outside(gateway: httpx.Client, path: str) -> None:
    answer = gateway.get(path)
    assert answer.status_code == 404
    assert problem_of(answer) == "not_found"


def test_metrics_are_scraped_inside(project: Project) -> None:
    def query(text: str) -> list[dict]:
        answer = httpx.get(f"{project.prometheus}/api/v1/query", params={"query": text}, timeout=5)
        return answer.json()["data"]["result"]

    def count() -> float:
        found = query('sum(tomau_requests_total{route="/colorize", status="200"})')
        return float(found[0]["value"][1]) if found else 0

    until(lambda: count() >= 1, 40)
    assert query('up{job="tomau"}')[0]["value"][1] == "1"
    rules = httpx.get(f"{project.prometheus}/api/v1/rules", timeout=5).json()["data"]["groups"][0]["rules"]
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
    assert {rule["name"] for rule in rules} == {
        f"Tomau{name}"
        for name in ("Down", "InstanceDown", "NotReady", "Errors", "Overloaded", "Slow", "Memory", "ReloadFailed")
    }


@pytest.mark.parametrize("service", ["colorize", "gateway", "prometheus"])
def test_it_runs_with_no_rights(project: Project, service: str) -> None:
    facts = project.facts(service)
    status = dict(
        re.findall(r"^(\w+):\s+(.*)$", Path(f"/proc/{facts['State']['Pid']}/status").read_text(), re.MULTILINE)
    )
    assert "0" not in status["Uid"].split()
    assert "0" not in status["Gid"].split()
    assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"
    assert facts["HostConfig"]["ReadonlyRootfs"]
    assert facts["HostConfig"]["Memory"] == facts["HostConfig"]["MemorySwap"] > 0 or service == "prometheus"
    assert facts["HostConfig"]["NanoCpus"] > 0
    assert facts["HostConfig"]["PidsLimit"] > 0


def test_nothing_can_be_written(project: Project) -> None:
    write = "import sys\ntry: open(sys.argv[1], 'w')\nexcept OSError as error: sys.exit(error.strerror)"
    container = project.container()
    for path, expected in {
        "/x": "Read-only file system",
        "/models/compact.onnx": "Read-only file system",
        "/opt/tomau/x": "Read-only file system",
        "/tmp/x": "",
    }.items():
        assert docker("exec", container, "python3", "-c", write, path, check=False).stderr.strip() == expected


CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).close()"


def package_index() -> tuple[str, str]:
    """Return host and port of pip's package index, which every machine that ran `make` can reach."""
    ask = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
    default = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    url = urlsplit(os.environ.get("PIP_INDEX_URL") or default)
    return url.hostname or "", str(url.port or {"http": 80}.get(url.scheme, 443))


def outside() -> tuple[str, str] | None:
    """Return an address and a port outside this machine that a container on an ordinary network can reach."""
    image = next(name for name in images() if "nginx" in name)
    for name, port in (package_index(), ("example.org", "443")):
        if not name:
            continue
        ask = f"import socket; print(socket.gethostbyname({name!r}))"
        tried = docker("run", "--rm", "--entrypoint", "python3", image, "-c", ask, check=False, timeout=30)
        address = tried.stdout.strip()
        reached = address and docker(
            "run", "--rm", "--entrypoint", "python3", image, "-c", CONNECT, address, port, check=False, timeout=30
        )
        if reached and reached.returncode == 0:
            return address, port
    return None


def test_there_is_no_way_out(project: Project) -> None:
    target = outside()
    if target is None:
        pytest.skip("nothing outside can be reached from any container here")
    for service in ("colorize", "gateway"):
        tried = docker("exec", project.container(service), "python3", "-c", CONNECT, *target, check=False, timeout=30)
        assert tried.returncode != 0
        assert "timed out" in tried.stderr or "unreachable" in tried.stderr


# ---- Under load and during failures ----


def large_photos() -> dict[str, bytes]:
    """Return the largest accepted photos of the kinds that need most memory, by their query."""
    rng = np.random.default_rng(0)
    color = cv2.resize(skimage.data.astronaut(), (11_500, 8_600), interpolation=cv2.INTER_NEAREST)
    noisy = np.clip(color[:4_000, :5_000, 1] + rng.normal(0, 8, (4_000, 5_000)), 0, 255).astype(np.uint8)
    progressive = io.BytesIO()
    Image.fromarray(noisy).save(progressive, "JPEG", quality=95, progressive=True)
    largest = encoded(color, "JPEG", quality=75, subsampling=0)
    transparent = encoded(np.dstack([color, color[..., 0]]), "PNG", compress_level=1)
    return {"": largest, "?merge=literal": largest, "?format=png": transparent, "?quality=80": progressive.getvalue()}


def post_large(project: Project, query: str, photo: bytes) -> int:
    kind = "image/png" if photo.startswith(b"\x89PNG") else "image/jpeg"
    headers = {"Content-Type": kind}
    return httpx.post(f"{project.service}/colorize{query}", content=photo, headers=headers, timeout=90).status_code


def test_the_memory_limit_is_survived_under_load(project: Project) -> None:
    before = project.facts()
    photos = list(large_photos().items()) * 2
    with ThreadPoolExecutor(8) as pool:
        statuses = Counter(pool.map(lambda photo: post_large(project, *photo), photos))
    print(dict(statuses), f"{memory_peak(project) / MIB:.0f} MiB at most")
    after = project.facts()
    assert after["State"]["Pid"] == before["State"]["Pid"]
    assert not after["State"]["OOMKilled"]
    assert statuses.keys() <= {200, 503, 504}
    assert statuses[200] >= 3
    assert httpx.get(f"{project.service}/readyz").status_code == 200


def memory_peak(project: Project) -> int:
    """Return the container's peak memory in bytes, including file pages if the kernel counts them."""
    code = (
        "from pathlib import Path\n"
        "for name in ('memory.peak', 'memory/memory.max_usage_in_bytes'):\n"
        "    file = Path('/sys/fs/cgroup', name)\n"
        "    if file.exists(): print(file.read_text())"
    )
    return int(project.python(code).stdout.split()[0])


def test_a_stop_finishes_what_is_inside(project: Project) -> None:
    photo = large_photos()["?quality=80"]
    with ThreadPoolExecutor(6) as pool:
        ends = [pool.submit(post_large, project, "", photo) for _ in range(6)]
        until(lambda: metric(project, "tomau_photos_inside") == len(ends), 30)
        started = time.monotonic()
        project.compose("stop", "colorize")
        seconds = time.monotonic() - started
        assert [end.result() for end in ends] == [200] * len(ends)
    print(f"stopped after {seconds:.1f} s")
    assert project.facts()["State"]["ExitCode"] == 0
    assert seconds < 40


def metric(project: Project, series: str) -> float:
    page = httpx.get(f"{project.service}/metrics").text
    return float(re.search(rf"^{re.escape(series)} (\S+)", page, re.MULTILINE)[1])


def test_a_stopped_service_is_unavailable(gateway: httpx.Client, jpeg: bytes) -> None:
    answer = gateway.post("/colorize", content=jpeg, headers=JPEG)
    assert answer.status_code == 503
    assert problem_of(answer) == "unavailable"
    assert int(answer.headers["Retry-After"]) >= 1


def test_a_photo_app_waits_and_loses_nothing(project: Project, tmp_path: Path, astronaut: np.ndarray) -> None:
    """Another compose project joins the network while the service is down. The service starts, and is restarted."""
    source, target = tmp_path / "photos", tmp_path / "coloured"
    for folder in (tmp_path, source, target):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)
    gray = cv2.cvtColor(astronaut, cv2.COLOR_RGB2GRAY)
    for number in range(200):
        (source / f"{number}.jpg").write_bytes(encoded(np.roll(gray, number, axis=1), "JPEG", quality=90))
    environment = os.environ | {"PHOTOS": str(source), "COLOURED": str(target)}
    command = [
        "docker",
        "compose",
        "-p",
        "photo-app-test",
        "-f",
        str(PHOTO_APP / "compose.yml"),
        "run",
        "--rm",
        "-T",
        "photo-app",
    ]
    app = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        time.sleep(3)
        assert not list(target.iterdir())
        project.compose("start", "colorize")
        until(lambda: len(list(target.iterdir())) >= 40, 60)
        project.compose("restart", "colorize")
        out, errors = app.communicate(timeout=120)
    finally:
        app.kill()
    assert app.returncode == 0, errors
    assert out.strip().endswith("200 photos")
    for photo in source.iterdir():
        assert np.abs(luma((target / photo.name).read_bytes()) - luma(photo.read_bytes())).mean() < 1


def test_a_thousand_photos_through_restarts_and_a_kill(project: Project, astronaut: np.ndarray) -> None:
    gray = cv2.resize(cv2.cvtColor(astronaut, cv2.COLOR_RGB2GRAY), (320, 240), interpolation=cv2.INTER_AREA)
    photos = [encoded(np.roll(gray, shift, axis=1), "JPEG", quality=90) for shift in range(20)]
    app = photo_app()
    app.wait_until_ready(project.gateway)
    expected = [app.colorize(project.gateway, photo) for photo in photos]
    assert len(set(expected)) == len(photos)
    done = itertools.count(1)
    count = 0

    def post(number: int) -> bool:
        nonlocal count
        answer = app.colorize(project.gateway, photos[number % len(photos)])
        count = next(done)
        return answer == expected[number % len(photos)]

    def trouble() -> None:
        until(lambda: count >= 150, 120)
        project.compose("restart", "colorize")
        until(lambda: count >= 400, 120)
        # As in docs/deployment.md: after `docker kill --signal=HUP`, the engine restarts nothing after a crash.
        docker("exec", project.container(), "sh", "-c", "kill -HUP 1")
        until(lambda: metric(project, 'tomau_reloads_total{result="success"}') == 1, 30)
        restarts = project.facts()["RestartCount"]
        project.kill()
        until(lambda: project.facts()["RestartCount"] == restarts + 1, 30)
        project.wait_until_ready()
        until(lambda: count >= 700, 120)
        project.compose("restart", "colorize")

    with ThreadPoolExecutor(8) as pool, ThreadPoolExecutor(1) as other:
        troubles = other.submit(trouble)
        right = sum(pool.map(post, range(PHOTOS)))
        troubles.result()
    assert right == PHOTOS
