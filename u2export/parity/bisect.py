"""Which PyTorch module an exported network first leaves its reference at."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table
from torch import nn

from u2export import checkpoint, registry
from u2export.artifact import Artifact
from u2export.backend import Array, Tensors
from u2export.errors import InputError
from u2export.metrics import MIN_CONTRAST, Difference, compare
from u2export.parity.budgets import Budget
from u2export.u2net import ConvBlock, U2Net

# A relative error that is no fault: a module's own float32 rounding, measured on the picture
# against float64, times ROUNDINGS, and never less than NOISE. Whole fp32 exports reach 3.7 times
# that rounding (onnxruntime and OpenVINO, real and demo weights, 14 pictures); the rounding itself
# is up to 1.3e-4 on real u2netp weights.
NOISE = 1e-5
ROUNDINGS = 6
# Pearson's: below it a tensor is taken for another one, unless its effect is the same.
CORRELATED = 0.5
SAME_EFFECT = 0.5  # share of the effect by which the candidate's own saliency may be missed
_TINY = 32  # pixels; what feeds what is the same at every size
_WIDTH = 118
_BAR = (-7.0, 1.0)  # logarithms of the relative error at which a bar in the table is empty and full
_BAR_WIDTH = 16


class ModuleError(BaseModel):
    """How far one module's output is from the reference's.

    Attributes:
        name: of the PyTorch module.
        relative_max: largest absolute difference, by the reference's largest absolute value;
            infinite where the candidate's tensor holds NaN or infinite values.
        relative_mean: mean absolute difference, by the reference's mean absolute value; likewise.
        difference: of the saliency when the candidate's tensor takes this module's place in the
            reference. None where that was not computed: the tensor is within float noise or not
            finite, its injection gave no finite saliency, or the culprit was found before it.
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
        inputs: the modules that feed the culprit and are beyond float noise themselves, largest
            relative error first.
        modules: every matched module, in execution order.
        unmatched: modules of which the candidate shows no tensor that can be compared, and why;
            a fault in one of them is laid to a module after it.
        agrees: largest absolute difference between the candidate's saliency with its tensors read
            out and as it normally runs; what only its fused operations do shows here alone.
        over: the candidate's saliency, as it normally runs, is over the budget.
    """

    model_config = ConfigDict(frozen=True)

    culprit: str
    inputs: tuple[str, ...]
    modules: tuple[ModuleError, ...]
    unmatched: tuple[tuple[str, str], ...]
    agrees: float
    over: bool


def bisect(
    source: Artifact,
    candidate: Artifact,
    x: Array,
    budget: Budget,
    *,
    reference: Artifact | None = None,
    whole: bool = False,
) -> Bisection:
    """Name the first module at which an exported network leaves its reference.

    The candidate runs with the output of every convolution block (after batch norm and ReLU), side
    map and fusion read out. One by one, in execution order, these take the modules' places in the
    reference; the first that puts the saliency over the budget is the culprit. A tensor that goes
    into a quantizer is taken as it comes out of it, which is what the next module gets.

    Args:
        source: the weights; PyTorch's tensors are what is compared with.
        candidate: a file whose nodes or tensors are named after modules, as ours are and stay when
            they are quantized.
        x: (1,3,size,size) float32 network input.
        budget: `raw_max`, `raw_mean` and `mask_iou` are judged, the last only where the
            reference's map has a subject.
        reference: a file of these weights whose tensors are compared with instead of PyTorch's.
        whole: inject every module's tensor beyond float noise, also after the culprit.

    Raises:
        InputError: a file's backend shows no tensors of modules, the source is no weights file,
            or the input is not one picture of the candidate's size.
        DependencyError: a runtime is not there.
        ArtifactError: a file is damaged, or its runtime refuses it.
        ExportError: a runtime failed.
        ParityError: the reference itself gives NaN or infinite values.
    """
    if source.backend != "torch":
        raise InputError(f"{source.path} is no weights file: these are what is bisected against")
    if len(x) != 1:
        raise InputError(f"one picture at a time can be bisected, not {len(x)}")
    for one in (candidate, *([reference] if reference else [])):
        _refuse_mute(one)
    network = _Reference(checkpoint.network(source, lambda note: None), x)
    if reference:
        _, saliency, tensors = _read(reference, x, network.names)
        network.take(saliency, tensors)
    normal, saliency, tensors = _read(candidate, x, network.names)
    search = _Search(network, tensors, saliency, budget)
    culprit, modules, unmatched = search.run(whole=whole)
    return Bisection(
        culprit=culprit,
        inputs=_worst(network, culprit, modules) if culprit else (),
        modules=modules,
        unmatched=unmatched,
        agrees=_apart(normal, saliency),
        over=search.over(normal),
    )


def _refuse_mute(artifact: Artifact) -> None:
    if registry.load(artifact.backend).tensors is None:
        able = [name for name in registry.names() if registry.load(name).tensors]
        raise InputError(
            f"{artifact.path} shows no tensors of its modules: artifacts of the backends "
            f"{', '.join(able)} can be bisected, not of {artifact.backend}"
        )


def _read(artifact: Artifact, x: Array, names: tuple[str, ...]) -> tuple[Array, Array, Tensors]:
    """The saliency as a file normally gives it, that with its tensors read out, and the tensors."""
    tensors = registry.load(artifact.backend).tensors
    assert tensors is not None
    with registry.open_runner(artifact) as runner:
        filled = np.repeat(x, runner.fewest, axis=0)
        normal = runner(filled)
    saliency, shown = tensors(artifact, filled, names)
    return normal[:1], saliency[:1], {name: values[:1] for name, values in shown.items()}


def _worst(network: _Reference, culprit: str, modules: tuple[ModuleError, ...]) -> tuple[str, ...]:
    feeding = [m for m in modules if m.name in network.feeds[culprit]]
    feeding = [m for m in feeding if m.relative_max > network.noise[m.name]]
    return tuple(m.name for m in sorted(feeding, key=lambda m: -m.relative_max))


def _apart(a: Array, b: Array) -> float:
    """Largest absolute difference; what is undefined or infinite in both alike does not count."""
    alike = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        apart = np.where(alike, 0, np.abs(a - b)).max()
    return float("inf") if np.isnan(apart) else float(apart)


# --- the search ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Search:
    """A reference and what a candidate showed.

    Attributes:
        network: the reference on the picture.
        tensors: the candidate's, by module.
        saliency: the candidate's, (1,1,H,W).
        budget: of the saliency.
    """

    network: _Reference
    tensors: Tensors
    saliency: Array
    budget: Budget

    def run(
        self, *, whole: bool
    ) -> tuple[str, tuple[ModuleError, ...], tuple[tuple[str, str], ...]]:
        """Go through the modules in execution order; give culprit, errors and unmatched."""
        culprit = ""
        modules: list[ModuleError] = []
        unmatched: list[tuple[str, str]] = []
        for name in self.network.names:
            # after a fault, nothing need be like the reference
            if why := self._missing(name) or ("" if culprit else self._unlike(name)):
                unmatched.append((name, why))
                continue
            error = self._local(name)
            if (whole or not culprit) and error.relative_max > self.network.noise[name]:
                error = error.model_copy(update={"difference": self._injected(name)})
                culprit = culprit or (name if self._over(error.difference) else "")
            modules.append(error)
        return culprit, tuple(modules), tuple(unmatched)

    def over(self, saliency: Array) -> bool:
        """Whether a saliency is over the budget; one that is not finite always is."""
        whole = np.isfinite(saliency).all()
        found = compare(self.network.saliency[0, 0], saliency[0, 0]) if whole else None
        return self._over(found)

    def _missing(self, name: str) -> str:
        """Why the candidate has no such tensor, as a phrase; empty if it has."""
        if name not in self.tensors:
            return "the file has no node or tensor of this name"
        if name not in self.network.outputs:
            return "the reference has no node or tensor of this name"
        expected = self.network.outputs[name].shape
        found = self.tensors[name].shape
        return "" if found == expected else f"its shape is {found}, not {expected}"

    def _unlike(self, name: str) -> str:
        """Why a tensor means something else than its name says, as a phrase; empty if not.

        A fault, too, may leave nothing of the correlation. It is told from a tensor that only has
        the name by what it does: injected, it gives the candidate's saliency.
        """
        found = self.tensors[name]
        if not np.isfinite(found).all():
            return ""
        alike = _correlation(self.network.outputs[name], found)
        if alike >= CORRELATED:
            return ""
        y = self.network.injected(name, found)
        away = float(np.abs(y - self.network.expected(name)).mean())
        if float(np.abs(y - self.saliency).mean()) <= SAME_EFFECT * away:
            return ""
        return f"its tensor is something else: its correlation with the reference's is {alike:.2f}"

    def _local(self, name: str) -> ModuleError:
        expected, found = self.network.outputs[name], self.tensors[name]
        if not np.isfinite(found).all():
            return ModuleError(name=name, relative_max=float("inf"), relative_mean=float("inf"))
        most, mean = _relative(expected, found)
        return ModuleError(name=name, relative_max=most, relative_mean=mean)

    def _injected(self, name: str) -> Difference | None:
        """The saliency's difference with the candidate's tensor; None where one is not finite."""
        y = self.network.injected(name, self.tensors[name])
        if not (np.isfinite(self.tensors[name]).all() and np.isfinite(y).all()):
            return None
        return compare(self.network.expected(name)[0, 0], y[0, 0])

    def _over(self, difference: Difference | None) -> bool:
        if difference is None:
            return True
        budget, contrast = self.budget, float(np.ptp(self.network.saliency))
        return not (
            (budget.raw_max is None or difference.raw_max <= budget.raw_max)
            and difference.raw_mean <= budget.raw_mean
            and (contrast < MIN_CONTRAST or difference.mask_iou >= budget.mask_iou)
        )


def _relative(expected: Array, found: Array) -> tuple[float, float]:
    """Largest and mean absolute difference, by the expected tensor's largest and mean value."""
    apart, size = np.abs(found - expected), np.abs(expected)
    return _ratio(apart.max(), size.max()), _ratio(apart.mean(), size.mean())


