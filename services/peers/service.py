"""Rules of pulling: what may be asked for, and what a pull job is told. The work is the worker's."""

from __future__ import annotations

from sqlalchemy.orm import Session

from ppdd_core.errors import SignatureError
from ppdd_core.package.manifest import Usage, identity_problems
from ppdd_core.package.signature import parse_fingerprint
from services.audit import service as audit
from services.auth.principal import Principal
from services.catalogue import service as catalogue
from services.jobs import service as jobs
from services.jobs.models import Job, Kind
from services.kit.errors import NotFoundError, UnprocessableError
from services.kit.secrets import Vault
from services.peers.address import parse_node_url
from services.settings import Settings

_ANY_USE = Usage(licence="any", purposes=("DUO:0000042",))


class BadPullError(UnprocessableError):
    """The pull asks for something that is no package version, or this site's own."""

    slug, title = "bad-pull", "This cannot be pulled"


def request_pull(
    session: Session,
    settings: Settings,
    vault: Vault,
    principal: Principal,
    *,
    url: str,
    package: str,
    key: str,
    token: str,
    idempotency_key: str | None = None,
) -> tuple[Job, bool]:
    """Return the queued pull of `site/name@version`, and whether it is new.

    The token is sealed in the job and stands nowhere else. BadNodeUrlError, AddressRefusedError or BadPullError where
    it cannot work from the start; names are looked up by the worker only.
    """
    node = parse_node_url(url, settings.pull)
    site, name, version = _parsed(package)
    if site == settings.site_id:
        raise BadPullError(f"{package} is this site's own package")
    try:
        pinned = parse_fingerprint(key)
    except SignatureError as error:
        raise BadPullError(f"key: {error}") from None
    job, new = jobs.create(
        session,
        settings.jobs,
        principal,
        kind=Kind.PULL,
        title=f"Pull {site}/{name}@{version}",
        spec={"url": str(node), "site": site, "name": name, "version": version, "key": pinned},
        idempotency_key=idempotency_key,
        credential=token,
        vault=vault,
    )
    if new:
        detail = {"package": f"{site}/{name}@{version}", "node": str(node), "key": pinned}
        audit.record(session, principal.actor, "package.pull", str(job.id), detail=detail)
    return job, new


def _parsed(package: str) -> tuple[str, str, str]:
    try:
        site, name, version = catalogue.split_name(package)
    except NotFoundError as error:
        raise BadPullError(f"package: {error.detail}") from None
    problems = identity_problems(
        name=f"{site}/{name}", version=version, site_id=site, site_name=site, usage=_ANY_USE
    )
    if problems:
        raise BadPullError(f"package: {'; '.join(problems)}")
    return site, name, version
