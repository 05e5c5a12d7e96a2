"""API keys and CORS over HTTP. A request reaches no file, no other host, and puts no secret in the log."""

import ast
import base64
import http.client
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.api.test_problems import exchange, is_problem
from tests.conftest import Serve, Server, encoded, free_port
from tests.waiting import until

KEY = "first-key-0123456789"
OTHER = "second-key-0123456789"
PAGE = "https://photos.example.org"
STRANGER = "https://elsewhere.example"
GUARDED = ["/", "/colorize", "/colorize/batch", "/models", "/docs", "/docs/assets/swagger-ui.css", "/openapi.json"]
GUARDED += ["/metrics", "/nowhere", "/livez/", "//livez", "/LIVEZ", "/livez%2f..%2fmodels"]


@pytest.fixture(scope="module")
def guarded(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a key in the variable, another one in the file, one allowed origin, and its whole log."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"# the archive\n{OTHER}\n")
    with serve(api_keys=KEY, api_keys_file=file, cors_origins=PAGE, log_level="debug") as running:
        yield running


def log_of(server: Server) -> str:
    """Return the log. The line of a response may be written a moment after the response."""
    time.sleep(0.2)
    return server.log.read_text("utf-8")


@pytest.mark.parametrize("path", GUARDED)
def test_every_path_but_the_probes_needs_a_key(guarded: Server, path: str) -> None:
    for headers, code in (
        ({}, "missing_key"),
        ({"Authorization": "Bearer"}, "missing_key"),
        ({"Authorization": f"Basic {KEY}"}, "missing_key"),
        ({"Authorization": f"Bearer {KEY}x"}, "invalid_key"),
        ({"X-API-Key": KEY[:-1]}, "invalid_key"),
        ({"X-API-Key": KEY, "Authorization": f"Bearer {OTHER}"}, "invalid_key"),
    ):
        for method in ("GET", "POST"):
            refused = httpx.request(method, f"{guarded.url}{path}", headers=headers)
            is_problem(refused, 401, code)
            assert refused.headers["www-authenticate"].startswith('Bearer realm="tomau"')
    for headers in ({"Authorization": f"Bearer {KEY}"}, {"X-API-Key": OTHER}):
        assert httpx.get(f"{guarded.url}{path}", headers=headers).status_code != 401
    assert httpx.get(f"{guarded.url}{path}?key={KEY}&api_key={KEY}").status_code == 401


def test_the_probes_need_none(guarded: Server) -> None:
    for path in ("/livez", "/readyz"):
        assert httpx.get(f"{guarded.url}{path}").status_code == 200
        assert httpx.get(f"{guarded.url}{path}", headers={"X-API-Key": "wrong"}).status_code == 200


def test_with_a_key_a_photo_is_coloured(guarded: Server, jpeg: bytes) -> None:
    for headers in ({"Authorization": f"bearer {OTHER}"}, {"X-API-Key": KEY}):
        answer = httpx.post(f"{guarded.url}/colorize", files={"file": jpeg}, headers=headers)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "image/jpeg"


def test_a_wrong_key_is_refused_before_the_body_comes(guarded: Server) -> None:
    head = "POST /colorize HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 6291456\r\n\r\n"
    with socket.create_connection(("127.0.0.1", guarded.port), 10) as connection:
        connection.sendall(head.encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 401 "), "not one byte of the photo has been sent"


def test_a_client_that_still_sends_reads_its_401(guarded: Server) -> None:
    head = "POST /colorize HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 6291456\r\n\r\n"
    answer = exchange(guarded, head.encode(), *[bytes(1 << 20)] * 6)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b'"code": "missing_key"' in answer


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl_that_waits_for_100_continue_reads_its_401(guarded: Server, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(bytes(6 << 20))
    command = ["curl", "-s", "-H", "Expect: 100-continue", "-F", "file=@photo.jpg", f"{guarded.url}/colorize"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=30, check=True)
    assert json.loads(ended.stdout)["code"] == "missing_key"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"API_KEYS": ""}, "TOMAU_API_KEYS: there is no key"),
        ({"API_KEYS": f"{KEY},tooshort"}, "TOMAU_API_KEYS: key 2"),
        ({"API_KEYS_FILE": "/nowhere/keys"}, "TOMAU_API_KEYS_FILE: /nowhere/keys: No such file"),
        ({"API_KEYS_FILE": "/dev/null"}, "TOMAU_API_KEYS_FILE: /dev/null: there is no key"),
        ({"CORS_ORIGINS": f"{PAGE}/app"}, "TOMAU_CORS_ORIGINS: 'https://photos.example.org/app'"),
        ({"API_KEYS": KEY, "PORT": "none"}, "TOMAU_PORT: "),
    ],
)
def test_bad_settings_are_refused_in_a_line_without_a_key(models: Path, settings: dict[str, str], reason: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TOMAU_")}
    changed = {"TOMAU_MODELS": str(models), **{f"TOMAU_{name}": value for name, value in settings.items()}}
    command = [str(Path(sys.executable).with_name("tomau")), "serve"]
    ended = subprocess.run(command, env=inherited | changed, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"tomau: {reason}")
    assert ended.stderr.count("\n") == 1
    assert KEY not in ended.stderr
    assert "tooshort" not in ended.stderr


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/models", 200),
        ("POST", "/colorize", 422),
        ("POST", "/models", 405),
        ("GET", "/nowhere", 404),
        ("POST", "/colorize", 401),
    ],
)
def test_a_page_of_an_allowed_origin_can_read_every_answer(
    guarded: Server, method: str, path: str, status: int
) -> None:
    key = {} if status == 401 else {"X-API-Key": KEY}
    content = {"file": b"x"} if method == "POST" else None
    url = f"{guarded.url}{path}" + ("?strength=9" if status == 422 else "")
    answer = httpx.request(method, url, headers={"Origin": PAGE, **key}, files=content)
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "Origin" in answer.headers["vary"]
    exposed = answer.headers["access-control-expose-headers"].split(", ")
    assert {"X-Tomau-Model", "X-Request-ID", "Server-Timing", "Retry-After"} <= set(exposed)
    assert "access-control-allow-credentials" not in answer.headers
    for stranger in (STRANGER, "null", f"{PAGE}.elsewhere.example", PAGE.replace("https", "http")):
        other = httpx.request(method, url, headers={"Origin": stranger, **key}, files=content)
        assert other.status_code == status
        assert "access-control-allow-origin" not in other.headers


