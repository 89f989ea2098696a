"""Where this user's caches are."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path

# What an older release left right in the cache folder.
_OLDER_NAMES = (
    *("pins.json", "known", "u2net.pth", "u2netp.pth"),
    *("u2net_human_seg.pth", "u2net_portrait.pth"),
)


def compiled_models_folder() -> Path:
    """Where runtimes keep compiled models.

    `$U2EXPORT_COMPILED`; else in `$U2EXPORT_CACHE`, or in the user's cache.
    """
    compiled = os.environ.get("U2EXPORT_COMPILED")
    return Path(compiled) if compiled else cache_folder() / "compiled"


def cache_folder() -> Path:
    """The folder for what can be made again: `$U2EXPORT_CACHE`, or the user's cache folder."""
    named = os.environ.get("U2EXPORT_CACHE")
    return Path(named) if named else user_cache_path("u2export")


def weights_folder() -> Path:
    """The folder for fetched weights: `weights/` in the cache folder.

    Releases before 0.2 kept weights right in `$U2EXPORT_CACHE`. Such a folder stays as it is.
    """
    cache, folder = cache_folder(), cache_folder() / "weights"
    is_older = not folder.is_dir() and any((cache / name).exists() for name in _OLDER_NAMES)
    return cache if is_older else folder
