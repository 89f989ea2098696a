"""Comparison of the candidates' masks with the masks of the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from u2export.benchmark.candidates import Candidate, measurable, save_network_inputs
from u2export.benchmark.plan import TORCH_REFERENCE, BenchmarkPlan
from u2export.benchmark.report import MaskAccuracy
from u2export.compare.budgets import BUDGETS, budget_excess, budget_for
from u2export.compare.metrics import MaskComparison, compare_maps, summarize_differences
from u2export.core import registry
from u2export.core.arrays import Array
from u2export.core.artifact import Artifact
from u2export.core.requests import RunRequest
from u2export.errors import ParityError, U2ExportError
from u2export.images.decode import composite_on_white, open_image
from u2export.images.postprocess import stretch_saliency
from u2export.network import weights
from u2export.reports.mask_pair import MaskPair
from u2export.reports.text import printable
from u2export.system.progress import PhaseCallback

# Smallest IoU between masks of another input size and masks of the reference's own size. A smaller
# input gives other masks, even if the export computes the same function of its input.
MIN_RESIZED_IOU = 0.975
RANDOM_WEIGHTS = "weights of random values give no masks"
_SUBJECT_MISSING = "no picture has a subject, which proves nothing"


def compare_masks(
    candidates: list[Candidate],
    plan: BenchmarkPlan,
    pictures: tuple[Path, ...],
    folder: Path,
    phase: PhaseCallback,
) -> tuple[dict[str, MaskAccuracy | str], list[MaskPair], str]:
    """Compare the masks of every candidate with the reference's masks.

    Args:
        candidates: with their saliency maps.
        plan: names the reference.
        pictures: picture files, in the order of the saliency maps.
        folder: folder for the preprocessed pictures.
        phase: called with the name of the phase.

    Returns:
        By candidate, the accuracy or the reason why there is none. The worst picture of each
        candidate. The names of the references.
    """
    results: dict[str, MaskAccuracy | str] = {}
    worst_pairs: list[MaskPair] = []
    references: dict[str, None] = {}
    for group in _group_by_weights(candidates, plan):
        phase("comparing the masks with the reference's")
        try:
            reference = _open_reference(group, plan)
            reference_maps = _maps_by_size(reference, group, pictures, plan, folder)
        except U2ExportError as error:
            results |= {candidate.name: printable(str(error)) for candidate in group}
            continue
        references[printable(reference.path.name)] = None
        for candidate in group:
            try:
                accuracy, pair = _compare_candidate(
                    candidate, reference_maps, reference.facts.size, pictures
                )
                results[candidate.name] = _require_subject(candidate, accuracy)
                worst_pairs.append(pair)
            except ParityError as error:
                results[candidate.name] = MaskAccuracy(passed=False, reasons=(str(error),))
    return results, worst_pairs, ", ".join(references) or plan.reference


def _group_by_weights(candidates: list[Candidate], plan: BenchmarkPlan) -> list[list[Candidate]]:
    """Group candidates with saliency maps by their weights: each group has its own reference."""
    groups: dict[str, list[Candidate]] = {}
    for candidate in measurable(candidates):
        if candidate.artifact is None or not candidate.saliency:
            continue
        facts = None if candidate.artifact.foreign else candidate.artifact.facts
        key = facts.weights.sha256 if facts and plan.reference == TORCH_REFERENCE else ""
        groups.setdefault(key, []).append(candidate)
    return list(groups.values())


def _open_reference(group: list[Candidate], plan: BenchmarkPlan) -> Artifact:
    if plan.reference != TORCH_REFERENCE:
        return registry.open_artifact(Path(plan.reference), plan.model)
    artifacts = [candidate.artifact for candidate in group if candidate.artifact]
    return weights.shared_source(artifacts, plan.model, plan.weights)


def _maps_by_size(
    reference: Artifact,
    group: list[Candidate],
    pictures: tuple[Path, ...],
    plan: BenchmarkPlan,
    folder: Path,
) -> dict[int, list[Array]]:
    """Compute the reference's saliency maps: by input size, one (size,size) array per picture.

    Only a PyTorch reference has other sizes than its own.
    """
    sizes = {reference.facts.size}
    if reference.backend == TORCH_REFERENCE:
        sizes |= {candidate.artifact.facts.size for candidate in group if candidate.artifact}
    return {size: _reference_maps(reference, size, pictures, plan, folder) for size in sizes}


def _reference_maps(
    reference: Artifact, size: int, pictures: tuple[Path, ...], plan: BenchmarkPlan, folder: Path
) -> list[Array]:
    if reference.backend == TORCH_REFERENCE:
        reference = reference.with_facts(size=size)
    inputs = np.load(save_network_inputs(reference.facts.picture, pictures, folder))
    with registry.open_runner(reference, RunRequest(threads=plan.run.threads)) as runner:
        return [runner.single(x[None]) for x in inputs]


def _require_subject(candidate: Candidate, accuracy: MaskAccuracy) -> MaskAccuracy | str:
    """Refuse a pass without any subject. For random weights, return the reason instead."""
    if accuracy.iou is not None or not accuracy.passed:
        return accuracy
    if candidate.artifact and candidate.artifact.facts.weights.origin == "random":
        return RANDOM_WEIGHTS
    return accuracy.model_copy(update={"passed": False, "reasons": (_SUBJECT_MISSING,)})


def _compare_candidate(
    candidate: Candidate,
    reference_maps: dict[int, list[Array]],
    reference_size: int,
    pictures: tuple[Path, ...],
) -> tuple[MaskAccuracy, MaskPair]:
    """Compare a candidate with the reference, at the candidate's size and at the reference's size.

    The budget applies at the candidate's size. The reported figures are those at the reference's
    size.

    Raises:
        ParityError: NaN, infinite values, or nothing to compare.
    """
    assert candidate.artifact
    spec = candidate.artifact.facts.picture
    expected = reference_maps.get(spec.size)
    maps = [_worst_map(candidate, index, expected) for index in range(len(pictures))]
    reasons = _budget_violations(candidate, candidate.artifact, maps, expected)
    resized = [_resize_map(y, reference_size) for y in maps]
    summary, worst = _summarize(reference_maps[reference_size], resized)
    if spec.size != reference_size:
        reasons += _resize_violations(summary, reference_size)
    worst_picture = printable(pictures[worst].name)
    accuracy = MaskAccuracy(
        passed=not reasons,
        reasons=reasons,
        pictures=summary.pictures,
        mae=summary.mask_mae,
        iou=summary.mask_iou,
        worst_iou=summary.worst_iou,
        worst_picture=worst_picture,
    )
    pixels = np.asarray(composite_on_white(open_image(pictures[worst])))
    worst_maps = (reference_maps[reference_size][worst], resized[worst])
    stretched = [stretch_saliency(saliency, spec) for saliency in worst_maps]
    return accuracy, MaskPair(candidate.name, worst_picture, pixels, *stretched)


def _worst_map(candidate: Candidate, picture: int, expected: list[Array] | None) -> Array:
    """Return the map of a picture that differs most from the reference, over all batch indexes."""
    maps = [y for name, y in candidate.saliency.items() if name.split("/")[0] == str(picture)]
    reference = expected[picture] if expected else maps[0]

    def difference(y: Array) -> float:
        mean = float(np.abs(y - reference).mean())
        return mean if np.isfinite(mean) else float("inf")

    return max(maps, key=difference)


def _budget_violations(
    candidate: Candidate, artifact: Artifact, maps: list[Array], expected: list[Array] | None
) -> tuple[str, ...]:
    """Say what exceeds the budget at the candidate's size; empty without maps of that size."""
    if not expected:
        return ()
    budget = BUDGETS[candidate.precision] if candidate.precision else budget_for(artifact)
    summary, _ = _summarize(expected, maps)
    excess = budget_excess(summary, budget)
    return (excess,) if excess else ()


def _resize_violations(summary: MaskComparison, reference_size: int) -> tuple[str, ...]:
    """Say that masks of another input size are too far from the reference's."""
    if summary.mask_iou is None or summary.mask_iou >= MIN_RESIZED_IOU:
        return ()
    return (
        f"mask_iou {summary.mask_iou:.4f}, at least {MIN_RESIZED_IOU:g}, "
        f"against {reference_size} pixels",
    )


def _summarize(expected: list[Array], maps: list[Array]) -> tuple[MaskComparison, int]:
    """Compare maps of equal size; return the summary and the index of the worst picture."""
    differences = [compare_maps(a, b) for a, b in zip(expected, maps, strict=True)]
    summary = summarize_differences(differences, [float(np.ptp(y)) for y in expected])
    worst = min(
        range(len(differences)),
        key=lambda index: (differences[index].mask_iou, -differences[index].mask_mae),
    )
    return summary, worst


def _resize_map(saliency: Array, size: int) -> Array:
    if len(saliency) == size:
        return saliency
    image = Image.fromarray(saliency).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image, np.float32)
