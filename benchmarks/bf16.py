"""Where bfloat16 loses the mask, and what rounding the weights by pictures brings: emulated.

    python benchmarks/bf16.py --weights u2netp.safetensors --calibration DIR... --pictures DIR...

Every operation's result is rounded, so no CPU with bfloat16 is needed; nothing is said of speed.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from report import leave

from u2export.compare.emulate import EmulatedNetwork
from u2export.compare.metrics import compare_maps, summarize_differences
from u2export.core.arrays import Array
from u2export.core.enums import Precision
from u2export.core.models import MODELS
from u2export.images.decode import open_image
from u2export.images.inputs import image_files
from u2export.images.preprocess import preprocess
from u2export.network import checkpoint, u2net, weights
from u2export.network.u2net import U2Net
from u2export.quantization import gptq
from u2export.system.progress import say, track


class ActivationsOnly(EmulatedNetwork):
    """Rounds what operations give, and leaves the network's own values."""

    def __init__(self, network: U2Net) -> None:
        """Keep the values."""
        super().__init__(network, Precision.BF16)
        self._network.load_state_dict(u2net.fold_batch_norm(network).state_dict())


def main() -> None:
    """Judge each way, print, leave the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="real u2netp weights; else the bundled demo weights")
    parser.add_argument("--calibration", type=Path, nargs="+", required=True)
    parser.add_argument("--pictures", type=Path, nargs="+", required=True, help="to be judged")
    args = parser.parse_args()
    source = weights.find(MODELS["u2netp" if args.weights else "u2netp-demo"], args.weights)
    spec = source.facts.picture
    calibration, pictures = (
        [preprocess(open_image(path), spec) for path in image_files(folders)]
        for folders in (args.calibration, args.pictures)
    )
    network = u2net.fold_batch_norm(checkpoint.load_network(source, say))
    by_pictures = copy.deepcopy(network)
    gptq.round_weights_to_bf16(by_pictures, calibration, seed=0, track=track)
    nearest = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in nearest.parameters():
            parameter.copy_(parameter.bfloat16().float())
    ways: dict[str, Callable[[Array], Array]] = {
        "all in bfloat16, weights to the nearest": EmulatedNetwork(network, Precision.BF16),
        "weights to the nearest, all else float32": lambda x: nearest(torch.tensor(x)).numpy(),
        "weights as they are, all else bfloat16": ActivationsOnly(network),
        "weights by pictures, all else float32": lambda x: by_pictures(torch.tensor(x)).numpy(),
        "all in bfloat16, weights by pictures": EmulatedNetwork(by_pictures, Precision.BF16),
    }
    with torch.inference_mode():
        expected = [network(torch.tensor(x))[0, 0].numpy() for x in pictures]
        figures: dict[str, object] = {"pictures": len(pictures), "calibration": len(calibration)}
        for name, way in ways.items():
            apart = [compare_maps(a, way(x)[0, 0]) for a, x in zip(expected, pictures, strict=True)]
            told = summarize_differences(apart, [float(np.ptp(one)) for one in expected])
            figures[name] = {
                "mask IoU": round(told.mask_iou or 0.0, 4),
                "worst": round(told.worst_iou or 0.0, 4),
                "MAE": round(told.mask_mae or 0.0, 5),
            }
    leave("bf16", figures)


if __name__ == "__main__":
    main()
