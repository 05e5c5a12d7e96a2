"""The origins that CORS allows."""

import pytest

from service.settings import Settings
from service.web import cors
from service.web.auth import AccessError


@pytest.mark.parametrize(
    "origin",
    ["https://example.org", "http://localhost:3000", "http://127.0.0.1:8080", "http://[::1]:3000", "app://tomau"],
)
def test_an_origin(origin: str) -> None:
    assert cors.allowed_origins(Settings(cors_origins=f"{origin}, https://other.example")) == [
        origin,
        "https://other.example",
    ]


def test_origins_are_off_by_default_and_can_be_all() -> None:
    assert cors.allowed_origins(Settings()) == []
    assert cors.allowed_origins(Settings(cors_origins="*")) == ["*"]


@pytest.mark.parametrize(
    "origins",
    [
        "",
        ",",
        "example.org",
        "localhost:3000",
        "https://",
        "https://example.org/",
        "https://example.org/app",
        "https://example.org?x",
        "https://me@example.org",
        "https://Example.org",
        "https://example.org:443",
        "http://example.org:80",
        "http://example.org:port",
        "https://*.example.org",
        "https://example.org http://other.example",
        "http://[::1",
        "null",
        "*,https://example.org",
    ],
)
def test_what_no_browser_sends_is_no_origin(origins: str) -> None:
    with pytest.raises(AccessError, match=r"^TOMAU_CORS_ORIGINS: "):
        cors.allowed_origins(Settings(cors_origins=origins))
