"""The check that an artifact must pass before it is published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from u2export.compare.budgets import budget_excess, requested_budget
from u2export.compare.emulate import EmulatedNetwork
from u2export.compare.metrics import (
    Difference,
    MaskComparison,
    compare_maps,
    summarize_differences,
)
from u2export.core import registry
from u2export.core.arrays import Array
from u2export.core.artifact import Artifact
from u2export.core.backend import Runner
from u2export.core.enums import Precision
from u2export.core.execution import check_execution
from u2export.core.facts import WeightsFacts
from u2export.core.models import PictureSpec
from u2export.errors import ExportError
from u2export.images.preprocess import preprocess
from u2export.images.synthetic import draw_image
from u2export.network import checkpoint
from u2export.network.u2net import U2Net, fold_batch_norm

# Seeds of synthetic images that no weights were trained on, and of noise inputs.
IMAGE_SEEDS = (1_000_001, 1_000_002, 1_000_003)
NOISE_SEEDS = (1, 2)
EMULATED_PRECISIONS = (Precision.FP16, Precision.BF16)  # arithmetic that a CPU may lack
_reference_cache: dict[tuple[Path, WeightsFacts, PictureSpec], list[list[Array]]] = {}


def check_before_publishing(
    artifact: Artifact, source: Artifact, parent_checks: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Run a new artifact and its reference on synthetic images and noise, and compare.

    Args:
        artifact: the new artifact.
        source: the weights it was made from, which PyTorch runs; or the file it was converted
            from.
        parent_checks: figures of the parent, which has the same weights and precision. Its figures
            of emulated arithmetic hold for this artifact too.

    Returns:
        The figures by their origin: `executed` on this machine, and for half precision also
        `emulated_fp16` or `emulated_bf16`. And `ran`, a summary of what really ran.

    Raises:
        ExportError: a figure is over the budget of the precision.
        ParityError: the runtime did not run the request.
    """
    spec = artifact.facts.picture
    inputs = _make_inputs(spec)
    references = _compute_references(source, spec, inputs)
    with registry.open_runner(artifact) as runner:
        comparison = _compare_runner(runner, inputs, references, artifact.facts.outputs)
        execution = runner.executed()
    run_spec = registry.resolve_run_spec(registry.load(artifact.backend))
    check_execution(execution, run_spec, artifact.path.name)
    checks: dict[str, Any] = {
        "ran": execution.summary(),
        "executed": _check_budget(comparison, artifact, "as executed here"),
    }
    if artifact.facts.precision in EMULATED_PRECISIONS and source.backend == "torch":
        name = f"emulated_{artifact.facts.precision}"
        emulated = (parent_checks or {}).get(name)
        checks[name] = emulated or _check_emulated(artifact, source, inputs, references)
    return checks


def _make_inputs(spec: PictureSpec) -> list[Array]:
    """Make the inputs, (1,3,size,size) float32 each: synthetic images first, then noise."""
    images = [preprocess(draw_image(seed).picture, spec) for seed in IMAGE_SEEDS]
    shape = (1, 3, spec.size, spec.size)
    noise = [np.random.default_rng(seed).standard_normal(shape, np.float32) for seed in NOISE_SEEDS]
    return images + noise


def _compute_references(
    source: Artifact, spec: PictureSpec, inputs: list[Array]
) -> list[list[Array]]:
    """Compute every output of the source for each input, (1,1,size,size) float32.

    The last results of PyTorch stay in memory: an artifact and its parent have the same.
    """
    if source.backend == "torch":
        key = (source.path, source.facts.weights, spec)
        if key not in _reference_cache:
            references = _run_torch(source, inputs)
            _reference_cache.clear()
            _reference_cache[key] = references
        return _reference_cache[key]
    with registry.open_runner(source) as runner:
        batches = [np.repeat(x, runner.min_batch, axis=0) for x in inputs]
        return [[y[:1] for y in runner.maps(batch)] for batch in batches]


