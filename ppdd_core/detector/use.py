"""What stands on every detector: what it is for, and the names of its two files. Torch-free."""

USE = "Research use only. Not for diagnosis."
DESCRIPTION, WEIGHTS = "detector.json", "weights.safetensors"
