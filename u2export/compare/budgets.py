"""How far an export may differ from its reference, per precision, and the source of each figure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from u2export.compare.metrics import MaskComparison
from u2export.core.artifact import Artifact
from u2export.core.enums import Precision
from u2export.core.int8_record import read_int8_record
from u2export.errors import InputError
from u2export.system.documents import first_line, parse_json, parse_model, read_bounded

_Error = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Ratio = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_LOWER_BOUNDS = ("mask_iou", "worst_iou", "worst_boundary")  # the other fields are upper bounds
# Whatever an export's request allows: beyond these a mask shows something else. An inverted mask
# has IoU 0. Who asked for the best effort gets it, and its measured loss is the budget.
_LEAST_IOU, _LARGEST_MAE = 0.25, 0.5
_TOLERANCE_FACTOR = 3.0  # other pictures may lose this many times what the measured ones lost


class Budget(BaseModel):
    """The largest differences with which two networks count as the same function.

    Attributes:
        raw_max: largest difference of the saliency, for every picture; None for no limit.
        raw_mean: mean difference of the saliency, for every picture.
        mask_mae: mean over the pictures that have a subject.
        mask_iou: mean over the pictures that have a subject.
        worst_iou: for every picture that has a subject.
        worst_boundary: F measure of the boundary, for every picture that has a subject.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    raw_max: _Error | None
    raw_mean: _Error
    mask_mae: _Error
    mask_iou: _Ratio
    worst_iou: _Ratio
    worst_boundary: _Ratio = 0.0


# "Floor" is the largest difference between computations of the same function: PyTorch's two memory
# layouts, float64, onnxruntime and OpenVINO. It is measured on real u2netp weights with 16
# photographs, 16 synthetic pictures and noise (benchmarks/noise_floor.py). An artifact gives the
# same bytes when it runs twice, when it is rebuilt, and with one thread or all. Only PyTorch's
# threads make a difference (1.2e-7).
BUDGETS = {
    Precision.FP32: Budget(
        raw_max=3e-4,  # floor 1.0e-4, in single pixels; PyTorch itself is 0.9e-4 from float64
        raw_mean=1e-5,  # floor 1.2e-6, times eight
        mask_mae=1e-4,  # floor 1.2e-6
        mask_iou=0.999,  # floor 0.99998
        worst_iou=0.998,  # floor 0.99998
        worst_boundary=0.99,  # floor 1
    ),
    # Measured with emulation on real u2netp weights and eight photographs
    # (benchmarks/author_masks.py).
    Precision.FP16: Budget(
        raw_max=None,  # single pixels on a steep edge move by 0.1 and more
        raw_mean=3e-3,  # 0.0010 at worst, times three
        mask_mae=2e-3,  # 0.0006, times three
        mask_iou=0.99,  # 0.9976: four times its distance from 1
        worst_iou=0.98,  # 0.9960: five times its distance from 1
    ),
    # Measured with emulation on real u2netp weights and 18 photographs. OpenVINO's own bfloat16
    # gives IoU 0.963 (worst 0.90) and exceeds this budget: only a budget file allows it.
    Precision.BF16: Budget(
        raw_max=None,
        raw_mean=3e-2,  # int8 that ruins the mask gives 0.1
        mask_mae=1.2e-2,  # 0.0052, times two
        mask_iou=0.97,  # 0.985: twice its distance from 1
        worst_iou=0.92,  # 0.958: twice its distance from 1
    ),
    # Measured on u2export's int8 of real u2netp weights, with onnxruntime and OpenVINO, on
    # photographs that did not calibrate it (benchmarks/int8.py). There NNCF gives IoU 0.66, and
    # onnxruntime's quantizer 0.70. NNCF with the one sensitive convolution in float32 gives 0.988
    # (worst 0.969).
    Precision.INT8: Budget(
        raw_max=None,
        raw_mean=2e-2,  # naive int8 gives 0.1
        mask_mae=4e-3,  # 0.0013, times three
        mask_iou=0.985,  # 0.994: two and a half times its distance from 1
        worst_iou=0.94,  # photographs 0.987, a synthetic picture with hardly any subject 0.959
    ),
}


def read_budgets(path: Path) -> dict[Precision, Budget]:
    """Read a budget file such as `{"fp16": {"mask_mae": 0.004}}`.

    Returns:
        The budget of every precision. What the file does not name has its default.

    Raises:
        InputError: the file cannot be read, or has an unknown precision or field.
    """
    try:
        overrides = _parse_overrides(read_bounded(path))
        return {
            precision: parse_model(
                json.dumps({**budget.model_dump(), **overrides.get(precision, {})}), Budget
            )
            for precision, budget in BUDGETS.items()
        }
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (InputError, ValueError) as error:
        raise InputError(f"{path} is no budget file: {first_line(error)}") from error


