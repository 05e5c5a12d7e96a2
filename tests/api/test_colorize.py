"""`POST /colorize` and the other routes over HTTP."""

import gzip
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from service.pipeline.options import Options
from service.web.cors import CORS_EXPOSED
from service.web.openapi import COLORED_HEADERS
from tests.conftest import Server, decoded, encoded, luma


def post(client: httpx.Client, data: bytes, url: str = "/colorize", **form: str) -> httpx.Response:
    return client.post(url, files={"file": ("photo.jpg", data)}, data=form)


def test_a_photo_comes_back_coloured(client: httpx.Client, jpeg: bytes) -> None:
    answer = post(client, jpeg)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["x-tomau-model"] == "compact/1"
    assert answer.headers["x-tomau-device"] == "cpu"
    stages = [entry.split(";")[0] for entry in answer.headers["server-timing"].split(", ")]
    assert stages == ["receive", "decode", "infer", "queue", "merge", "encode"]
    assert np.abs(luma(answer.content) - luma(jpeg)).mean() < 0.5
    rgb = decoded(answer.content).astype(int)
    assert (rgb[..., 0] - rgb[..., 2]).mean() > 20


def test_a_bare_body_is_the_same_as_a_form(client: httpx.Client, jpeg: bytes) -> None:
    bare = client.post("/colorize", content=jpeg, headers={"content-type": "image/jpeg"})
    assert bare.status_code == 200
    assert bare.content == post(client, jpeg).content


def test_options_in_the_form_and_in_the_query(client: httpx.Client, jpeg: bytes) -> None:
    by_form = post(client, jpeg, model="warm", format="png", strength="0.5")
    by_query = post(client, jpeg, "/colorize?model=warm&format=png&strength=0.5")
    assert by_form.headers["x-tomau-model"] == by_query.headers["x-tomau-model"] == "warm/1"
    assert by_form.headers["content-type"] == "image/png"
    assert by_form.content == by_query.content
    both = post(client, jpeg, "/colorize?model=compact", model="warm")
    assert both.headers["x-tomau-model"] == "compact/1", "the query overrides the form"


@pytest.mark.parametrize(("option", "value", "status"), [("model", "{}", 404), ("quality", "101", 422)])
@pytest.mark.parametrize("path", ["/colorize", "/colorize/batch"])
def test_what_the_query_overrules_must_be_right_too(
    client: httpx.Client, jpeg: bytes, path: str, option: str, value: str, status: int
) -> None:
    right = {"model": "compact", "quality": "90"}[option]
    refused = post(client, jpeg, f"{path}?{option}={right}", **{option: value})
    assert (refused.status_code, refused.json()["field"]) == (status, option)


def test_metadata_is_an_option(client: httpx.Client, gray: np.ndarray) -> None:
    photo = encoded(gray, "JPEG", comment="At the lake")
    assert b"At the lake" in post(client, photo).content
    assert b"At the lake" not in post(client, photo, metadata="strip").content
    refused = post(client, photo, metadata="lose")
    assert (refused.status_code, refused.json()["field"]) == (422, "metadata")


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("image/png", "image/png"),
        ("image/webp", "image/webp"),
        ("image/webp;q=0.9", "image/webp"),
        ("image/webp;q=0", "image/jpeg"),
        ("image/png, image/webp; q=0.0", "image/png"),
        ("*/*", "image/jpeg"),
        ("image/avif,image/webp,*/*;q=0.8", "image/jpeg"),
        ("text/html", "image/jpeg"),
    ],
)
def test_accept_counts_when_it_asks_for_one_type_alone(
    client: httpx.Client, jpeg: bytes, accept: str, expected: str
) -> None:
    answer = client.post("/colorize", content=jpeg, headers={"content-type": "image/jpeg", "accept": accept})
    assert answer.headers["content-type"] == expected


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_the_answer_has_the_uploads_format(client: httpx.Client, gray: np.ndarray, format_: str) -> None:
    answer = post(client, encoded(gray, format_))
    assert answer.headers["content-type"] == f"image/{format_.lower()}"


def test_many_at_once_get_each_their_own(client: httpx.Client, gray: np.ndarray) -> None:
    photos = [encoded(np.ascontiguousarray(gray[:, shift : shift + 200]), "PNG") for shift in range(24)]
    alone = [post(client, photo).content for photo in photos]
    with ThreadPoolExecutor(24) as pool:
        together = list(pool.map(lambda photo: post(client, photo), photos))
    assert [answer.status_code for answer in together] == [200] * 24
    assert [answer.content for answer in together] == alone


def test_the_catalogue(client: httpx.Client) -> None:
    models = client.get("/models").json()["models"]
    assert {(m["name"], m["color_space"], m["default"]) for m in models} == {
        ("compact", "lab", True),
        ("warm", "hsv", False),
    }
    assert all(len(m["sha256"]) == 64 and m["device"] == "cpu" for m in models)


def test_health(client: httpx.Client) -> None:
    assert client.get("/livez").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready", "device": "cpu", "models": ["compact", "warm"]}


