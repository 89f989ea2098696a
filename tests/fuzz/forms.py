"""How foreign bytes are changed, so that the later steps of a reader are reached too.

A change of any byte of an archive or of a PNG is found by its checksum, and nothing behind that is
ever tried. So parts are changed, and lengths and checksums are put right.
"""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

ChangeBytes = Callable[[bytes, int], bytes]  # content and the most bytes it may have then
Mutation = Callable[[bytes, int, random.Random, ChangeBytes], bytes]
_ODD_VALUES = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, 10**400, 0.0, -0.0, 1e-320, 1e308, 0.5),
    *("", "x", "../x", "/etc/passwd", "\0", "\ud800", "é" * 200, "0" * 64, "1e999", "nan"),
    *("fp32", "int8", "fp16", "cpu", "u2net", "1:1:1", [], {}, [[]], {"": {}}),
)
_SIGNATURE = 8  # bytes of a PNG before its first chunk
_NESTED = (".npz", ".zip")


def any_bytes(content: bytes, largest: int, chance: random.Random, change: ChangeBytes) -> bytes:
    """Change any bytes."""
    return change(content, largest)


def json_text(content: bytes, largest: int, chance: random.Random, change: ChangeBytes) -> bytes:
    """Change one to three values of a document of JSON, or bytes where it is none."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return change(content, largest)
    if chance.random() < 0.2:
        return change(content, largest)
    try:
        for _ in range(chance.randint(1, 3)):
            _change_value(document, chance, change)
        changed = json.dumps(document).encode()
    except (OverflowError, ValueError, RecursionError):  # numbers and depths that Python refuses
        return change(content, largest)
    return changed if len(changed) <= largest else change(content, largest)


def _change_value(document: Any, chance: random.Random, change: ChangeBytes) -> None:
    """Replace, remove or double one value of a document, in place."""
    holders = [one for one in _holders(document) if one]
    if not holders:
        return
    holder = chance.choice(holders)
    key = chance.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    way = chance.randrange(5)
    if way == 0:
        del holder[key]
    elif way == 1 and isinstance(holder, list):
        holder.insert(key, holder[key])
    elif way == 2 and isinstance(holder[key], str):
        holder[key] = change(holder[key].encode("utf-8", "replace"), 300).decode("utf-8", "replace")
    elif way == 3 and isinstance(holder[key], (int, float)):
        holder[key] = holder[key] * chance.choice([-1, 0, 0.5, 2, 10, 1_000_000])
    else:
        holder[key] = chance.choice(_ODD_VALUES)


def _holders(document: Any) -> list[Any]:
    """The document and all objects and lists within."""
    within = document.values() if isinstance(document, dict) else document
    if not isinstance(document, (dict, list)):
        return []
    return [document, *(holder for value in within for holder in _holders(value))]


def zip_archive(content: bytes, largest: int, chance: random.Random, change: ChangeBytes) -> bytes:
    """Change, remove or double an entry of an archive, or bytes of it where it is none."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = [(name, archive.read(name)) for name in archive.namelist()]
    except Exception:  # the bytes are foreign: zipfile raises many kinds
        entries = []
    if not entries or chance.random() < 0.2:
        return change(content, largest)
    place = chance.randrange(len(entries))
    way = chance.randrange(12)
    if way == 0:
        del entries[place]
    elif way == 1:
        entries.append(entries[place])
    elif way == 2:
        name = change(entries[place][0].encode("utf-8", "replace"), 100)
        entries[place] = (name.decode("utf-8", "replace"), entries[place][1])
    else:
        entries[place] = _changed_entry(*entries[place], largest, chance, change)
    changed = _packed(entries, chance)
    return changed if len(changed) <= largest else change(content, largest)


def _changed_entry(
    name: str, content: bytes, largest: int, chance: random.Random, change: ChangeBytes
) -> tuple[str, bytes]:
    inner = zip_archive if name.endswith(_NESTED) else any_bytes
    inner = json_text if name.endswith(".json") else inner
    return name, inner(content, largest, chance, change)


def _packed(entries: list[tuple[str, bytes]], chance: random.Random) -> bytes:
    file, way = io.BytesIO(), chance.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(file, "w", way) as archive:
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name.replace("\0", "") or "x"), content, way)
    return file.getvalue()


def png(content: bytes, largest: int, chance: random.Random, change: ChangeBytes) -> bytes:
    """Change bytes of a PNG, and put the checksums of its chunks right."""
    changed, place = bytearray(change(content, largest)), _SIGNATURE
    while place + 12 <= len(changed):
        length = int.from_bytes(changed[place : place + 4], "big")
        end = place + 8 + length
        if end + 4 > len(changed):
            break
        changed[end : end + 4] = struct.pack(">I", zlib.crc32(changed[place + 4 : end]))
        place = end + 4
    return bytes(changed)


def headed_json(content: bytes, largest: int, chance: random.Random, change: ChangeBytes) -> bytes:
    """Change the header of a safetensors file, and put its length right."""
    length = int.from_bytes(content[:8], "little")
    if not 0 < length <= len(content) - 8 or chance.random() < 0.2:
        return change(content, largest)
    header = json_text(content[8 : 8 + length], largest - 8, chance, change)
    return (len(header).to_bytes(8, "little") + header + content[8 + length :])[:largest]
