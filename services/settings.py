"""Deployment settings of a node, read from `PPDD_…` variables and checked before anything starts.

Nesting is written with two underscores (`PPDD_DATABASE__URL`). Every setting can be given as a file instead
(`PPDD_SECRET_KEY_FILE=/run/secrets/secret_key`), which is how compose passes secrets. A `PPDD_` name that is not
here is refused, so that a typo cannot silently leave a default in place. What decides a distillation is not here: that
is the recipe.

With nothing set the node is *embedded*: SQLite, a folder as object store and a folder as message broker, all under
`data_dir`, on 127.0.0.1.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from ppdd_core.data.files import ppdd_home
from ppdd_core.errors import BadConfigError

PREFIX = "PPDD_"
# Names that begin alike but are not the node's: the library's home, options of commands, and the tests'.
FOREIGN = frozenset(
    {
        "PPDD_HOME",
        "PPDD_SITE",
        "PPDD_NODE_URL",
        "PPDD_NODE_TOKEN",
        "PPDD_NODE_TOKEN_FILE",
        "PPDD_CHROMIUM",
    }
)
FOREIGN_PREFIXES = ("PPDD_TEST_", "PPDD_ENGINE_")

# Words that stand where nobody chose a secret: examples in manuals, and defaults of the products behind the node.
PLACEHOLDERS = re.compile(
    r"change.?me|placeholder|example|default|minioadmin|rustfsadmin|your.?secret|^(admin|password|secret|postgres|redis|ppdd|test)+\d*$",
    re.IGNORECASE,
)
SHORTEST_SECRET = 16  # characters, of passwords that other services check
SHORTEST_KEY = 32  # characters, of the key that protects stored credentials


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DatabaseSettings(_Group):
    """Where the truth is kept."""

    url: str = Field(
        "",
        description="SQLAlchemy URL: `postgresql+psycopg://user@host/name`, or empty for SQLite in `data_dir`.",
    )
    password: SecretStr | None = Field(None, description="Password for `url`, kept out of it.")
    pool_size: int = Field(10, ge=1, le=200, description="Connections held open by one process.")


class BrokerSettings(_Group):
    """The doorbell that tells workers of new jobs. Losing it loses no job."""

    url: str = Field("", description="`redis://host:6379/0`, or empty for a folder in `data_dir`.")
    password: SecretStr | None = Field(None, description="Password for `url`, kept out of it.")
    queue: str = Field(
        "ppdd",
        description="Name of the queue; workers of one node share it.",
        pattern=r"^[a-z0-9][a-z0-9-]{0,30}$",
    )


class StoreSettings(_Group):
    """Where packages, uploads and detectors lie, by sha256."""

    kind: Literal["folder", "minio"] = Field(
        "folder", description="`folder`: in `data_dir`; `minio`: any S3-compatible server."
    )
    endpoint: str = Field("", description="Host and port of the S3 server, without scheme.")
    bucket: str = Field(
        "ppdd",
        description="Bucket; made when absent.",
        pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$",
    )
    access_key: SecretStr | None = Field(None, description="Access key of the S3 server.")
    secret_key: SecretStr | None = Field(None, description="Secret key of the S3 server.")
    secure: bool = Field(True, description="Speak TLS to the S3 server.")
    region: str = Field("us-east-1", description="Region that requests are signed for.")


class SessionSettings(_Group):
    """Logged-in people."""

    idle_minutes: int = Field(
        30, ge=1, le=24 * 60, description="A session unused for so long ends."
    )
    absolute_hours: int = Field(
        12, ge=1, le=24 * 31, description="Every session ends after so long."
    )
    login_attempts: int = Field(
        5,
        ge=3,
        le=100,
        description="Failed logins before an account waits; an address has four times as many.",
    )
    login_wait_minutes: int = Field(15, ge=1, le=24 * 60, description="How long it waits then.")


class LimitSettings(_Group):
    """What one request may bring or take."""

    upload_bytes: int = Field(20 * 2**30, ge=2**20, description="Largest dataset upload.")
    image_bytes: int = Field(
        64 * 2**20, ge=2**16, description="Largest single image for a prediction."
    )
    body_bytes: int = Field(2**20, ge=2**12, description="Largest JSON body.")
    package_bytes: int = Field(
        2**30, ge=2**20, description="Largest package archive that is pulled."
    )
    disk_reserve_bytes: int = Field(
        2**30, ge=0, description="Free space below which uploads and jobs are refused."
    )


class JobSettings(_Group):
    """How jobs are held and given up."""

    lease_seconds: float = Field(
        30.0, gt=0, le=3600, description="A worker that says nothing for so long has lost its job."
    )
    heartbeat_seconds: float = Field(
        5.0, gt=0, le=600, description="How often a worker says that it lives."
    )
    sweep_seconds: float = Field(
        15.0,
        gt=0,
        le=600,
        description="How often lost jobs are looked for and queued ones rung again.",
    )
    max_attempts: int = Field(
        5, ge=1, le=100, description="Attempts after which a job that keeps dying has failed."
    )
    cancel_grace_seconds: float = Field(
        20.0, gt=0, le=600, description="Time between asking a job to stop and killing it."
    )
    memory_bytes: int = Field(
        0, ge=0, description="Address space of one job's process; 0 = no limit of ours."
    )
    part_threads: int = Field(1, ge=1, le=64, description="Torch threads per teacher.")


class PullSettings(_Group):
    """Fetching packages from other hospitals."""

    allow_private: bool = Field(
        False,
        description="Also fetch from private and loopback addresses (hospital networks, demos).",
    )
    allow_http: bool = Field(
        False, description="Also fetch without TLS. For demos on one machine only."
    )
    ca_file: Path | None = Field(None, description="Extra certificate authorities, PEM.")
    proxy: str = Field(
        "", description="HTTP proxy for outgoing requests; the environment's is ignored."
    )
    timeout_seconds: float = Field(
        30.0,
        gt=0,
        le=600,
        description="Silence after which a transfer is broken off (and resumed).",
    )


class WorkerSettings(_Group):
    """The process that computes."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where jobs compute.")
    kinds: Literal["all", "compute", "pull"] = Field(
        "all",
        description="Which jobs: `pull` fetches other hospitals' packages, without torch; `compute` is the rest.",
    )
    processes: int = Field(
        0, ge=0, le=256, description="Teachers trained side by side on the CPU; 0 = one per core."
    )
    cache_bytes: int = Field(
        20 * 2**30,
        ge=0,
        description="Bytes of decoded images kept on a worker's disk for its next jobs; those unused for longest go.",
    )


