"""What each kind of problem means: the page behind a problem document's `type`, made from the error classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from services.kit.errors import CORE, NotFoundError, ServiceError

# What to do, where the class of the error alone says it. A problem's own `detail` says it more exactly.
ADVICE = {
    400: "Correct the request; sent again unchanged it is refused again.",
    401: "Log in, or send a token that is valid: `Authorization: Bearer ppdd_…`.",
    403: "Ask an administrator for the role or the scope that the detail names.",
    404: "Check the address. What you may not see does not exist for you either.",
    405: "Use a method that the API's description lists for this address.",
    409: "Read the thing's state anew, then decide; the detail says what stands against it.",
    410: "It cannot be brought back: ask for a new one.",
    413: "Send less, or ask the administrator to raise the limit that the detail names.",
    416: "Ask for one range of bytes that lies within the file.",
    422: "Correct what the detail names; sent again unchanged it is refused again.",
    429: "Wait for the number of seconds in the header `Retry-After`, then ask again.",
    500: "Tell the administrator the correlation id: the log holds what happened under it.",
    503: "Try again in a moment. If it lasts, tell the administrator: `ppdd doctor` finds what does not answer.",
    507: "Tell the administrator that the disk or the store is full. Nothing was kept of the request.",
}


@dataclass(frozen=True, slots=True)
class Page:
    """One kind of problem."""

    slug: str
    title: str
    status: int
    meaning: str
    advice: str

    def markdown(self) -> str:
        """Return the page for people."""
        return (
            f"# {self.title}\n\n{self.meaning}\n\n**What to do:** {self.advice}\n\n"
            f"HTTP status {self.status}, slug `{self.slug}`.\n"
        )


# Problems that no class of ours stands for: the framework finds them, or they are bugs.
PLAIN = (
    ("internal", ServiceError.title, 500, "A fault of this program, not of the request."),
    (
        "invalid-request",
        "The request does not have the right shape",
        422,
        "A field is missing, unknown, of the wrong type or out of bounds; `errors` names each.",
    ),
    (
        "method-not-allowed",
        "This method is not allowed here",
        405,
        "The address exists, but not for this method.",
    ),
    (
        "http-error",
        "The request was refused",
        400,
        "The request breaks the rules of HTTP; the status says which.",
    ),
    (
        "database-unavailable",
        "The database does not answer",
        503,
        "The node's database is away or busy; nothing of the request was kept.",
    ),
)


def problem_page(slug: str) -> Page:
    """Return what a slug means; NotFoundError where there is no such problem."""
    found = all_pages().get(slug)
    if found is None:
        raise NotFoundError(f"there is no problem {slug[:64]!r}")
    return found


def all_pages() -> dict[str, Page]:
    """Return every problem this node can answer with, by slug."""
    pages = {
        slug: Page(slug, title, status, meaning, _advice(status))
        for slug, title, status, meaning in PLAIN
    }
    for core_error, status, slug, title in CORE:
        pages[slug] = Page(slug, title, status, _meaning(core_error), _advice(status))
    for kind in error_classes():
        if "slug" in vars(kind):
            pages[kind.slug] = Page(
                kind.slug, kind.title, kind.status, _meaning(kind), _advice(kind.status)
            )
    return pages


def error_classes(root: type[ServiceError] = ServiceError) -> Iterator[type[ServiceError]]:
    """Yield every kind of refusal that is loaded, parents first."""
    for kind in root.__subclasses__():
        yield kind
        yield from error_classes(kind)


def _meaning(kind: type[Exception]) -> str:
    return " ".join((kind.__doc__ or "").split())


def _advice(status: int) -> str:
    return ADVICE[status] if status in ADVICE else ADVICE[status // 100 * 100]
