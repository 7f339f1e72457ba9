"""Commands of `ppdd` that run a node or speak to one. Torch-free."""
