from __future__ import annotations

import re
from pathlib import Path

import pytest

from ppdd_core.errors import BadConfigError
from services.settings import Settings, load_settings, secret_fault, setting_names

SECRET = "kV5nW2rQ8xT3mZ7yB4"
KEY = SECRET * 2


def _fault(environ: dict[str, str]) -> str:
    with pytest.raises(BadConfigError) as raised:
        load_settings(environ)
    return str(raised.value)


def test_with_nothing_set_the_node_is_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPDD_HOME", "/somewhere")
    settings = load_settings({"PATH": "/bin", "PPDD_HOME": "/somewhere"})
    assert settings.embedded
    assert settings.data_dir == Path("/somewhere/node")
    assert settings.database_url == "sqlite:////somewhere/node/node.db"
    assert settings.signing_key == Path("/somewhere/node/keys/site.pem")
    assert settings.site_title == "local"


def test_nesting_is_written_with_two_underscores() -> None:
    settings = load_settings(
        {
            "PPDD_SITE_ID": "hospital-a", "PPDD_SITE_NAME": "Hospital A", "PPDD_JOBS__LEASE_SECONDS": "12.5",
            "PPDD_LIMITS__BODY_BYTES": "5000", "PPDD_PULL__ALLOW_PRIVATE": "true", "PPDD_WORKER__DEVICE": "cpu",
            "PPDD_DATA_ROOTS": "/one:/two:", "PPDD_LOG__FORMAT": "json",
        }
    )  # fmt: skip
    assert (settings.site_id, settings.site_title) == ("hospital-a", "Hospital A")
    assert settings.jobs.lease_seconds == 12.5
    assert settings.jobs.max_attempts == Settings().jobs.max_attempts
    assert settings.limits.body_bytes == 5000
    assert settings.pull.allow_private
    assert settings.data_roots == (Path("/one"), Path("/two"))


def test_what_is_given_wins_over_the_environment() -> None:
    environ = {
        "PPDD_SITE_ID": "a",
        "PPDD_JOBS__LEASE_SECONDS": "9",
        "PPDD_JOBS__SWEEP_SECONDS": "8",
    }
    settings = load_settings(environ, site_id="b", jobs={"lease_seconds": 7})
    assert (settings.site_id, settings.jobs.lease_seconds) == ("b", 7)
    assert settings.jobs.sweep_seconds == 8


@pytest.mark.parametrize(
    "name",
    ["PPDD_SITEID", "PPDD_DATABASE_URL", "PPDD_DATABASE__URLS", "PPDD_DATABASE", "PPDD_", "PPDD_X_FILE",
     "PPDD_site_id"],
)  # fmt: skip
def test_an_unknown_setting_is_refused_by_name(name: str) -> None:
    assert f"{name} is not a setting" in _fault({name: "x"})


