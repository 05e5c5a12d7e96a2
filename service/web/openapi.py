"""Parts of the OpenAPI document that FastAPI can't derive from the routes."""

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


REQUEST_ID = {
    "X-Request-ID": _header("The request id, as in the log and in problems. A valid id that the client sends is kept.")
}
WITH_ID = {"headers": REQUEST_ID}
RETRY_AFTER = {"Retry-After": _header("Seconds to wait before the next try.", type="integer", minimum=1)}
COLORED_HEADERS = REQUEST_ID | {
    "X-Tomau-Model": _header("Name and version of the model. Missing if the photo was kept as it is."),
    "X-Tomau-Device": _header("Device that the model ran on. Missing if the photo was kept.", enum=["cpu", "cuda"]),
    "X-Tomau-Input": _header("What the photo was. Present if `if_color` is given.", enum=["gray", "toned", "color"]),
    "Server-Timing": _header("Milliseconds of the stages receive, decode, queue, infer, merge and encode."),
}
COLORED = {
    "description": "The coloured image",
    "headers": COLORED_HEADERS,
    "content": {media_type: {"schema": BINARY} for media_type in MEDIA_TYPES.values()},
}
ZIP = {
    "description": """A zip of the coloured images, streamed as they are done. The last entry, `report.json`, lists the
photos in the order of the request: the name of the upload, the entry in the zip or null, and the result or the problem.

```json
{"photos": [
  {"name": "a.jpg", "entry": "a.jpg", "model": "compact/11", "device": "cpu", "seconds": {"infer": 0.2}},
  {"name": "b.txt", "entry": null, "problem": {"status": 415, "code": "unsupported_type", "detail": "..."}}
]}
```""",
    "headers": REQUEST_ID | {"Content-Disposition": _header("An attachment named `coloured.zip`.")},
    "content": {"application/zip": {"schema": BINARY}},
}


def problems(**descriptions: str) -> dict[int | str, dict[str, Any]]:
    """Return the error responses of a route. The names are statuses with an underscore in front."""
    return {
        int(status[1:]): {
            "description": text,
            "headers": REQUEST_ID | (RETRY_AFTER if status == "_503" else {}),
            "content": PROBLEM,
        }
        for status, text in descriptions.items()
    }


def request(file: Mapping[str, Any], *bare: str) -> dict[str, Any]:
    """Return the parameters and the body of a route: the options in the query or in a form, and the file.

    bare: media types of a photo that is sent without a form. Options in the query have no defaults, because a generated
    client might send the defaults, which would override its own form.
    """
    options = _options()
    form = {"type": "object", "required": ["file"], "properties": {"file": file, **options}}
    return {
        "parameters": [
            {
                "name": name,
                "in": "query",
                "allowEmptyValue": True,  # An empty option counts as not given.
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
    """Return the schema of each option, without null, which neither a query nor a form can express."""
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
    """Add to an OpenAPI document how to send a key, and which requests need one.

    problem, headers: content and headers of every error response.
    """
    schema["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "An API key."},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key."},
    }
    schema["security"] = [{"bearer": []}, {"header": []}]
    refusal = {
        "description": "No API key, or an unknown one",
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
