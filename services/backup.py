"""A whole node in one file, and back: the database's rows, the objects of the store, the keys.

The file is a ZIP without compression. Rows are JSON lines, one file per table, read in one snapshot, so that a backup
of SQLite restores into PostgreSQL and the other way round. It holds the node's private keys: who has the file can sign
as this hospital. `manifest.json`, the last entry, names the sha256 of all others.

What only lives while processes run is left out: logins, one-time links, holds, workers, images that wait for a
prediction. Jobs that ran are taken up again.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, Table
from sqlalchemy.orm import Session

from ppdd_core import __version__
from ppdd_core.errors import PpddError
from ppdd_core.package.signature import fingerprint
from ppdd_core.package.verify import verify_package
from services.audit import service as audit
from services.audit.actor import SYSTEM
from services.audit.models import AuditEvent
from services.catalogue.models import PackageVersion
from services.kit.db import READONLY, UtcDateTime, now
from services.kit.holds import hold, release
from services.kit.migrate import require_known, revision_state, upgrade
from services.kit.resources import Resources, open_resources
from services.kit.secrets import load_vault
from services.kit.storage import CHUNK, DIGEST
from services.settings import Settings
from services.system.tables import METADATA

FORMAT = 1
MANIFEST = "manifest.json"
SITE_KEY, SECRET_KEY = "keys/SECRET-site-signing-key.pem", "keys/SECRET-vault-key"
SECRET_FILE = Path("keys") / "secret-key"  # where `services.kit.secrets` keeps the key that it made
MOMENTARY = frozenset(
    {
        "login_sessions",
        "login_throttle",
        "one_time_links",
        "object_holds",
        "workers",
        "prediction_images",
    }
)
COMPLETE = "backup.complete"  # the event after a backup; the one before it is part of it
ROWS_AT_ONCE = 500
MAX_MANIFEST = 64 * 2**20

OnProgress = Callable[[int, int], None]


class BackupError(PpddError):
    """A backup cannot be made, cannot be read, or does not fit the node it is to be restored into."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a backup holds."""

    site_id: str
    made_at: str
    revision: str
    rows: int
    objects: int
    bytes: int
    packages: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


# ------------------------------------------------------------------------------------------- backup


def back_up(
    resources: Resources, out: Path, on_progress: OnProgress = lambda _d, _t: None
) -> Summary:
    """Write a backup of the node, which may run meanwhile, to the new file `out`, readable by its owner only.

    BackupError where `out` is there already; StoreError where an object is missing or damaged: such a node must be
    looked at before it is trusted to a backup.
    """
    if os.path.lexists(out):
        raise BackupError(f"{out} exists already; choose another name")
    with resources.sessions.begin() as session:
        audit.record(session, SYSTEM, "backup.create")
    holder = hold(resources.sessions, ())
    try:
        with _new_file(out) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            made = _Writer(archive).write(resources, holder, on_progress)
    finally:
        with resources.sessions.begin() as session:
            release(session, holder)
    with resources.sessions.begin() as session:
        held = {name: getattr(made, name) for name in ("rows", "objects", "packages", "bytes")}
        audit.record(session, SYSTEM, COMPLETE, detail=held)
    return made


def last_backup(session: Session) -> AuditEvent | None:
    """Return the event of the last backup that was written to its end: when, and what it holds. Not where it lies."""
    found, _ = audit.find(session, audit.Filter(action=COMPLETE), cursor=None, limit=1)
    return found[0] if found else None


