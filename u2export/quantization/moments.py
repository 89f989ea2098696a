"""Moments of what the convolutions of a network multiply, measured with hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from u2export.core.arrays import Array
from u2export.errors import ExportError

MAX_GROUP_WEIGHTS = 2304  # weights of an output channel that compensate each other
_PATCHES_PER_PICTURE = 1500  # samples for a layer's covariance
_COVARIANCE_BYTES = 1 << 30  # of all covariances in memory at once
Layers = Mapping[str, nn.Conv2d]


def find_convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    """List the convolutions of a network by module. Its batch norms must be folded."""
    return {
        name.removesuffix(".conv_s1"): module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
    }


@dataclass(frozen=True)
class InputMoments:
    """Moments of the K values that a convolution multiplies for one output.

    Attributes:
        mean: (K,) float64.
        covariances: float64, one square matrix for each group of weights that are rounded together.
    """

    mean: Tensor
    covariances: list[Tensor]


def measure_moments(
    network: nn.Module, layers: Layers, inputs: Sequence[Array], seed: int
) -> dict[str, InputMoments]:
    """Measure the moments of each layer's input.

    Args:
        network: its batch norms are folded.
        layers: its convolutions to measure, by module.
        inputs: preprocessed pictures (1,3,H,W) float32.
        seed: of the sampled positions.

    Returns:
        The moments by module.

    Raises:
        ExportError: a layer's input is not finite.
    """
    second_moments: dict[str, list[Tensor]] = {}
    means: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)

    def add_patches(name: str, layer_input: Tensor, output: Tensor) -> None:
        module = layers[name]
        patches = _sample_patches(layer_input, module, output.shape[-2:], generator)
        share = 1 / (patches.shape[1] * len(inputs))
        groups = torch.split(patches, group_channels(module) * _taps(module))
        products = [(group @ group.T).double() * share for group in groups]
        mean = patches.double().sum(1) * share
        if name in means:
            products = [a + b for a, b in zip(second_moments[name], products, strict=True)]
            mean += means[name]
        second_moments[name], means[name] = products, mean

    with hooked_layers(layers, add_patches), torch.inference_mode():
        for x in inputs:
            network(torch.tensor(x))
    return {
        name: InputMoments(means[name], _center(name, products, means[name]))
        for name, products in second_moments.items()
    }


def _center(name: str, products: list[Tensor], mean: Tensor) -> list[Tensor]:
    """Turn second moments into covariances."""
    if not all(torch.isfinite(product).all() for product in products):
        raise ExportError(f"what {name} is given is not finite on the calibration pictures")
    group_means = torch.split(mean, len(products[0]))
    return [
        product - torch.outer(group_mean, group_mean)
        for product, group_mean in zip(products, group_means, strict=True)
    ]


def _sample_patches(
    layer_input: Tensor, module: nn.Conv2d, output_size: Sequence[int], generator: torch.Generator
) -> Tensor:
    """Sample the input patches of a convolution at random positions: (I*h*w, patches)."""
    padding, dilation = int(module.padding[0]), module.dilation[0]
    padded = functional.pad(layer_input[0], [padding] * 4)
    height, width = output_size
    positions = torch.randint(0, height * width, (_PATCHES_PER_PICTURE,), generator=generator)
    rows, columns = positions // width, positions % width
    kernel = range(module.kernel_size[0])
    taps = [padded[:, rows + dilation * i, columns + dilation * j] for i in kernel for j in kernel]
    return torch.stack(taps, 1).reshape(-1, _PATCHES_PER_PICTURE)


def layers_that_fit_memory(layers: Layers) -> Iterator[dict[str, nn.Conv2d]]:
    """Divide the layers into batches whose covariances fit into memory together."""
    batch: dict[str, nn.Conv2d] = {}
    size = 0
    for name, module in layers.items():
        taps = _taps(module)
        layer_size = 8 * module.weight[0].numel() * group_channels(module) * taps
        if batch and size + layer_size > _COVARIANCE_BYTES:
            yield batch
            batch, size = {}, 0
        batch[name] = module
        size += layer_size
    yield batch


def group_channels(module: nn.Conv2d) -> int:
    """Count the input channels that compensate each other: all, except in the widest layers."""
    return min(module.in_channels, MAX_GROUP_WEIGHTS // (2 * _taps(module)) * 2)


def _taps(module: nn.Conv2d) -> int:
    return module.weight[0, 0].numel()


@contextmanager
def hooked_layers(layers: Layers, hook: Callable[[str, Tensor, Tensor], Any]) -> Iterator[None]:
    """Call a function with the name, input and output of every layer that runs.

    Args:
        layers: by name.
        hook: if it returns a tensor, that replaces the layer's output.
    """

    def forward_hook(name: str) -> Callable[..., Any]:
        return lambda module, inputs, output: hook(name, inputs[0], output)

    handles = [module.register_forward_hook(forward_hook(name)) for name, module in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
