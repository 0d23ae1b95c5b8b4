"""The directory of a run: its configuration, where it comes from, and how it is written and read back."""
