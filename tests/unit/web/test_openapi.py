"""The OpenAPI document."""

from pathlib import Path

from service.settings import Settings
from service.web.app import create_app

ONE = "first-key-0123456789"


def test_the_api_document_says_how_to_send_a_key_when_one_is_needed(models: Path) -> None:
    plain = create_app(Settings(models=models, device="cpu")).openapi()
    assert "security" not in plain
    assert "securitySchemes" not in plain["components"]
    app = create_app(Settings(models=models, device="cpu", api_keys=ONE))
    guarded = app.openapi()
    assert app.openapi() == guarded
    assert {scheme["type"] for scheme in guarded["components"]["securitySchemes"].values()} == {"http", "apiKey"}
    assert guarded["security"] == [{name: []} for name in guarded["components"]["securitySchemes"]]
    for path, operations in guarded["paths"].items():
        for operation in operations.values():
            assert (operation.get("security") == []) == (path in ("/livez", "/readyz"))
            assert ("401" in operation["responses"]) == (path not in ("/livez", "/readyz"))
            assert "431" in operation["responses"]
            assert "503" in operation["responses"] or path == "/livez"
            for status, answer in operation["responses"].items():
                assert answer["description"]
                assert "X-Request-ID" in answer["headers"], (path, status)
