"""What the API's own description says beside its routes: problems, ways to log in, groups of operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from services.kit.errors import (
    ForbiddenError,
    ServiceError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
    UnprocessableError,
)
from services.kit.problems import MEDIA_TYPE

REFERENCE = {"$ref": "#/components/schemas/Problem"}
# What a client of an operation with roles may send: either one.
WAYS_IN = {
    "token": {
        "type": "http",
        "scheme": "bearer",
        "description": "A personal API token, `ppdd_…`; it may be narrowed to scopes.",
    },
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": "ppdd_session",
        "description": "The cookie of a login (`__Host-ppdd_session` over TLS); a request that changes something also "
        "sends the header `X-CSRF-Token`.",
    },
}
TAGS = {
    "system": "The node itself: is it alive, is it ready, what is it, what do its problems mean.",
    "setup": "Making the first administrator, once, through the link that the node prints.",
    "sessions": "Logging in and out.",
    "account": "One's own password and one-time passwords.",
    "tokens": "Personal API tokens for scripts and for other hospitals.",
    "users": "People of this hospital and their roles.",
    "datasets": "Source datasets: chest X-rays that stay in this hospital.",
    "jobs": "Work that takes long: checking, distilling, pulling, training, evaluating.",
    "packages": "What is shared: versions are drafts, then released, perhaps yanked.",
    "pulls": "Fetching packages of other hospitals.",
    "detectors": "Classifiers trained here from packages.",
    "audit": "Who did what, and what was refused.",
}


class Problem(BaseModel):
    """What is wrong (RFC 9457). `type` is an address on this node that explains the slug."""

    model_config = ConfigDict(extra="allow")  # facts of the one problem, such as `errors`

    type: str = Field(examples=["/problems/not-found"])
    title: str = Field(examples=["There is no such thing"])
    status: int = Field(examples=[404])
    detail: str = Field(description="What is wrong here, and what to do about it.")
    correlation_id: str = Field(
        description="Under this id the administrator finds the request in the log.",
        examples=["3f0c7a91b2d4e658"],
    )


def problem_responses(*errors: type[ServiceError]) -> dict[int | str, dict[str, Any]]:
    """Return what `responses=` of a route says of the refusals it may answer with: one entry per status.

    What every route may answer (401, 403, 413, 422, 503) is added by `describe`.
    """
    by_status: dict[int, list[type[ServiceError]]] = {}
    for error in errors:
        by_status.setdefault(error.status, []).append(error)
    return {status: _response(kinds) for status, kinds in sorted(by_status.items())}


def describe(app: FastAPI, is_public: Callable[[str], bool]) -> None:
    """Let `app` describe itself fully; `is_public` tells of an operation's id whether anybody may call it."""
    plain = app.openapi

    def complete() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(plain(), is_public)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = complete  # type: ignore[method-assign]


def _complete(schema: dict[str, Any], is_public: Callable[[str], bool]) -> None:
    components = schema.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    schemas["Problem"] = Problem.model_json_schema()
    components["securitySchemes"] = WAYS_IN
    schema["servers"] = [{"url": "/", "description": "This node"}]
    operations = list(_operations(schema))
    used = {tag for operation in operations for tag in operation.get("tags", [])}
    schema["tags"] = [
        {"name": name, "description": said} for name, said in TAGS.items() if name in used
    ]
    for operation in operations:
        _complete_operation(operation, public=is_public(operation["operationId"]))
    for name in ("HTTPValidationError", "ValidationError"):  # our problem documents stand for them
        schemas.pop(name, None)


def _complete_operation(operation: dict[str, Any], *, public: bool) -> None:
    operation["security"] = [{way: []} for way in WAYS_IN] + ([{}] if public else [])
    always: list[type[ServiceError]] = [UnauthorizedError, ForbiddenError, UnavailableError]
    if "requestBody" in operation:
        always.append(TooLargeError)
    responses = operation["responses"]
    takes_input = bool({"requestBody", "parameters"} & set(operation))
    if "#/components/schemas/HTTPValidationError" in str(responses.get("422")):
        del responses["422"]
    if takes_input:
        always.append(UnprocessableError)
    for kind in always:
        responses.setdefault(str(kind.status), _response([kind]))
    operation["responses"] = dict(sorted(responses.items()))


def _operations(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in schema["paths"].values():
        yield from (one for one in path.values() if isinstance(one, dict) and "operationId" in one)


def _response(kinds: list[type[ServiceError]]) -> dict[str, Any]:
    return {
        "description": "; ".join(f"{kind.title} (`{kind.slug}`)" for kind in kinds),
        "content": {
            MEDIA_TYPE: {
                "schema": REFERENCE,
                "examples": {kind.slug: {"value": _example(kind)} for kind in kinds},
            }
        },
    }


def _example(kind: type[ServiceError]) -> dict[str, Any]:
    return {
        "type": f"/problems/{kind.slug}",
        "title": kind.title,
        "status": kind.status,
        "detail": " ".join((kind.__doc__ or "").split("\n\n")[0].split()),
        "correlation_id": "3f0c7a91b2d4e658",
    }
