"""What the OpenAPI document says of requests and answers beyond what FastAPI finds out by itself."""

from collections.abc import Mapping
from typing import Any

from service.formats.registry import MEDIA_TYPES
from service.pipeline.options import Options
from service.web.auth import KEYLESS_PATHS
from service.web.schemas import ProblemDocument

PROBLEM = {"application/problem+json": {"schema": ProblemDocument.model_json_schema()}}
BINARY = {"type": "string", "format": "binary"}


# What only HTTP has to say about an option.
NOTES = {
    "model": "`GET /models` lists the names and marks the default.",
    "format": "An `Accept` header that names one of these image types, and nothing else, replaces the default.",
    "if_color": "`reject` responds with status 422. If the option is given, the response header `X-Tomau-Input` says"
    " what the photo was.",
}


def _header(description: str, **schema: Any) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string", **schema}}


REQUEST_ID = {"X-Request-ID": _header("the request's id, its own if it had one, as the log and problems have it")}
WITH_ID = {"headers": REQUEST_ID}
RETRY_AFTER = {"Retry-After": _header("seconds to wait before another try", type="integer", minimum=1)}
COLORED_HEADERS = REQUEST_ID | {
    "X-Tomau-Model": _header("name and version of the model; missing when the photo was kept as it was"),
    "X-Tomau-Device": _header("where the model ran; missing likewise", enum=["cpu", "cuda"]),
    "X-Tomau-Input": _header("what the photo was, when `if_color` is given", enum=["gray", "toned", "color"]),
    "Server-Timing": _header("milliseconds of receive, decode, queue, infer, merge and encode"),
}
COLORED = {
    "description": "The coloured image",
    "headers": COLORED_HEADERS,
    "content": {media_type: {"schema": BINARY} for media_type in MEDIA_TYPES.values()},
}
ZIP = {
    "description": """A zip of the coloured images, streamed as they are done. Its last entry, `report.json`, says
of each photo, in the order they were sent, the name it came with, its entry in the zip or null, and how it went:

```json
{"photos": [
  {"name": "a.jpg", "entry": "a.jpg", "model": "compact/4", "device": "cpu", "seconds": {"decode": 0.01, "infer": 0.2}},
  {"name": "b.txt", "entry": null, "problem": {"status": 415, "code": "unsupported_type", "detail": "..."}}
]}
```""",
    "headers": REQUEST_ID | {"Content-Disposition": _header("an attachment, `coloured.zip`")},
    "content": {"application/zip": {"schema": BINARY}},
}


def problems(**descriptions: str) -> dict[int | str, dict[str, Any]]:
    """Answers that are problems, by their status with an underscore before it."""
    return {
        int(status[1:]): {
            "description": text,
            "headers": REQUEST_ID | (RETRY_AFTER if status == "_503" else {}),
            "content": PROBLEM,
        }
        for status, text in descriptions.items()
    }


def request(file: Mapping[str, Any], *bare: str) -> dict[str, Any]:
    """The options, as a query or in a form with `file`, and the media types of a photo without a form.

    In the query they have no defaults: a client that sent them unasked would overrule its own form.
    """
    options = _options()
    form = {"type": "object", "required": ["file"], "properties": {"file": file, **options}}
    return {
        "parameters": [
            {
                "name": name,
                "in": "query",
                "allowEmptyValue": True,  # then it counts as not given
                "schema": _without(schema, "default"),
                "description": schema["description"],
            }
            for name, schema in options.items()
        ],
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": form}}
            | {media_type: {"schema": BINARY} for media_type in bare},
        },
    }


def _options() -> dict[str, dict[str, Any]]:
    """The schema of each option. One that may be missing has no null, which neither a query nor a form can say."""
    options = {name: _without_null(schema) for name, schema in Options.model_json_schema()["properties"].items()}
    for name, note in NOTES.items():
        options[name]["description"] += f" {note}"
    return options


def _without(schema: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {other: value for other, value in schema.items() if other != key}


def _without_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default", "title")}
    default = schema.get("default")
    return rest | (kinds[0] if kinds else {}) | ({} if default is None else {"default": default})


def with_keys(schema: dict[str, Any], problem: Mapping[str, Any], headers: Mapping[str, Any]) -> dict[str, Any]:
    """An OpenAPI document that says how to send a key, and which calls need one.

    problem, headers: content and headers of every problem.
    """
    schema["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "An API key"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key"},
    }
    schema["security"] = [{"bearer": []}, {"header": []}]
    refusal = {
        "description": "No API key, or not a known one",
        "headers": {**headers, "WWW-Authenticate": {"schema": {"type": "string"}}},
        "content": problem,
    }
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            if path in KEYLESS_PATHS:
                operation["security"] = []
            else:
                operation["responses"]["401"] = refusal
    return schema