def test_the_docs_need_no_network(client: httpx.Client) -> None:
    page = client.get("/", follow_redirects=True)
    assert page.url.path == "/docs"
    assert page.status_code == 200
    assert "http:" not in page.text
    assert "https:" not in page.text
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png"):
        assert f"docs/assets/{asset}" in page.text
        assert len(client.get(f"/docs/assets/{asset}").content) > 500
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/colorize", "/models", "/livez", "/readyz"} <= set(paths)
    assert {p["name"] for p in paths["/colorize"]["post"]["parameters"]} == set(Options.model_fields)


def test_request_ids(client: httpx.Client, jpeg: bytes) -> None:
    assert client.get("/livez", headers={"x-request-id": "album-7.jpg"}).headers["x-request-id"] == "album-7.jpg"
    made = [client.get("/livez", headers={"x-request-id": bad}).headers["x-request-id"] for bad in ("a b", "x" * 129)]
    assert all(len(each) == 32 for each in made)
    assert made[0] != made[1]


def test_a_photo_in_colour(client: httpx.Client, astronaut: np.ndarray, jpeg: bytes) -> None:
    photo = encoded(astronaut, "JPEG")
    kept = post(client, photo, if_color="keep")
    assert (kept.content, kept.headers["x-tomau-input"]) == (photo, "color")
    assert "x-tomau-model" not in kept.headers
    rejected = post(client, photo, if_color="reject")
    assert (rejected.status_code, rejected.json()["code"]) == (422, "color_photo")
    recolored = post(client, photo, if_color="recolor")
    assert (recolored.headers["x-tomau-input"], recolored.headers["x-tomau-model"]) == ("color", "compact/1")
    assert post(client, jpeg, if_color="keep").headers["x-tomau-input"] == "gray"
    assert "x-tomau-input" not in post(client, photo).headers, "the photo was not checked"


def test_headers_of_an_image_are_documented_and_readable_by_pages(client: httpx.Client, jpeg: bytes) -> None:
    response = post(client, jpeg, if_color="recolor")
    own = {name for name in response.headers if name.startswith("x-tomau-")}
    assert own == {"x-tomau-device", "x-tomau-input", "x-tomau-model"}
    documented = {name.lower() for name in COLORED_HEADERS}
    assert own <= documented
    assert documented <= {name.lower() for name in CORS_EXPOSED}


@pytest.mark.parametrize(
    ("upload", "answer"),
    [
        ("TIFF", "image/tiff"),
        ("AVIF", "image/jpeg"),
        ("BMP", "image/jpeg"),
        ("GIF", "image/jpeg"),
        ("WEBP", "image/webp"),
    ],
)
def test_other_formats(client: httpx.Client, gray: np.ndarray, upload: str, answer: str) -> None:
    coloured = post(client, encoded(gray, upload))
    assert coloured.status_code == 200, coloured.text
    assert coloured.headers["content-type"] == answer
    assert decoded(coloured.content).shape[:2] == gray.shape


@pytest.mark.parametrize("accept", ["image/avif", "image/tiff"])
def test_what_is_accepted_alone_is_answered(client: httpx.Client, jpeg: bytes, accept: str) -> None:
    answer = client.post("/colorize", files={"file": jpeg}, headers={"accept": accept})
    assert answer.headers["content-type"] == accept
    assert decoded(answer.content).shape[:2] == (333, 501)


@pytest.mark.parametrize("url", ["/readyz", "/livez", "/models", "/metrics", "/docs", "/openapi.json"])
def test_head_is_get_without_its_body(client: httpx.Client, url: str) -> None:
    head, get = client.head(url), client.get(url)
    assert head.status_code == get.status_code == 200
    assert head.headers["content-type"] == get.headers["content-type"]
    assert not head.content
    assert client.head("/colorize").status_code == 405


def test_two_accept_headers_are_one(client: httpx.Client, jpeg: bytes) -> None:
    headers = [("Content-Type", "image/jpeg"), ("Accept", "image/png"), ("Accept", "image/webp")]
    answer = client.post("/colorize", content=jpeg, headers=headers)
    assert answer.headers["content-type"] == "image/jpeg"


def test_a_compressed_body_is_refused(client: httpx.Client, jpeg: bytes) -> None:
    answer = client.post(
        "/colorize", content=gzip.compress(jpeg), headers={"Content-Type": "image/jpeg", "Content-Encoding": "gzip"}
    )
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_type")
    assert "'gzip'" in answer.json()["detail"]
    plain = {"Content-Type": "image/jpeg", "Content-Encoding": "identity"}
    assert client.post("/colorize", content=jpeg, headers=plain).status_code == 200


@pytest.mark.parametrize("path", ["/colorize", "/colorize/batch"])
@pytest.mark.parametrize(("query", "status"), [("strenght=1", 422), ("strength=9", 422), ("model=nobody", 404)])
def test_a_wrong_query_is_refused_before_the_photo_comes(server: Server, path: str, query: str, status: int) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 15) as one:
        one.sendall(
            f"POST {path}?{query} HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 1000\r\n"
            "Expect: 100-continue\r\n\r\n".encode()
        )
        assert one.recv(12) == f"HTTP/1.1 {status}".encode()


def test_the_query_has_no_defaults_that_would_overrule_a_form(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()["paths"]["/colorize"]["post"]
    assert not [parameter for parameter in document["parameters"] if "default" in parameter["schema"]]
    form = document["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert form["strength"]["default"] == 1
