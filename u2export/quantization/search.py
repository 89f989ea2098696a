"""A search for the convolutions that must stay in float32, so that int8 preserves the masks.

1. A layer stays in float32 at once if it causes much of the predicted error and does little work.
2. More layers go to float32, in the order of their predicted error. This ends when the masks of the
   search pictures are well within the limits.
3. Layers that turn out not to need float32 go back to int8.

Pictures that the search never uses validate the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import torch
from torch import nn

from u2export.compare.metrics import (
    MIN_CONTRAST,
    MaskComparison,
    compare_maps,
    summarize_differences,
)
from u2export.core.arrays import Array
from u2export.core.int8_record import Int8Record, MaskQuality, meets_request
from u2export.core.requests import Quantization
from u2export.errors import ExportError
from u2export.onnx_graph import qdq
from u2export.onnx_graph.qdq import QdqRecipe, ValueRange
from u2export.quantization import gptq
from u2export.quantization.calibration import Calibration
from u2export.quantization.gptq import RoundedLayer, Track
from u2export.quantization.moments import Layers, find_convolutions, hooked_layers
from u2export.quantization.search_cache import SearchCache

OpenSession = Callable[[onnx.ModelProto], Callable[[Array], Sequence[Array]]]
FLOAT_LAYER_COUNTS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # tried in this order
# The last layer has six channels and gives the saliency itself. It does a thousandth of the work.
_ALWAYS_FLOAT = ("outconv",)
_SEARCH_MARGIN = 0.5  # share of the allowed loss that may be used on the search pictures
# A layer stays in float32 at once if it causes more than both of these errors ...
_DOMINANT_ERROR_SHARE = 0.25  # of the predicted error of all layers
_NOTABLE_ERROR_SHARE = 0.05  # of the square of the allowed mean absolute difference
_CHEAP_MACS_SHARE = 0.05  # ... and does no more of the multiply-adds than this.
_MAX_RETURN_TRIALS = 8  # layers for which a return to int8 is tried


class FloatLayerSearch:
    """The search for one network and one set of calibration pictures.

    Attributes:
        layers_by_error: the layers by predicted error, the largest first.
    """

    def __init__(
        self,
        network: nn.Module,
        model: onnx.ModelProto,
        calibration: Calibration,
        request: Quantization,
        open_session: OpenSession,
        track: Track,
    ) -> None:
        """Measure the ranges, round all layers and predict their errors.

        Args:
            network: its batch norms are folded. It gives one output.
            model: the same network as a float32 graph.
            calibration: the pictures.
            request: limits and seed.
            open_session: makes a graph callable.
            track: iterates over a sequence with a progress bar.

        Raises:
            InputError: the graph is quantized already.
            ExportError: a layer's input is not finite.
        """
        qdq.refuse_quantized(model)
        self._model, self._open_session, self._request = model, open_session, request
        self._calibration, self._track = calibration, track
        inputs = list(calibration.search_inputs.values())
        layers = find_convolutions(network.requires_grad_(False))
        self._macs = _count_macs(network, layers, inputs[0])
        self._ranges = self._measure_ranges(inputs)
        self._always_float = frozenset(name for name in layers if name.startswith(_ALWAYS_FLOAT))
        self._rounded = self._round_layers(network, layers, inputs)
        self._references = {
            sha256: _run_network(network, x)
            for sha256, x in {
                **calibration.search_inputs,
                **calibration.validation_inputs,
            }.items()
        }
        self.layers_by_error = sorted(
            self._rounded, key=lambda name: -self._rounded[name].predicted_error
        )
        self._cache = SearchCache(list(calibration.search_inputs))

    def _measure_ranges(self, inputs: Sequence[Array]) -> dict[str, ValueRange]:
        """Measure the range of every tensor over the pictures and their mirror images."""
        tensors = qdq.tensors_to_measure(self._model)
        session = self._open_session(qdq.with_range_outputs(self._model, tensors))
        with_mirrored = [y for x in inputs for y in (x, np.ascontiguousarray(x[..., ::-1]))]
        extremes = np.array([[float(value) for value in session(x)] for x in with_mirrored])
        lows, highs = extremes[:, 0::2].min(0), extremes[:, 1::2].max(0)
        return {
            tensor: (float(low), float(high))
            for tensor, low, high in zip(tensors, lows, highs, strict=True)
        }

    def _round_layers(
        self, network: nn.Module, layers: Layers, inputs: Sequence[Array]
    ) -> dict[str, RoundedLayer]:
        to_round = {
            name: module for name, module in layers.items() if name not in self._always_float
        }
        seed, track = self._request.seed, self._track
        return gptq.round_weights(
            network,
            to_round,
            inputs,
            input_scales=qdq.input_scales(self._model, self._ranges),
            sensitivities=gptq.estimate_sensitivities(
                network, to_round, inputs, seed=seed, track=track
            ),
            seed=seed,
            track=track,
        )

    def choose(self) -> frozenset[str]:
        """Choose the layers that stay in float32.

        Returns:
            As few as meet the request. If no tried number does, the layers with the best masks.

        Raises:
            ExportError: one half of the pictures has no subject, so it cannot check masks.
        """
        self._require_subjects()
        counts = [
            count
            for count in FLOAT_LAYER_COUNTS
            if self._dominant_count() <= count <= len(self.layers_by_error)
        ]
        tried: list[int] = []
        for count in self._track(counts, "searching"):
            tried.append(count)
            if self._is_good(self._worst_layers(count)):
                break
        else:
            return max(map(self._worst_layers, counts), key=self._search_iou)
        too_few, enough = [counts[0] - 1, *tried][-2:]
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            if self._is_good(self._worst_layers(middle)):
                enough = middle
            else:
                too_few = middle
        return self._without_needless(self._worst_layers(enough))

    def _require_subjects(self) -> None:
        halves = (self._calibration.search_inputs, self._calibration.validation_inputs)
        if not (self._request.best_effort or all(map(self._have_subject, halves))):
            raise ExportError(
                "half of the calibration pictures have no subject by which masks could be judged: "
                "give others, or --best-effort"
            )

    def _have_subject(self, inputs: Mapping[str, Array]) -> bool:
        """Check whether the float32 network finds a subject in any of the pictures."""
        return max(float(np.ptp(self._references[sha256])) for sha256 in inputs) >= MIN_CONTRAST

    def _dominant_count(self) -> int:
        """Count the layers, from the worst one on, that stay in float32 in any case."""
        errors = [self._rounded[name].predicted_error for name in self.layers_by_error]
        error_limit = max(
            _DOMINANT_ERROR_SHARE * sum(errors), _NOTABLE_ERROR_SHARE * self._request.max_mae**2
        )
        macs_limit = _CHEAP_MACS_SHARE * sum(self._macs.values())
        dominant = [
            error > error_limit and self._macs[name] <= macs_limit
            for name, error in zip(self.layers_by_error, errors, strict=True)
        ]
        return dominant.index(False)

    def _worst_layers(self, count: int) -> frozenset[str]:
        return frozenset(self.layers_by_error[:count])

    def _is_good(self, float_layers: frozenset[str]) -> bool:
        """Check whether the masks of the search pictures are well within the limits."""
        return meets_request(self._search_quality(float_layers), self._request, _SEARCH_MARGIN)

    def _search_iou(self, float_layers: frozenset[str]) -> float:
        return self._search_quality(float_layers).mask_iou or 0.0

    def _search_quality(self, float_layers: frozenset[str]) -> MaskQuality:
        """Measure the masks of the search pictures, or look them up in the cache."""
        model = self.quantized_model(float_layers)
        inputs = self._calibration.search_inputs
        return self._cache.get_or_compute(
            model.SerializeToString(deterministic=True),
            lambda: self.measure_masks(model, inputs, len(float_layers)),
        )

    def _without_needless(self, float_layers: frozenset[str]) -> frozenset[str]:
        """Return layers to int8 where the masks stay good, those with the most work first."""
        candidates = float_layers - self._worst_layers(self._dominant_count())
        by_work = sorted(candidates, key=lambda name: (-self._macs[name], name))
        for name in by_work[:_MAX_RETURN_TRIALS] if len(float_layers) > 1 else ():
            if self._is_good(float_layers - {name}):
                float_layers -= {name}
        return float_layers

    def quantized_model(self, float_layers: frozenset[str]) -> onnx.ModelProto:
        """Build the int8 graph in which these layers, and the last one, stay in float32."""
        recipe = QdqRecipe(
            ranges=self._ranges,
            weights={name: layer.weight for name, layer in self._rounded.items()},
            weight_scales={name: layer.scale for name, layer in self._rounded.items()},
            biases={name: layer.bias for name, layer in self._rounded.items()},
            in_float=float_layers | self._always_float,
        )
        return qdq.quantize(self._model, recipe)

    def measure_masks(
        self, model: onnx.ModelProto, inputs: Mapping[str, Array], float_layer_count: int
    ) -> MaskQuality:
        """Compare the masks of an int8 graph with those of the float32 network.

        Args:
            model: the int8 graph.
            inputs: calibration pictures by sha256.
            float_layer_count: goes into the result.
        """
        session = self._open_session(model)
        references = [self._references[sha256] for sha256 in inputs]
        differences = [
            compare_maps(reference, session(x)[0][0, 0])
            for reference, x in zip(references, inputs.values(), strict=True)
        ]
        contrasts = [float(np.ptp(reference)) for reference in references]
        return _mask_quality(float_layer_count, summarize_differences(differences, contrasts))

    def make_record(self, float_layers: frozenset[str]) -> Int8Record:
        """Measure a choice of layers on the validation pictures, and record how it was made."""
        model, inputs = self.quantized_model(float_layers), self._calibration.validation_inputs
        result = self.measure_masks(model, inputs, len(float_layers))
        signed = self.measure_masks(qdq.to_signed(model), inputs, len(float_layers))
        choices = {count: self._worst_layers(count) for count in (0, 1, 2, 4)}
        choices[len(float_layers)] = float_layers
        curve = [choices[count] for count in sorted(choices)]
        layers = qdq.int8_layers(self._model, float_layers | self._always_float)
        int8_share = sum(self._macs[name] for name in layers) / sum(self._macs.values())
        errors = {name: self._rounded[name].predicted_error for name in self.layers_by_error}
        return Int8Record(
            searched=tuple(self._calibration.search_inputs),
            judged=tuple(inputs),
            drawn=self._calibration.synthetic,
            in_float=tuple(sorted(float_layers)),
            why={name: float(f"{error:.4g}") for name, error in errors.items()},
            share=round(int8_share, 4),
            curve=tuple(self._search_quality(choice) for choice in self._track(curve, "drawing")),
            result=result,
            signed=signed,
            kept=meets_request(result, self._request),
        )


def _mask_quality(float_layer_count: int, comparison: MaskComparison) -> MaskQuality:
    def rounded(value: float | None) -> float | None:
        return None if value is None else round(value, 6)

    return MaskQuality(
        in_float=float_layer_count,
        mask_iou=rounded(comparison.mask_iou),
        worst_iou=rounded(comparison.worst_iou),
        mask_mae=rounded(comparison.mask_mae),
    )


def _run_network(network: nn.Module, x: Array) -> Array:
    with torch.inference_mode():
        saliency: Array = network(torch.tensor(x))[0, 0].numpy()
    return saliency


def _count_macs(network: nn.Module, layers: Layers, x: Array) -> dict[str, int]:
    """Count the multiply-adds of each convolution for one picture."""
    macs: dict[str, int] = {}

    def count(name: str, layer_input: torch.Tensor, output: torch.Tensor) -> None:
        macs[name] = layers[name].weight[0].numel() * output[0].numel()

    with hooked_layers(layers, count), torch.inference_mode():
        network(torch.tensor(x))
    return macs
