"""An HTML page with a heading, paragraphs and a plot."""

from __future__ import annotations

import html
from collections.abc import Iterable

_STYLE = (
    "body{font:16px system-ui,sans-serif;margin:1rem;max-width:1500px;overflow-wrap:anywhere}"
    "h1{font-size:1.3rem}"
)


def render_page(title: str, lines: Iterable[str], plot: str) -> str:
    """Render the page.

    Args:
        title: the heading, plain text.
        lines: one paragraph each, plain text.
        plot: HTML.

    Returns:
        The page as HTML.
    """
    heading = html.escape(title)
    paragraphs = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{heading}</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<style>{_STYLE}</style><h1>{heading}</h1>{paragraphs}{plot}</html>\n"
    )
