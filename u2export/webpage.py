"""A page with a heading, some lines and a plot, that needs nothing but itself."""

from __future__ import annotations

import html
from collections.abc import Iterable

_STYLE = (
    "body{font:16px system-ui,sans-serif;margin:1rem;max-width:1500px;overflow-wrap:anywhere}"
    "h1{font-size:1.3rem}"
)


def page(title: str, lines: Iterable[str], plot: str) -> str:
    """Write the page.

    Args:
        title: its heading, as text.
        lines: paragraphs, as text.
        plot: HTML.
    """
    heading, paragraphs = html.escape(title), "".join(f"<p>{html.escape(one)}</p>" for one in lines)
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{heading}</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<style>{_STYLE}</style><h1>{heading}</h1>{paragraphs}{plot}</html>\n"
    )