def preflight(server: Server, origin: str, method: str = "POST", headers: str = "authorization,x-api-key"):
    asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
    return httpx.options(f"{server.url}/colorize", headers={"Origin": origin, **asked})


def test_a_preflight_needs_no_key(guarded: Server) -> None:
    allowed = preflight(guarded, PAGE)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == PAGE
    assert "POST" in allowed.headers["access-control-allow-methods"]
    assert {"Authorization", "X-API-Key", "Content-Type"} <= set(
        allowed.headers["access-control-allow-headers"].split(", ")
    )
    assert allowed.headers["x-content-type-options"] == "nosniff"
    refused = preflight(guarded, STRANGER)
    assert refused.status_code == 400
    assert "access-control-allow-origin" not in refused.headers
    assert preflight(guarded, PAGE, method="DELETE").status_code == 400
    assert preflight(guarded, PAGE, headers="traceparent").status_code == 200
    for answer in (allowed, refused):
        line = f"[{answer.headers['x-request-id']}] OPTIONS /colorize {answer.status_code} "
        until(lambda line=line: line in guarded.log.read_text())
    plain = httpx.options(f"{guarded.url}/colorize", headers={"Origin": PAGE})
    is_problem(plain, 401, "missing_key")


def test_without_the_setting_no_page_may_read(client: httpx.Client) -> None:
    answer = client.get("/models", headers={"Origin": PAGE})
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]
    asked = client.options("/colorize", headers={"Origin": PAGE, "Access-Control-Request-Method": "POST"})
    is_problem(asked, 405, "method_not_allowed")


def test_all_origins_may_be_allowed(serve: Serve) -> None:
    with serve(cors_origins="*") as server:
        for path in ("/models", "/nowhere"):
            answer = httpx.get(f"{server.url}{path}", headers={"Origin": STRANGER})
            assert answer.headers["access-control-allow-origin"] == "*"
        assert preflight(server, STRANGER).headers["access-control-allow-origin"] == "*"


