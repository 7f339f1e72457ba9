from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect, text

from services.kit.db import connect
from services.kit.migrate import SchemaError, downgrade, require_head, revision_state, upgrade
from services.settings import Settings, load_settings
from services.system.tables import METADATA

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else ""
    return load_settings({}, data_dir=tmp_path / "node", database={"url": url})


def differences(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, METADATA))


def test_migrations_up_equal_the_models_and_down_leave_nothing(settings: Settings) -> None:
    engine = connect(settings)
    try:
        head = upgrade(settings)
        assert differences(engine) == []
        assert revision_state(engine) == (head, head)
        downgrade(settings, "base")
        assert set(inspect(engine).get_table_names()) == {"alembic_version"}
        assert upgrade(settings) == head
        assert differences(engine) == []
    finally:
        engine.dispose()


def test_a_migration_that_fails_changes_nothing(settings: Settings) -> None:
    engine = connect(settings)
    try:
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE users (stranger INTEGER)"))
        with pytest.raises(Exception, match="already exists"):
            upgrade(settings)
        assert set(inspect(engine).get_table_names()) <= {"users", "alembic_version"}
        assert revision_state(engine)[0] is None
    finally:
        engine.dispose()


def test_a_newer_schema_is_refused(settings: Settings) -> None:
    upgrade(settings)
    engine = connect(settings)
    try:
        with engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = 'tomorrow'"))
        with pytest.raises(SchemaError, match="revision tomorrow.*newer version"):
            upgrade(settings)
        with pytest.raises(SchemaError, match="revision tomorrow.*newer version"):
            require_head(engine)
    finally:
        engine.dispose()


def test_an_older_schema_is_refused_with_the_command_that_helps(settings: Settings) -> None:
    engine = connect(settings)
    try:
        with pytest.raises(SchemaError, match="no tables yet.*ppdd node migrate"):
            require_head(engine)
        upgrade(settings)
        require_head(engine)
    finally:
        engine.dispose()


def test_every_table_in_the_source_is_among_the_tables() -> None:
    named = {
        name
        for path in (ROOT / "services").rglob("*.py")
        for name in re.findall(r'__tablename__ = "(\w+)"', path.read_text(encoding="utf-8"))
    }
    assert named == set(METADATA.tables)


def test_migrations_are_found_away_from_the_source_tree(tmp_path: Path) -> None:
    code = "from services.kit.migrate import _folder; print((_folder() / 'env.py').is_file())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "True"
