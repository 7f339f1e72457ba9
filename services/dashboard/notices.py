"""What a page says at its top after something was done: by key, so that an address cannot put words there."""

NOTICES = {
    "welcome": "Welcome. This node is yours; here is what to do first.",
    "logged-out": "You are logged out.",
    "password-chosen": "Your password is set. Log in with it.",
    "password-changed": "Your password is changed. Your other sessions have ended.",
    "totp-removed": "One-time passwords are off: a login needs your password alone.",
    "token-revoked": "The token is revoked: it works no more.",
    "session-ended": "The session has ended.",
    "package-released": "Released: hospitals that have a token of this node can fetch it now.",
    "package-yanked": "Taken back: other hospitals read the reason instead.",
    "pull-queued": "The package is being fetched and verified.",
    "detector-queued": "The detector is being trained.",
    "evaluation-queued": "The detector is being measured; the figures appear here.",
    "detector-removed": "The detector was removed.",
    "dataset-added": "The dataset is registered. Check it next.",
    "dataset-checking": "The dataset is being checked: every image is read.",
    "dataset-removed": "The dataset was removed. Its images were not touched where they lie below a data root.",
    "job-queued": "The job is queued. It begins as soon as a worker is free.",
    "job-cancelled": "The job was asked to stop. It keeps what it has.",
    "job-resumed": "The job is queued again and goes on from what it kept.",
    "saved": "Saved.",
}