def _ratio(part: float, of: float) -> float:
    if of == 0:
        return 0.0 if part == 0 else float("inf")
    return float(part / of)


def _correlation(a: Array, b: Array) -> float:
    """Pearson's; of tensors without any spread, 1 where both are so."""
    p, q = (t.astype(np.float64).ravel() - t.mean(dtype=np.float64) for t in (a, b))
    spread = float(np.linalg.norm(p) * np.linalg.norm(q))
    return float(p @ q) / spread if spread else float(not p.any() and not q.any())


# --- the reference ------------------------------------------------------------------------------


class _Reference:
    """The PyTorch network on one picture, and what its modules give, or those of another file.

    Attributes:
        feeds: per module, the modules whose outputs go into it.
        names: of the modules, in execution order.
        outputs: what each module gives.
        noise: per module, the relative error that is float32's rounding and no fault.
        saliency: (1,1,H,W).
    """

    def __init__(self, network: U2Net, x: Array) -> None:
        self._network, self._x = network, torch.tensor(x)
        self._foreign = False
        self.feeds = _feeds(network)
        self.outputs: dict[str, Array] = {}
        self.noise: dict[str, float] = {}
        with _hooked(network, tuple(self.feeds), self._keep):
            self.saliency = self._run()
        self.names = tuple(self.outputs)
        exact = copy.deepcopy(network).double()
        with _hooked(exact, self.names, self._measure), torch.inference_mode():
            exact(self._x.double())

    def take(self, saliency: Array, tensors: Tensors) -> None:
        """Let another file's tensors be what is compared with."""
        own = self.outputs
        self.outputs = {
            name: tensors[name]
            for name in self.names
            if name in tensors and tensors[name].shape == own[name].shape
        }
        self.saliency, self._foreign = saliency, True

    def injected(self, name: str, tensor: Array) -> Array:
        """The saliency with a tensor in the place of what a module gives.

        Modules before it give what they gave, and need not be computed again.
        """
        before = self.names[: self.names.index(name)]
        given = {one: self.outputs[one] for one in before if one in self.outputs}
        with _giving(self._network, {**given, name: tensor}):
            return self._run()

    def expected(self, name: str) -> Array:
        """What `injected` would give for the reference's own tensor."""
        return self.injected(name, self.outputs[name]) if self._foreign else self.saliency

    def _keep(self, name: str, args: Any, result: torch.Tensor) -> None:
        self.outputs[name] = result.numpy()

    def _measure(self, name: str, args: Any, result: torch.Tensor) -> None:
        own, _ = _relative(result.numpy(), self.outputs[name])
        self.noise[name] = max(NOISE, ROUNDINGS * own)

    def _run(self) -> Array:
        with torch.inference_mode():
            y: Array = self._network(self._x).numpy()
        return y


