"""The built-in networks, one file a network."""
