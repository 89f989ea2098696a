"""The check an artifact passes before it is published: the same function as the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from u2export import checkpoint, registry
from u2export.artifact import Artifact
from u2export.backend import Array, Runner
from u2export.drawn import draw
from u2export.errors import ExportError
from u2export.parity.budgets import BUDGETS, Judgement, excess, judge
from u2export.parity.emulate import half_precision
from u2export.parity.metrics import compare
from u2export.pipeline import preprocess
from u2export.spec import Precision
from u2export.u2net import U2Net

# Seeds of drawn pictures that no weights were trained on, and of inputs that are plain noise.
PICTURES = (1_000_001, 1_000_002, 1_000_003)
NOISE = (1, 2)


def confirm(artifact: Artifact, parent: Artifact) -> dict[str, Any]:
    """Run a new artifact and its reference on drawn pictures and noise, and compare.

    Args:
        artifact: the one just written.
        parent: the weights it was made from.

    Returns:
        The figures, by how they were obtained: `executed` here, and for half precision
        `emulated` as well.

    Raises:
        ExportError: a figure is over the budget of the precision.
    """
    network = checkpoint.network(parent, lambda note: None, all_outputs=True)
    inputs = _inputs(artifact)
    references = [_reference(network, x) for x in inputs]
    with registry.open_runner(artifact) as runner:
        executed = _executed(runner, inputs, references, artifact.facts.outputs)
    checks: dict[str, Any] = {"executed": _accept(executed, artifact, "as executed here")}
    if artifact.facts.precision is Precision.FP16:
        emulated = _emulated(network, inputs[: len(PICTURES)], references)
        checks["emulated_fp16"] = _accept(emulated, artifact, "with half-precision arithmetic")
    return checks


def _inputs(artifact: Artifact) -> list[Array]:
    spec = artifact.facts.picture
    drawn = [preprocess(draw(seed).picture, spec) for seed in PICTURES]
    shape = (1, 3, spec.size, spec.size)
    noise = [np.random.default_rng(s).standard_normal(shape, np.float32) for s in NOISE]
    return drawn + noise


def _reference(network: U2Net, x: Array) -> list[Array]:
    with torch.inference_mode():
        return [np.array(d.numpy()) for d in network(torch.tensor(x))]


def _executed(
    runner: Runner, inputs: list[Array], references: list[list[Array]], outputs: int
) -> Judgement:
    """Compare every output of every input, alone and, where the batch is not 1, in a batch."""
    sizes = {1, 2} if runner.batch is None else {runner.batch}
    differences, contrasts = [], []
    for size in sizes:
        for start in range(len(inputs)):
            chosen = [(start + i) % len(inputs) for i in range(size)]
            maps = runner.maps(np.concatenate([inputs[i] for i in chosen]))
            if len(maps) != outputs:
                raise ExportError(f"the artifact gives {len(maps)} outputs instead of {outputs}")
            for output, found in enumerate(maps):
                expected = references[start][output][0, 0]
                differences.append(compare(expected, found[0, 0]))
                contrasts.append(float(np.ptp(expected)))
    return judge(differences, contrasts)


def _emulated(network: U2Net, inputs: list[Array], references: list[list[Array]]) -> Judgement:
    maps = [half_precision(network, x)[0, 0] for x in inputs]
    expected = [reference[0][0, 0] for reference in references[: len(inputs)]]
    differences = [compare(a, b) for a, b in zip(expected, maps, strict=True)]
    return judge(differences, [float(np.ptp(a)) for a in expected])


def _accept(judgement: Judgement, artifact: Artifact, how: str) -> dict[str, Any]:
    over = excess(judgement, BUDGETS[artifact.facts.precision])
    if over:
        raise ExportError(
            f"{artifact.path.name} is not the reference's function {how}: {over}; "
            "nothing was written"
        )
    return {name: _rounded(value) for name, value in judgement.model_dump().items()}


def _rounded(value: float | None) -> float | None:
    """Four significant digits: what lies beyond differs between machines, and says nothing."""
    return float(f"{value:.4g}") if isinstance(value, float) else value
