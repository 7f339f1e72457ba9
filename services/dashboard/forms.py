"""What a browser's form sends, checked; and what is shown again, with what was typed, when something is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qs

from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError

from ppdd_core.errors import PpddError
from services.kit.errors import BadRequestError, NotFoundError, ServiceError
from services.kit.http import SAFE

M = TypeVar("M", bound=BaseModel)
MEDIA_TYPE = "application/x-www-form-urlencoded"
MOST_FIELDS = 1000
CSRF_FIELD = "csrf"
SAID = {  # what pydantic says of these is for programmers
    "missing": "Fill in this field.",
    "string_pattern_mismatch": "This has another form than the one that is asked for.",
    "enum": "Choose one of those offered.",
    "literal_error": "Choose one of those offered.",
}


class Form:
    """Fields as they were typed, and what is wrong with them.

    Within `with form:` a refusal is noted instead of raised: the statement after it shows the form again. What does not
    exist, and faults of the node, are raised as ever.
    """

    def __init__(self, values: Mapping[str, Sequence[str]] | None = None) -> None:
        self.values = {name: list(some) for name, some in (values or {}).items()}
        self.errors: dict[str, str] = {}  # by field
        self.problem = ""  # of the whole
        self.status = 200

    @classmethod
    def of(cls, **values: object) -> Form:
        """Return a form that shows these values; `a__b` is the field `a.b`."""
        return cls({name.replace("__", "."): [str(value)] for name, value in values.items()})

    def get(self, name: str, default: str = "") -> str:
        """Return a field without white space around it; passwords as they are."""
        text = self.values.get(name, [default])[0]
        return text if "password" in name else text.strip()

    def every(self, name: str) -> list[str]:
        """Return all values of a field that may come several times."""
        return [text.strip() for text in self.values.get(name, ()) if text.strip()]

    def has(self, name: str) -> bool:
        """Whether a box is ticked."""
        return bool(self.get(name))

    def tree(self, *several: str) -> dict[str, Any]:
        """Return the fields that are not empty, `a.b` within `a`; those named in `several` as lists."""
        tree: dict[str, Any] = {}
        for name in self.values:
            value: Any = self.every(name) if name in several else self.get(name)
            if name == CSRF_FIELD or value in ("", []):
                continue
            *above, last = name.split(".")
            inner = tree
            for part in above:
                inner = inner.setdefault(part, {})
                if not isinstance(inner, dict):
                    raise BadRequestError(f"the field {name} does not fit beside the others")
            inner[last] = value
        return tree

    def validated(self, model: type[M], values: Mapping[str, Any] | None = None) -> M:
        """Return the form, or `values` instead, as a model that the API takes; ValidationError names the fields."""
        return model.model_validate(self.tree() if values is None else values)

    def __enter__(self) -> Form:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> bool:
        if isinstance(error, ValidationError):
            self.status = 422
            for one in error.errors():
                self.errors.setdefault(".".join(str(part) for part in one["loc"]), _said(one))
            return True
        if isinstance(error, PpddError):
            self._refused(422, str(error))
            return True
        if (
            isinstance(error, ServiceError)
            and error.status < 500
            and not isinstance(error, NotFoundError)
        ):
            self._refused(error.status, error.detail)
            return True
        return False

    def _refused(self, status: int, detail: str) -> None:
        self.status = status
        name, colon, rest = detail.partition(": ")
        if colon and name in self.values:
            self.errors[name] = rest
        else:
            self.problem = detail


async def read_form(request: Request) -> None:
    """Keep what the request's form holds, for the guard and for the route. Other bodies are not looked at."""
    request.state.form = Form()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.method in SAFE or kind != MEDIA_TYPE:
        return
    body = await request.body()
    try:
        values = parse_qs(
            body.decode(),
            keep_blank_values=True,
            strict_parsing=bool(body),
            max_num_fields=MOST_FIELDS,
        )
    except ValueError:
        raise BadRequestError(
            "the form cannot be read; load the page again and send it once more"
        ) from None
    if any("\x00" in text for some in values.values() for text in some):
        raise BadRequestError("a field holds a NUL character")
    request.state.form = Form(values)
    request.state.csrf_sent = request.state.form.get(CSRF_FIELD)


async def _form(request: Request) -> Form:
    form: Form = request.state.form
    return form


FormDep = Annotated[Form, Depends(_form)]


def _said(error: Any) -> str:
    """Return what pydantic finds wrong, as one says it to a person."""
    if error["type"] in SAID:
        return SAID[error["type"]]
    return str(error["msg"]).removeprefix("Value error, ").capitalize()
