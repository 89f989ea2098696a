"""A cache on disk for the results of a search, so that an interrupted search can continue."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from u2export.core.int8_record import MaskQuality
from u2export.system.cache import cache_folder
from u2export.system.documents import parse_model, read_bounded
from u2export.system.files import write_bytes
from u2export.system.progress import say


class SearchCache:
    """The mask quality of graphs on one set of pictures.

    The key of an entry holds all that decides it: graph, pictures and package versions.
    """

    def __init__(self, picture_hashes: Sequence[str], folder: Path | None = None) -> None:
        """Open the cache.

        Args:
            picture_hashes: sha256 of each picture.
            folder: where entries are stored, by default in the user's cache.
        """
        self._folder = folder or cache_folder() / "quantized"
        versions = [importlib.metadata.version(name) for name in ("onnxruntime", "u2export")]
        self._common_key = "\n".join([*versions, *picture_hashes]).encode()
        self._entries: dict[str, MaskQuality] = {}

    def get_or_compute(self, graph: bytes, compute: Callable[[], MaskQuality]) -> MaskQuality:
        """Return the entry of a serialized graph. Compute and store it if it is absent."""
        key = hashlib.sha256(hashlib.sha256(graph).digest() + self._common_key).hexdigest()
        if key not in self._entries:
            path = self._folder / f"{key}.json"
            entry = _read_entry(path)
            if entry is None:
                entry = compute()
                _write_entry(path, entry)
            self._entries[key] = entry
        return self._entries[key]


def _read_entry(path: Path) -> MaskQuality | None:
    """Read an entry; None if it is absent, unreadable or cut short, so that it is replaced."""
    try:
        return parse_model(read_bounded(path), MaskQuality)
    except (OSError, ValueError):
        return None


def _write_entry(path: Path, entry: MaskQuality) -> None:
    try:
        write_bytes(path, json.dumps(entry.model_dump()).encode())
    except OSError as error:
        say(f"what the search finds cannot be kept in {path.parent}: {error.strerror}")
