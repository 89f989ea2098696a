"""All that an author of a backend imports, in one place.

A backend is one file with `BACKEND = Backend(...)` and an entry point in the group
`u2export.backends`. `docs/how-to/own-backend.md` walks through one.
"""

from __future__ import annotations

from u2export.core.arrays import Array, Tensors
from u2export.core.artifact import Artifact, converted_facts
from u2export.core.backend import Backend, BackendOption, Runner
from u2export.core.digest import DIGEST_KEY, DIGEST_PREFIX, blank_digest, embed_digest
from u2export.core.enums import Device, Precision
from u2export.core.execution import UNKNOWN, Execution, Layer
from u2export.core.facts import FACTS_KEY, Facts, parse_facts
from u2export.core.requests import ExportSpec, RunSpec
from u2export.errors import ArtifactError, DependencyError, ExportError, InputError
from u2export.system.files import file_sha256
from u2export.system.hardware import cpu_features, usable_cpus
from u2export.system.progress import say

__all__ = [
    "DIGEST_KEY",
    "DIGEST_PREFIX",
    "FACTS_KEY",
    "UNKNOWN",
    "Array",
    "Artifact",
    "ArtifactError",
    "Backend",
    "BackendOption",
    "DependencyError",
    "Device",
    "Execution",
    "ExportError",
    "ExportSpec",
    "Facts",
    "InputError",
    "Layer",
    "Precision",
    "RunSpec",
    "Runner",
    "Tensors",
    "blank_digest",
    "converted_facts",
    "cpu_features",
    "embed_digest",
    "file_sha256",
    "parse_facts",
    "say",
    "usable_cpus",
]
