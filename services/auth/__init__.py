"""People, their roles, sessions and tokens; and who may do what."""