class LogSettings(_Group):
    """What is written to standard error."""

    format: Literal["json", "text"] = Field(
        "text", description="`json`: one object per line, for collectors."
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severity written."
    )


class Settings(_Group):
    """Everything a node needs to know about where it runs."""

    site_id: str = Field(
        "local",
        description="This hospital's id, as it stands in package names.",
        pattern=r"^[a-z0-9]+(?:[._-][a-z0-9]+)*$",
        max_length=64,
    )
    site_name: str = Field(
        "", description="This hospital's name for people; default: the id.", max_length=200
    )
    data_dir: Path = Field(
        default_factory=lambda: ppdd_home() / "node",
        description="What the node keeps on disk; with database and store elsewhere: keys and work in progress.",
    )
    data_roots: tuple[Path, ...] = Field(
        (),
        description="Folders, separated by colons, under which source datasets may be registered; read only is enough.",
    )
    key_file: Path | None = Field(
        None,
        description="The site's Ed25519 signing key; default `data_dir/keys/site.pem`, made when absent.",
    )
    secret_key: SecretStr | None = Field(
        None,
        description="Protects stored credentials, 32 characters or more; default: a file made in `data_dir/keys`.",
    )
    public_url: str = Field(
        "http://127.0.0.1:8000", description="Under what address people and peers reach the node."
    )
    database: DatabaseSettings = DatabaseSettings()
    broker: BrokerSettings = BrokerSettings()
    store: StoreSettings = StoreSettings()
    session: SessionSettings = SessionSettings()
    limits: LimitSettings = LimitSettings()
    jobs: JobSettings = JobSettings()
    pull: PullSettings = PullSettings()
    worker: WorkerSettings = WorkerSettings()
    log: LogSettings = LogSettings()

    @property
    def site_title(self) -> str:
        """The hospital's name for people."""
        return self.site_name or self.site_id

    @property
    def database_url(self) -> str:
        """The database's URL without its password; SQLite in `data_dir` where none is set."""
        return self.database.url or f"sqlite:///{self.data_dir / 'node.db'}"

    @property
    def embedded(self) -> bool:
        """Whether database, store and broker all lie in `data_dir`."""
        return not self.database.url and not self.broker.url and self.store.kind == "folder"

    @property
    def signing_key(self) -> Path:
        """Where the site's signing key lies."""
        return self.key_file or self.data_dir / "keys" / "site.pem"

    @property
    def spool_dir(self) -> Path:
        """Uploads on their way into the store."""
        return self.data_dir / "spool"

    @property
    def work_dir(self) -> Path:
        """Folders of running jobs."""
        return self.data_dir / "work"

    @property
    def cache_dir(self) -> Path:
        """What a worker keeps for its next jobs: decoded images, fetched uploads."""
        return self.data_dir / "cache"