@dataclass
class _Writer:
    archive: zipfile.ZipFile
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def write(self, resources: Resources, holder: UUID, on_progress: OnProgress) -> Summary:
        # Held before the rows are read: what a row refers to cannot be collected until its bytes are here.
        digests = self._held(resources, holder, set())
        revision, rows = self._tables(resources.engine)
        digests = self._held(resources, holder, digests)
        for done, digest in enumerate(sorted(digests)):
            on_progress(done, len(digests))
            self._add(f"objects/{digest}", resources.store.read(digest))
        on_progress(len(digests), len(digests))
        self._keys(resources)
        about = {
            "format": FORMAT,
            "made_at": now().isoformat(),
            "software": __version__,
            "site_id": resources.settings.site_id,
            "key": fingerprint(resources.key),
            "revision": revision,
            "rows": rows,
            "files": self.files,
        }
        self.archive.writestr(MANIFEST, json.dumps(about, indent=1, sort_keys=True))
        return _summary(about)

    def _held(self, resources: Resources, holder: UUID, known: set[str]) -> set[str]:
        found = {stored.sha256 for stored in resources.store.list()}
        hold(resources.sessions, found - known, holder)
        return known | found

    def _tables(self, engine: Engine) -> tuple[str, dict[str, int]]:
        revision, _ = revision_state(engine)
        if revision is None:
            raise BackupError("there is no node here: its database has no tables")
        counts = {}
        with _snapshot(engine) as connection:
            for table in METADATA.sorted_tables:
                if table.name not in MOMENTARY:
                    counts[table.name] = self._table(connection, table)
        return revision, counts

    def _table(self, connection: Connection, table: Table) -> int:
        count = 0

        def lines() -> Iterator[bytes]:
            nonlocal count
            rows = connection.execution_options(yield_per=ROWS_AT_ONCE).execute(
                sa.select(table).order_by(*table.primary_key)
            )
            for row in rows.mappings():
                count += 1
                values = {name: _to_json(value) for name, value in row.items()}
                yield json.dumps(values, ensure_ascii=False).encode() + b"\n"

        self._add(f"database/{table.name}.jsonl", lines())
        return count

    def _keys(self, resources: Resources) -> None:
        settings = resources.settings
        self._add(SITE_KEY, [settings.signing_key.read_bytes()])
        load_vault(settings)  # makes the key where there is none
        self._add(SECRET_KEY, [_secret_of(settings)])

    def _add(self, name: str, pieces: Any) -> None:
        hashed, size = hashlib.sha256(), 0
        info = zipfile.ZipInfo(name)
        info.external_attr = 0o600 << 16
        with self.archive.open(info, "w", force_zip64=True) as entry:
            for piece in pieces:
                hashed.update(piece)
                size += len(piece)
                entry.write(piece)
        self.files[name] = {"sha256": hashed.hexdigest(), "size": size}


@contextmanager
def _snapshot(engine: Engine) -> Iterator[Connection]:
    """Yield a connection that sees one moment, whatever others write."""
    options: dict[str, Any] = {READONLY: True}
    if engine.dialect.name == "postgresql":
        options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with engine.connect().execution_options(**options) as connection, connection.begin():
        connection.execute(sa.text("SELECT count(*) FROM alembic_version"))  # SQLite's begins here
        yield connection


