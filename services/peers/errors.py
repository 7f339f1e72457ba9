"""What can go wrong with another hospital's node. No message repeats what that node answered."""

from __future__ import annotations

from services.kit.errors import UnavailableError, UnprocessableError


class BadNodeUrlError(UnprocessableError):
    """The text is not the address of a node, or the settings do not allow it."""

    slug, title = "bad-node-url", "This is not the address of a node"


class AddressRefusedError(UnprocessableError):
    """The name leads to an address inside this network, which nobody may reach through the node."""

    slug, title = "address-refused", "This address may not be reached from here"


class PeerUnreachableError(UnavailableError):
    """The other node does not answer, breaks off, or is too slow."""

    slug, title = "peer-unreachable", "The other node does not answer"


class PeerDeniedError(UnprocessableError):
    """The other node does not give this package for this token."""

    slug, title = "peer-denied", "The other node does not give this package"


class PeerYankedError(UnprocessableError):
    """The other hospital took this version back."""

    slug, title = "peer-yanked", "The other hospital took this version back"


class PeerKeyError(UnprocessableError):
    """The other node's key is not the one that was pinned."""

    slug, title = "peer-key", "The other node has another key"


class PeerAnswerError(UnprocessableError):
    """The other node answered with something that makes no sense, or with other bytes than it announced."""

    slug, title = "peer-answer", "The other node's answer cannot be used"
