"""Bisection: the first PyTorch module at which an exported network leaves its reference."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from u2export.compare.budgets import BUDGETS, Budget, budget_for
from u2export.compare.metrics import MIN_CONTRAST, Difference, compare_maps
from u2export.core import registry
from u2export.core.arrays import Array, Tensors
from u2export.core.artifact import Artifact
from u2export.core.enums import Precision
from u2export.errors import InputError, ParityError
from u2export.images.decode import open_image
from u2export.images.preprocess import preprocess
from u2export.network.checkpoint import load_network
from u2export.network.weights import shared_source
from u2export.parity.module_reference import ModuleReference, relative_errors
from u2export.parity.request import TORCH_REFERENCE

# Pearson's correlation. A tensor below it counts as another module's, unless its effect is equal.
MIN_CORRELATION = 0.5
# Then injecting it misses the candidate's own saliency by this share of the effect at most.
SAME_EFFECT = 0.5


class ModuleError(BaseModel):
    """How far one module's output is from the reference's.

    Attributes:
        name: name of the PyTorch module.
        relative_max: largest absolute difference, by the reference's largest absolute value;
            infinite where the candidate's tensor holds NaN or infinite values.
        relative_mean: mean absolute difference, by the reference's mean absolute value; likewise.
        difference: of the saliency, when the candidate's tensor replaces this module's output in
            the reference. None where that was not computed: the tensor is within float noise or
            not finite, its injection gave no finite saliency, or the culprit was found before it.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    relative_max: float
    relative_mean: float
    difference: Difference | None = None


class Bisection(BaseModel):
    """Where a candidate leaves its reference, and how its error grows.

    Attributes:
        culprit: the first module in execution order whose tensor puts the saliency over the
            budget, or makes values that are not finite; empty where none does.
        inputs: the modules that feed the culprit and exceed float noise themselves, largest
            relative error first.
        modules: every matched module, in execution order.
        unmatched: modules without a comparable tensor in the candidate, and why. A fault in one of
            them is attributed to a later module.
        agrees: largest absolute difference between the candidate's saliency with its tensors read
            out and as it normally runs. Errors of fused operations alone appear only here.
        over: the candidate's saliency, as it normally runs, is over the budget.
    """

    model_config = ConfigDict(frozen=True)

    culprit: str
    inputs: tuple[str, ...]
    modules: tuple[ModuleError, ...]
    unmatched: tuple[tuple[str, str], ...]
    agrees: float
    over: bool


def bisect_files(
    reference: str,
    candidate: Path,
    picture: Path,
    *,
    weights: str | None = None,
    model: str | None = None,
    budgets: dict[Precision, Budget] | None = None,
    all_modules: bool = False,
) -> Bisection:
    """Name the first PyTorch module at which a model file leaves its reference.

    Args:
        reference: `torch` for the weights the candidate was made from, or another model file of
            the same weights.
        candidate: the model file.
        picture: a picture file on which it fails.
        weights: the weights file; by default the weights the files were made from.
        model: for a file of another tool: the model it was made from.
        budgets: budgets by precision, instead of the built-in ones.
        all_modules: measure every module, also after the first over the budget.

    Raises:
        U2ExportError: as for `bisect_artifact`, `u2export.network.weights.shared_source` and
            `u2export.images.decode.open_image`.
    """
    paths = [candidate] if reference == TORCH_REFERENCE else [candidate, Path(reference)]
    artifacts = [
        registry.with_stored_precision(registry.open_artifact(path, model)) for path in paths
    ]
    facts = artifacts[0].facts
    x = preprocess(open_image(picture), facts.picture)
    if artifacts[-1].facts.size != facts.size:
        raise InputError(f"{reference} and {candidate} are for pictures of different sizes")
    return bisect_artifact(
        shared_source(artifacts, model, weights),
        artifacts[0],
        x,
        budget_for(artifacts[0], budgets or BUDGETS),
        reference=artifacts[1] if len(artifacts) > 1 else None,
        all_modules=all_modules,
    )


