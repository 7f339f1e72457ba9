"""Who may do what: one row per operation of the API, and nothing anywhere else.

The key is the operation's id in OpenAPI (tag and function name). A route without a row cannot be served: the guard
refuses it, and a test that reads the routes fails. Two questions are asked: may this role, with these scopes, call the
operation at all (else 403); and, where the row says `own`, is the thing the caller's own (the service's business: else
403 where the caller may see it, 404 where not).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class Role(StrEnum):
    """What a person is to the node; `peer` is another hospital."""

    ADMIN = "admin"
    STEWARD = "steward"
    RESEARCHER = "researcher"
    AUDITOR = "auditor"
    PEER = "peer"


class Scope(StrEnum):
    """What a token may be limited to."""

    DATASETS_READ = "datasets:read"
    DATASETS_WRITE = "datasets:write"
    IMAGES_READ = "images:read"
    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"
    PACKAGES_READ = "packages:read"
    PACKAGES_RELEASE = "packages:release"
    DETECTORS_READ = "detectors:read"
    DETECTORS_WRITE = "detectors:write"
    AUDIT_READ = "audit:read"
    ADMIN = "admin"
    ACCOUNT = "account"  # one's own tokens, sessions and password: never part of a token


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may call an operation: roles, and the scope a token needs. No roles: anybody, logged in or not."""

    roles: frozenset[Role]
    scope: Scope | None = None
    own: bool = False  # others' things only as steward or admin


_ALL = frozenset({Role.ADMIN, Role.STEWARD, Role.RESEARCHER, Role.AUDITOR})
_EVERYONE = _ALL | {Role.PEER}
_WORKING = frozenset({Role.ADMIN, Role.STEWARD, Role.RESEARCHER})
_DECIDING = frozenset({Role.ADMIN, Role.STEWARD})
_AUDITING = frozenset({Role.ADMIN, Role.AUDITOR})
_ADMIN = frozenset({Role.ADMIN})

PUBLIC = Rule(frozenset())

PERMISSIONS: dict[str, Rule] = {
    "system_live": PUBLIC,
    "system_ready": PUBLIC,
    "system_well_known": PUBLIC,
    "system_problem": PUBLIC,
    "system_info": Rule(_ALL, Scope.JOBS_READ),
    "system_metrics": Rule(_AUDITING | _DECIDING, Scope.JOBS_READ),
    # setting up and logging in
    "setup_read": PUBLIC,
    "setup_complete": PUBLIC,
    "sessions_login": PUBLIC,
    "sessions_choose_password": PUBLIC,
    "sessions_current": Rule(_ALL, Scope.ACCOUNT),
    "sessions_list": Rule(_ALL, Scope.ACCOUNT, own=True),
    "sessions_end": Rule(_ALL, Scope.ACCOUNT, own=True),
    "account_change_password": Rule(_ALL, Scope.ACCOUNT),
    "account_start_totp": Rule(_ALL, Scope.ACCOUNT),
    "account_confirm_totp": Rule(_ALL, Scope.ACCOUNT),
    "account_remove_totp": Rule(_ALL, Scope.ACCOUNT),
    "tokens_create": Rule(_ALL, Scope.ACCOUNT, own=True),
    "tokens_list": Rule(_ALL, Scope.ACCOUNT, own=True),
    "tokens_revoke": Rule(_ALL, Scope.ACCOUNT, own=True),
    "users_create": Rule(_ADMIN, Scope.ADMIN),
    "users_list": Rule(_AUDITING, Scope.ADMIN),
    "users_read": Rule(_AUDITING, Scope.ADMIN),
    "users_change": Rule(_ADMIN, Scope.ADMIN),
    "users_password_link": Rule(_ADMIN, Scope.ADMIN),
    # source datasets
    "datasets_roots": Rule(_WORKING, Scope.DATASETS_READ),
    "datasets_register": Rule(_WORKING, Scope.DATASETS_WRITE),
    "datasets_upload": Rule(_WORKING, Scope.DATASETS_WRITE),
    "datasets_list": Rule(_ALL, Scope.DATASETS_READ),
    "datasets_read": Rule(_ALL, Scope.DATASETS_READ),
    "datasets_remove": Rule(_WORKING, Scope.DATASETS_WRITE, own=True),
    "datasets_thumbnails": Rule(_WORKING, Scope.IMAGES_READ),
    "datasets_thumbnail": Rule(_WORKING, Scope.IMAGES_READ),
    "jobs_check_dataset": Rule(_WORKING, Scope.JOBS_WRITE),
    # jobs
    "jobs_create": Rule(_WORKING, Scope.JOBS_WRITE),
    "jobs_estimate": Rule(_WORKING, Scope.JOBS_WRITE),
    "jobs_presets": Rule(_ALL, Scope.JOBS_READ),
    "jobs_list": Rule(_ALL, Scope.JOBS_READ),
    "jobs_read": Rule(_ALL, Scope.JOBS_READ),
    "jobs_cancel": Rule(_WORKING, Scope.JOBS_WRITE, own=True),
    "jobs_resume": Rule(_WORKING, Scope.JOBS_WRITE, own=True),
    "jobs_events": Rule(_ALL, Scope.JOBS_READ),
    "jobs_log": Rule(_ALL, Scope.JOBS_READ),
    "jobs_pictures": Rule(_WORKING, Scope.IMAGES_READ),
    "jobs_picture": Rule(_WORKING, Scope.IMAGES_READ),
    # packages
    "packages_list": Rule(_EVERYONE, Scope.PACKAGES_READ),
    "packages_read": Rule(_EVERYONE, Scope.PACKAGES_READ),
    "packages_version": Rule(_EVERYONE, Scope.PACKAGES_READ),
    "packages_file": Rule(_EVERYONE, Scope.PACKAGES_READ),
    "packages_file_head": Rule(_EVERYONE, Scope.PACKAGES_READ),
    "packages_archive": Rule(_EVERYONE, Scope.PACKAGES_READ),
    "packages_archive_head": Rule(_EVERYONE, Scope.PACKAGES_READ),
    "packages_import": Rule(_WORKING, Scope.PACKAGES_RELEASE),
    "packages_release": Rule(_DECIDING, Scope.PACKAGES_RELEASE),
    "packages_yank": Rule(_DECIDING, Scope.PACKAGES_RELEASE),
    # pulls
    "pulls_create": Rule(_WORKING, Scope.JOBS_WRITE),
    "pulls_list": Rule(_ALL, Scope.JOBS_READ),
    # detectors
    "detectors_train": Rule(_WORKING, Scope.DETECTORS_WRITE),
    "detectors_list": Rule(_ALL, Scope.DETECTORS_READ),
    "detectors_read": Rule(_ALL, Scope.DETECTORS_READ),
    "detectors_remove": Rule(_WORKING, Scope.DETECTORS_WRITE, own=True),
    "detectors_evaluate": Rule(_WORKING, Scope.DETECTORS_WRITE),
    "detectors_evaluations": Rule(_ALL, Scope.DETECTORS_READ),
    "detectors_predict": Rule(_WORKING, Scope.DETECTORS_WRITE),
    "detectors_download": Rule(_WORKING, Scope.DETECTORS_READ),
    # the audit log
    "audit_list": Rule(_AUDITING, Scope.AUDIT_READ),
    "audit_verify": Rule(_AUDITING, Scope.AUDIT_READ),
    "audit_export": Rule(_AUDITING, Scope.AUDIT_READ),
}

