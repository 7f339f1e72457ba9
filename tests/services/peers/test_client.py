"""Fetching from a node that may lie: what arrives is what was offered, or nothing is."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.kit.errors import ServiceError, TooLargeError
from services.peers import client
from services.peers.address import parse_node_url
from services.peers.client import Offer, Peer
from services.peers.errors import (
    PeerAnswerError,
    PeerDeniedError,
    PeerKeyError,
    PeerUnreachableError,
    PeerYankedError,
)
from services.settings import PullSettings
from tests.services.peers.lying_peer import TOKEN, LyingPeer, lying

INSIDE = PullSettings(allow_private=True, allow_http=True, timeout_seconds=0.3)


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PAUSE", 0.001)


@contextmanager
def reached(peer: LyingPeer, settings: PullSettings = INSIDE) -> Iterator[Peer]:
    with client.reach(parse_node_url(peer.url, settings), settings) as found:
        yield found


def offered(peer: Peer, token: str = TOKEN) -> Offer:
    return peer.offer("hospital-b", "cxr", "1.0.0", token)


def fetch(served: LyingPeer, part: Path) -> list[int]:
    """Return how many bytes were there, as it was reported on the way."""
    told: list[int] = []
    with reached(served) as peer:
        peer.fetch_archive(offered(peer), TOKEN, part, lambda done, _: told.append(done))
    return told


def test_an_honest_node_gives_what_it_offers(tmp_path: Path) -> None:
    with lying(tmp_path) as served, reached(served) as peer:
        client.require_key(peer, "hospital-b", served.key)
        told = fetch(served, tmp_path / "part")

        assert (tmp_path / "part").read_bytes() == served.archive
    assert told[0] == 0
    assert told[-1] == len(served.archive)


def test_nothing_is_asked_for_in_another_encoding_or_with_cookies(tmp_path: Path) -> None:
    with lying(tmp_path) as served:
        fetch(served, tmp_path / "part")

    assert served.asked[0]["Accept-Encoding"] == "identity"
    assert "Cookie" not in served.asked[0]


def test_a_broken_connection_is_gone_on_from_where_it_broke(tmp_path: Path) -> None:
    with lying(tmp_path, "breaks off", lies=3) as served:
        fetch(served, tmp_path / "part")

        assert (tmp_path / "part").read_bytes() == served.archive
    starts = [asked.get("Range") for asked in served.asked]
    assert starts[0] is None
    assert len(starts) == 4
    assert starts[1] == f"bytes={len(served.archive) // 2}-"
    assert served.asked[1]["If-Range"] == f'"sha256:{served.digest}"'


def test_what_an_earlier_try_left_is_gone_on_from(tmp_path: Path) -> None:
    with lying(tmp_path) as served:
        (tmp_path / "part").write_bytes(served.archive[:1000])
        told = fetch(served, tmp_path / "part")

    assert told[0] == 1000
    assert served.asked[0]["Range"] == "bytes=1000-"


def test_a_whole_file_is_not_asked_for_again(tmp_path: Path) -> None:
    with lying(tmp_path) as served:
        (tmp_path / "part").write_bytes(served.archive)
        fetch(served, tmp_path / "part")

    assert served.asked == []


@pytest.mark.parametrize("size", [1000, 10**6])
def test_what_was_left_and_is_wrong_is_fetched_anew(tmp_path: Path, size: int) -> None:
    with lying(tmp_path) as served:
        (tmp_path / "part").write_bytes(b"?" * size)
        fetch(served, tmp_path / "part")

        assert (tmp_path / "part").read_bytes() == served.archive


@pytest.mark.parametrize("lie", ["ignores range", "no range"])
def test_a_node_that_knows_no_ranges_is_asked_for_everything(tmp_path: Path, lie: str) -> None:
    with lying(tmp_path, lie, lies=1) as served:
        (tmp_path / "part").write_bytes(served.archive[:1000])
        fetch(served, tmp_path / "part")

        assert (tmp_path / "part").read_bytes() == served.archive


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ("wrong bytes", "other bytes than it announced"),
        ("endless", "more bytes than it offered"),
        ("announces more", "another length"),
        ("other etag", "not the one that was offered"),
        ("compressed", "compresses"),
        ("redirects", "redirects, which is not followed"),
    ],
)
def test_a_lie_about_the_bytes_leaves_nothing(tmp_path: Path, lie: str, message: str) -> None:
    with lying(tmp_path, lie) as served, pytest.raises(PeerAnswerError, match=message):
        fetch(served, tmp_path / "part")

    assert not (tmp_path / "part").exists()


@pytest.mark.parametrize("lie", ["other range", "other etag"])
def test_a_lie_in_the_middle_leaves_nothing(tmp_path: Path, lie: str) -> None:
    with lying(tmp_path, lie) as served:
        (tmp_path / "part").write_bytes(served.archive[:1000])
        with pytest.raises(PeerAnswerError):
            fetch(served, tmp_path / "part")

    assert not (tmp_path / "part").exists()


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ("breaks off at once", "broke off"),
        ("silence", "fell silent"),
        ("drip", "less than 1024 bytes a second"),
    ],
)
def test_a_node_that_brings_nothing_is_given_up_and_what_came_is_kept(
    tmp_path: Path, lie: str, message: str
) -> None:
    with lying(tmp_path, lie) as served, pytest.raises(PeerUnreachableError, match=message):
        fetch(served, tmp_path / "part")

    kept = (tmp_path / "part").read_bytes()
    assert kept == served.archive[: len(kept)]
    assert len(served.asked) == client.TRIES


@pytest.mark.parametrize(
    ("lie", "error"),
    [
        ("no json", PeerAnswerError),
        ("deep json", PeerAnswerError),
        ("endless json", PeerAnswerError),
        ("other name", PeerAnswerError),
        ("huge size", PeerAnswerError),
        ("gone", PeerYankedError),
        ("yanked", PeerYankedError),
        ("busy", PeerUnreachableError),
    ],
)
def test_an_offer_that_is_none_is_refused_and_not_repeated(
    tmp_path: Path, lie: str, error: type[ServiceError]
) -> None:
    with lying(tmp_path, lie) as served, reached(served) as peer, pytest.raises(error) as refused:
        offered(peer)

    assert "secret-of-the-peer" not in refused.value.detail


def test_a_token_that_is_not_theirs_is_refused_and_named_nowhere(tmp_path: Path) -> None:
    with (
        lying(tmp_path) as served,
        reached(served) as peer,
        pytest.raises(PeerDeniedError, match="HTTP 401") as refused,
    ):
        offered(peer, "ppdd_wrong-token")

    assert "ppdd_wrong" not in refused.value.detail


@pytest.mark.parametrize(
    ("lie", "error", "message"),
    [
        ("other key", PeerKeyError, "another channel"),
        ("other site", PeerAnswerError, "not the node of hospital-b"),
    ],
)
def test_a_node_that_is_not_who_it_should_be_is_refused(
    tmp_path: Path, lie: str, error: type[ServiceError], message: str
) -> None:
    with (
        lying(tmp_path, lie) as served,
        reached(served) as peer,
        pytest.raises(error, match=message),
    ):
        client.require_key(peer, "hospital-b", served.key)


def test_a_large_archive_is_refused_before_it_is_asked_for(tmp_path: Path) -> None:
    with (
        lying(tmp_path) as served,
        reached(served) as peer,
        pytest.raises(TooLargeError, match="PPDD_LIMITS__PACKAGE_BYTES"),
    ):
        client.require_size(offered(peer), 1000)

    assert served.asked == []


def test_a_node_that_is_not_there_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = parse_node_url(f"http://127.0.0.1:{port}", INSIDE)
    with (
        client.reach(url, INSIDE) as peer,
        pytest.raises(PeerUnreachableError, match=f"no connection to http://127.0.0.1:{port}"),
    ):
        peer.who()


def test_only_the_address_that_was_looked_at_is_connected_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that leads elsewhere the second time (DNS rebinding) gains nothing: it is looked up once."""
    lookups = []
    plain = socket.getaddrinfo

    def answer(host: str, *args: object, **named: object) -> object:
        lookups.append(host)
        target = "127.0.0.1" if host == "node.example" else host
        return plain(target, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("socket.getaddrinfo", answer)
    with lying(tmp_path) as served:
        port = served.url.rpartition(":")[2]
        url = parse_node_url(f"http://node.example:{port}", INSIDE)
        with client.reach(url, INSIDE) as peer:
            peer.who()
            peer.fetch_archive(offered(peer), TOKEN, tmp_path / "part", lambda *_: None)

    assert lookups.count("node.example") == 1
    assert served.asked[0]["Host"] == f"node.example:{port}"


def test_no_proxy_of_the_environment_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")

    with lying(tmp_path) as served, reached(served) as peer:
        assert peer.who().site_id == "hospital-b"
