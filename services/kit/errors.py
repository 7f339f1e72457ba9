"""What a service refuses, as classes: whoever raises one needs to know nothing of HTTP's libraries.

ServiceError            a refusal of a service; its class says status, slug and title
├── BadRequestError         400  the request cannot be understood
├── UnauthorizedError       401  nobody, or nobody known, is asking
├── ForbiddenError          403  this caller may not do this
├── NotFoundError           404  there is nothing there that this caller may see
├── ConflictError           409  what is there now does not allow it
├── TooLargeError           413  more bytes than are taken
├── UnprocessableError      422  understood, but it cannot be done as asked
├── TooManyError            429  wait, then ask again
└── UnavailableError        503  something this needs does not answer

More precise classes live beside the rules that raise them. Errors of `ppdd_core` become problems by the table below.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ppdd_core import errors as core


class ServiceError(Exception):
    """Anything a service refuses on purpose. `detail` says what is wrong, where, and what to do."""

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal"
    title: ClassVar[str] = "Something went wrong here"

    def __init__(
        self, detail: str, *, headers: Mapping[str, str] | None = None, **facts: Any
    ) -> None:
        super().__init__(detail)
        self.detail, self.headers, self.facts = detail, dict(headers or {}), facts


class BadRequestError(ServiceError):
    """The request cannot be understood."""

    status, slug, title = 400, "bad-request", "The request cannot be understood"


class UnauthorizedError(ServiceError):
    """Nobody, or nobody known, is asking."""

    status, slug, title = 401, "unauthorized", "Log in, or send a valid token"

    def __init__(
        self,
        detail: str = "send a token as `Authorization: Bearer ppdd_…`, or log in",
        **facts: Any,
    ) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": 'Bearer realm="ppdd"'}, **facts)


class ForbiddenError(ServiceError):
    """This caller may not do this."""

    status, slug, title = 403, "forbidden", "You may not do this"


class NotFoundError(ServiceError):
    """There is nothing there that this caller may see."""

    status, slug, title = 404, "not-found", "There is no such thing"


class ConflictError(ServiceError):
    """What is there now does not allow it."""

    status, slug, title = 409, "conflict", "This does not fit what is there"


class TooLargeError(ServiceError):
    """More bytes than are taken."""

    status, slug, title = 413, "too-large", "This is too large"


class UnprocessableError(ServiceError):
    """Understood, but it cannot be done as asked."""

    status, slug, title = 422, "unprocessable", "This cannot be done as asked"


class TooManyError(ServiceError):
    """Wait, then ask again."""

    status, slug, title = 429, "too-many-requests", "Too many requests"

    def __init__(self, detail: str, *, retry_after: int, **facts: Any) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after)}, **facts)


class UnavailableError(ServiceError):
    """Something this needs does not answer."""

    status, slug, title = 503, "unavailable", "Something this needs does not answer"


# The first class that fits decides.
CORE: tuple[tuple[type[core.PpddError], int, str, str], ...] = (
    (core.BadConfigError, 422, "bad-config", "A recipe or an option cannot work"),
    (core.UnsafeSourceError, 422, "unsafe-source", "The dataset is unsafe to read"),
    (core.SourceError, 422, "bad-source", "The dataset cannot be used"),
    (core.PackageError, 422, "bad-package", "The package cannot be used"),
    (core.PpddError, 422, "refused", "This was refused"),
)
