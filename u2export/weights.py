"""Finding the weights of a model, and making sure that they are the ones that were published."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from u2export import artifact as artifacts
from u2export.artifact import Artifact, Facts, WeightsFacts
from u2export.errors import ArtifactError, DependencyError, InputError
from u2export.spec import MODELS, RANDOM, ModelSpec, model_named

DEFAULT_MODEL, FALLBACK_MODEL = "u2netp", "u2netp-demo"
# A bare `u2export onnx` tries to fetch and then falls back, so it must not wait long for a
# network that is not there; an explicit --model waits the full time.


@dataclass(frozen=True)
class Patience:
    """How long a silent server is waited for, and how often a broken transfer is resumed."""

    timeout_s: float
    retries: int


IMPATIENT, PATIENT = Patience(5.0, 0), Patience(20.0, 3)


def find(model: ModelSpec, given: str | None = None, *, patience: Patience = PATIENT) -> Artifact:
    """Find a model's weights: the given file, `weights/` here, the cache, or a download.

    Args:
        model: the entry of the model table.
        given: what `--weights` named: a file, or `random:SEED`.
        patience: with a network that may not be there.

    Returns:
        The weights as an artifact of the torch backend; for `random:SEED` it has no file.

    Raises:
        InputError: the given file is not there, or SEED is no number.
        ArtifactError: a file found under the model's name is not the published one.
        DependencyError: the weights are nowhere and cannot be fetched.
    """
    if given is not None and given.startswith(RANDOM):
        return _random(model, given)
    if given is not None:
        return _given(model, Path(given))
    path = local(model)
    if path is None:
        path = fetch(model, patience)
    return _named(model, path)


def find_default(given: str | None = None) -> tuple[Artifact, str]:
    """Find weights for a command without `--model`: u2netp, else the bundled demo weights.

    Returns:
        The weights, and a sentence to say where the demo weights were taken.

    Raises:
        ArtifactError: weights of u2netp are at hand but damaged.
        InputError: the given file is not there.
    """
    wanted, fallback = MODELS[DEFAULT_MODEL], MODELS[FALLBACK_MODEL]
    try:
        return find(wanted, given, patience=IMPATIENT), ""
    except DependencyError:
        note = (
            "the u2netp weights are neither here nor to be fetched, so this uses the bundled "
            "u2netp-demo weights, which are not for photographs"
        )
        return find(fallback), note


def local(model: ModelSpec) -> Path | None:
    """Where the weights lie on this machine, or None; nothing is verified or fetched."""
    if model.bundled:
        return bundled(model)
    places = (Path("weights") / model.file, cache() / model.file)
    return next((path for path in places if path.is_file()), None)


def cache() -> Path:
    """The folder for fetched weights: `$U2EXPORT_CACHE`, or the user's cache folder."""
    named = os.environ.get("U2EXPORT_CACHE")
    return Path(named) if named else user_cache_path("u2export") / "weights"


def bundled(model: ModelSpec) -> Path:
    """Path of weights that come with the package, installed or in a checkout."""
    package = Path(__file__).parent
    installed = package / "bundled" / model.file
    return installed if installed.is_file() else package.parent / "weights" / model.file


def fetch(model: ModelSpec, patience: Patience = PATIENT) -> Path:
    """Fetch a model's weights into the cache.

    Raises:
        DependencyError: no source could be reached, or what fetching needs is not installed.
        ArtifactError: every source gave a file of the wrong hash.
    """
    if model.bundled:
        return bundled(model)
    try:
        from u2export import download  # requests is part of the export extra only
    except ImportError as error:
        raise DependencyError(
            f"fetching weights needs {error.name}: pip install 'u2export[export]', or put "
            f"{model.file} into weights/"
        ) from error
    path = cache() / model.file
    download.fetch(
        model.sources,
        path,
        sha256=model.sha256,
        timeout_s=patience.timeout_s,
        retries=patience.retries,
    )
    return path


def known_as(sha256: str) -> ModelSpec | None:
    """The model whose published or pinned file has this hash."""
    pins = _pins()
    for model in MODELS.values():
        if sha256 in (model.sha256, pins.get(model.name)):
            return model
    return None


def identify(path: Path) -> tuple[str, ModelSpec]:
    """Hash a weights file and look up which model's published or pinned file it is.

    Raises:
        InputError: there is no such file.
        ArtifactError: it is empty, or no model's file.
    """
    if not path.is_file():
        raise InputError(f"there is no weights file at {path}")
    if path.stat().st_size == 0:
        raise ArtifactError(f"{path} is empty: fetch or copy it again")
    sha256 = artifacts.sha256_of(path)
    model = known_as(sha256)
    if model is None:
        raise ArtifactError(f"{path} is no model's published file: its sha256 is {sha256}")
    return sha256, model


def expected_sha256(model: ModelSpec) -> str:
    """The hash a file of this model must have: as published, else as first used, else empty."""
    return model.sha256 or _pins().get(model.name, "")


def pin(weights: Artifact) -> str:
    """Remember the hash of weights that no hash was published for, once they proved loadable.

    Returns:
        A sentence that says so where this is the first time, else an empty text.
    """
    found = weights.facts.weights
    if found.origin != "pinned" or found.sha256 in _pins().values():
        return ""
    known = (
        f"no hash was published for {weights.facts.model}: {found.name} has sha256 {found.sha256}"
    )
    try:
        _pin(weights.facts.model, found.sha256)
    except OSError as error:
        return f"{known}, which could not be remembered in {_pins_path()}: {error.strerror}"
    return f"{known}, which is expected from now on"


