"""What a search has found already, kept on disk so that one that was stopped goes on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import ValidationError

from u2export.machine import cache_folder
from u2export.progress import say
from u2export.quant.account import Point


class Notebook:
    """The masks of graphs on one set of pictures, by what decides them."""

    def __init__(self, pictures: Sequence[str], folder: Path | None = None) -> None:
        """Begin, or go on.

        Args:
            pictures: sha256 of each.
            folder: where notes are kept; by default in the user's cache.
        """
        self._folder = folder or cache_folder() / "quantized"
        versions = [importlib.metadata.version(name) for name in ("onnxruntime", "u2export")]
        self._pictures = "\n".join([*versions, *pictures]).encode()
        self._seen: dict[str, Point] = {}

    def noted(self, graph: bytes, find: Callable[[], Point]) -> Point:
        """Give what is noted of a graph, or find it and note it."""
        name = hashlib.sha256(hashlib.sha256(graph).digest() + self._pictures).hexdigest()
        if name not in self._seen:
            path = self._folder / f"{name}.json"
            self._seen[name] = _read(path) or _kept(path, find())
        return self._seen[name]


def _read(path: Path) -> Point | None:
    try:
        return Point.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        return None  # cut short, or not to be read: it is found anew, and written anew


def _kept(path: Path, point: Point) -> Point:
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(point.model_dump()))
        part.replace(path)
    except OSError as error:
        say(f"what the search finds cannot be kept in {path.parent}: {error.strerror}")
    return point
