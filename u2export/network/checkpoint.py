"""Loading a weights file into the reference network, without running code and with strict keys."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from u2export.core.artifact import Artifact
from u2export.core.enums import Architecture
from u2export.core.requests import RANDOM_PREFIX
from u2export.errors import ArtifactError
from u2export.network.containers import Say, State, read_state
from u2export.network.u2net import U2Net, empty_state

_COUNTER = "num_batches_tracked"  # bookkeeping of training; plays no part in inference


def load_network(weights: Artifact, say: Say, *, all_outputs: bool = False) -> U2Net:
    """Build the reference network with the weights that `u2export.network.weights.find` found.

    Args:
        weights: a weights file, or `random:SEED`.
        say: told, in a sentence each, what was unwrapped or left out.
        all_outputs: let the network give d0..d6.

    Returns:
        The network in evaluation mode, float32, on the CPU.

    Raises:
        ArtifactError: the file is damaged, would run code, or does not fit the architecture.
    """
    architecture = weights.facts.architecture
    if not weights.files and weights.facts.weights.origin == "random":
        state = random_state(
            architecture, int(weights.facts.weights.name.removeprefix(RANDOM_PREFIX))
        )
    else:
        state = read_state(weights.path, say)
    net = U2Net(architecture, all_outputs=all_outputs)
    net.load_state_dict(fit_state(state, architecture, weights.path), strict=True)
    return net.eval()


def random_state(architecture: Architecture, seed: int) -> State:
    """PyTorch's initial values for a seed; for measuring latency, no mask means anything."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return U2Net(architecture).state_dict()


def state_sha256(state: State) -> str:
    """Hash names and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def fit_state(state: State, architecture: Architecture, path: Path) -> State:
    """Check names, shapes and values against the architecture; give float32 tensors.

    Raises:
        ArtifactError: something is missing, foreign, of the other size, quantized or not finite.
    """
    expected = empty_state(architecture)
    missing = [k for k in expected if k not in state and not k.endswith(_COUNTER)]
    foreign = [k for k in state if k not in expected]
    if missing or foreign:
        raise ArtifactError(
            f"{path} does not hold U²-Net's weights: {_first_names(missing, 'missing')}, "
            f"{_first_names(foreign, 'foreign')}"
        )
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise ArtifactError(_wrong_shape(state, name, architecture, path))
        if expected[name].is_floating_point() and not tensor.is_floating_point():
            raise ArtifactError(
                f"{path} holds {tensor.dtype} in {name}: weights that are quantized already have "
                "lost what is needed; give those they were made from"
            )
    fitted = {
        name: state[name].to(tensor.dtype)
        if name in state
        else torch.zeros_like(tensor, device="cpu")
        for name, tensor in expected.items()
    }
    for name, tensor in fitted.items():
        if not torch.isfinite(tensor).all():
            what = "NaN or infinite values"
            if torch.isfinite(state[name]).all():
                what = "values beyond float32's range"
            raise ArtifactError(f"{path} holds {what} in {name}")
    return fitted


def _wrong_shape(state: State, name: str, architecture: Architecture, path: Path) -> str:
    classes = list(state["outconv.weight"].shape[:1])
    if classes not in ([], [1]):
        return f"{path} holds a network of {classes[0]} classes; u2export takes those of one class"
    other = next(a for a in Architecture if a is not architecture)
    shapes = {name: tensor.shape for name, tensor in empty_state(other).items()}
    if all(v.shape == shapes[k] for k, v in state.items()):
        return (
            f"{path} holds weights of the {other} U²-Net, not of the {architecture} one: "
            f"choose a --model of that size"
        )
    shape = tuple(state[name].shape)
    return f"{path} has {name} in shape {shape}, which fits neither size of U²-Net"


def _first_names(names: list[str], what: str) -> str:
    if not names:
        return f"nothing {what}"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{what} {', '.join(names[:3])}{more}"