def _parse_overrides(content: bytes) -> dict[Precision, dict[str, Any]]:
    """The fields that a budget file names, by precision; their values are not checked yet."""
    document = parse_json(content)
    if not isinstance(document, dict) or not all(isinstance(v, dict) for v in document.values()):
        raise InputError('it must be like {"fp16": {"mask_mae": 0.004}}')
    return {Precision.named(name): fields for name, fields in document.items()}


def budget_excess(comparison: MaskComparison, budget: Budget) -> str:
    """Describe the metrics that exceed the budget; an empty text if none does."""
    excess = []
    for name in ("raw_max", "raw_mean", "mask_mae"):
        value, allowed = getattr(comparison, name), getattr(budget, name)
        if value is not None and allowed is not None and not value <= allowed:
            excess.append(f"{name} {value:.2g} (allowed {allowed:g})")
    for name in ("mask_iou", "worst_iou"):
        value, minimum = getattr(comparison, name), getattr(budget, name)
        if value is not None and not value >= minimum:
            excess.append(f"{name} {value:.4f} (at least {minimum:g})")
    return ", ".join(excess)


def budget_for(artifact: Artifact, budgets: Mapping[Precision, Budget] = BUDGETS) -> Budget:
    """Give the budget of the precision that was found in an artifact.

    What was promised of int8 can only tighten it. Budgets of the user are taken as they are.

    Args:
        artifact: from `registry.with_stored_precision`.
        budgets: by precision; the built-in ones unless the user named others.
    """
    budget, promise = budgets[artifact.facts.precision], artifact.facts.quantization
    if artifact.facts.precision is not Precision.INT8 or promise is None or budgets != BUDGETS:
        return budget
    return budget.model_copy(
        update={
            "mask_iou": max(budget.mask_iou, promise.min_iou),
            "mask_mae": min(budget.mask_mae, promise.max_mae),
        }
    )


def looser_bounds(budget: Budget, precision: str) -> str:
    """Say where a budget allows more than the built-in one; empty where it does not.

    Args:
        budget: of the user.
        precision: its name; float32's built-in budget counts for an unknown one.
    """
    own = {str(name): own for name, own in BUDGETS.items()}.get(precision, BUDGETS[Precision.FP32])
    looser = []
    for name, bound in own:
        value = getattr(budget, name)
        allows_more = (
            value < bound
            if name in _LOWER_BOUNDS
            else bound is not None and (value is None or value > bound)
        )
        if allows_more:
            looser.append(f"{name} {'any' if value is None else f'{value:g}'} instead of {bound:g}")
    return ", ".join(looser)


def requested_budget(artifact: Artifact) -> Budget:
    """Choose the budget of the check before publishing, from what the user asked of the export.

    It is the budget of the precision. For int8 it is never stricter than the user's request. A
    best-effort artifact may miss the request. Its budget then follows its measured loss, with room
    for other pictures. Nothing that is judged later gets such a budget: there the file would say
    how strictly it is judged.
    """
    budget, request = BUDGETS[artifact.facts.precision], artifact.facts.quantization
    if artifact.facts.precision is not Precision.INT8 or request is None:
        return budget
    iou_loss, mae = 1 - request.min_iou, request.max_mae
    if request.best_effort:
        result = read_int8_record(artifact).result
        if result.mask_iou is None or result.mask_mae is None:
            iou_loss, mae = 1.0, 1.0  # no picture had a mask to lose
        else:
            iou_loss = max(iou_loss, _TOLERANCE_FACTOR * (1 - result.mask_iou))
            mae = max(mae, _TOLERANCE_FACTOR * result.mask_mae)
    factor = max(1.0, iou_loss / (1 - budget.mask_iou), mae / budget.mask_mae)
    least_iou, largest_mae = (0.0, 1.0) if request.best_effort else (_LEAST_IOU, _LARGEST_MAE)
    return Budget(
        raw_max=None,
        raw_mean=min(largest_mae, factor * budget.raw_mean),
        mask_mae=min(largest_mae, max(mae, budget.mask_mae)),
        mask_iou=max(least_iou, min(1 - iou_loss, budget.mask_iou)),
        worst_iou=max(0.0, 1 - factor * (1 - budget.worst_iou)),
    )
