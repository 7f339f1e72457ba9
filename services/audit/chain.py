"""The chain itself: what an event's hash covers, and where a chain is broken. No database, no files.

Event n carries the hash of event n - 1 and its own, over everything else in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import rfc8785

from services.audit.heads import Head, Heads

GENESIS = "0" * 64  # what the first event follows


class Fault(StrEnum):
    """What is wrong with a chain, as far as can be told."""

    EDITED = "edited"  # the event is not the one that its hash was made of
    MISSING = "missing"  # events were removed before it, or stand elsewhere
    MOVED = "moved"  # the event does not follow the one before it
    TRUNCATED = "truncated"  # the end was cut off
    REWRITTEN = "rewritten"  # whole in itself, but not the chain that was signed
    FORGED = "forged"  # a signed head was tampered with


@dataclass(frozen=True, slots=True)
class Link:
    """What is checked of one event; `computed` is None where the event cannot be hashed at all."""

    seq: int
    previous: str
    hash: str
    computed: str | None


@dataclass(frozen=True, slots=True)
class Verification:
    """What a check of the log found. `anchored_seq` is the last event that a signed head vouches for, 0 for none.

    Up to there nothing is missing. After it the chain is whole as far as it goes, but an end that was cut off leaves
    no trace.
    """

    intact: bool
    events: int
    last_seq: int
    last_hash: str
    anchored_seq: int
    fault: Fault | None = None
    first_bad: int | None = None
    problem: str | None = None
    remarks: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Return the same as JSON has it."""
        return asdict(self)


def hash_facts(facts: Mapping[str, Any]) -> str:
    """Return the sha256 over an event's facts as canonical JSON; ValueError for what JSON cannot say."""
    try:
        return hashlib.sha256(rfc8785.dumps(dict(facts))).hexdigest()
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as err:
        raise ValueError(str(err)) from None


def walk(links: Iterable[Link | None], heads: Heads) -> Verification:
    """Follow the chain from its beginning; None stands for an event that cannot be read."""
    signed: dict[int, set[str]] = {}
    for head in heads.trusted:
        signed.setdefault(head.seq, set()).add(head.hash)
    seq, hash_, anchored = 0, GENESIS, 0

    def broken(fault: Fault, at: int, problem: str) -> Verification:
        return Verification(False, seq, seq, hash_, anchored, fault, at, problem, heads.remarks)

    for link in links:
        if found := _fault(link, seq, hash_):
            return broken(*found)
        assert link is not None
        if link.seq in signed:
            if signed[link.seq] != {link.hash}:
                problem = (
                    f"the log was written anew: event {link.seq} is not the one that was signed"
                )
                return broken(Fault.REWRITTEN, link.seq, problem)
            anchored = link.seq
        seq, hash_ = link.seq, link.hash
    newest = heads.newest
    if newest is not None and newest.seq > seq:
        return broken(Fault.TRUNCATED, seq + 1, _cut_off(seq, newest))
    if heads.forged:
        return broken(Fault.FORGED, seq, f"a signed head was tampered with: {heads.remarks[-1]}")
    return Verification(True, seq, seq, hash_, anchored, remarks=heads.remarks)


def _fault(link: Link | None, seq: int, hash_: str) -> tuple[Fault, int, str] | None:
    due = seq + 1
    if link is None:
        return Fault.EDITED, due, f"event {due} cannot be read: it was edited"
    if link.seq > due:
        gone = f"event {due} is" if link.seq == due + 1 else f"events {due} to {link.seq - 1} are"
        return Fault.MISSING, due, f"{gone} missing before event {link.seq}"
    if link.seq < due:
        return Fault.MOVED, link.seq, f"event {link.seq} stands where event {due} should"
    same = link.computed == link.hash
    if link.previous != hash_:
        if same and seq:
            return (
                Fault.MOVED,
                due,
                f"event {due} follows another event than event {seq} as it stands now",
            )
        return Fault.MOVED, due, f"event {due} is not the event that was written there"
    if not same:
        return Fault.EDITED, due, f"event {due} was edited: its content does not have its hash"
    return None


def _cut_off(seq: int, newest: Head) -> str:
    return f"the log ends with event {seq}, but had event {newest.seq} on {newest.at}: its end was cut off"
