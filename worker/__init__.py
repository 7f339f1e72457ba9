"""The worker: takes jobs from the node's table and does them in a fresh process each, with `ppdd_core`."""
