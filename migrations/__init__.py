"""How the node's database became what the models say: one file per change, run by `ppdd node migrate`."""
