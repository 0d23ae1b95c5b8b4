"""The command `fisherlab`: parse, call, print."""

from .app import main

__all__ = ["main"]
