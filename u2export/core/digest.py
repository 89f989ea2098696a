"""Digests that a model file or a manifest carries of itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from u2export.errors import ArtifactError
from u2export.system.documents import open_regular

DIGEST_KEY = "u2export.digest"
DIGEST_PREFIX = "u2export-sha256:"


def blank_digest(prefix: str = DIGEST_PREFIX) -> str:
    """What stands in the digest's place while the digest is taken."""
    return prefix + "0" * 64


def embed_digest(path: Path, prefix: str = DIGEST_PREFIX) -> None:
    """Put the digest of a model file, taken with the digest's place zeroed, into that place.

    Raises:
        ArtifactError: the file has no place for it, or more than one.
    """
    content, blank = path.read_bytes(), blank_digest(prefix).encode()
    if content.count(blank) != 1:
        raise ArtifactError(f"{path.name} has no single place for its digest")
    digest = prefix + hashlib.sha256(content).hexdigest()
    path.write_bytes(content.replace(blank, digest.encode()))


def check_digest(path: Path, prefix: str = DIGEST_PREFIX) -> bool:
    """Verify a digest put in by `embed_digest`.

    Returns:
        False where the file carries none (it is not ours).

    Raises:
        ArtifactError: the file is not the one that was written.
    """
    with open_regular(path) as file:
        content, zeros = file.read(), blank_digest(prefix).encode()
    start = content.rfind(prefix.encode())
    if start < 0:
        return False
    end = start + len(zeros)
    view = memoryview(content)
    digest = hashlib.sha256(view[:start])
    digest.update(zeros)
    digest.update(view[end:])
    if content[start:end] != (prefix + digest.hexdigest()).encode():
        raise ArtifactError(f"{path} was changed after it was exported: export it again")
    return True


def text_with_digest(document: dict[str, Any]) -> str:
    """The canonical text of a manifest with the digest of itself filled in.

    Taken from the document as it was read, not from today's fields, so that a manifest of an
    older release stays what it was.
    """
    digest = hashlib.sha256(_canonical_bytes({**document, "digest": ""})).hexdigest()
    return _canonical_bytes({**document, "digest": digest}).decode()


def _canonical_bytes(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
