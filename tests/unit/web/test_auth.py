"""API keys in the settings and in requests."""

import hashlib
import hmac
import logging
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.errors import InvalidKey, MissingKey
from service.settings import Settings, table
from service.web import auth
from service.web.app import create_app
from service.web.auth import AccessError, ApiKeyMiddleware

ONE = "first-key-0123456789"
TWO = "second-key-0123456789"
MALFORMED = ["short", f"{ONE} and words", "schlüssel-0123456789", "x" * 257]


def keys_of(**settings: object) -> frozenset[bytes]:
    return auth.key_digests(Settings(**settings))


def digests(*keys: str) -> frozenset[bytes]:
    return frozenset(hashlib.sha256(key.encode()).digest() for key in keys)


def test_keys_come_from_the_variable_and_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# who calls\n\n{TWO}  # the archive\r\n   {TWO}3\n")
    assert keys_of() == frozenset()
    assert keys_of(api_keys=f"{ONE}, {TWO},") == digests(ONE, TWO)
    assert keys_of(api_keys_file=file) == digests(TWO, f"{TWO}3")
    assert keys_of(api_keys=ONE, api_keys_file=file) == digests(ONE, TWO, f"{TWO}3")


@pytest.mark.parametrize("text", ["", " , ", *MALFORMED])
def test_a_bad_variable_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(AccessError, match=r"^TOMAU_API_KEYS: ") as refusal:
        keys_of(api_keys=text)
    assert text.strip(" ,") == "" or text not in str(refusal.value)


@pytest.mark.parametrize(
    "content", [b"", b"\n# nothing\n", b"\xff\xfe\x00", *(key.encode() for key in MALFORMED), None]
)
def test_a_bad_file_is_refused_by_its_name(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(AccessError, match=rf"^TOMAU_API_KEYS_FILE: {re.escape(str(file))}: ") as refusal:
        keys_of(api_keys_file=file)
    assert not content or not content.strip() or content.decode("utf-8", "replace") not in str(refusal.value)


def test_a_folder_is_no_file_of_keys(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="directory"):
        keys_of(api_keys_file=tmp_path)


def test_keys_are_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(api_keys=ONE)
    assert ONE not in table(settings) + repr(settings) + str(settings) + settings.model_dump_json()
    assert "| `TOMAU_API_KEYS` | `**********` |" in table(settings)
    monkeypatch.setenv("TOMAU_API_KEYS", ONE)
    with pytest.raises(ValidationError) as refusal:
        Settings(port=-1)
    assert ONE not in str(refusal.value)


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Bearer KEY")],
        [(b"authorization", b"bearer   KEY ")],
        [(b"x-api-key", b" KEY ")],
        [(b"authorization", b"Bearer KEY"), (b"x-api-key", b"KEY")],
        [(b"authorization", b"Basic c29tZTpwcm94eQ=="), (b"x-api-key", b"KEY")],
    ],
)
def test_a_known_key_opens(headers: list[tuple[bytes, bytes]]) -> None:
    guard = ApiKeyMiddleware(None, digests(ONE, TWO))  # type: ignore[arg-type]
    for key in (ONE, TWO):
        guard.check([(name, value.replace(b"KEY", key.encode())) for name, value in headers])
        with pytest.raises(InvalidKey):
            guard.check([(name, value.replace(b"KEY", key.encode() + b"x")) for name, value in headers])


@pytest.mark.parametrize(
    ("headers", "refusal"),
    [
        ([], MissingKey),
        ([(b"authorization", b"Bearer")], MissingKey),
        ([(b"authorization", b"Bearer ")], MissingKey),
        ([(b"authorization", f"Basic {ONE}".encode())], MissingKey),
        ([(b"authorization", ONE.encode())], MissingKey),
        ([(b"x-api-key", b"")], MissingKey),
        ([(b"cookie", f"key={ONE}".encode())], MissingKey),
        ([(b"x-api-key", b"\xff\x00")], InvalidKey),
        ([(b"x-api-key", ONE[:-1].encode())], InvalidKey),
        ([(b"x-api-key", ONE.upper().encode())], InvalidKey),
        ([(b"x-api-key", f"{ONE},{TWO}".encode())], InvalidKey),
        ([(b"x-api-key", next(iter(digests(ONE))))], InvalidKey),
        ([(b"x-api-key", ONE.encode()), (b"authorization", f"Bearer {TWO}".encode())], InvalidKey),
        ([(b"x-api-key", ONE.encode()), (b"x-api-key", TWO.encode())], InvalidKey),
    ],
)
def test_anything_else_does_not(headers: list[tuple[bytes, bytes]], refusal: type[Exception]) -> None:
    with pytest.raises(refusal) as raised:
        ApiKeyMiddleware(None, digests(ONE, TWO)).check(headers)  # type: ignore[arg-type]
    assert ONE not in str(raised.value)


@pytest.mark.parametrize("key", [ONE, TWO, "unknown", "x" * 100_000])
def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), other))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    known = digests(ONE, TWO, f"{TWO}3")
    try:
        ApiKeyMiddleware(None, known).check([(b"x-api-key", key.encode())])  # type: ignore[arg-type]
    except InvalidKey:
        assert key not in (ONE, TWO)
    assert sorted(compared) == sorted((32, digest) for digest in known)


@pytest.mark.parametrize(
    ("host", "beyond"),
    [
        ("127.0.0.1", False),
        ("127.1.2.3", False),
        ("::1", False),
        ("localhost", False),
        ("0.0.0.0", True),
        ("::", True),
        ("192.168.1.7", True),
        ("photos.example.org", True),
        ("", True),
    ],
)
def test_a_service_that_others_reach_warns_without_a_key(
    host: str, beyond: bool, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert auth.is_beyond_loopback(host) == beyond
    settings = {"models": models, "device": "cpu", "host": host}
    with caplog.at_level(logging.WARNING, "service.web.app"):
        create_app(Settings(**settings))
        assert ("TOMAU_API_KEYS" in caplog.text) == beyond
        caplog.clear()
        create_app(Settings(api_keys=ONE, **settings))
        assert "TOMAU_API_KEYS" not in caplog.text
