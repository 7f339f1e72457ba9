"""Many distillations side by side: a grid of recipes and seeds, resumable, summed up in one report."""
