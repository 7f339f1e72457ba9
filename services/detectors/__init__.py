"""Detectors: classifiers trained here from packages. Research use only."""
