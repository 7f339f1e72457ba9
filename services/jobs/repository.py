"""Statements on the tables of jobs that say themselves how many rows they met."""

from __future__ import annotations

from typing import Any

from sqlalchemy import CursorResult
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import Delete, Update


def changed(session: Session, statement: Update | Delete) -> int:
    """Run one UPDATE or DELETE and return how many rows it changed; rows held in memory are left as they are."""
    done: Any = session.execute(statement, execution_options={"synchronize_session": False})
    assert isinstance(done, CursorResult)
    return done.rowcount