def _feeds(network: U2Net) -> dict[str, tuple[str, ...]]:
    """Name the modules that feed each module, in execution order.

    They are read from what PyTorch notes for its gradients, through whatever lies between modules:
    pooling, resizing, adding, joining.
    """
    made: dict[Any, str] = {}
    feeds: dict[str, tuple[str, ...]] = {}

    def note(name: str, args: Any, result: torch.Tensor) -> None:
        feeds[name] = tuple(dict.fromkeys(_sources(args[0].grad_fn, made)))
        made[result.grad_fn] = name

    names = tuple(name for name, module in network.named_modules() if _compared(name, module))
    with torch.enable_grad(), _hooked(network, names, note):
        network(torch.zeros(1, 3, _TINY, _TINY))
    return feeds


def _compared(name: str, module: nn.Module) -> bool:
    return isinstance(module, ConvBlock) or (isinstance(module, nn.Conv2d) and "." not in name)


def _sources(made_by: Any, known: Mapping[Any, str]) -> Iterator[str]:
    if made_by in known:
        yield known[made_by]
    elif made_by is not None:
        for before, _ in made_by.next_functions:
            yield from _sources(before, known)


@contextmanager
def _hooked(
    network: nn.Module, names: tuple[str, ...], hook: Callable[[str, Any, torch.Tensor], None]
) -> Iterator[None]:
    """Call `hook(name, arguments, result)` after each of these modules."""
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda module, args, result, name=name: hook(name, args, result)
        )
        for name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _giving(network: nn.Module, given: Mapping[str, Array]) -> Iterator[None]:
    """Let modules give these tensors and compute nothing."""
    for name, values in given.items():
        tensor = torch.from_numpy(values)
        network.get_submodule(name).forward = lambda x, tensor=tensor: tensor
    try:
        yield
    finally:
        for name in given:
            del network.get_submodule(name).forward


