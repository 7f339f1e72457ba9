"""Distilled set to package and back: format version 1, its signature, its checks. See `build` and `verify`."""
