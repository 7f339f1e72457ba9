"""The node itself: alive, ready, versions, metrics, and what it tells anybody about who it is."""
