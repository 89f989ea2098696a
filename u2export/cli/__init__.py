"""The command line."""

from u2export.cli.app import main

__all__ = ["main"]
