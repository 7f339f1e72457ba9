"""What each kind of job does, one module each, independent of each other."""
