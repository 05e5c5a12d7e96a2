"""Read the options of a request from its query, its form and its Accept header."""

from collections import Counter
from collections.abc import Mapping

from fastapi import Request
from pydantic import ValidationError

from service.errors import InvalidOption
from service.formats.registry import FORMATS, MEDIA_TYPES, Format
from service.pipeline.options import Options
from service.web.state import State


def options_of(query: list[tuple[str, str]], form: Mapping[str, str], accept: str) -> Options:
    """Return the options of a request. The query overrides the form.

    An option without a value counts as not given, as in HTML forms. Raises InvalidOption, which names the first invalid
    or unknown option. An unknown name in the query is an error even without a value.
    """
    query = [(name, value) for name, value in query if value or name not in Options.model_fields]
    times = Counter(name for name, _ in query)
    for name, count in times.items():
        if count > 1:
            raise InvalidOption(f"the option {name[:80]!r} is given more than once; send it once", field=name[:80])
    try:
        # Values that the query overrides must be valid, too.
        Options.model_validate(form)
        options = Options.model_validate({**form, **dict(query)})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])[:80]
        if first["type"] == "extra_forbidden":
            known = ", ".join(Options.model_fields)
            raise InvalidOption(f"{name!r} is not an option; the options are {known}", field=name) from None
        context = first.get("ctx", {})
        limit = next((context[key] for key in ("ge", "le") if key in context), None)
        raise InvalidOption(f"{name}: {first['msg']}", field=name, limit=limit) from None
    return options if options.format else options.model_copy(update={"format": _accepted(accept)})


def check_query(request: Request, state: State) -> None:
    """Check the query before the body is read. Raises InvalidOption or UnknownModel."""
    if request.scope["query_string"]:
        requested_options(request, state, {})


def requested_options(request: Request, state: State, form: Mapping[str, str], accept: str = "") -> Options:
    """Return the options of a request, after checking the models that its query and its form name.

    Raises InvalidOption or UnknownModel.
    """
    options = options_of(request.query_params.multi_items(), form, accept)
    for name in (options.model, form.get("model")):
        state.colorizer.models.get(name)
    return options


def _accepted(accept: str) -> Format | None:
    """Return the format that an Accept header asks for, if it names exactly one type and that type can be written."""
    parts = [part.lower().replace(" ", "").split(";") for part in accept.split(",")]
    types = {kind for kind, *parameters in parts if not {"q=0", "q=0.0", "q=0.00", "q=0.000"} & set(parameters)}
    wanted = [format_ for format_ in FORMATS if types == {MEDIA_TYPES[format_]}]
    return wanted[0] if wanted else None
