"""Which addresses may be fetched from, in all the ways they can be written."""

from __future__ import annotations

import pytest

from services.peers.address import parse_node_url, require_allowed, resolve
from services.peers.errors import AddressRefusedError, BadNodeUrlError, PeerUnreachableError
from services.settings import PullSettings

OUT = PullSettings()
INSIDE = PullSettings(allow_private=True, allow_http=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://node.hospital-b.example", "https://node.hospital-b.example"),
        ("https://Node.Example/", "https://node.example"),
        ("https://node.example:443", "https://node.example"),
        ("https://[2606:4700::1111]", "https://[2606:4700::1111]"),
    ],
)
def test_addresses_of_nodes_are_understood(text: str, expected: str) -> None:
    assert str(parse_node_url(text, OUT)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "node.example",
        "http://node.example",
        "ftp://node.example",
        "file:///etc/passwd",
        "gopher://node.example",
        "https://",
        "https://user@node.example",
        "https://user:secret@node.example",
        "https://good.example@127.0.0.1",
        "https://node.example/path",
        "https://node.example?q=1",
        "https://node.example#x",
        "https://node.example:8443",
        "https://node.example:99999",
        "https://node.example:x",
        "https://no de.example",
        "https://nöde.example",
        "https://[fe80::1%25eth0]",
        "https://" + "x" * 600,
    ],
)
def test_what_is_no_address_of_a_node_is_refused(text: str) -> None:
    with pytest.raises(BadNodeUrlError):
        parse_node_url(text, OUT)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
     "224.0.0.1", "255.255.255.255", "[::1]", "[::]", "[fe80::1]", "[fc00::1]", "[::ffff:127.0.0.1]",
     "[::ffff:a9fe:a9fe]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[2002:a9fe:a9fe::]", "[ff02::1]"],
)  # fmt: skip
def test_addresses_inside_are_refused(host: str) -> None:
    with pytest.raises(AddressRefusedError):
        parse_node_url(f"https://{host}", OUT)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "localhost"]
)
def test_every_spelling_of_loopback_is_refused_when_it_is_looked_up(host: str) -> None:
    url = parse_node_url(f"https://{host}:8443", INSIDE)

    with pytest.raises(AddressRefusedError):
        resolve(url, OUT)
    assert set(resolve(url, INSIDE)) <= {"127.0.0.1", "::1"}


@pytest.mark.parametrize("host", ["127.0.0.1", "10.1.2.3", "100.64.0.1", "[::1]", "[fc00::1]"])
def test_a_site_may_allow_its_own_network(host: str) -> None:
    assert parse_node_url(f"http://{host}:8000", INSIDE).port == 8000


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "[fe80::1]", "0.0.0.0", "[::]", "224.0.0.1", "[::ffff:169.254.169.254]"]
)  # fmt: skip
def test_where_clouds_keep_their_secrets_nobody_ever_fetches(host: str) -> None:
    with pytest.raises(AddressRefusedError):
        parse_node_url(f"http://{host}", INSIDE)


def test_a_name_that_is_not_known_says_so() -> None:
    with pytest.raises(PeerUnreachableError, match=r"node\.invalid is not known"):
        resolve(parse_node_url("https://node.invalid", OUT), OUT)


def test_a_name_with_one_bad_address_among_good_ones_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = [(0, 0, 0, "", ("1.1.1.1", 443)), (0, 0, 0, "", ("10.0.0.1", 443))]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: answers)

    with pytest.raises(AddressRefusedError):
        resolve(parse_node_url("https://node.example", OUT), OUT)


def test_public_addresses_pass() -> None:
    from ipaddress import ip_address

    for text in ("1.1.1.1", "2606:4700::1111", "64:ff9b::101:101", "2002:101:101::"):
        require_allowed(ip_address(text), OUT)
