"""The check an artifact passes before it is published: the same function as the reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from u2export import checkpoint, registry
from u2export.artifact import Artifact, WeightsFacts
from u2export.backend import Array, Runner
from u2export.drawn import draw
from u2export.errors import ExportError
from u2export.executed import check
from u2export.metrics import Judgement, compare, judge
from u2export.parity.budgets import asked_of, excess
from u2export.parity.emulate import Emulated
from u2export.pipeline import preprocess
from u2export.spec import PictureSpec, Precision
from u2export.u2net import U2Net, fold_batch_norm

# Seeds of drawn pictures that no weights were trained on, and of inputs that are plain noise.
PICTURES = (1_000_001, 1_000_002, 1_000_003)
NOISE = (1, 2)
EMULATED = (Precision.FP16, Precision.BF16)  # arithmetic that a CPU may not have
_kept: dict[tuple[Path, WeightsFacts, PictureSpec], list[list[Array]]] = {}


def confirm(
    artifact: Artifact, source: Artifact, known: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Run a new artifact and its reference on drawn pictures and noise, and compare.

    Args:
        artifact: the one just written.
        source: the weights it was made from, which PyTorch runs, or the file it was converted from.
        known: figures of the parent, made from the same weights in the same precision; what they
            say of emulated arithmetic holds for this artifact too.

    Returns:
        The figures, by how they were obtained: `executed` here, and for half precision
        `emulated_fp16` as well; and `ran`, what really ran.

    Raises:
        ExportError: a figure is over the budget of the precision.
        ParityError: the runtime did something else than it was asked.
    """
    spec = artifact.facts.picture
    inputs = _inputs(spec)
    references = _references(source, spec, inputs)
    with registry.open_runner(artifact) as runner:
        executed = _executed(runner, inputs, references, artifact.facts.outputs)
        told = runner.executed()
    check(told, registry.run_spec(registry.load(artifact.backend)), artifact.path.name)
    checks: dict[str, Any] = {
        "ran": told.summary(),
        "executed": _accept(executed, artifact, "as executed here"),
    }
    if artifact.facts.precision in EMULATED and source.backend == "torch":
        name = f"emulated_{artifact.facts.precision}"
        emulated = (known or {}).get(name)
        checks[name] = emulated or _emulated(artifact, source, inputs, references)
    return checks


def _inputs(spec: PictureSpec) -> list[Array]:
    drawn = [preprocess(draw(seed).picture, spec) for seed in PICTURES]
    shape = (1, 3, spec.size, spec.size)
    noise = [np.random.default_rng(s).standard_normal(shape, np.float32) for s in NOISE]
    return drawn + noise


def _references(source: Artifact, spec: PictureSpec, inputs: list[Array]) -> list[list[Array]]:
    """What the source gives to each input, every output.

    PyTorch's are kept until others are asked for: an artifact's parent has the same.
    """
    if source.backend == "torch":
        wanted = (source.path, source.facts.weights, spec)
        found = _kept.get(wanted)
        if found is None:
            network = checkpoint.network(source, lambda note: None, all_outputs=True)
            with torch.inference_mode():
                found = [[np.array(d.numpy()) for d in network(torch.tensor(x))] for x in inputs]
            _kept.clear()
            _kept[wanted] = found
        return found
    with registry.open_runner(source) as runner:
        filled = [np.repeat(x, runner.fewest, axis=0) for x in inputs]
        return [[y[:1] for y in runner.maps(x)] for x in filled]


def _executed(
    runner: Runner, inputs: list[Array], references: list[list[Array]], outputs: int
) -> Judgement:
    """Compare every output of every input, in the smallest batch and in one that is larger."""
    larger = runner.fewest + 1
    sizes = {runner.fewest, min(larger, runner.most or larger)}
    differences, contrasts = [], []
    for size in sizes:
        for start in range(len(inputs)):
            chosen = [(start + i) % len(inputs) for i in range(size)]
            maps = runner.maps(np.concatenate([inputs[i] for i in chosen]))
            if len(maps) != outputs:
                raise ExportError(f"the artifact gives {len(maps)} outputs instead of {outputs}")
            for output, found in enumerate(maps):
                for place, i in enumerate(chosen):
                    expected = references[i][output][0, 0]
                    differences.append(compare(expected, found[place, 0]))
                    contrasts.append(float(np.ptp(expected)))
    return judge(differences, contrasts)


def _emulated(
    artifact: Artifact, source: Artifact, inputs: list[Array], references: list[list[Array]]
) -> dict[str, Any]:
    precision = artifact.facts.precision
    network = Emulated(_network(artifact, source), precision)
    maps = [network(x)[0, 0] for x in inputs[: len(PICTURES)]]
    expected = [reference[0][0, 0] for reference in references[: len(PICTURES)]]
    differences = [compare(a, b) for a, b in zip(expected, maps, strict=True)]
    judgement = judge(differences, [float(np.ptp(a)) for a in expected])
    how = f"with {precision} arithmetic, emulated"
    return _accept(judgement, artifact, how)


def _network(artifact: Artifact, source: Artifact) -> U2Net:
    """The reference network, with the artifact's own weights where pictures rounded these."""
    network = fold_batch_norm(checkpoint.network(source, lambda note: None))
    if artifact.facts.precision is Precision.BF16:
        import onnx
        from onnx import numpy_helper

        graph = onnx.load(artifact.path).graph
        values = {item.name: item for item in graph.initializer}
        with torch.no_grad():
            for node in graph.node:
                if node.op_type == "Conv":
                    module = network.get_submodule(node.name)
                    for part, name in zip(("weight", "bias"), node.input[1:], strict=True):
                        array = numpy_helper.to_array(values[name])
                        module.get_parameter(part).copy_(torch.tensor(array))
    return network


def _accept(judgement: Judgement, artifact: Artifact, how: str) -> dict[str, Any]:
    over = excess(judgement, asked_of(artifact))
    if over:
        raise ExportError(
            f"{artifact.path.name} is not the reference's function {how}: {over}; "
            "nothing was written"
        )
    return {name: _rounded(value) for name, value in judgement.model_dump().items()}


def _rounded(value: float | None) -> float | None:
    """Four significant digits: what lies beyond differs between machines, and says nothing."""
    return float(f"{value:.4g}") if isinstance(value, float) else value
