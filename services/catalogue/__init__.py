"""Packages: what this node offers, holds and pulled; draft, released, yanked."""
