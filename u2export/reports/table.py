"""Tables for a terminal, as plain text."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

WIDTH = 118  # characters


def render_tables(*tables: Table, width: int = WIDTH) -> str:
    """Draw tables one below the other, without colours, so that they can be stored and compared.

    Cells are shown as they are: brackets are no markup.

    Args:
        tables: at least one.
        width: of the widest, in characters.
    """
    console = Console(width=width, color_system=None, markup=False, emoji=False)
    with console.capture() as capture:
        for table in tables:
            console.print(table)
    return capture.get().rstrip("\n")
