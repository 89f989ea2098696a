"""Rounding of weights with GPTQ, and a prediction of the error it causes in the saliency.

GPTQ rounds the weights of a layer one after the other. The weights that are not rounded yet
compensate the error of those that are.

The prediction needs one backward pass per picture. The saliency is multiplied by random signs. The
squared gradients at a layer's output then tell how an error there changes the saliency. The error
itself follows from the rounded weights and from the second moments of the layer's input.

Source:
    M. Hutchinson, A stochastic estimator of the trace of the influence matrix, 1989: random signs.
    E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, GPTQ, 2022: rounding with compensation.
    M. Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019:
    the bias absorbs the mean of the error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from u2export.core.arrays import Array
from u2export.onnx_graph.qdq import INT8_MAX, FloatArray, smallest_scales_for_bias
from u2export.quantization.moments import (
    InputMoments,
    Layers,
    find_convolutions,
    group_channels,
    hooked_layers,
    layers_that_fit_memory,
    measure_moments,
)

BLOCK_COLUMNS = 128  # columns rounded before their error moves to the later blocks
# CPUs without VNNI multiply two neighbouring weights by unsigned activations and add the products
# in 16 bits that saturate: |a + b| * 255 must stay below 2^15. On real u2netp weights, the masks of
# onnxruntime on such a CPU fell from IoU 0.994 to 0.977 (worst 0.95) without this limit.
_PAIR_LIMIT = 128
_DAMPING = 0.01  # of the mean variance, added to the diagonal of a covariance
_SMALLEST_VARIANCE = 1e-12
Track = Callable[[Sequence[Any], str], Iterator[Any]]


@dataclass(frozen=True)
class RoundedLayer:
    """A convolution with int8 weights.

    Attributes:
        weight: (O,I,h,w) int8.
        scale: (O,) float32, one per output channel.
        bias: (O,) float32, corrected by the mean of the rounding error.
        predicted_error: mean squared error of the saliency that this rounding should cause.
    """

    weight: NDArray[np.int8]
    scale: FloatArray
    bias: FloatArray
    predicted_error: float


def estimate_sensitivities(
    network: nn.Module, layers: Layers, inputs: Sequence[Array], *, seed: int, track: Track
) -> dict[str, Tensor]:
    """Estimate how an error in a convolution's output changes the saliency.

    Args:
        network: gives (1,1,H,W) saliency. Its parameters require no gradients.
        layers: its convolutions, by module.
        inputs: preprocessed pictures (1,3,H,W) float32.
        seed: of the random signs.
        track: iterates over a sequence with a progress bar.

    Returns:
        For each layer (O,) float64: the saliency's mean squared error per mean squared error of
        each output channel. It assumes that errors at different positions are independent.
    """
    sensitivities: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)

    def add_gradient_hook(name: str, layer_input: Tensor, output: Tensor) -> Tensor:
        def add_gradient(gradient: Tensor) -> None:
            mean_square = (gradient.double() ** 2).sum((0, 2, 3)) / len(inputs)
            previous = sensitivities.get(name, torch.zeros_like(mean_square))
            sensitivities[name] = previous + mean_square

        output.register_hook(add_gradient)  # type: ignore[no-untyped-call]
        return output.clone()  # a ReLU may follow that overwrites its input

    with hooked_layers(layers, add_gradient_hook), torch.enable_grad():
        for x in track(inputs, "foretelling"):
            saliency = network(torch.tensor(x).requires_grad_(True))
            signs = torch.randint(0, 2, saliency.shape, generator=generator) * 2.0 - 1
            (saliency * signs / saliency.numel() ** 0.5).sum().backward()
    return sensitivities


def round_weights(
    network: nn.Module,
    layers: Layers,
    inputs: Sequence[Array],
    *,
    input_scales: Mapping[str, float],
    sensitivities: Mapping[str, Tensor],
    seed: int,
    track: Track,
) -> dict[str, RoundedLayer]:
    """Round convolutions to int8 so that their outputs change little on these pictures.

    Args:
        network: its batch norms are folded.
        layers: the convolutions to round, by module.
        inputs: preprocessed pictures (1,3,H,W) float32.
        input_scales: scale of each layer's quantized input.
        sensitivities: from `estimate_sensitivities`.
        seed: of the sampled positions.
        track: iterates over a sequence with a progress bar.

    Returns:
        The rounded layers, by module.

    Raises:
        ExportError: a layer's input is not finite.
    """
    rounded = {}
    for batch in layers_that_fit_memory(layers):
        moments = measure_moments(network, batch, inputs, seed)
        for name in track(list(batch), "rounding"):
            rounded[name] = _round_layer(
                batch[name], moments[name], input_scales[name], sensitivities[name]
            )
    return rounded


def _round_layer(
    module: nn.Conv2d, moments: InputMoments, input_scale: float, sensitivity: Tensor
) -> RoundedLayer:
    assert module.bias is not None
    weight, bias = module.weight.detach(), module.bias.detach().numpy()
    bias_minimum = torch.tensor(smallest_scales_for_bias(bias, input_scale))
    scale = smallest_scales(weight).maximum(bias_minimum)
    groups = torch.split(weight, group_channels(module), dim=1)
    rounded_groups = [
        round_compensated(group, scale, covariance)
        for group, covariance in zip(groups, moments.covariances, strict=True)
    ]
    errors = [
        rounded * scale.double()[:, None] - group.double().flatten(1)
        for group, rounded in zip(groups, rounded_groups, strict=True)
    ]
    mean_error = torch.cat(errors, 1) @ moments.mean  # of each output channel
    error_variances = [
        ((error @ covariance) * error).sum(1)
        for error, covariance in zip(errors, moments.covariances, strict=True)
    ]
    return RoundedLayer(
        weight=torch.cat(rounded_groups, 1).reshape(weight.shape).numpy().astype(np.int8),
        scale=scale.numpy(),
        bias=(bias - mean_error.numpy()).astype(np.float32),
        predicted_error=float((sensitivity * torch.stack(error_variances).sum(0)).sum()),
    )


def smallest_scales(weight: Tensor) -> Tensor:
    """Compute the smallest scales (O,) with which weights (O,I,h,w) and their pairs fit."""
    flat = weight.reshape(len(weight), -1)
    scales = flat.abs().amax(1) / INT8_MAX
    for partners in _pair_partners(weight.shape):
        pair_sums = flat + torch.where(partners >= 0, flat[:, partners], 0)
        scales = scales.maximum(pair_sums.abs().amax(1) / _PAIR_LIMIT)
    return scales


def _pair_partners(shape: Sequence[int]) -> list[Tensor]:
    """Find the weights that a CPU without VNNI multiplies and adds in 16 bits.

    A pair is two neighbouring input channels at one tap. If the number of channels is odd, some
    libraries pair the last channel with the next tap, others with zero. Both cases are returned.

    Args:
        shape: of the weights, (O,I,h,w).

    Returns:
        Tensors (I*h*w,) with the index of each weight's partner, -1 for none.
    """
    channels, taps = shape[1], shape[2] * shape[3]
    index = torch.arange(channels * taps)
    channel, tap = index // taps, index % taps
    partner = channel ^ 1
    partners = [torch.where(partner < channels, partner * taps + tap, -1)]
    if channels % 2:
        partner = (tap * channels + channel) ^ 1
        exists = partner < channels * taps
        partners.append(torch.where(exists, partner % channels * taps + partner // channels, -1))
    return partners


def round_compensated(weight: Tensor, scale: Tensor, covariance: Tensor) -> Tensor:
    """Round weights to int8, each compensating the error of those before it.

    Args:
        weight: (O,I,h,w) float32.
        scale: (O,) float32, one per output channel.
        covariance: (I*h*w, I*h*w) float64, covariance of the layer's input patches.

    Returns:
        (O, I*h*w) float64: whole numbers from -127 to 127, pairs from -128 to 128.
    """
    partners = [indices.tolist() for indices in _pair_partners(weight.shape)]

    def round_column(column: Tensor, index: int, rounded: Tensor) -> Tensor:
        low, high = torch.full_like(column, -INT8_MAX), torch.full_like(column, INT8_MAX)
        for partner_of in partners:
            if partner_of[index] >= 0:  # partners not rounded yet are 0 and limit nothing
                partner = rounded[:, partner_of[index]]
                low = low.maximum(-_PAIR_LIMIT - partner)
                high = high.minimum(_PAIR_LIMIT - partner)
        return column.round().clamp(low, high)

    scaled = weight.double().flatten(1) / scale.double()[:, None]
    return _round_columns(scaled, covariance, round_column)


def round_weights_to_bf16(
    network: nn.Module, inputs: Sequence[Array], *, seed: int, track: Track
) -> None:
    """Round weights and biases of all convolutions to bfloat16, with the same compensation.

    A runtime that computes in bfloat16 rounds weights to the nearest value. Nearly all of the
    masks' error comes from there. The bias is rounded first. It counts as the weight of an input
    that is always 1, so the weights compensate its error too.

    Args:
        network: changed in place. Its batch norms are folded.
        inputs: preprocessed pictures (1,3,H,W) float32.
        seed: of the sampled positions.
        track: iterates over a sequence with a progress bar.

    Raises:
        ExportError: a layer's input is not finite.
    """
    with torch.no_grad():
        for batch in layers_that_fit_memory(find_convolutions(network.requires_grad_(False))):
            moments = measure_moments(network, batch, inputs, seed)
            for name in track(list(batch), "rounding"):
                _round_layer_to_bf16(batch[name], moments[name])


def _round_layer_to_bf16(module: nn.Conv2d, moments: InputMoments) -> None:
    assert module.bias is not None
    groups = torch.split(module.weight.double(), group_channels(module), dim=1)
    means = torch.split(moments.mean, len(moments.covariances[0]))
    bias, rounded_groups = module.bias.double()[:, None], []
    for group, covariance, mean in zip(groups, moments.covariances, means, strict=True):
        values = torch.cat([bias, group.flatten(1)], 1)
        second_moments = _second_moments_with_one(covariance, mean)
        rounded = _round_columns(values, second_moments, _round_column_to_bf16, leading=1)
        bias = rounded[:, :1]
        rounded_groups.append(rounded[:, 1:])
    module.weight.copy_(torch.cat(rounded_groups, 1).reshape(module.weight.shape))
    module.bias.copy_(bias[:, 0])


def _second_moments_with_one(covariance: Tensor, mean: Tensor) -> Tensor:
    """Compute the second moments of inputs that follow a constant 1."""
    size = len(mean) + 1
    moments = torch.ones(size, size, dtype=torch.double)
    moments[0, 1:] = moments[1:, 0] = mean
    moments[1:, 1:] = covariance + torch.outer(mean, mean)
    return moments


def _round_column_to_bf16(column: Tensor, index: int, rounded: Tensor) -> Tensor:
    return column.float().bfloat16().double()


def _round_columns(
    weight: Tensor,
    covariance: Tensor,
    round_column: Callable[[Tensor, int, Tensor], Tensor],
    leading: int = 0,
) -> Tensor:
    """Round the columns of a weight matrix, the one with the largest variance first.

    The error of each column moves to the columns that are not rounded yet.

    Args:
        weight: (O,K) float64.
        covariance: (K,K) float64, of the inputs that the weights multiply.
        round_column: gets a column (O,), its index, and the result so far. Columns that are not
            rounded yet are 0 there.
        leading: number of columns at the start that are rounded before all others.

    Returns:
        (O,K) float64.
    """
    damped = _damp(covariance)
    by_variance = torch.argsort(damped.diagonal()[leading:], descending=True, stable=True)
    order = torch.cat([torch.arange(leading), by_variance + leading])
    remaining, damped = weight[:, order].clone(), damped[order][:, order]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor = torch.linalg.cholesky(inverse, upper=True)
    rounded = torch.zeros_like(remaining)
    indices, size = order.tolist(), len(order)
    for start in range(0, size, BLOCK_COLUMNS):
        end = min(start + BLOCK_COLUMNS, size)
        errors = torch.zeros_like(remaining[:, start:end])
        for position in range(start, end):
            column, index = remaining[:, position], indices[position]
            rounded_column = round_column(column, index, rounded)
            rounded[:, index] = rounded_column
            error = (column - rounded_column) / factor[position, position]
            remaining[:, position:end] -= error[:, None] * factor[position, position:end][None]
            errors[:, position - start] = error
        remaining[:, end:] -= errors @ factor[start:end, end:]
    return rounded


def _damp(covariance: Tensor) -> Tensor:
    """Add to the diagonal of a covariance until it can be factored."""
    identity = torch.eye(len(covariance), dtype=torch.double)
    damping = _DAMPING * covariance.diagonal().mean().clamp_min(_SMALLEST_VARIANCE)
    while torch.linalg.cholesky_ex(covariance + damping * identity).info:
        damping *= 10  # float32 sums of inputs that hardly vary are not exact
    return covariance + damping * identity
