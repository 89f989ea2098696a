"""Which backends are installed, told without importing any."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType

GROUP = "u2export.backends"


@cache  # to look through all that is installed takes a while
def entries() -> Mapping[str, EntryPoint]:
    """The entry points of the backends, by name, as they are installed when this is first asked."""
    return MappingProxyType({entry.name: entry for entry in entry_points(group=GROUP)})


def names() -> list[str]:
    """List the installed backends, importing none of them."""
    return sorted(entries())