def _run_torch(source: Artifact, inputs: list[Array]) -> list[list[Array]]:
    network = checkpoint.load_network(source, lambda note: None, all_outputs=True)
    with torch.inference_mode():
        return [[np.array(y.numpy()) for y in network(torch.tensor(x))] for x in inputs]


def _compare_runner(
    runner: Runner, inputs: list[Array], references: list[list[Array]], output_count: int
) -> MaskComparison:
    """Compare every output of every input, in the smallest batch and in a larger one."""
    larger = runner.min_batch + 1
    batch_sizes = {runner.min_batch, min(larger, runner.max_batch or larger)}
    differences: list[Difference] = []
    contrasts: list[float] = []
    for batch_size in batch_sizes:
        for start in range(len(inputs)):
            indices = [(start + offset) % len(inputs) for offset in range(batch_size)]
            outputs = runner.maps(np.concatenate([inputs[index] for index in indices]))
            if len(outputs) != output_count:
                raise ExportError(
                    f"the artifact gives {len(outputs)} outputs instead of {output_count}"
                )
            for output_index, output in enumerate(outputs):
                for row, index in enumerate(indices):
                    expected = references[index][output_index][0, 0]
                    differences.append(compare_maps(expected, output[row, 0]))
                    contrasts.append(float(np.ptp(expected)))
    return summarize_differences(differences, contrasts)


def _check_emulated(
    artifact: Artifact, source: Artifact, inputs: list[Array], references: list[list[Array]]
) -> dict[str, Any]:
    """Check the saliency of the synthetic images in emulated arithmetic."""
    precision = artifact.facts.precision
    network = EmulatedNetwork(_artifact_network(artifact, source), precision)
    images = inputs[: len(IMAGE_SEEDS)]
    expected = [outputs[0][0, 0] for outputs in references[: len(images)]]
    emulated = [network(x)[0, 0] for x in images]
    differences = [compare_maps(a, b) for a, b in zip(expected, emulated, strict=True)]
    comparison = summarize_differences(differences, [float(np.ptp(a)) for a in expected])
    return _check_budget(comparison, artifact, f"with {precision} arithmetic, emulated")


def _artifact_network(artifact: Artifact, source: Artifact) -> U2Net:
    """Load the reference network; for bf16 with the artifact's own weights.

    Calibration images decided how these were rounded.
    """
    network = fold_batch_norm(checkpoint.load_network(source, lambda note: None))
    if artifact.facts.precision is Precision.BF16:
        _copy_weights(artifact.path, network)
    return network


def _copy_weights(path: Path, network: U2Net) -> None:
    """Copy the weights of an ONNX file's convolutions into a network."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    with torch.no_grad():
        for node in graph.node:
            if node.op_type == "Conv":
                module = network.get_submodule(node.name)
                for parameter, name in zip(("weight", "bias"), node.input[1:], strict=True):
                    values = numpy_helper.to_array(tensors[name])
                    module.get_parameter(parameter).copy_(torch.tensor(values))


def _check_budget(comparison: MaskComparison, artifact: Artifact, how: str) -> dict[str, Any]:
    """Check figures against the budget of the precision.

    Args:
        comparison: the figures.
        artifact: has the precision and the file name.
        how: the figures were obtained, for the message.

    Returns:
        The figures for the manifest, rounded.

    Raises:
        ExportError: a figure is over the budget.
    """
    excess = budget_excess(comparison, requested_budget(artifact))
    if excess:
        raise ExportError(
            f"{artifact.path.name} is not the reference's function {how}: {excess}; "
            "nothing was written"
        )
    return {name: _round_figure(value) for name, value in comparison.model_dump().items()}


def _round_figure(value: float | None) -> float | None:
    """Round to four significant digits; further digits differ between machines."""
    return float(f"{value:.4g}") if isinstance(value, float) else value
