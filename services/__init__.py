"""The node: a hospital's API over its source datasets, jobs, packages and detectors. Torch-free."""
