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
from xml.etree import ElementTree

ChangeBytes = Callable[[bytes, int], bytes]  # content and the most bytes it may have then
Mutation = Callable[[bytes, int, random.Random, ChangeBytes], bytes]
_ODD_VALUES = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, 10**400, 0.0, -0.0, 1e-320, 1e308, 0.5),
    *("", "x", "../x", "/etc/passwd", "\0", "\ud800", "é" * 200, "0" * 64, "1e999", "nan"),
    *("fp32", "int8", "fp16", "cpu", "u2net", "1:1:1", [], {}, [[]], {"": {}}),
)
_VARINT, _BYTES = 0, 2  # wire types of protobuf
_FIXED = {1: 8, 5: 4}  # bytes of the others
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
    inner = protobuf if name.endswith(".onnx") else inner
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


def xml_text(content: bytes, largest: int, chance: random.Random, change: ChangeBytes) -> bytes:
    """Change an attribute, or remove or double an element of XML; or bytes where it is none."""
    try:
        document = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError):
        return change(content, largest)
    if chance.random() < 0.2:
        return change(content, largest)
    _change_element(chance.choice(list(document.iter())), chance, change)
    changed = ElementTree.tostring(document)
    return changed if len(changed) <= largest else change(content, largest)


def _change_element(
    element: ElementTree.Element, chance: random.Random, change: ChangeBytes
) -> None:
    way = chance.randrange(4)
    if way == 0 and len(element):
        element.remove(chance.choice(list(element)))
    elif way == 1 and len(element):
        element.append(chance.choice(list(element)))
    elif element.attrib:
        key = chance.choice(list(element.attrib))
        value = change(element.attrib[key].encode(), 2000).decode("utf-8", "replace")
        texts = [str(odd) for odd in _ODD_VALUES if len(str(odd)) < 300 and str(odd).isascii()]
        element.set(key, value if way == 2 else chance.choice(texts))


def protobuf(content: bytes, largest: int, chance: random.Random, change: ChangeBytes) -> bytes:
    """Change, remove or double a field of a message at any depth, and put lengths right."""
    fields = _message_fields(content)
    if not fields or chance.random() < 0.1:
        return change(content, largest) if content else b""
    place = chance.randrange(len(fields))
    head, value = fields[place]
    way = chance.randrange(8)
    if way == 0:
        del fields[place]
    elif way == 1:
        fields.insert(chance.randrange(len(fields)), fields[place])
    else:
        fields[place] = (head, _changed_field(head, value, chance, change))
    changed = b"".join(part for head, value in fields for part in _joined(head, value))
    return changed if len(changed) <= largest else change(content, largest)


def _changed_field(head: int, value: bytes, chance: random.Random, change: ChangeBytes) -> bytes:
    if head & 7 == _VARINT:
        return _as_varint(chance.choice([0, 1, 2, 7, 10, 16, 127, 128, 2**31, 2**63, 2**64 - 1]))
    if head & 7 in _FIXED:
        return bytes(chance.randrange(256) for _ in value)
    if value.startswith(b"{"):
        return json_text(value, 4000, chance, change)
    nested = chance.random() < 0.8 and _message_fields(value)
    return protobuf(value, 4000, chance, change) if nested else change(value, len(value) + 8)


def _message_fields(content: bytes) -> list[tuple[int, bytes]]:
    """The fields of a message, as head and bytes; none where it is no message."""
    fields, at = [], 0
    while at < len(content):
        head, at = _read_varint(content, at)
        end = at + _FIXED.get(head & 7, 0)
        if head & 7 == _BYTES:
            length, at = _read_varint(content, at)
            end = at + length
        elif head & 7 == _VARINT:
            _, end = _read_varint(content, at)
        if end > len(content):
            return []
        fields.append((head, content[at:end]))
        at = end
    return fields


def _read_varint(content: bytes, at: int) -> tuple[int, int]:
    """An integer and the place behind it, which is behind the end where it is cut."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            break
        value |= (content[at] & 0x7F) << shift
        at += 1
        if content[at - 1] < 0x80:
            return value, at
    return value, len(content) + 1


def _as_varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _joined(head: int, value: bytes) -> tuple[bytes, ...]:
    length = (_as_varint(len(value)),) if head & 7 == _BYTES else ()
    return (_as_varint(head), *length, value)
