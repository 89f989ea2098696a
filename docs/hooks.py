"""Hooks of MkDocs: put the files of measurements into the site, where pages link to them.

Pages link to `../../benchmarks/results/FILE`, which also works in a checkout.
"""

from __future__ import annotations

import posixpath
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

RESULTS = "benchmarks/results"
SITE_FOLDER = "results"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every file of measurements to the site."""
    root = Path(config.config_file_path).parent
    for path in sorted((root / RESULTS).glob("*.json")):
        address = f"{SITE_FOLDER}/{path.name}"
        files.append(File.generated(config, address, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to measurements at the site's own copies."""
    folder = posixpath.dirname(page.file.src_uri)
    checkout = posixpath.relpath(RESULTS, posixpath.join("docs", folder))
    site = posixpath.relpath(SITE_FOLDER, folder or ".")
    return markdown.replace(f"]({checkout}/", f"]({site}/")