@contextmanager
def _new_file(out: Path) -> Iterator[Any]:
    """Yield a file that gets its name when it is complete, or is removed."""
    part = out.with_name(f".{out.name}.part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        part.rename(out)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


# ------------------------------------------------------------------------------------------ restore


def restore(
    settings: Settings,
    source: Path,
    on_progress: OnProgress = lambda _d, _t: None,
) -> Summary:
    """Bring a backup into an empty node and return what it holds.

    Everything is checked: the file's hashes before anything is written; the signatures of all packages and the audit
    chain before the rows are committed, which is the last step. Broken off, it leaves a node without rows, and can be
    started again. BackupError where the file is damaged or the node is not empty.
    """
    with _opened(source) as archive:
        about = _checked(archive, source, on_progress)
        require_known(about["revision"])
        _require_keys_fit(settings, archive)
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        upgrade(settings, about["revision"])
        with open_resources(settings) as resources:
            _require_empty(resources)
            _put_objects(resources, archive, about, on_progress)
            _put_keys(settings, archive)
            with resources.sessions.begin() as session:
                _put_rows(session, archive, about)
                _require_sound(session, resources)
                audit.record(
                    session, SYSTEM, "backup.restore", detail={"made_at": about["made_at"]}
                )
        upgrade(settings)
    return _summary(about)


@contextmanager
def _opened(source: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(source) as archive:
            yield archive
    except (zipfile.BadZipFile, FileNotFoundError, IsADirectoryError) as err:
        raise BackupError(f"{source} is no backup: {err}") from None


def _checked(archive: zipfile.ZipFile, source: Path, on_progress: OnProgress) -> dict[str, Any]:
    """Return the manifest after every file was hashed against it; BackupError names the first that differs."""
    try:
        if archive.getinfo(MANIFEST).file_size > MAX_MANIFEST:
            raise BackupError(f"{source} is no backup: its manifest is too large")
        about: dict[str, Any] = json.loads(archive.read(MANIFEST))
        if about["format"] != FORMAT:
            raise BackupError(
                f"{source} has format {about['format']!r}; this version reads {FORMAT}"
            )
        files: dict[str, dict[str, Any]] = about["files"]
        strangers = set(archive.namelist()) - set(files) - {MANIFEST}
        wrong = [name for name in files if not _is_ours(name)]
        assert isinstance(about["rows"], dict)
    except (KeyError, ValueError, TypeError, AssertionError):
        raise BackupError(f"{source} is no backup: its manifest is missing or damaged") from None
    if strangers or wrong:
        raise BackupError(
            f"{source} holds what no backup holds: {sorted([*strangers, *wrong])[0]!r}"
        )
    for done, (name, said) in enumerate(sorted(files.items())):
        on_progress(done, len(files))
        hashed = hashlib.sha256()
        try:
            for piece in _pieces(archive, name):
                hashed.update(piece)
        except (KeyError, zipfile.BadZipFile, EOFError, OSError):
            raise BackupError(f"{source} is damaged: {name} cannot be read") from None
        named = name.removeprefix("objects/") if name.startswith("objects/") else said["sha256"]
        if not hashed.hexdigest() == said["sha256"] == named:
            raise BackupError(f"{source} is damaged: {name} has other bytes than were written")
    return about


def _is_ours(name: str) -> bool:
    folder, _, leaf = name.partition("/")
    if folder == "objects":
        return bool(DIGEST.fullmatch(leaf))
    if folder == "database":
        return leaf.removesuffix(".jsonl").isidentifier() and leaf.endswith(".jsonl")
    return name in (SITE_KEY, SECRET_KEY)


def _require_empty(resources: Resources) -> None:
    with resources.sessions() as session:
        there = sa.inspect(session.connection(execution_options={READONLY: True}))
        for table in (one for one in METADATA.sorted_tables if there.has_table(one.name)):
            if session.scalar(sa.select(sa.literal(1)).select_from(table).limit(1)) is not None:
                raise BackupError(
                    f"the node is not empty (there are {table.name}); restore into a new folder and a new database"
                )


def _require_keys_fit(settings: Settings, archive: zipfile.ZipFile) -> None:
    """Refuse before anything is written where other keys are in place."""
    if settings.signing_key.exists() and settings.signing_key.read_bytes() != archive.read(
        SITE_KEY
    ):
        raise BackupError(
            f"{settings.signing_key} is another key than the backup's; put {SITE_KEY} of the backup in its place"
        )
    try:
        secret: bytes | None = _secret_of(settings)
    except FileNotFoundError:
        secret = None
    if secret is not None and secret != archive.read(SECRET_KEY):
        raise BackupError(
            "the node's secret key (PPDD_SECRET_KEY) is another one than the backup's; use the one in "
            f"{SECRET_KEY} of the backup"
        )


def _put_objects(
    resources: Resources,
    archive: zipfile.ZipFile,
    about: Mapping[str, Any],
    on_progress: OnProgress,
) -> None:
    names = sorted(name for name in about["files"] if name.startswith("objects/"))
    with tempfile.TemporaryDirectory(dir=resources.settings.data_dir, prefix=".restore-") as aside:
        path = Path(aside) / "object"
        for done, name in enumerate(names):
            on_progress(done, len(names))
            with path.open("wb") as file:
                file.writelines(_pieces(archive, name))
            resources.store.put_file(path, name.removeprefix("objects/"))
    on_progress(len(names), len(names))


def _put_keys(settings: Settings, archive: zipfile.ZipFile) -> None:
    _put_key(settings.signing_key, archive.read(SITE_KEY))
    if settings.secret_key is None:
        _put_key(settings.data_dir / SECRET_FILE, archive.read(SECRET_KEY))


def _put_key(path: Path, data: bytes) -> None:
    if path.exists():
        return  # the same one: `_require_keys_fit`
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _new_file(path) as file:
        file.write(data)


def _put_rows(session: Session, archive: zipfile.ZipFile, about: Mapping[str, Any]) -> None:
    known = [table.name for table in METADATA.sorted_tables]
    connection = session.connection()
    for name in sorted(about["rows"], key=lambda one: known.index(one) if one in known else -1):
        count = 0
        for batch in _batches(archive, f"database/{name}.jsonl"):
            connection.execute(_insert(name, batch[0]), [_from_json(name, row) for row in batch])
            count += len(batch)
        if count != about["rows"][name]:
            raise BackupError(
                f"the backup is damaged: {name} should have {about['rows'][name]} rows"
            )
        _continue_counting(connection, name)


def _batches(archive: zipfile.ZipFile, name: str) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    with archive.open(name) as lines:
        for line in lines:
            batch.append(json.loads(line))
            if len(batch) == ROWS_AT_ONCE:
                yield batch
                batch = []
    if batch:
        yield batch


def _insert(name: str, row: Mapping[str, Any]) -> Any:
    """Return an INSERT of exactly the columns that the backup has, without defaults of today's models."""
    columns = [sa.column(column, _type_of(name, column)) for column in row]
    return sa.table(name, *columns).insert()


def _continue_counting(connection: Connection, name: str) -> None:
    """Let PostgreSQL count up from what was inserted; SQLite does so by itself."""
    table = METADATA.tables.get(name)
    if table is None or connection.dialect.name != "postgresql":
        return
    column = table.autoincrement_column
    if column is not None:
        newest = sa.select(sa.func.max(column)).scalar_subquery()
        sequence = sa.func.pg_get_serial_sequence(table.name, column.name)
        connection.execute(sa.select(sa.func.setval(sequence, newest)))


def _require_sound(session: Session, resources: Resources) -> None:
    """Raise BackupError unless the audit chain is whole and every package is what its signer signed."""
    chain = audit.verify(session)
    if not chain.intact:
        raise BackupError(
            f"the backup's audit log is broken at event {chain.first_bad}: {chain.problem}"
        )
    with tempfile.TemporaryDirectory(dir=resources.settings.data_dir, prefix=".restore-") as aside:
        path = Path(aside) / "package.zip"
        for version in session.scalars(sa.select(PackageVersion)):
            resources.store.fetch(version.archive_sha256, path)
            found = verify_package(path, trusted_key=version.key)
            if not found.ok:
                raise BackupError(
                    f"the backup's package version {version.id} does not verify: {found.faults[0]}"
                )


# ------------------------------------------------------------------------------------------- values


def _to_json(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value


def _from_json(table: str, row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _value(_type_of(table, name), value) for name, value in row.items()}


def _value(kind: Any, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(kind, sa.Uuid):
        return UUID(value)
    if isinstance(kind, sa.LargeBinary):
        return base64.b64decode(value)
    if isinstance(kind, (sa.DateTime, UtcDateTime)):
        return datetime.fromisoformat(value)
    return value


def _type_of(table: str, column: str) -> Any:
    try:
        return METADATA.tables[table].columns[column].type
    except KeyError:
        raise BackupError(
            f"the backup has a column that this version does not know: {table}.{column}"
        ) from None


def _secret_of(settings: Settings) -> bytes:
    if settings.secret_key is not None:
        return settings.secret_key.get_secret_value().encode()
    return (settings.data_dir / SECRET_FILE).read_bytes()


def _pieces(archive: zipfile.ZipFile, name: str) -> Iterator[bytes]:
    with archive.open(name) as entry:
        while piece := entry.read(CHUNK):
            yield piece


def _summary(about: Mapping[str, Any]) -> Summary:
    objects = [name for name in about["files"] if name.startswith("objects/")]
    return Summary(
        site_id=about["site_id"],
        made_at=about["made_at"],
        revision=about["revision"],
        rows=sum(about["rows"].values()),
        objects=len(objects),
        bytes=sum(one["size"] for one in about["files"].values()),
        packages=about["rows"].get("package_versions", 0),
    )
