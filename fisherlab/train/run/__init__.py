"""A training run: its loop, log and checkpoints, from the start to the end or after an interruption."""
