"""Finding the weights of a model, and making sure that they are the published ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from u2export.core.artifact import Artifact
from u2export.core.facts import Facts, WeightsFacts, model_facts
from u2export.core.models import MODELS, ModelSpec, find_model
from u2export.core.requests import RANDOM_PREFIX
from u2export.errors import ArtifactError, DependencyError, InputError, pip_command
from u2export.network.pins import expected_sha256, model_with_hash
from u2export.system.cache import weights_folder
from u2export.system.documents import is_file, read_bounded
from u2export.system.files import file_sha256

MAX_SEED_DIGITS = 18  # what PyTorch takes
DEFAULT_MODEL, FALLBACK_MODEL = "u2netp", "u2netp-demo"


@dataclass(frozen=True)
class DownloadTimeouts:
    """How long a silent server is waited for, and how often a broken transfer is resumed.

    A bare `u2export onnx` tries to fetch and then falls back, so it must not wait long for a
    network that is not there. An explicit `--model` waits the full time.
    """

    timeout_s: float
    retries: int


SHORT_TIMEOUTS, LONG_TIMEOUTS = DownloadTimeouts(5.0, 0), DownloadTimeouts(20.0, 3)


def find(
    model: ModelSpec, given: str | None = None, *, timeouts: DownloadTimeouts = LONG_TIMEOUTS
) -> Artifact:
    """Find a model's weights: the given file, `weights/` here, the cache, or a download.

    Args:
        model: the entry of the model table.
        given: what `--weights` named: a file, or `random:SEED`.
        timeouts: for a network that may not be there.

    Returns:
        The weights as an artifact of the torch backend; for `random:SEED` it has no file.

    Raises:
        InputError: the given file is not there, or SEED is no number.
        ArtifactError: a file found under the model's name is not the published one.
        DependencyError: the weights are nowhere and cannot be fetched.
    """
    if given is not None and given.startswith(RANDOM_PREFIX):
        return _random_weights(model, given)
    if given is not None:
        return _given_weights(model, Path(given))
    path = local_path(model)
    if path is None:
        path = fetch(model, timeouts)
    return _published_weights(model, path)


def find_default(given: str | None = None) -> tuple[Artifact, str]:
    """Find weights for a command without `--model`: u2netp, else the bundled demo weights.

    Returns:
        The weights, and a sentence to say where the demo weights were taken.

    Raises:
        ArtifactError: weights of u2netp are at hand but damaged.
        InputError: the given file is not there.
    """
    default, fallback = MODELS[DEFAULT_MODEL], MODELS[FALLBACK_MODEL]
    try:
        return find(default, given, timeouts=SHORT_TIMEOUTS), ""
    except DependencyError:
        note = (
            "the u2netp weights are neither here nor to be fetched, so this uses the bundled "
            "u2netp-demo weights, which are not for photographs"
        )
        return find(fallback), note


def local_path(model: ModelSpec) -> Path | None:
    """Where the weights lie on this machine, or None; nothing is verified or fetched."""
    if model.bundled:
        return bundled_path(model)
    candidates = (Path("weights") / model.file, weights_folder() / model.file)
    return next((path for path in candidates if path.is_file()), None)


def bundled_path(model: ModelSpec) -> Path:
    """Path of weights that come with the package, installed or in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "bundled" / model.file
    return installed if installed.is_file() else package.parent / "weights" / model.file


def fetch(model: ModelSpec, timeouts: DownloadTimeouts = LONG_TIMEOUTS) -> Path:
    """Fetch a model's weights into the cache.

    Raises:
        DependencyError: no source could be reached, or what fetching needs is not installed.
        ArtifactError: every source gave a file of the wrong hash.
    """
    if model.bundled:
        return bundled_path(model)
    try:
        from u2export.network import download  # requests is part of the export extra only
    except ImportError as error:
        raise DependencyError(
            f"fetching weights needs {error.name}: {pip_command('export')}, or put "
            f"{model.file} into weights/"
        ) from error
    path = weights_folder() / model.file
    download.fetch(
        model.sources,
        path,
        sha256=model.sha256,
        timeout_s=timeouts.timeout_s,
        retries=timeouts.retries,
    )
    return path


