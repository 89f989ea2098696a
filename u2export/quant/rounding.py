"""Rounding a network's weights to 8 bits, and foretelling what that does to the saliency.

What a layer's rounding does is foretold from one backward pass a picture: the squared gradients of
the saliency, at random signs, by what a convolution puts out say what an error there does to the
saliency; the error follows from the rounded weights and the second moments of what they multiply.

Source:
    M. Hutchinson, A stochastic estimator of the trace of the influence matrix, 1989: random signs.
    E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, GPTQ, 2022: the weights of a layer are rounded
    one after the other, and those that are left make good what the others lost.
    M. Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019:
    the mean of what is lost goes into the bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from u2export.backend import Array
from u2export.errors import ExportError
from u2export.graph.quantized import LARGEST, Floats, least_steps

PATCHES = 1500  # of each picture, for a layer's covariance
DAMPING = 0.01  # of the mean variance, added to their diagonal
# CPUs without VNNI multiply two neighbours by unsigned activations and sum them up in 16 bits that
# saturate: |a + b| * 255 must stay below 2^15. On real u2netp weights the masks of onnxruntime on
# such a CPU fell from IoU 0.994 to 0.977 (worst 0.95) where pairs were not heeded.
PAIR = 128
_LEAST_VARIANCE = 1e-12
WIDEST = 2304  # weights of an output channel that make good for each other
BLOCK = 128  # weights rounded before the rest is told what they lost
COVARIANCE_BYTES = 1 << 30  # of covariances held at once

Layers = Mapping[str, nn.Conv2d]
Track = Callable[[Sequence[Any], str], Iterator[Any]]


@dataclass(frozen=True)
class Rounded:
    """A convolution's weights in 8 bits.

    Attributes:
        weight: (O,I,h,w) int8.
        step: (O,) float32, what one is worth.
        bias: (O,) float32, with the mean of what was lost made good.
        damage: mean squared error of the saliency that it should cause.
    """

    weight: NDArray[np.int8]
    step: Floats
    bias: Floats
    damage: float


def layers_of(network: nn.Module) -> dict[str, nn.Conv2d]:
    """The convolutions of a network whose batch norms are folded, by module."""
    return {
        name.removesuffix(".conv_s1"): module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
    }


def effects(
    network: nn.Module, layers: Layers, inputs: Sequence[Array], *, seed: int, track: Track
) -> dict[str, Tensor]:
    """What an error in a convolution's output does to the saliency.

    Args:
        network: gives (1,1,H,W) saliency; its parameters want no gradients.
        layers: its convolutions, by module.
        inputs: preprocessed pictures (1,3,H,W) float32.
        seed: of the random signs.
        track: goes through a sequence under a progress bar.

    Returns:
        Of each layer, (O,) float64: mean squared error of the saliency by that of each output
        channel, where the errors of different places have nothing to do with each other.
    """
    found: dict[str, Tensor] = {}
    draw = torch.Generator().manual_seed(seed)

    def watch(name: str, given: Tensor, result: Tensor) -> Tensor:
        def note(gradient: Tensor) -> None:
            seen = (gradient.double() ** 2).sum((0, 2, 3)) / len(inputs)
            found[name] = found[name] + seen if name in found else seen

        result.register_hook(note)  # type: ignore[no-untyped-call]
        return result.clone()  # a ReLU may follow that overwrites what it is given

    with hooked(layers, watch), torch.enable_grad():
        for x in track(inputs, "foretelling"):
            saliency = network(torch.tensor(x).requires_grad_(True))
            signs = torch.randint(0, 2, saliency.shape, generator=draw) * 2.0 - 1
            (saliency * signs / saliency.numel() ** 0.5).sum().backward()
    return found


def rounded(
    network: nn.Module,
    layers: Layers,
    inputs: Sequence[Array],
    *,
    input_steps: Mapping[str, float],
    effect: Mapping[str, Tensor],
    seed: int,
    track: Track,
) -> dict[str, Rounded]:
    """Round the weights of convolutions so that they give what they gave, on these pictures.

    Args:
        network: whose batch norms are folded.
        layers: the convolutions to round, by module.
        inputs: preprocessed pictures (1,3,H,W) float32.
        input_steps: what one step of each layer's input is worth.
        effect: from `effects`.
        seed: of the places that are looked at.
        track: goes through a sequence under a progress bar.
    """
    found = {}
    for some in _shares(layers):
        covariances, means = _covariance(network, some, inputs, seed)
        for name in track(list(some), "rounding"):
            module = some[name]
            assert module.bias is not None
            weight, bias = module.weight.detach(), module.bias.detach().numpy()
            least = torch.tensor(least_steps(bias, input_steps[name]))
            step = finest_steps(weight).maximum(least)
            parts = torch.split(weight, _together(module), dim=1)
            wholes = [
                compensated(part, step, covariance)
                for part, covariance in zip(parts, covariances[name], strict=True)
            ]
            errors = [
                whole * step.double()[:, None] - part.double().flatten(1)
                for part, whole in zip(parts, wholes, strict=True)
            ]
            lost = torch.cat(errors, 1) @ means[name]  # of each output channel, on average
            power = torch.stack(
                [
                    ((error @ covariance) * error).sum(1)
                    for error, covariance in zip(errors, covariances[name], strict=True)
                ]
            ).sum(0)
            found[name] = Rounded(
                weight=torch.cat(wholes, 1).reshape(weight.shape).numpy().astype(np.int8),
                step=step.numpy(),
                bias=(bias - lost.numpy()).astype(np.float32),
                damage=float((effect[name] * power).sum()),
            )
    return found


def finest_steps(weight: Tensor) -> Tensor:
    """The finest steps (O,) in which weights (O,I,h,w) fit, each and by pairs."""
    flat = weight.reshape(len(weight), -1)
    found = flat.abs().amax(1) / LARGEST
    for mates in _mates(weight.shape):
        both = flat + torch.where(mates >= 0, flat[:, mates], 0)
        found = found.maximum(both.abs().amax(1) / PAIR)
    return found


def _mates(shape: Sequence[int]) -> list[Tensor]:
    """With which weight each of (I*h*w,) is multiplied and summed in 16 bits; -1 for none.

    Two input channels that follow each other, at one tap. Where their number is odd, some libraries
    go on with the next tap, others fill the last channel up: both are told then.
    """
    channels, taps = shape[1], shape[2] * shape[3]
    place = torch.arange(channels * taps)
    channel, tap = place // taps, place % taps
    mate = channel ^ 1
    found = [torch.where(mate < channels, mate * taps + tap, -1)]
    if channels % 2:
        other = (tap * channels + channel) ^ 1
        inside = other < channels * taps
        found.append(torch.where(inside, other % channels * taps + other // channels, -1))
    return found


def compensated(weight: Tensor, step: Tensor, covariance: Tensor) -> Tensor:
    """Round weights to 8 bits so that those that are left make good what the others lost.

    Args:
        weight: (O,I,h,w) float32.
        step: (O,) float32, what one is worth.
        covariance: (I*h*w, I*h*w) float64, covariance of what the weights multiply.

    Returns:
        (O, I*h*w) float64, whole numbers from -127 to 127, from -128 to 128 in pairs.
    """
    mates = [one.tolist() for one in _mates(weight.shape)]

    def nearest(column: Tensor, place: int, done: Tensor) -> Tensor:
        low, high = torch.full_like(column, -LARGEST), torch.full_like(column, LARGEST)
        for one in mates:
            if one[place] >= 0:  # what is not rounded yet is 0 and limits nothing
                low = low.maximum(-PAIR - done[:, one[place]])
                high = high.minimum(PAIR - done[:, one[place]])
        return column.round().clamp(low, high)

    return _in_turns(weight.double().flatten(1) / step.double()[:, None], covariance, nearest)


def brain_floats(network: nn.Module, inputs: Sequence[Array], *, seed: int, track: Track) -> None:
    """Round a network's weights and biases to bfloat16 likewise, in place.

    A runtime that computes in bfloat16 rounds them to the nearest, and nearly all that it loses of
    the mask is lost there. A bias is rounded first, as the weight of what is always 1, so that the
    weights make good what it loses too.

    Args:
        network: whose batch norms are folded.
        inputs: preprocessed pictures (1,3,H,W) float32.
        seed: of the places that are looked at.
        track: goes through a sequence under a progress bar.
    """
    with torch.no_grad():
        for some in _shares(layers_of(network.requires_grad_(False))):
            covariances, means = _covariance(network, some, inputs, seed)
            for name in track(list(some), "rounding"):
                module = some[name]
                assert module.bias is not None
                parts = torch.split(module.weight.double(), _together(module), dim=1)
                mean = torch.split(means[name], len(covariances[name][0]))
                bias, found = module.bias.double()[:, None], []
                for part, square, seen in zip(parts, covariances[name], mean, strict=True):
                    values = torch.cat([bias, part.flatten(1)], 1)
                    done = _in_turns(values, _with_one(square, seen), _nearest_brain_float, first=1)
                    bias, kept = done[:, :1], done[:, 1:]
                    found.append(kept)
                module.weight.copy_(torch.cat(found, 1).reshape(module.weight.shape))
                module.bias.copy_(bias[:, 0])


def _with_one(covariance: Tensor, mean: Tensor) -> Tensor:
    """Second moments of what has this covariance and mean, with what is always 1 before it."""
    size = len(mean) + 1
    found = torch.ones(size, size, dtype=torch.double)
    found[0, 1:] = found[1:, 0] = mean
    found[1:, 1:] = covariance + torch.outer(mean, mean)
    return found


def _nearest_brain_float(column: Tensor, place: int, done: Tensor) -> Tensor:
    return column.float().bfloat16().double()


def _in_turns(
    weight: Tensor,
    covariance: Tensor,
    nearest: Callable[[Tensor, int, Tensor], Tensor],
    first: int = 0,
) -> Tensor:
    """Round weights (O,K) float64 one column after the other, moving what each loses onto the rest.

    Args:
        weight: what is to be rounded.
        covariance: (K,K) float64, of what the weights multiply.
        nearest: rounds a column (O,); told its place, and all that is rounded already, else 0.
        first: so many columns come before the others, which follow by how much they vary.
    """
    size = len(covariance)
    damped = _damped(covariance)
    rest = torch.argsort(damped.diagonal()[first:], descending=True, stable=True) + first
    order = torch.cat([torch.arange(first), rest])
    left, damped = weight[:, order].clone(), damped[order][:, order]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    upper = torch.linalg.cholesky(inverse, upper=True)
    done = torch.zeros_like(left)
    places = order.tolist()
    for begin in range(0, size, BLOCK):
        end = min(begin + BLOCK, size)
        errors = torch.zeros_like(left[:, begin:end])
        for turn in range(begin, end):
            column = left[:, turn]
            chosen = nearest(column, places[turn], done)
            done[:, places[turn]] = chosen
            error = (column - chosen) / upper[turn, turn]
            left[:, turn:end] -= error[:, None] * upper[turn, turn:end][None]
            errors[:, turn - begin] = error
        left[:, end:] -= errors @ upper[begin:end, end:]
    return done


def _damped(covariance: Tensor) -> Tensor:
    """Add to the diagonal what makes a covariance one that can be factored."""
    one = torch.eye(len(covariance), dtype=torch.double)
    damping = DAMPING * covariance.diagonal().mean().clamp_min(_LEAST_VARIANCE)
    while torch.linalg.cholesky_ex(covariance + damping * one).info:
        damping *= 10  # float32 sums of what hardly varies may be a little off
    return covariance + damping * one


def _shares(layers: Layers) -> Iterator[dict[str, nn.Conv2d]]:
    """The layers in portions whose second moments fit into memory together."""
    portion: dict[str, nn.Conv2d] = {}
    size = 0
    for name, module in layers.items():
        needed = 8 * module.weight[0].numel() * _together(module) * module.weight[0, 0].numel()
        if portion and size + needed > COVARIANCE_BYTES:
            yield portion
            portion, size = {}, 0
        portion[name] = module
        size += needed
    yield portion


def _together(module: nn.Conv2d) -> int:
    """How many input channels make good for each other: all, but in the widest layers."""
    taps = module.weight[0, 0].numel()
    return min(module.in_channels, WIDEST // (2 * taps) * 2)


def _covariance(
    network: nn.Module, layers: Layers, inputs: Sequence[Array], seed: int
) -> tuple[dict[str, list[Tensor]], dict[str, Tensor]]:
    """Covariance and mean (K,) of what each layer's weights multiply, float64.

    Of the covariance, the squares along its diagonal for the channels that are taken together.
    """
    second: dict[str, list[Tensor]] = {}
    first: dict[str, Tensor] = {}
    draw = torch.Generator().manual_seed(seed)

    def note(name: str, given: Tensor, result: Tensor) -> None:
        seen = _patches(given, layers[name], result.shape[-2:], draw)
        share = 1 / (seen.shape[1] * len(inputs))
        wide = _together(layers[name]) * layers[name].weight[0, 0].numel()
        products = [(part @ part.T).double() * share for part in torch.split(seen, wide)]
        total = seen.double().sum(1) * share
        if name in second:
            products = [a + b for a, b in zip(second[name], products, strict=True)]
            total += first[name]
        second[name], first[name] = products, total

    with hooked(layers, note), torch.inference_mode():
        for x in inputs:
            network(torch.tensor(x))
    centred = {}
    for name, squares in second.items():
        if not all(torch.isfinite(square).all() for square in squares):
            raise ExportError(f"what {name} is given is not finite on the calibration pictures")
        parts = torch.split(first[name], len(squares[0]))
        centred[name] = [
            square - torch.outer(part, part) for square, part in zip(squares, parts, strict=True)
        ]
    return centred, first


def _patches(x: Tensor, module: nn.Conv2d, size: Sequence[int], draw: torch.Generator) -> Tensor:
    """What a convolution multiplies at random places: (I*h*w, places)."""
    pad, gap, width = int(module.padding[0]), module.dilation[0], module.kernel_size[0]
    padded = functional.pad(x[0], [pad] * 4)
    places = torch.randint(0, size[0] * size[1], (PATCHES,), generator=draw)
    rows, columns = places // size[1], places % size[1]
    taps = [
        padded[:, rows + gap * i, columns + gap * j] for i in range(width) for j in range(width)
    ]
    return torch.stack(taps, 1).reshape(-1, PATCHES)


@contextmanager
def hooked(layers: Layers, hook: Callable[[str, Tensor, Tensor], Any]) -> Iterator[None]:
    """Show a function every layer's name, input and output; what it gives replaces the output."""

    def named(name: str) -> Callable[..., Any]:
        return lambda module, given, result: hook(name, given[0], result)

    handles = [module.register_forward_hook(named(name)) for name, module in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
