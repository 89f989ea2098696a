"""Which convolutions stay in float32, so that 8 bits keep the mask.

Everything is first in whole numbers, but a layer that alone is foretold to do a large part of all
damage and little of the work. Layers are then taken back into float32 in the order of that damage
until the masks of the calibration pictures keep well within what is allowed; what turns out not to
be needed goes back. Pictures that the search never saw judge the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import torch
from torch import nn

from u2export.backend import Array
from u2export.errors import ExportError
from u2export.graph import quantized
from u2export.graph.quantized import Range, Recipe
from u2export.metrics import MIN_CONTRAST, Judgement, compare, judge
from u2export.quant import rounding
from u2export.quant.account import Account, Point, keeps
from u2export.quant.calibration import Calibration
from u2export.quant.notebook import Notebook
from u2export.quant.rounding import Layers, Rounded, Track
from u2export.spec import Quantization

Run = Callable[[onnx.ModelProto], Callable[[Array], Sequence[Array]]]
# Six channels to one, and the saliency itself: a thousandth of the work.
TAIL = ("outconv",)
# How many layers are tried in float32, until one number is enough.
TRIED = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
MARGIN = 0.5  # of what is allowed is used up on the pictures that are searched on
DOMINANT = 0.25  # of all damage: a layer that does more stays in float32
CHEAP = 0.05  # of the multiply-adds: if it does no more of these
NOTABLE = 0.05  # of the square of the allowed mean difference: and if its damage is more than that
MOST_DROPPED = 8  # layers for which it is tried whether they are needed


class Search:
    """One network, its rounded weights, and the masks that float layers give.

    Attributes:
        suspects: the layers by the damage that their rounding is foretold to do, worst first.
    """

    def __init__(
        self,
        network: nn.Module,
        model: onnx.ModelProto,
        pictures: Calibration,
        asked: Quantization,
        run: Run,
        track: Track,
    ) -> None:
        """Calibrate, round and foretell."""
        quantized.refuse_quantized(model)
        self._model, self._run, self._asked = model, run, asked
        self._pictures, self._track = pictures, track
        inputs = list(pictures.searched.values())
        layers = rounding.layers_of(network.requires_grad_(False))
        self._macs = _macs(network, layers, inputs[0])
        self._ranges = self._measured(inputs)
        self._tail = frozenset(name for name in layers if name.startswith(TAIL))
        whole = {name: one for name, one in layers.items() if name not in self._tail}
        effect = rounding.effects(network, whole, inputs, seed=asked.seed, track=track)
        self._rounded: dict[str, Rounded] = rounding.rounded(
            network,
            whole,
            inputs,
            input_steps=quantized.input_steps(model, self._ranges),
            effect=effect,
            seed=asked.seed,
            track=track,
        )
        self._references = {
            name: _saliency(network, x)
            for name, x in {**pictures.searched, **pictures.judged}.items()
        }
        self.suspects = sorted(self._rounded, key=lambda name: -self._rounded[name].damage)
        self._notebook = Notebook(list(pictures.searched))

    def _measured(self, inputs: Sequence[Array]) -> dict[str, Range]:
        """The range of every tensor over the pictures and their mirror images."""
        tensors = quantized.measured(self._model)
        call = self._run(quantized.with_ranges(self._model, tensors))
        both = [x for one in inputs for x in (one, np.ascontiguousarray(one[..., ::-1]))]
        seen = np.array([[float(value) for value in call(x)] for x in both])
        lows, highs = seen[:, 0::2].min(0), seen[:, 1::2].max(0)
        return {
            name: (float(low), float(high))
            for name, low, high in zip(tensors, lows, highs, strict=True)
        }

    def written(self, in_float: frozenset[str]) -> onnx.ModelProto:
        """The graph in whole numbers, with these layers, and the tail, in float32."""
        recipe = Recipe(
            ranges=self._ranges,
            weights={name: one.weight for name, one in self._rounded.items()},
            steps={name: one.step for name, one in self._rounded.items()},
            biases={name: one.bias for name, one in self._rounded.items()},
            in_float=in_float | self._tail,
        )
        return quantized.quantize(self._model, recipe)

    def masks(self, model: onnx.ModelProto, pictures: Mapping[str, Array], count: int) -> Point:
        """How the masks of some pictures compare with those of float32."""
        call = self._run(model)
        expected = [self._references[name] for name in pictures]
        apart = [
            compare(reference, call(x)[0][0, 0])
            for reference, x in zip(expected, pictures.values(), strict=True)
        ]
        return _point(count, judge(apart, [float(np.ptp(one)) for one in expected]))

    def searched(self, in_float: frozenset[str]) -> Point:
        """The same on the pictures that are searched on, with these layers in float32."""
        model = self.written(in_float)
        return self._notebook.noted(
            model.SerializeToString(deterministic=True),
            lambda: self.masks(model, self._pictures.searched, len(in_float)),
        )

    def enough(self, in_float: frozenset[str]) -> bool:
        """Whether the masks with these layers in float32 are well within what is allowed."""
        return keeps(self.searched(in_float), self._asked, MARGIN)

    def choose(self) -> frozenset[str]:
        """The fewest layers in float32 that are enough; the best that were tried if none are.

        Raises:
            ExportError: no picture has a subject, so that there is no mask to judge.
        """
        halves = (self._pictures.searched, self._pictures.judged)
        if not (self._asked.best_effort or all(map(self._have_subject, halves))):
            raise ExportError(
                "half of the calibration pictures have no subject by which masks could be judged: "
                "give others, or --best-effort"
            )
        tried: list[int] = []
        counts = [n for n in TRIED if self._dominant() <= n <= len(self.suspects)]
        for count in self._track(counts, "searching"):
            tried.append(count)
            if self.enough(self._worst(count)):
                break
        else:
            best = max(tried, key=lambda n: self.searched(self._worst(n)).mask_iou or 0.0)
            return self._worst(best)
        low, high = [counts[0] - 1, *tried][-2:]
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.enough(self._worst(middle)) else (middle, high)
        return self._pruned(self._worst(high))

    def _have_subject(self, pictures: Mapping[str, Array]) -> bool:
        """Whether the float32 network finds a subject in one of these pictures."""
        return max(float(np.ptp(self._references[name])) for name in pictures) >= MIN_CONTRAST

    def _dominant(self) -> int:
        """How many of the worst layers stay in float32 whatever the masks are."""
        damage = [self._rounded[name].damage for name in self.suspects]
        least = max(DOMINANT * sum(damage), NOTABLE * self._asked.max_mae**2)
        most = CHEAP * sum(self._macs.values())
        large = [
            done > least and self._macs[name] <= most
            for name, done in zip(self.suspects, damage, strict=True)
        ]
        return large.index(False)

    def _worst(self, count: int) -> frozenset[str]:
        return frozenset(self.suspects[:count])

    def _pruned(self, chosen: frozenset[str]) -> frozenset[str]:
        """Put back into whole numbers what is not needed, the most work first."""
        doubtful = chosen - self._worst(self._dominant())
        costly = sorted(doubtful, key=lambda name: (-self._macs[name], name))[:MOST_DROPPED]
        for name in costly if len(chosen) > 1 else ():
            if self.enough(chosen - {name}):
                chosen -= {name}
        return chosen

    def account(self, chosen: frozenset[str]) -> Account:
        """Judge the choice on the pictures that the search never saw; and draw the curve."""
        model, judged = self.written(chosen), self._pictures.judged
        result, signed = (
            self.masks(one, judged, len(chosen)) for one in (model, quantized.signed(model))
        )
        drawn = {count: self._worst(count) for count in (0, 1, 2, 4)} | {len(chosen): chosen}
        curve = [drawn[count] for count in sorted(drawn)]
        whole = quantized.whole_layers(self._model, chosen | self._tail)
        share = sum(self._macs[name] for name in whole) / sum(self._macs.values())
        return Account(
            searched=tuple(self._pictures.searched),
            judged=tuple(judged),
            drawn=self._pictures.drawn,
            in_float=tuple(sorted(chosen)),
            why={name: float(f"{self._rounded[name].damage:.4g}") for name in self.suspects},
            share=round(share, 4),
            curve=tuple(self.searched(one) for one in self._track(curve, "drawing")),
            result=result,
            signed=signed,
            kept=keeps(result, self._asked),
        )


def _point(count: int, found: Judgement) -> Point:
    def short(value: float | None) -> float | None:
        return None if value is None else round(value, 6)

    return Point(
        in_float=count,
        mask_iou=short(found.mask_iou),
        worst_iou=short(found.worst_iou),
        mask_mae=short(found.mask_mae),
    )


def _saliency(network: nn.Module, x: Array) -> Array:
    with torch.inference_mode():
        saliency: Array = network(torch.tensor(x))[0, 0].numpy()
    return saliency


def _macs(network: nn.Module, layers: Layers, x: Array) -> dict[str, int]:
    """Multiply-adds of each convolution for one picture."""
    found: dict[str, int] = {}

    def note(name: str, given: torch.Tensor, result: torch.Tensor) -> None:
        found[name] = layers[name].weight[0].numel() * result[0].numel()

    with rounding.hooked(layers, note), torch.inference_mode():
        network(torch.tensor(x))
    return found
