"""What a page says at its top after something was done: by key, so that an address cannot put words there."""

NOTICES = {
    "welcome": "Welcome. This node is yours; here is what to do first.",
    "logged-out": "You are logged out.",
    "password-chosen": "Your password is set. Log in with it.",
}