def test_names_that_belong_to_others_are_passed_over() -> None:
    foreign = [
        "PPDD_HOME",
        "PPDD_NODE_TOKEN",
        "PPDD_TEST_ANYTHING",
        "PPDD_ENGINE_X",
        "PATH",
        "ppdd_x",
    ]
    assert load_settings(dict.fromkeys(foreign, "x")).site_id == "local"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PPDD_SITE_ID", "Hospital A"), ("PPDD_SITE_ID", "../a"), ("PPDD_SITE_ID", ""),
        ("PPDD_JOBS__LEASE_SECONDS", "-1"), ("PPDD_JOBS__LEASE_SECONDS", "soon"),
        ("PPDD_DATABASE__POOL_SIZE", "0"), ("PPDD_STORE__KIND", "s3"), ("PPDD_STORE__BUCKET", "Bad_Bucket"),
        ("PPDD_LIMITS__BODY_BYTES", "1"), ("PPDD_LOG__LEVEL", "loud"), ("PPDD_WORKER__DEVICE", "tpu"),
        ("PPDD_DATABASE__URL", "mysql://host/db"), ("PPDD_BROKER__URL", "amqp://host"),
        ("PPDD_PUBLIC_URL", "node.example"), ("PPDD_BROKER__QUEUE", "a b"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_refused_by_the_variables_name(name: str, value: str) -> None:
    assert name in _fault({name: value})


def test_every_fault_is_told_at_once() -> None:
    told = _fault({"PPDD_TYPO": "x", "PPDD_SITE_ID": "A", "PPDD_SECRET_KEY_FILE": "/nowhere"})
    for name in ("PPDD_TYPO", "PPDD_SITE_ID", "PPDD_SECRET_KEY_FILE: /nowhere cannot be read"):
        assert name in told


def test_a_setting_can_be_given_as_a_file(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(f"{KEY}\n")
    settings = load_settings({"PPDD_SECRET_KEY_FILE": str(path)})
    assert settings.secret_key is not None
    assert settings.secret_key.get_secret_value() == KEY
    path.write_bytes(b"\xff\xfe")
    assert "it is not text" in _fault({"PPDD_SECRET_KEY_FILE": str(path)})
    assert "Is a directory" in _fault({"PPDD_SECRET_KEY_FILE": str(tmp_path)})


def test_a_setting_whose_own_name_ends_in_file_is_a_path() -> None:
    settings = load_settings(
        {"PPDD_KEY_FILE": "/run/secrets/site.pem", "PPDD_PULL__CA_FILE": "/ca.pem"}
    )
    assert settings.signing_key == Path("/run/secrets/site.pem")
    assert settings.pull.ca_file == Path("/ca.pem")


def test_empty_files_of_secrets_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("\n")
    assert "PPDD_SECRET_KEY is too weak" in _fault({"PPDD_SECRET_KEY_FILE": str(path)})


@pytest.mark.parametrize(
    "name", ["PPDD_SECRET_KEY", "PPDD_DATABASE__PASSWORD", "PPDD_BROKER__PASSWORD", "PPDD_STORE__SECRET_KEY"]
)  # fmt: skip
@pytest.mark.parametrize(
    "value",
    ["changeme", "CHANGE_ME_" * 5, "minioadmin", "password123", "your-secret-goes-here-your-secret-goes-here",
     "short", "a" * 64, "abab" * 20, "postgres"],
)  # fmt: skip
def test_placeholders_and_weak_secrets_are_refused_and_not_repeated(name: str, value: str) -> None:
    told = _fault({name: value})
    assert name in told
    assert "ppdd node init" in told
    if value not in ("short", "postgres", "password123"):
        assert value not in told


def test_a_real_secret_is_none_of_these() -> None:
    assert secret_fault(SECRET) is None
    assert secret_fault(SECRET, shortest=32) is not None
    load_settings({"PPDD_SECRET_KEY": KEY, "PPDD_DATABASE__PASSWORD": SECRET})


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("PPDD_DATABASE__URL", "postgresql+psycopg://ppdd:geheim@host/ppdd"),
        ("PPDD_BROKER__URL", "redis://:geheim@host:6379/0"),
    ],
)
def test_a_password_in_a_url_is_refused_and_not_repeated(name: str, url: str) -> None:
    told = _fault({name: url})
    assert f"{name} holds a password; give that as {name.removesuffix('URL')}PASSWORD" in told
    assert "geheim" not in told


def test_a_url_that_is_none_is_refused() -> None:
    assert "PPDD_BROKER__URL is not a URL" in _fault({"PPDD_BROKER__URL": "redis://[::1"})


def test_a_store_needs_its_address_and_keys() -> None:
    told = _fault({"PPDD_STORE__KIND": "minio"})
    for name in ("PPDD_STORE__ENDPOINT", "PPDD_STORE__ACCESS_KEY", "PPDD_STORE__SECRET_KEY"):
        assert f"{name} is needed" in told


def test_secrets_do_not_show_in_what_is_printed() -> None:
    settings = load_settings({"PPDD_SECRET_KEY": KEY, "PPDD_BROKER__PASSWORD": SECRET})
    assert SECRET not in repr(settings) + str(settings) + settings.model_dump_json()


def test_settings_do_not_change() -> None:
    settings = load_settings({})
    with pytest.raises(ValueError, match="frozen"):
        settings.site_id = "b"  # type: ignore[misc]


def test_every_setting_has_a_name_and_is_described() -> None:
    names = setting_names()
    assert all(
        re.fullmatch(r"PPDD_[A-Z0-9]+(_[A-Z0-9]+)*(__[A-Z0-9]+(_[A-Z0-9]+)*)?", name)
        for name in names
    )
    for place in names.values():
        fields = Settings.model_fields
        if len(place) == 2:
            kind = fields[place[0]].annotation
            assert isinstance(kind, type)
            fields = kind.model_fields
        assert fields[place[-1]].description, place
