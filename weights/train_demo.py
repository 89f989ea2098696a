"""Train the bundled demo weights: u2netp on pictures drawn by a program, on a CPU.

    python weights/train_demo.py --out weights/u2netp-demo.safetensors
    python weights/train_demo.py --evaluate weights/u2netp-demo.safetensors \
        --photographs ../shared/images/salient --masks ../shared/images/author_masks

The loss is the paper's: binary cross-entropy summed over the fused map and the six side maps. The
schedule runs over steps, not minutes, so that the recipe recorded beside the weights can be rerun.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from u2export.compare.metrics import iou
from u2export.core.enums import Architecture, Resize
from u2export.core.models import PictureSpec
from u2export.images.decode import open_image
from u2export.images.postprocess import stretch_saliency
from u2export.images.preprocess import preprocess
from u2export.images.synthetic import HELD_OUT_SEED, draw_image
from u2export.network.u2net import U2Net

# (share of the steps, side in pixels, pictures a step): small and many first, the real size last.
STAGES = ((0.75, 128, 12), (0.16, 192, 8), (0.09, 320, 4))
PEAK_RATE, WARM_UP, WEIGHT_DECAY = 2e-3, 150, 1e-4
HELD_OUT_PICTURES = 200
MAX_BYTES = 2_500_000
LARGEST_HALF, SMALLEST_HALF = 65504.0, 6.1e-5


class DrawnPictures(Dataset[tuple[Tensor, Tensor]]):
    """Pictures of the training seeds, drawn at 1 to 2 times the size and squashed to it."""

    def __init__(self, start: int, count: int, side: int) -> None:
        """Take seeds start..start+count-1 at `side` pixels."""
        self.start, self.count, self.side = start, count, side

    def __len__(self) -> int:
        """Number of pictures."""
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Network input (3,side,side) and mask (1,side,side) in [0,1]."""
        seed = self.start + index
        assert seed < HELD_OUT_SEED
        rng = np.random.default_rng([seed, 7])
        width, height = (int(self.side * rng.uniform(1, 1.8)) for _ in range(2))
        drawn = draw_image(seed, (width, height))
        way = Resize.AUTHORS if rng.random() < 0.5 else Resize.BILINEAR
        x = preprocess(drawn.picture, PictureSpec(size=self.side, resize=way))[0]
        mask = drawn.mask.resize((self.side, self.side), Image.Resampling.BILINEAR)
        y = np.asarray(mask, np.float32)[None] / 255
        if rng.random() < 0.5:
            x, y = x[..., ::-1], y[..., ::-1]
        return torch.tensor(x.copy()), torch.tensor(y.copy())


def batches(steps: int, done: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Give (step, inputs, masks) for every step from `done` on, in the order of the stages."""
    first_seed = step = 0
    for share, side, batch in STAGES:
        length = round(steps * share)
        skip = min(max(done - step, 0), length)
        pictures = DrawnPictures(first_seed + skip * batch, (length - skip) * batch, side)
        if len(pictures):
            loader = DataLoader(pictures, batch, num_workers=1, prefetch_factor=8)
            yield from ((step + skip + i, x, y) for i, (x, y) in enumerate(loader))
        step += length
        first_seed += length * batch


def rate(step: int, steps: int) -> float:
    """Learning rate of a step: linear warm-up, then a cosine down to a hundredth."""
    if step < WARM_UP:
        return PEAK_RATE * (step + 1) / WARM_UP
    turn = math.pi * (step - WARM_UP) / max(1, steps - WARM_UP)
    return PEAK_RATE * (0.01 + 0.99 * (1 + math.cos(turn)) / 2)


def train(args: argparse.Namespace) -> None:
    """Train, writing a checkpoint every 200 steps, and the weights with their scores at the end."""
    torch.manual_seed(args.seed)
    network = U2Net(Architecture.SMALL).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), PEAK_RATE, weight_decay=WEIGHT_DECAY)
    checkpoint = args.out.with_suffix(".checkpoint")
    done, spent = 0, 0.0
    if args.resume and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(saved["network"])
        optimiser.load_state_dict(saved["optimiser"])
        done, spent = saved["step"], saved["seconds"]
    begun = time.monotonic() - spent
    network.train()
    shown = track(
        batches(args.steps, done), "training", args.steps - done, console=Console(stderr=True)
    )
    for step, x, y in shown if sys.stderr.isatty() else batches(args.steps, done):
        for group in optimiser.param_groups:
            group["lr"] = rate(step, args.steps)
        loss = _step(network, optimiser, x, y)
        if step % 100 == 0 and not sys.stderr.isatty():
            print(f"step {step} loss {loss:.3f} {time.monotonic() - begun:.0f} s", file=sys.stderr)
        if step % 200 == 199:
            saved = {"network": network.state_dict(), "optimiser": optimiser.state_dict()}
            torch.save({**saved, "step": step + 1, "seconds": time.monotonic() - begun}, checkpoint)
    _write(network, args, minutes=(time.monotonic() - begun) / 60)


def _step(network: U2Net, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
    optimiser.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        maps = network.logits(x.to(memory_format=torch.channels_last))
    loss = sum(
        (F.binary_cross_entropy_with_logits(d.float(), y) for d in maps), start=torch.zeros(())
    )
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
    optimiser.step()
    return float(loss.detach())


def _write(network: U2Net, args: argparse.Namespace, minutes: float) -> None:
    state = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    half = {name: _half(name, value) for name, value in state.items()}
    save_file(half, args.out)
    content = args.out.read_bytes()
    assert len(content) <= MAX_BYTES, len(content)
    record = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "recipe": {
            "command": f"python weights/train_demo.py --steps {args.steps} --seed {args.seed}",
            "stages (share of steps, side, batch)": STAGES,
            "peak learning rate": PEAK_RATE,
            "minutes on 2 cores": round(minutes, 1),
            "torch": torch.__version__,
        },
        "scores": evaluate(args.out, args.photographs, args.masks),
    }
    args.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


def _half(name: str, value: Tensor) -> Tensor:
    """Round to half precision; a batch norm's variance must stay a normal number there."""
    if name.endswith("running_var"):
        value = value.clamp(min=SMALLEST_HALF)
    assert float(value.abs().max()) < LARGEST_HALF, name
    return value.half().contiguous()


def steps_in(minutes: float) -> int:
    """How many steps take some minutes here, from timing one of each stage on spare weights."""
    network = U2Net(Architecture.SMALL).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters())
    seconds = 0.0
    for share, side, batch in STAGES:
        x, y = torch.rand(batch, 3, side, side), torch.rand(batch, 1, side, side)
        _step(network, optimiser, x, y)  # the first of a shape also allocates
        begun = time.monotonic()
        _step(network, optimiser, x, y)
        seconds += share * (time.monotonic() - begun)
    return max(1, int(minutes * 60 / seconds))