# Pages of the dashboard: each asks what the operation beside it asks, of somebody who is logged in in a browser.
PAGES = {
    "overview": "system_info",
    "log_out": "sessions_end",
    "patterns": "system_info",
    # source datasets and jobs
    "datasets": "datasets_list",
    "new_dataset": "datasets_register",
    "register_dataset": "datasets_register",
    "dataset": "datasets_read",
    "check_dataset": "jobs_check_dataset",
    "remove_dataset": "datasets_remove",
    "new_distillation": "jobs_create",
    "start_distillation": "jobs_create",
    "validate_distillation": "jobs_create",
    "estimate_distillation": "jobs_estimate",
    "estimate": "jobs_estimate",
    "jobs": "jobs_list",
    "job": "jobs_read",
    "cancel_job": "jobs_cancel",
    "resume_job": "jobs_resume",
    # packages and detectors
    "packages": "packages_list",
    "package": "packages_read",
    "package_version": "packages_version",
    "package_images": "packages_version",
    "release_package": "packages_release",
    "yank_package": "packages_yank",
    "pulls": "pulls_list",
    "new_pull": "pulls_create",
    "create_pull": "pulls_create",
    "detectors": "detectors_list",
    "new_detector": "detectors_train",
    "train_detector": "detectors_train",
    "detector": "detectors_read",
    "evaluate_detector": "detectors_evaluate",
    "remove_detector": "detectors_remove",
    "prediction": "detectors_predict",
    # people, audit log, the node
    "account": "sessions_current",
    "change_password": "account_change_password",
    "start_totp": "account_start_totp",
    "confirm_totp": "account_confirm_totp",
    "remove_totp": "account_remove_totp",
    "make_token": "tokens_create",
    "revoke_token": "tokens_revoke",
    "end_session": "sessions_end",
    "users": "users_list",
    "new_user": "users_create",
    "add_user": "users_create",
    "user": "users_read",
    "change_user": "users_change",
    "make_password_link": "users_password_link",
    "make_peers_token": "users_create",  # tokens_create for others' accounts is the admins'
    "revoke_users_token": "users_change",
    "end_users_session": "users_change",
    "audit": "audit_list",
    "verify_audit": "audit_verify",
    "policy": "system_info",
    "system": "system_info",
    "check_system": "audit_verify",  # findings name places on the machine
}
PUBLIC_PAGES = frozenset(
    {
        "login_page", "log_in", "setup_page", "set_up", "password_page", "choose_password",
        "choose_appearance", "static_file", "favicon",
    }
)  # fmt: skip
PERMISSIONS |= {
    f"pages_{page}": replace(PERMISSIONS[operation], scope=Scope.ACCOUNT)
    for page, operation in PAGES.items()
}
PERMISSIONS |= {f"pages_{page}": PUBLIC for page in sorted(PUBLIC_PAGES)}


def role_scopes(role: Role) -> frozenset[Scope]:
    """Return the scopes that a token of this role may carry."""
    return frozenset(
        rule.scope
        for rule in PERMISSIONS.values()
        if role in rule.roles and rule.scope not in (None, Scope.ACCOUNT)
    ) - {None}
