"""What makes int8 lose the mask, and what mends it: emulated, so on any CPU.

    python benchmarks/int8_study.py --weights u2netp.safetensors --calibration DIR --pictures DIR

PyTorch computes the network with weights rounded to signed 8 bits (a scale for each output channel)
and activations to unsigned 8 bits (one scale a tensor, shared by what is concatenated), as runtimes
do. Nothing is said of speed. The masks are judged on pictures that calibrate nothing.

The layers' shares of the damage are foretold from one backward pass a calibration picture: the
squared gradients of the saliency, at random signs, by each convolution's output say what noise in
it does to the saliency, and the noise follows from the steps of its weights and of its input.
Then, layer by layer, weights are rounded so that later ones make good what earlier ones lost on
the calibration pictures' patches.

Source:
    Hutchinson, 1989, A stochastic estimator of the trace of the influence matrix; Frantar,
    Ashkboos, Hoefler, Alistarh, 2022, GPTQ: the order of rounding, the update of what is left.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import leave
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional

from u2export import checkpoint, u2net, weights
from u2export.metrics import compare, judge
from u2export.pipeline import open_picture, preprocess
from u2export.progress import say
from u2export.run import pictures_in
from u2export.spec import MODELS

PATCHES = 1500  # of each picture, for a layer's second moments
DAMPING = 0.01  # of the second moments' mean, added to their diagonal
LARGEST = 127  # of a signed weight
LEVELS = 255  # steps of an unsigned activation
FLOAT_TAIL = "outconv"  # one channel of six: kept as it is


class Emulation:
    """The network with rounded weights and activations."""

    def __init__(self, network: nn.Module) -> None:
        """Take a network whose batch norms are folded."""
        self.network = network
        for module in network.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False  # what a convolution puts out is looked at
        self.convolutions: dict[str, nn.Conv2d] = {
            name.removesuffix(".conv_s1"): module
            for name, module in network.named_modules()
            if isinstance(module, nn.Conv2d) and name != FLOAT_TAIL
        }
        self.ranges: dict[str, tuple[float, float]] = {}
        self.in_float: set[str] = set()
        self.weights: dict[str, Tensor] = {}

    def calibrate(self, pictures: list[Tensor]) -> None:
        """Note the range of every convolution's input."""
        self.ranges.clear()

        def note(name: str, module: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> None:
            low, high = self.ranges.get(name, (0.0, 0.0))
            self.ranges[name] = min(low, float(args[0].min())), max(high, float(args[0].max()))

        with self._hooked(note), torch.no_grad():
            for x in pictures:
                self.network(x)

    def masks(self, pictures: list[Tensor]) -> list[np.ndarray]:
        """Saliency of each picture with everything rounded but what is kept in float."""

        def rounded(name: str, module: nn.Conv2d, args: tuple[Tensor, ...], result: Tensor) -> Any:
            if name in self.in_float:
                return None
            weight = self.weights.get(name)
            if weight is None:
                weight = nearest(module.weight)
            x = activation(args[0], *self.ranges[name])
            pads, dilation = module.padding, module.dilation
            return functional.conv2d(x, weight, module.bias, padding=pads, dilation=dilation)

        with self._hooked(rounded), torch.no_grad():
            return [self.network(x)[0, 0].numpy() for x in pictures]

    def foretell(self, pictures: list[Tensor]) -> dict[str, float]:
        """Mean squared error of the saliency that each layer's rounding alone should cause."""
        power: dict[str, Tensor] = {}
        effect: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}

        def note(name: str, module: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> None:
            power[name] = power.get(name, 0) + (args[0].detach() ** 2).mean((0, 2, 3))
            result.retain_grad()
            outputs[name] = result

        draw = torch.Generator().manual_seed(0)
        with self._hooked(note):
            for x in track(pictures, "foretelling"):
                y = self.network(x.clone().requires_grad_(True))
                signs = torch.randint(0, 2, y.shape, generator=draw) * 2.0 - 1
                (y * signs).sum().backward()
                for name, out in outputs.items():
                    assert out.grad is not None
                    seen = (out.grad**2).sum((0, 2, 3)) / y.numel()
                    effect[name] = effect.get(name, 0) + seen
        found = {}
        for name, module in self.convolutions.items():
            weight = module.weight.detach()
            low, high = self.ranges[name]
            of_input = ((high - low) / LEVELS) ** 2 / 12 * (weight**2).sum((1, 2, 3))
            taps = weight.shape[2] * weight.shape[3]
            of_weights = step(weight).flatten() ** 2 / 12 * taps * power[name].sum() / len(pictures)
            found[name] = float((effect[name] / len(pictures) * (of_input + of_weights)).sum())
        return found

    def compensate(self, pictures: list[Tensor]) -> dict[str, float]:
        """Round every layer's weights so that later ones make good what earlier ones lost.

        Returns:
            Of each layer, the squared error of its output by that of plain rounding.
        """
        moments: dict[str, Tensor] = {}
        draw = torch.Generator().manual_seed(0)

        def note(name: str, module: nn.Conv2d, args: tuple[Tensor, ...], result: Tensor) -> None:
            p = patches(args[0], module, result.shape[-2:], draw)
            moments[name] = moments.get(name, 0) + (p @ p.T).double() / p.shape[1]

        with self._hooked(note), torch.no_grad():
            for x in track(pictures, "second moments"):
                self.network(x)
        gained = {}
        for name, module in track(self.convolutions.items(), "rounding"):
            weight, moment = module.weight.detach(), moments[name] / len(pictures)
            self.weights[name] = compensated(weight, moment)
            gained[name] = lost(self.weights[name] - weight, moment) / lost(
                nearest(weight) - weight, moment
            )
        return gained

    @contextmanager
    def _hooked(self, hook: Callable[..., Any]) -> Iterator[None]:
        def named(name: str) -> Callable[..., Any]:
            return lambda *given: hook(name, *given)

        handles = [
            module.register_forward_hook(named(name)) for name, module in self.convolutions.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def step(weight: Tensor) -> Tensor:
    """The step of each output channel's weights (O,1,1,1)."""
    return (weight.abs().amax((1, 2, 3), keepdim=True) / LARGEST).clamp_min(1e-12)


def nearest(weight: Tensor) -> Tensor:
    """Weights (O,I,h,w) rounded to the nearest step."""
    scale = step(weight)
    return (weight / scale).round().clamp(-LARGEST, LARGEST) * scale


def activation(x: Tensor, low: float, high: float) -> Tensor:
    """Activations rounded to one of 256 values from `low` to `high`, of which 0 is one."""
    scale = max(high - low, 1e-12) / LEVELS
    zero = round(-low / scale)
    return ((x / scale).round() + zero).clamp(0, LEVELS).sub(zero) * scale


def patches(x: Tensor, module: nn.Conv2d, size: tuple[int, int], draw: torch.Generator) -> Tensor:
    """What a convolution sees at random places: (I*h*w, places)."""
    pad, gap, width = int(module.padding[0]), module.dilation[0], module.kernel_size[0]
    padded = functional.pad(x[0], [pad] * 4)
    places = torch.randint(0, size[0] * size[1], (PATCHES,), generator=draw)
    rows, columns = places // size[1], places % size[1]
    taps = [
        padded[:, rows + gap * i, columns + gap * j] for i in range(width) for j in range(width)
    ]
    return torch.stack(taps, 1).reshape(-1, PATCHES)


def lost(error: Tensor, moment: Tensor) -> float:
    """Mean squared error of a layer's output, all channels together."""
    flat = error.double().reshape(len(error), -1)
    return float(((flat @ moment) * flat).sum())


def compensated(weight: Tensor, moment: Tensor) -> Tensor:
    """Round weights one input after the other, moving what each loses onto those that follow."""
    size = len(moment)
    left = weight.double().reshape(len(weight), -1).clone()
    scale = step(weight).double().flatten()
    damped = moment + DAMPING * moment.diagonal().mean() * torch.eye(size, dtype=torch.double)
    order = torch.argsort(damped.diagonal(), descending=True)
    left, damped = left[:, order], damped[order][:, order]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    upper = torch.linalg.cholesky(inverse, upper=True)
    rounded = torch.zeros_like(left)
    for place in range(size):
        column = left[:, place]
        rounded[:, place] = (column / scale).round().clamp(-LARGEST, LARGEST) * scale
        error = (column - rounded[:, place]) / upper[place, place]
        left[:, place:] -= error[:, None] * upper[place, place:][None]
    found = torch.empty_like(rounded)
    found[:, order] = rounded
    return found.float().reshape(weight.shape)


def pictures_of(folder: Path, spec: Any) -> list[Tensor]:
    """The pictures of a folder as the network takes them, by name."""
    paths = pictures_in([folder])
    return [torch.from_numpy(preprocess(open_picture(path), spec)) for path in paths]


def judged(expected: list[np.ndarray], found: list[np.ndarray]) -> dict[str, float]:
    """How the masks compare."""
    apart = [compare(a, b) for a, b in zip(expected, found, strict=True)]
    total = judge(apart, [float(np.ptp(one)) for one in expected])
    assert total.mask_iou is not None
    assert total.worst_iou is not None
    assert total.mask_mae is not None
    return {
        "mask IoU": round(total.mask_iou, 4),
        "worst": round(total.worst_iou, 4),
        "MAE": round(total.mask_mae, 5),
    }


def main() -> None:
    """Judge each remedy, print, leave the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, help="real u2netp weights")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, required=True)
    args = parser.parse_args()
    source = weights.find(MODELS["u2netp"], args.weights)
    spec = source.facts.picture
    calibration, others = (pictures_of(one, spec) for one in (args.calibration, args.pictures))
    emulation = Emulation(u2net.fold_batch_norm(checkpoint.network(source, say)))
    emulation.in_float = set(emulation.convolutions)
    expected = emulation.masks(others)
    emulation.calibrate(calibration)
    foretold = emulation.foretell(calibration)
    worst = sorted(foretold, key=foretold.__getitem__, reverse=True)
    rows: dict[str, dict[str, float]] = {}

    def row(name: str, in_float: set[str]) -> None:
        emulation.in_float = in_float
        rows[name] = judged(expected, emulation.masks(others))
        print(name, rows[name], flush=True)

    row("plain rounding", set())
    row(f"plain, {worst[0]} in float", {worst[0]})
    gained = emulation.compensate(calibration)
    row("compensated", set())
    row(f"compensated, {worst[0]} in float", {worst[0]})
    row("compensated, the two worst in float", set(worst[:2]))
    row("compensated, the four worst in float", set(worst[:4]))
    figures = {
        "calibration pictures": len(calibration),
        "judged pictures": len(others),
        "foretold mean squared error, largest": {name: foretold[name] for name in worst[:8]},
        "foretold, all": sum(foretold.values()),
        "error of compensated by plain rounding, median": float(np.median(list(gained.values()))),
        "rows": rows,
    }
    leave("int8_study", figures)


if __name__ == "__main__":
    main()