def evaluate(weights: Path, photographs: Path | None, masks: Path | None) -> dict[str, object]:
    """Score weights on held-out drawn pictures and on photographs, at 320 pixels."""
    network = U2Net(Architecture.SMALL)
    network.load_state_dict(
        {k: v.float() for k, v in load_file(weights).items()}, strict=False, assign=False
    )
    network.eval()
    drawn = [draw_image(HELD_OUT_SEED + i, (400, 320)) for i in range(HELD_OUT_PICTURES)]
    scores: dict[str, object] = {
        f"{HELD_OUT_PICTURES} held-out drawn pictures": _scores(
            network, [(d.picture, d.mask) for d in drawn]
        )
    }
    if photographs and masks:
        pairs = [
            (open_image(path), Image.open(masks / f"{path.stem}.png").convert("L"))
            for path in sorted(photographs.iterdir())
        ]
        scores[f"{len(pairs)} photographs, against u2netp's published masks"] = _scores(
            network, pairs
        )
    scores["largest activation"] = _largest_activation(network, drawn[0].picture)
    return scores


def _scores(network: U2Net, pairs: list[tuple[Image.Image, Image.Image]]) -> dict[str, float]:
    spec = PictureSpec()
    ious, errors = [], []
    for picture, mask in pairs:
        with torch.inference_mode():
            saliency = network(torch.tensor(preprocess(picture, spec))).numpy()[0, 0]
        found = stretch_saliency(saliency, spec)
        small = mask.resize((spec.size, spec.size), Image.Resampling.BILINEAR)
        truth = np.asarray(small, np.float32) / 255
        ious.append(iou(truth, found))
        errors.append(float(np.abs(truth - found).mean()))
    return {
        "IoU": round(float(np.mean(ious)), 4),
        "IoU, worst": round(min(ious), 4),
        "IoU, 10th percentile": round(float(np.percentile(ious, 10)), 4),
        "MAE": round(float(np.mean(errors)), 4),
    }


def _largest_activation(network: U2Net, picture: Image.Image) -> float:
    seen: list[float] = []
    handles = [
        module.register_forward_hook(lambda m, a, result: seen.append(float(result.abs().max())))
        for module in network.modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.BatchNorm2d)
    ]
    with torch.inference_mode():
        network(torch.tensor(preprocess(picture, PictureSpec())))
    for handle in handles:
        handle.remove()
    return round(max(seen), 1)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("weights/u2netp-demo.safetensors"))
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=2000)
    length.add_argument("--minutes", type=float, help="as many steps as fit, by timing a few")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--evaluate", type=Path, help="score these weights and stop")
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--masks", type=Path)
    args = parser.parse_args()
    if args.evaluate:
        print(json.dumps(evaluate(args.evaluate, args.photographs, args.masks), indent=1))
        return
    if args.minutes:
        args.steps = steps_in(args.minutes)
    train(args)


if __name__ == "__main__":
    main()
