"""Text that is safe to print and to embed in reports."""

from __future__ import annotations

import re

# Characters with a meaning in Markdown. An underscore between letters has none.
_MARKUP = re.compile(r"[\\`*\[\]<>|~$&#]|(?<!\w)_|_(?!\w)")


def printable(text: str) -> str:
    """Replace what UTF-8 cannot encode: file names may hold bytes that are no text."""
    return text.encode("utf-8", "replace").decode("utf-8")


def escape_markdown(text: str) -> str:
    """Escape text for Markdown and join it to one line, so that it also fits into a table."""
    return _MARKUP.sub(lambda match: "\\" + match[0], " ".join(printable(text).split()))