def bisect_artifact(
    source: Artifact,
    candidate: Artifact,
    x: Array,
    budget: Budget,
    *,
    reference: Artifact | None = None,
    all_modules: bool = False,
) -> Bisection:
    """Name the first module at which an exported network leaves its reference.

    The candidate's tensors are read out: the output of every convolution block (after batch norm
    and ReLU), side map and fusion. One by one, in execution order, they replace the modules'
    outputs in the reference. The first that puts the saliency over the budget is the culprit. A
    tensor that goes into a quantizer is read behind it: that is what the next module gets.

    Args:
        source: the weights; PyTorch's tensors are the reference.
        candidate: a file whose nodes or tensors have the modules' names, as in u2export's files,
            quantized ones too.
        x: (1,3,size,size) float32 network input.
        budget: `raw_max`, `raw_mean` and `mask_iou` are checked, the last only where the
            reference's map has a subject.
        reference: a file of these weights whose tensors are the reference instead of PyTorch's.
        all_modules: inject every module's tensor beyond float noise, also after the culprit.

    Raises:
        InputError: a file's backend shows no tensors of modules, the source is no weights file,
            or the input is not one picture of the candidate's size.
        DependencyError: a runtime is absent.
        ArtifactError: a file is damaged, or its runtime refuses it.
        ExportError: a runtime failed.
        ParityError: the reference itself gives NaN or infinite values.
    """
    if source.backend != "torch":
        raise InputError(f"{source.path} is no weights file: these are what is bisected against")
    if len(x) != 1:
        raise InputError(f"one picture at a time can be bisected, not {len(x)}")
    for artifact in (candidate, *([reference] if reference else [])):
        _require_module_tensors(artifact)
    module_reference = ModuleReference(load_network(source, lambda note: None), x)
    if reference:
        outputs = _read_outputs(reference, x, module_reference.names)
        module_reference.use_tensors(outputs.saliency, outputs.tensors)
    outputs = _read_outputs(candidate, x, module_reference.names)
    return _Comparison(module_reference, outputs, budget).bisect(all_modules=all_modules)


def raise_if_culprit(bisection: Bisection) -> None:
    """Raise an error if the file leaves its reference somewhere.

    Raises:
        ParityError: it does, or no module could be compared.
    """
    if bisection.culprit:
        raise ParityError(f"the first module over the budget is {bisection.culprit}")
    if bisection.over:
        raise ParityError("the file is over the budget, but no module of it alone explains it")
    if not bisection.modules:
        raise ParityError("no module could be compared, which proves nothing")


def _require_module_tensors(artifact: Artifact) -> None:
    if registry.load(artifact.backend).module_tensors is None:
        backends = [name for name in registry.names() if registry.load(name).module_tensors]
        raise InputError(
            f"{artifact.path} shows no tensors of its modules: artifacts of the backends "
            f"{', '.join(backends)} can be bisected, not of {artifact.backend}"
        )


@dataclass(frozen=True)
class _Outputs:
    """What a file gives for one picture.

    Attributes:
        normal: its saliency as it normally runs, (1,1,H,W).
        saliency: its saliency with its tensors read out, (1,1,H,W).
        tensors: its tensors by module.
    """

    normal: Array
    saliency: Array
    tensors: Tensors


def _read_outputs(artifact: Artifact, x: Array, names: tuple[str, ...]) -> _Outputs:
    module_tensors = registry.load(artifact.backend).module_tensors
    assert module_tensors is not None
    with registry.open_runner(artifact) as runner:
        batch = np.repeat(x, runner.min_batch, axis=0)
        normal = runner(batch)
    saliency, tensors = module_tensors(artifact, batch, names)
    first = {name: values[:1] for name, values in tensors.items()}
    return _Outputs(normal[:1], saliency[:1], first)