def remember(weights: Artifact) -> None:
    """Note where weights of one's own lie, so that what was made of them can be judged later.

    A cache that cannot be written is no matter: they can be named again.
    """
    if weights.facts.weights.origin != "custom":
        return
    note = cache() / "known" / weights.facts.weights.sha256
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        artifacts.write_durably(note, str(weights.path.resolve()).encode())


def common(artifacts: Sequence[Artifact], model: str | None, given: str | None) -> Artifact:
    """Find the weights that model files were made from, which must be the same for all.

    Args:
        artifacts: files of ours, or foreign ones.
        model: where all are foreign: the model they were made from.
        given: what `--weights` named, or None.

    Raises:
        InputError: they were made from different weights, or nobody says from which.
        DependencyError: the weights are not to be had.
        ArtifactError: what lies there is something else.
    """
    ours = [one for one in artifacts if not one.foreign]
    if not ours:
        if model is None:
            raise InputError("name the reference's weights with --model and --weights")
        return find(model_named(model), given)
    if len({one.facts.weights.sha256 for one in ours}) > 1:
        names = ", ".join(f"{one.path.name} of {one.facts.weights.name}" for one in ours)
        raise InputError(f"the candidates were made from different weights: {names}")
    return of(ours[0].facts, given)


def of(facts: Facts, given: str | None = None) -> Artifact:
    """Find the weights an artifact was made from.

    Args:
        facts: the artifact's.
        given: what `--weights` named, or None.

    Raises:
        InputError: the given file is not what the artifact was made from.
        DependencyError: they are not to be had.
        ArtifactError: what lies there is something else.
    """
    model, wanted = MODELS[facts.model], facts.weights
    if given is None and wanted.origin == "random":
        given = wanted.name
    if given is None and wanted.origin == "custom":
        note = cache() / "known" / wanted.sha256
        if not note.is_file() or not Path(note.read_text()).is_file():
            raise DependencyError(
                f"the weights {wanted.name} (sha256 {wanted.sha256[:12]}…) are not at hand: "
                "name them with --weights"
            )
        given = note.read_text()
    found = find(model, given)
    if found.facts.weights.sha256 != wanted.sha256:
        raise InputError(
            f"{found.path} is not what the artifact was made from: its sha256 is "
            f"{found.facts.weights.sha256[:12]}…, that of {wanted.name} {wanted.sha256[:12]}…"
        )
    return found


def _random(model: ModelSpec, given: str) -> Artifact:
    seed = given.removeprefix(RANDOM)
    if not seed.isdecimal():
        raise InputError(f"random weights take a whole number, as in random:0, got {given!r}")
    given = f"{RANDOM}{int(seed)}"
    from u2export import checkpoint  # torch is needed to draw the values

    state = checkpoint.random_state(model.architecture, int(seed))
    return _artifact(model, Path(given), checkpoint.state_sha256(state), "random")


def _given(model: ModelSpec, path: Path) -> Artifact:
    if not path.is_file():
        raise InputError(f"there is no weights file at {path}")
    if path.stat().st_size == 0:
        raise ArtifactError(f"{path} is empty: fetch or copy it again")
    if path.suffix.lower() == ".onnx":
        raise InputError(
            f"{path} is an exported ONNX file, not weights: name the .pth or .safetensors file it "
            "was made from"
        )
    return _artifact(model, path, artifacts.sha256_of(path), "")


def _named(model: ModelSpec, path: Path) -> Artifact:
    """Take a file found under the model's own name: it must be the published or pinned one."""
    weights = _given(model, path)
    found = weights.facts.weights
    if found.origin == "custom":
        raise ArtifactError(
            f"{path} is not {model.name}'s file (sha256 {found.sha256[:12]}…, expected "
            f"{expected_sha256(model)[:12]}…): remove it, or name it with --weights if it is "
            "your own"
        )
    return weights


def _artifact(model: ModelSpec, path: Path, sha256: str, origin: str) -> Artifact:
    known = WeightsFacts(name=path.name, sha256=sha256, origin=origin or _origin(model, sha256))
    files = {} if origin == "random" else {path.name: sha256}
    return Artifact(path, "torch", artifacts.model_facts(model, known), files)


def _origin(model: ModelSpec, sha256: str) -> str:
    if sha256 == model.sha256:
        return "bundled" if model.bundled else "published"
    unpublished = not model.sha256 and sha256 == (expected_sha256(model) or sha256)
    return "pinned" if unpublished else "custom"


def _pins_path() -> Path:
    return cache() / "pins.json"


def _pins() -> dict[str, str]:
    try:
        pins = json.loads(_pins_path().read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{_pins_path()} cannot be read: remove it") from error
    if not isinstance(pins, dict):
        raise ArtifactError(f"{_pins_path()} cannot be read: remove it")
    return {str(name): str(sha256) for name, sha256 in pins.items()}


def _pin(model: str, sha256: str) -> None:
    path = _pins_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        pins = {**_pins(), model: sha256}
        part = path.with_suffix(".part")
        artifacts.write_durably(part, json.dumps(pins, indent=1, sort_keys=True).encode())
        part.replace(path)
