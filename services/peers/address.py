"""Which addresses may be fetched from: a name is looked up once, and only what was looked at is connected to."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

from services.peers.errors import AddressRefusedError, BadNodeUrlError, PeerUnreachableError
from services.settings import PullSettings

Ip = IPv4Address | IPv6Address

PORTS = {"https": 443, "http": 80}
_CARRIER = ip_network("100.64.0.0/10")  # shared between customers of a provider: as private as 10/8
_TRANSLATED = IPv6Network("64:ff9b::/96")  # the last 32 bits are an IPv4 address
_LONGEST = 500


@dataclass(frozen=True, slots=True)
class NodeUrl:
    """Where a node is, as somebody wrote it: scheme, host and port, nothing else."""

    scheme: str
    host: str  # a name, or an address without brackets
    port: int

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"

    @property
    def authority(self) -> str:
        """Host and port as in a Host header."""
        return self.at(self.host)

    def at(self, host: str) -> str:
        """Return another host with this port, as in a URL."""
        name = f"[{host}]" if ":" in host else host
        return name if self.port == PORTS[self.scheme] else f"{name}:{self.port}"


def parse_node_url(text: str, settings: PullSettings) -> NodeUrl:
    """Return the address in `text`; BadNodeUrlError where it is none, or one that the settings do not allow."""
    try:
        parts = urlsplit(text if len(text) <= _LONGEST else "")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise _bad("it is no URL") from None
    if parts.scheme not in PORTS or not host:
        raise _bad("it is no URL")
    if parts.username is not None or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise _bad("it holds more than scheme, host and port")
    if not host.isascii() or not all(letter.isalnum() or letter in "._-:" for letter in host):
        raise _bad("its host is no name and no address")
    if parts.scheme == "http" and not settings.allow_http:
        raise _bad("it must begin with https:// (PPDD_PULL__ALLOW_HTTP is for demos)")
    port = PORTS[parts.scheme] if port is None else port
    if port != PORTS[parts.scheme] and not settings.allow_private:
        raise _bad(f"port {port} needs PPDD_PULL__ALLOW_PRIVATE")
    url = NodeUrl(parts.scheme, host, port)
    if (literal := _literal(host)) is not None:
        require_allowed(literal, settings)
    return url


def resolve(url: NodeUrl, settings: PullSettings) -> list[str]:
    """Return the addresses behind a node's name; AddressRefusedError if any of them may not be reached.

    One name with a good and a bad address is refused, so that nothing is gained by answering with both.
    """
    try:
        found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise PeerUnreachableError(f"the name {url.host} is not known here") from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in addresses:
        require_allowed(ip_address(address.partition("%")[0]), settings)
    return addresses


def require_allowed(address: Ip, settings: PullSettings) -> None:
    """Raise AddressRefusedError for an address that the node may not fetch from.

    Without `allow_private` only public addresses pass. With it private, shared and loopback ones do too; link-local
    ones, where clouds keep their secrets, multicast and the unspecified address never do.
    """
    for one in _meant(address):
        local = one.is_private or one.is_loopback or one in _CARRIER
        if one.is_link_local or one.is_multicast or one.is_unspecified:
            raise AddressRefusedError(f"{one} is never fetched from")
        if not (local or one.is_global) or (local and not settings.allow_private):
            raise AddressRefusedError(
                f"{one} is no public address; inside a hospital network set PPDD_PULL__ALLOW_PRIVATE"
            )


def _meant(address: Ip) -> Iterator[Ip]:
    """Yield the address and the IPv4 addresses that it carries in one of IPv6's ways of doing so."""
    if isinstance(address, IPv4Address):
        yield address
        return
    inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _TRANSLATED:
        inner.append(IPv4Address(int(address) & 0xFFFFFFFF))
    carried = [one for one in inner if one is not None]
    if address.ipv4_mapped is None:  # as such an address it says nothing of its own
        yield address
    yield from carried


def _literal(host: str) -> Ip | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _bad(why: str) -> BadNodeUrlError:
    return BadNodeUrlError(f"write the other node's address as https://HOST: {why}")