def load_settings(environ: Mapping[str, str] | None = None, **given: Any) -> Settings:
    """Return the settings in `environ` (default: the process's) under those `given`.

    BadConfigError names every fault: an unknown or ill-typed name, a file that cannot be read, a placeholder or
    a short secret, a store without its address.
    """
    environ = os.environ if environ is None else environ
    known = setting_names()
    values: dict[str, Any] = {}
    faults = []
    for name, text in sorted(environ.items()):
        if not name.startswith(PREFIX) or name in FOREIGN or name.startswith(FOREIGN_PREFIXES):
            continue
        plain = name.removesuffix("_FILE")
        if name in known:
            _put(values, known[name], text)
        elif plain in known:
            try:
                _put(values, known[plain], Path(text).read_text(encoding="utf-8").rstrip("\r\n"))
            except (OSError, UnicodeDecodeError) as err:
                reason = err.strerror if isinstance(err, OSError) else "it is not text"
                faults.append(f"{name}: {text} cannot be read: {reason}")
        else:
            faults.append(f"{name} is not a setting (docs/settings.md lists them all)")
    try:
        settings = Settings(**_merged(values, given))
    except ValidationError as err:
        faults += [
            f"{_variable(e['loc'])}: {e['msg']}"
            for e in err.errors(include_input=False, include_url=False)
        ]
    else:
        faults += _weaknesses(settings)
    if faults:
        raise BadConfigError("the node cannot start: " + "; ".join(faults))
    return settings


def setting_names() -> dict[str, tuple[str, ...]]:
    """Return every variable and the place of its field."""
    names: dict[str, tuple[str, ...]] = {}
    for name, field in Settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, _Group):
            names |= {
                f"{PREFIX}{name}__{inner}".upper(): (name, inner) for inner in kind.model_fields
            }
        else:
            names[f"{PREFIX}{name}".upper()] = (name,)
    return names


def secret_fault(secret: str, *, shortest: int = SHORTEST_SECRET) -> str | None:
    """Return why a secret is none, or None."""
    if PLACEHOLDERS.search(secret):
        return "is a placeholder; `ppdd node init` makes real secrets"
    if len(secret) < shortest or len(set(secret)) < 8:
        return f"is too weak: {shortest} characters or more, not all alike; `ppdd node init` makes them"
    return None


def _weaknesses(settings: Settings) -> list[str]:
    secrets = {
        "PPDD_SECRET_KEY": (settings.secret_key, SHORTEST_KEY),
        "PPDD_DATABASE__PASSWORD": (settings.database.password, SHORTEST_SECRET),
        "PPDD_BROKER__PASSWORD": (settings.broker.password, SHORTEST_SECRET),
        "PPDD_STORE__SECRET_KEY": (settings.store.secret_key, SHORTEST_SECRET),
    }
    faults = [
        f"{name} {fault}"
        for name, (secret, shortest) in secrets.items()
        if secret is not None
        and (fault := secret_fault(secret.get_secret_value(), shortest=shortest))
    ]
    for name, url in (
        ("PPDD_DATABASE__URL", settings.database.url),
        ("PPDD_BROKER__URL", settings.broker.url),
    ):
        try:
            password = urlsplit(url).password
        except ValueError:
            faults.append(f"{name} is not a URL")
            continue
        if password is not None:
            faults.append(
                f"{name} holds a password; give that as {name.removesuffix('URL')}PASSWORD or …PASSWORD_FILE"
            )
    if settings.database.url and not settings.database.url.startswith(
        ("postgresql+psycopg://", "sqlite:///")
    ):
        faults.append("PPDD_DATABASE__URL must begin with postgresql+psycopg:// or sqlite:///")
    if settings.broker.url and not settings.broker.url.startswith(
        ("redis://", "rediss://", "redis+socket://")
    ):
        faults.append("PPDD_BROKER__URL must begin with redis://, rediss:// or redis+socket://")
    if settings.store.kind == "minio":
        faults += [
            f"PPDD_STORE__{name.upper()} is needed for PPDD_STORE__KIND=minio"
            for name in ("endpoint", "access_key", "secret_key")
            if not getattr(settings.store, name)
        ]
    if not settings.public_url.startswith(("http://", "https://")):
        faults.append("PPDD_PUBLIC_URL must begin with https:// (or http:// on this machine)")
    return faults


def _put(values: dict[str, Any], place: tuple[str, ...], text: str) -> None:
    *groups, leaf = place
    for group in groups:
        values = values.setdefault(group, {})
    values[leaf] = (
        [part for part in text.split(os.pathsep) if part] if leaf == "data_roots" else text
    )


def _merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for name, value in high.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merged(merged[name], value) if both else value
    return merged


def _variable(location: tuple[int | str, ...]) -> str:
    return PREFIX + "__".join(str(part) for part in location[:2]).upper()
