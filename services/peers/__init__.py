"""Other hospitals' nodes: pulling their packages, and verifying them before anything counts."""
