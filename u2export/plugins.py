"""Which backends are installed, told without importing any."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points

GROUP = "u2export.backends"


@cache  # to look through all that is installed takes a while
def entries() -> dict[str, EntryPoint]:
    """The entry points of the installed backends, by name."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def names() -> list[str]:
    """List the installed backends, importing none of them."""
    return sorted(entries())
