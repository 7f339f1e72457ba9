"""Who did what, and what was refused: append-only and hash-chained."""