# --- for people ---------------------------------------------------------------------------------


def table(bisection: Bisection) -> str:
    """The growth of the error for people, module by module, then the verdict."""
    heads = ("module", "error max", "error mean", "growth", "saliency max", "mean", "mask IoU")
    shown = Table(*heads)
    for module in bisection.modules:
        shown.add_row(*_row(module))
    console = Console(width=_WIDTH, color_system=None)
    with console.capture() as capture:
        console.print(shown)
    return capture.get() + "\n".join(verdict(bisection))


def _row(module: ModuleError) -> list[str]:
    errors = [f"{module.relative_max:.2g}", f"{module.relative_mean:.2g}"]
    row = [module.name, *errors, _bar(module.relative_max)]
    found = module.difference
    if found is None:
        return row
    return [*row, f"{found.raw_max:.2g}", f"{found.raw_mean:.2g}", f"{found.mask_iou:.4f}"]


def _bar(error: float) -> str:
    """A bar as long as the error's logarithm."""
    if error <= 0:
        return ""
    low, high = _BAR
    share = (np.log10(error) - low) / (high - low) if np.isfinite(error) else 1.0
    return "#" * round(_BAR_WIDTH * float(np.clip(share, 0, 1)))


def verdict(bisection: Bisection) -> Iterator[str]:
    """What was found, in lines."""
    yield f"first over the budget: {bisection.culprit or 'no module'}"
    if bisection.over and not bisection.culprit:
        yield "yet the file as it runs is over the budget: what is wrong lies in none of these"
    if bisection.inputs:
        yield f"fed by, largest error first: {', '.join(bisection.inputs)}"
    for name, why in bisection.unmatched:
        yield f"not compared: {name}: {why}"
    yield f"reading the tensors out changed the saliency by {bisection.agrees:.2g}"
