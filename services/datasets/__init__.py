"""Source datasets: which real images this hospital holds. They never leave it."""