def identify(path: Path) -> tuple[str, ModelSpec]:
    """Hash a weights file and look up which model's published or pinned file it is.

    Raises:
        InputError: there is no such file.
        ArtifactError: it is empty, or no model's file.
    """
    if not is_file(path):
        raise InputError(f"there is no weights file at {path}")
    if path.stat().st_size == 0:
        raise ArtifactError(f"{path} is empty: fetch or copy it again")
    sha256 = file_sha256(path)
    model = model_with_hash(sha256)
    if model is None:
        raise ArtifactError(f"{path} is no model's published file: its sha256 is {sha256}")
    return sha256, model


def shared_source(artifacts: Sequence[Artifact], model: str | None, given: str | None) -> Artifact:
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
        return find(find_model(model), given)
    if len({one.facts.weights.sha256 for one in ours}) > 1:
        names = ", ".join(f"{one.path.name} of {one.facts.weights.name}" for one in ours)
        raise InputError(f"the candidates were made from different weights: {names}")
    return source_of(ours[0].facts, given)


def source_of(facts: Facts, given: str | None = None) -> Artifact:
    """Find the weights an artifact was made from.

    Args:
        facts: the artifact's.
        given: what `--weights` named, or None.

    Raises:
        InputError: the given file is not what the artifact was made from.
        DependencyError: they are not to be had.
        ArtifactError: what lies there is something else.
    """
    model, weights = find_model(facts.model), facts.weights
    if given is None and weights.origin == "random":
        given = weights.name
    if given is None and weights.origin == "custom":
        note = weights_folder() / "known" / weights.sha256
        given = read_bounded(note).decode(errors="replace") if is_file(note) else ""
        if not is_file(Path(given)):
            raise DependencyError(
                f"the weights {weights.name} (sha256 {weights.sha256[:12]}…) are not at hand: "
                "name them with --weights"
            )
    source = find(model, given)
    if source.facts.weights.sha256 != weights.sha256:
        raise InputError(
            f"{source.path} is not what the artifact was made from: its sha256 is "
            f"{source.facts.weights.sha256[:12]}…, that of {weights.name} {weights.sha256[:12]}…"
        )
    return source


def _random_weights(model: ModelSpec, given: str) -> Artifact:
    seed = given.removeprefix(RANDOM_PREFIX)
    if not seed.isdecimal() or len(seed) > MAX_SEED_DIGITS:
        raise InputError(f"random weights take a whole number, as in random:0, got {given[:40]!r}")
    given = f"{RANDOM_PREFIX}{int(seed)}"
    from u2export.network import checkpoint  # torch is needed to draw the values

    state = checkpoint.random_state(model.architecture, int(seed))
    return _weights_artifact(model, Path(given), checkpoint.state_sha256(state), "random")


def _given_weights(model: ModelSpec, path: Path) -> Artifact:
    if not is_file(path):
        raise InputError(f"there is no weights file at {path}")
    if path.stat().st_size == 0:
        raise ArtifactError(f"{path} is empty: fetch or copy it again")
    if path.suffix.lower() == ".onnx":
        raise InputError(
            f"{path} is an exported ONNX file, not weights: name the .pth or .safetensors file it "
            "was made from"
        )
    return _weights_artifact(model, path, file_sha256(path), "")


def _published_weights(model: ModelSpec, path: Path) -> Artifact:
    """Take a file facts under the model's own name: it must be the published or pinned one."""
    weights = _given_weights(model, path)
    facts = weights.facts.weights
    if facts.origin == "custom":
        raise ArtifactError(
            f"{path} is not {model.name}'s file (sha256 {facts.sha256[:12]}…, expected "
            f"{expected_sha256(model)[:12]}…): remove it, or name it with --weights if it is "
            "your own"
        )
    return weights


def _weights_artifact(model: ModelSpec, path: Path, sha256: str, origin: str) -> Artifact:
    facts = WeightsFacts(name=path.name, sha256=sha256, origin=origin or _origin(model, sha256))
    files = {} if origin == "random" else {path.name: sha256}
    return Artifact(path, "torch", model_facts(model, facts), files)


def _origin(model: ModelSpec, sha256: str) -> str:
    if sha256 == model.sha256:
        return "bundled" if model.bundled else "published"
    unpublished = not model.sha256 and sha256 == (expected_sha256(model) or sha256)
    return "pinned" if unpublished else "custom"
