"""The picture formats that are read. Pillow knows more, and some of them start other programs."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from types import MappingProxyType

from u2export.errors import pip_command

# Suffixes by Pillow's name of the format. A JPEG may be an MPO, which Pillow finds out by itself.
_FORMATS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "JPEG": (".jfif", ".jpe", ".jpeg", ".jpg"),  # Pillow has the first five at hand
        "PNG": (".apng", ".png"),
        "GIF": (".gif",),
        "BMP": (".bmp",),
        "PPM": (".pbm", ".pgm", ".pnm", ".ppm"),
        "WEBP": (".webp",),
        "TIFF": (".tif", ".tiff"),
        "AVIF": (".avif",),
        "JPEG2000": (".jp2",),
        "TGA": (".tga",),
    }
)
FORMATS_OF_SEVERAL = frozenset(
    {"AVIF", "GIF", "HEIF", "PNG", "TIFF", "WEBP"}
)  # pictures, not views
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
_HEIF_PLUGINS = ("pillow_heif", "pi_heif")  # the second only decodes
# The major brands of HEIF files, at byte 8. Source: ISO/IEC 23008-12 and the registry of MP4RA.
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


@functools.lru_cache(maxsize=1)
def _register_heif() -> bool:
    """Let Pillow read HEIF, where a plug-in for it is installed."""
    for name in _HEIF_PLUGINS:
        try:
            plugin = importlib.import_module(name)
        except ImportError:
            continue
        plugin.register_heif_opener()
        return True
    return False


def readable_formats() -> tuple[str, ...]:
    """The names by which Pillow may open a picture."""
    return (*_FORMATS, *(["HEIF"] if _register_heif() else []))


def readable_suffixes() -> frozenset[str]:
    """The suffixes that a picture in a folder may have, in small letters."""
    known = frozenset(suffix for suffixes in _FORMATS.values() for suffix in suffixes)
    return known | frozenset(HEIF_SUFFIXES) if _register_heif() else known


def unreadable_reason(head: bytes) -> str:
    """Say why a file of no readable format cannot be read, as a phrase.

    Args:
        head: its first 12 bytes.
    """
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        return f"HEIF needs a plug-in: {pip_command('heif')}"
    names = [name.lower() for name in readable_formats()]
    return f"it is none of {', '.join(names)}"


def left_out_reason(suffix: str) -> str:
    """Say why files of a suffix are left out of a folder, as a phrase."""
    if suffix in HEIF_SUFFIXES:
        return f"which needs a plug-in: {pip_command('heif')}"
    return ""