def test_every_answer_has_its_security_headers(client: httpx.Client, server: Server, jpeg: bytes) -> None:
    answers = {
        "photo": client.post("/colorize", files={"file": jpeg}),
        "bad option": client.post("/colorize?strength=9", files={"file": jpeg}),
        "bad method": client.get("/colorize"),
        "nothing": client.get("/nowhere"),
        "probe": client.get("/livez"),
        "models": client.get("/models"),
        "document": client.get("/openapi.json"),
        "redirect": client.get("/"),
        "page": client.get("/docs"),
        "script": client.get("/docs/assets/swagger-ui-bundle.js"),
    }
    heads = {name: answer.headers for name, answer in answers.items()}
    head = exchange(server, b"\x16\x03\x01 hello\r\n\r\n").partition(b"\r\n\r\n")[0]
    heads["not http"] = httpx.Headers([line.split(b": ") for line in head.split(b"\r\n")[1:]])
    for name, headers in heads.items():
        assert headers["x-content-type-options"] == "nosniff", name
        assert headers["x-frame-options"] == "DENY", name
        assert headers["referrer-policy"] == "no-referrer", name
        assert headers["cross-origin-resource-policy"] == "same-origin", name
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy, name
        assert "frame-ancestors 'none'" in policy, name
        assert ("sandbox" in policy) == (name != "page"), name
        assert headers["cache-control"] == ("no-cache" if name == "script" else "no-store"), name
    again = client.get("/docs/assets/swagger-ui-bundle.js", headers={"If-None-Match": heads["script"]["etag"]})
    assert again.status_code == 304


SECRETS = ["grandmother", "at-the-lake", "hunter2", "wrong-key", "private-note", KEY, OTHER]


