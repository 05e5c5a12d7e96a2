"""Options of a request: from its query, its form and its Accept header."""

from collections import Counter
from collections.abc import Mapping

from fastapi import Request
from pydantic import ValidationError

from service.errors import InvalidOption
from service.formats.registry import FORMATS, MEDIA_TYPES, Format
from service.pipeline.options import Options
from service.web.state import State


def options_of(query: list[tuple[str, str]], form: Mapping[str, str], accept: str) -> Options:
    """Return the options of a request; the query wins over the form.

    An option without a value counts as not given, as in forms of HTML. A name that is no option is refused in a query
    whether it has a value or not. Raises InvalidOption naming the first bad one.
    """
    query = [(name, value) for name, value in query if value or name not in Options.model_fields]
    times = Counter(name for name, _ in query)
    for name, count in times.items():
        if count > 1:
            raise InvalidOption("the option is given twice", field=name[:80])
    try:
        # What the query overrules must be right, too.
        Options.model_validate(form)
        options = Options.model_validate({**form, **dict(query)})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])[:80]
        if first["type"] == "extra_forbidden":
            known = ", ".join(Options.model_fields)
            raise InvalidOption(f"there is no option {name!r}; there are {known}", field=name) from None
        context = first.get("ctx", {})
        limit = next((context[key] for key in ("ge", "le") if key in context), None)
        raise InvalidOption(f"{name}: {first['msg']}", field=name, limit=limit) from None
    return options if options.format else options.model_copy(update={"format": _accepted(accept)})


def check_query(request: Request, state: State) -> None:
    """What is wrong whatever the form says is refused before the body comes: raises InvalidOption and UnknownModel."""
    if request.scope["query_string"]:
        requested_options(request, state, {})


def requested_options(request: Request, state: State, form: Mapping[str, str], accept: str = "") -> Options:
    """The options, once both places name models that there are: raises InvalidOption and UnknownModel."""
    options = options_of(request.query_params.multi_items(), form, accept)
    for name in (options.model, form.get("model")):
        state.colorizer.catalog.get(name)
    return options


def _accepted(accept: str) -> Format | None:
    """The one format that an Accept header asks for, when it asks for just one and nothing more."""
    parts = [part.lower().replace(" ", "").split(";") for part in accept.split(",")]
    types = {kind for kind, *parameters in parts if not {"q=0", "q=0.0", "q=0.00", "q=0.000"} & set(parameters)}
    wanted = [format_ for format_ in FORMATS if types == {MEDIA_TYPES[format_]}]
    return wanted[0] if wanted else None
