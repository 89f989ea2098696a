"""Hashes of weights that nobody published: expected from their first use on."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from u2export.core.artifact import Artifact
from u2export.core.models import MODELS, ModelSpec
from u2export.errors import ArtifactError
from u2export.system.cache import weights_folder
from u2export.system.documents import parse_json, read_bounded
from u2export.system.files import resolved, write_bytes
from u2export.system.locks import file_lock


def model_with_hash(sha256: str) -> ModelSpec | None:
    """The model whose published or pinned file has this hash."""
    pins = _read_pins()
    for model in MODELS.values():
        if sha256 in (model.sha256, pins.get(model.name)):
            return model
    return None


def expected_sha256(model: ModelSpec) -> str:
    """The hash a file of this model must have: as published, else as first used, else empty."""
    return model.sha256 or _read_pins().get(model.name, "")


def pin_weights(weights: Artifact) -> str:
    """Remember the hash of weights that no hash was published for, once they proved loadable.

    Returns:
        A sentence that says so where this is the first time, else an empty text.
    """
    facts = weights.facts.weights
    if facts.origin != "pinned" or facts.sha256 in _read_pins().values():
        return ""
    sentence = (
        f"no hash was published for {weights.facts.model}: {facts.name} has sha256 {facts.sha256}"
    )
    try:
        _write_pin(weights.facts.model, facts.sha256)
    except OSError as error:
        return f"{sentence}, which could not be remembered in {_pins_path()}: {error.strerror}"
    return f"{sentence}, which is expected from now on"


def remember_location(weights: Artifact) -> None:
    """Note where weights of one's own lie, so that what was made of them can be judged later.

    A cache that cannot be written is no matter: they can be named again.
    """
    if weights.facts.weights.origin != "custom":
        return
    note = weights_folder() / "known" / weights.facts.weights.sha256
    with contextlib.suppress(OSError):
        write_bytes(note, str(resolved(weights.path)).encode(), durable=True)


def _pins_path() -> Path:
    return weights_folder() / "pins.json"


def _read_pins() -> dict[str, str]:
    try:
        pins = parse_json(read_bounded(_pins_path()))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{_pins_path()} cannot be read: remove it") from error
    if not isinstance(pins, dict):
        raise ArtifactError(f"{_pins_path()} cannot be read: remove it")
    return {str(name): str(sha256) for name, sha256 in pins.items()}


def _write_pin(model: str, sha256: str) -> None:
    path = _pins_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(path.with_suffix(".lock")):
        pins = {**_read_pins(), model: sha256}
        write_bytes(path, json.dumps(pins, indent=1, sort_keys=True).encode(), durable=True)