def test_the_log_has_neither_names_nor_contents_nor_keys(guarded: Server, gray: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x010E] = "at-the-lake"
    photos = [encoded(gray, "JPEG", comment=b"at-the-lake", exif=exif), encoded(gray, "PNG", exif=exif)]
    photos += [encoded(gray, "TIFF", exif=exif), b"at-the-lake", b"\xff\xd8\xff\xe0at-the-lake"]
    with httpx.Client(base_url=guarded.url, headers={"X-API-Key": KEY}) as client:
        for photo in photos:
            form = {"files": {"file": ("grandmother.jpg", photo)}}
            client.post("/colorize", **form)
            client.post("/colorize?token=hunter2", **form)
            client.post("/colorize", **form, data={"private-note": "hunter2"})
            client.post("/colorize", **form, headers={"X-API-Key": "wrong-key"})
        for body in (b"--x\r\nprivate-note\r\n\r\nat-the-lake", b"--x\r\n\xff: grandmother\r\n\r\n--x--at-the-lake"):
            client.post("/colorize", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
        client.get("/models?token=hunter2", headers={"Cookie": "private-note"})
    log = log_of(guarded)
    assert "POST /colorize 200" in log
    assert "GET /models 200" in log
    for secret in SECRETS:
        assert secret not in log
    assert "\\xff" not in log, "no byte of a broken form either"


AUDIT = """
import os, sys
log = os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def hook(event, details):
    if event == "open" or event.split(".")[0] in ("os", "shutil", "socket", "subprocess", "tempfile", "urllib"):
        os.write(log, ascii((event, *map(str, details))).encode() + b"\\n")
sys.addaudithook(hook)
"""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def test_a_client_reaches_neither_the_disk_nor_the_network(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jpeg: bytes
) -> None:
    """Python's audit events list every file that the server opens, and every address that it looks up."""
    audit = tmp_path / "audit"
    (tmp_path / "sitecustomize.py").write_text(AUDIT.format(log=str(audit)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    names = ["../../marker.jpg", "/etc/marker", "C:\\marker", f"file://{tmp_path}/marker", "marker\0.jpg"]
    with socket.create_server(("127.0.0.1", 0)) as bait, serve() as server:
        bait.settimeout(0.1)
        url = f"http://127.0.0.1:{bait.getsockname()[1]}/marker"
        started = len(audit.read_text().splitlines())
        svg = f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{url}"/></svg>'.encode()
        with httpx.Client(base_url=server.url) as client:
            for name in [*names, url]:
                assert client.post("/colorize", files={"file": (name, jpeg)}).status_code == 200
                assert client.post("/colorize", files={"file": jpeg}, data={"model": name}).status_code == 404
                assert client.post("/colorize", data={"file": name}).status_code in (415, 422)
            assert client.post("/colorize", content=svg, headers={"Content-Type": "image/svg+xml"}).status_code == 415
            assert client.get("/docs/assets/swagger-ui.css").status_code == 200
        for path in ("../../../../../etc/passwd", "..%2f..%2f..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd"):
            connection = http.client.HTTPConnection("127.0.0.1", server.port)
            connection.request("GET", f"/docs/assets/{path}")
            assert connection.getresponse().status == 404
            connection.close()
        with pytest.raises(TimeoutError):
            bait.accept()
        events = [ast.literal_eval(line) for line in audit.read_text().splitlines()]
    assert any(event == "socket.bind" for event, *_ in events[:started]), "the events are seen"
    seen = events[started:]
    assert any("swagger-ui.css" in str(details) for event, *details in seen if event == "open"), "so are files"
    for event, *details in seen:
        assert "marker" not in str(details)
        assert "passwd" not in str(details)
        assert event not in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
        assert not event.startswith(("subprocess.", "tempfile.", "shutil.", "urllib."))
        assert event not in ("os.mkdir", "os.rename", "os.remove", "os.link", "os.symlink", "os.truncate")
        assert event != "open" or not int(details[2]) & WRITES, details


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PAGE_SCRIPT = """<body><script>
const ask = async (path, options) => {{
  try {{
    const answer = await fetch('{url}' + path, options);
    const type = answer.headers.get('content-type');
    const said = type.includes('json') ? (await answer.json()).code : type;
    return [answer.status, answer.headers.get('x-tomau-model'), said];
  }} catch (error) {{ return error.name; }}
}};
const form = new FormData();
form.append('file', new Blob([Uint8Array.from(atob('{photo}'), character => character.charCodeAt(0))]), 'photo.jpg');
const key = {{'X-API-Key': '{key}'}};
Promise.all([
  ask('/colorize', {{method: 'POST', body: form, headers: key}}),
  ask('/colorize', {{method: 'POST', body: form}}),
  ask('/colorize?strength=9', {{method: 'POST', body: form, headers: key}}),
]).then(answers => document.body.textContent = JSON.stringify(answers));
</script></body>"""


def browsed(url: str, profile: Path) -> tuple[str, str]:
    """Open a page in a real browser. Return its elements once it is idle, and the lines of the console."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom", url]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    console = "\n".join(line for line in ended.stderr.splitlines() if "CONSOLE" in line)
    return ended.stdout, console


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_the_api_page_works_in_a_browser(server: Server, tmp_path: Path) -> None:
    page, console = browsed(f"{server.url}/docs", tmp_path)
    assert 'data-path="/colorize"' in page, console
    assert "Content Security Policy" not in console


@contextmanager
def one_page(html: str, port: int) -> Iterator[None]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(html.encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler) as pages:
        threading.Thread(target=pages.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            pages.shutdown()


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_page_of_an_allowed_origin_works_in_a_browser(serve: Serve, tmp_path: Path, jpeg: bytes) -> None:
    port = free_port()
    photo = base64.b64encode(jpeg).decode()
    answers = [[200, "compact/1", "image/jpeg"], [401, None, "missing_key"], [422, None, "invalid_option"]]
    with serve(api_keys=KEY, cors_origins=f"http://127.0.0.1:{port}") as server:
        html = PAGE_SCRIPT.format(url=server.url, key=KEY, photo=photo)
        with one_page(html, port):
            page, console = browsed(f"http://127.0.0.1:{port}/", tmp_path / "allowed")
            assert json.dumps(answers, separators=(",", ":")) in page, console
            page, console = browsed(f"http://localhost:{port}/", tmp_path / "stranger")
            assert '["TypeError","TypeError","TypeError"]' in page
            assert "blocked by CORS policy" in console