@dataclass(frozen=True)
class _Comparison:
    """A candidate's outputs beside the reference's.

    Attributes:
        reference: the reference on the picture.
        candidate: the candidate's outputs.
        budget: how far the saliency may differ.
    """

    reference: ModuleReference
    candidate: _Outputs
    budget: Budget

    def bisect(self, *, all_modules: bool) -> Bisection:
        """Compare the modules in execution order."""
        culprit = ""
        modules: list[ModuleError] = []
        unmatched: list[tuple[str, str]] = []
        for name in self.reference.names:
            # after a fault, no tensor need be like the reference's
            reason = self._missing(name) or ("" if culprit else self._mismatch(name))
            if reason:
                unmatched.append((name, reason))
                continue
            error = self._module_error(name)
            if (all_modules or not culprit) and self._is_beyond_noise(error):
                error = error.model_copy(update={"difference": self._effect(name)})
                culprit = culprit or (name if self._exceeds(error.difference) else "")
            modules.append(error)
        return Bisection(
            culprit=culprit,
            inputs=self._faulty_inputs(culprit, modules) if culprit else (),
            modules=tuple(modules),
            unmatched=tuple(unmatched),
            agrees=_largest_difference(self.candidate.normal, self.candidate.saliency),
            over=self._exceeds(self._saliency_difference(self.candidate.normal)),
        )

    def _missing(self, name: str) -> str:
        """Why the candidate has no such tensor, as a phrase; empty if it has."""
        if name not in self.candidate.tensors:
            return "the file has no node or tensor of this name"
        if name not in self.reference.outputs:
            return "the reference has no node or tensor of this name"
        expected = self.reference.outputs[name].shape
        actual = self.candidate.tensors[name].shape
        return "" if actual == expected else f"its shape is {actual}, not {expected}"

    def _mismatch(self, name: str) -> str:
        """Why a tensor is not what its name says, as a phrase; empty if it is.

        A fault, too, may leave nothing of the correlation. Its effect distinguishes it from a
        tensor that only has the name: injected, it gives the candidate's saliency.
        """
        tensor = self.candidate.tensors[name]
        if not np.isfinite(tensor).all():
            return ""
        correlation = _correlation(self.reference.outputs[name], tensor)
        if correlation >= MIN_CORRELATION:
            return ""
        injected = self.reference.inject(name, tensor)
        effect = _mean_difference(injected, self.reference.expected_saliency(name))
        if _mean_difference(injected, self.candidate.saliency) <= SAME_EFFECT * effect:
            return ""
        return (
            "its tensor is something else: its correlation with the reference's is "
            f"{correlation:.2f}"
        )

    def _module_error(self, name: str) -> ModuleError:
        expected, actual = self.reference.outputs[name], self.candidate.tensors[name]
        if not np.isfinite(actual).all():
            return ModuleError(name=name, relative_max=float("inf"), relative_mean=float("inf"))
        largest, mean = relative_errors(expected, actual)
        return ModuleError(name=name, relative_max=largest, relative_mean=mean)

    def _is_beyond_noise(self, error: ModuleError) -> bool:
        return error.relative_max > self.reference.noise[error.name]

    def _effect(self, name: str) -> Difference | None:
        """What the tensor alone does to the saliency; None where a value is not finite."""
        tensor = self.candidate.tensors[name]
        injected = self.reference.inject(name, tensor)
        if not (np.isfinite(tensor).all() and np.isfinite(injected).all()):
            return None
        return compare_maps(self.reference.expected_saliency(name)[0, 0], injected[0, 0])

    def _saliency_difference(self, saliency: Array) -> Difference | None:
        """The difference from the reference's saliency; None where a value is not finite."""
        if not np.isfinite(saliency).all():
            return None
        return compare_maps(self.reference.saliency[0, 0], saliency[0, 0])

    def _exceeds(self, difference: Difference | None) -> bool:
        """Whether a difference is over the budget; None, which is not finite, always is."""
        if difference is None:
            return True
        budget, contrast = self.budget, float(np.ptp(self.reference.saliency))
        return not (
            (budget.raw_max is None or difference.raw_max <= budget.raw_max)
            and difference.raw_mean <= budget.raw_mean
            and (contrast < MIN_CONTRAST or difference.mask_iou >= budget.mask_iou)
        )

    def _faulty_inputs(self, culprit: str, modules: Iterable[ModuleError]) -> tuple[str, ...]:
        """The modules that feed the culprit and exceed float noise, largest error first."""
        inputs = self.reference.inputs[culprit]
        faulty = [m for m in modules if m.name in inputs and self._is_beyond_noise(m)]
        return tuple(module.name for module in sorted(faulty, key=lambda m: -m.relative_max))


def _correlation(a: Array, b: Array) -> float:
    """Pearson's correlation; of constant tensors 1 if both are constant, else 0."""
    p, q = (t.astype(np.float64).ravel() - t.mean(dtype=np.float64) for t in (a, b))
    spread = float(np.linalg.norm(p) * np.linalg.norm(q))
    return float(p @ q) / spread if spread else float(not p.any() and not q.any())


def _mean_difference(a: Array, b: Array) -> float:
    return float(np.abs(a - b).mean())


def _largest_difference(a: Array, b: Array) -> float:
    """Largest absolute difference; NaN or infinity in both alike does not count."""
    equal = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        largest = np.where(equal, 0, np.abs(a - b)).max()
    return float("inf") if np.isnan(largest) else float(largest)
