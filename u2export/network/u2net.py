"""The reference network: U²-Net in both published sizes, from one block and one table.

Source:
    Qin et al., "U²-Net: Going Deeper with Nested U-Structure for Salient Object Detection",
    Pattern Recognition 106, 107404 (arXiv 2005.09007). Parameter names are those of the published
    checkpoints, so these load with strict keys.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from u2export.core.enums import Architecture


class RsuSpec(NamedTuple):
    """One row of the size table: a U-shaped residual block (RSU)."""

    name: str
    depth: int
    channels_in: int
    channels_mid: int
    channels_out: int
    dilated: bool = False


FULL = (
    RsuSpec("stage1", 7, 3, 32, 64),
    RsuSpec("stage2", 6, 64, 32, 128),
    RsuSpec("stage3", 5, 128, 64, 256),
    RsuSpec("stage4", 4, 256, 128, 512),
    RsuSpec("stage5", 4, 512, 256, 512, dilated=True),
    RsuSpec("stage6", 4, 512, 256, 512, dilated=True),
    RsuSpec("stage5d", 4, 1024, 256, 512, dilated=True),
    RsuSpec("stage4d", 4, 1024, 128, 256),
    RsuSpec("stage3d", 5, 512, 64, 128),
    RsuSpec("stage2d", 6, 256, 32, 64),
    RsuSpec("stage1d", 7, 128, 16, 64),
)
SMALL = tuple(
    row._replace(
        channels_in=3 if row.name == "stage1" else 128 if row.name.endswith("d") else 64,
        channels_mid=16,
        channels_out=64,
    )
    for row in FULL
)
RSU_SPECS = {Architecture.FULL: FULL, Architecture.SMALL: SMALL}
ENCODER = ("stage1", "stage2", "stage3", "stage4", "stage5", "stage6")
DECODER = ("stage5d", "stage4d", "stage3d", "stage2d", "stage1d")
OUTPUTS = 7


def upsample_like(x: Tensor, target: Tensor) -> Tensor:
    """Resize `x` (N,C,h,w) bilinearly, half-pixel centres, to the height and width of `target`."""
    return F.interpolate(x, size=target.shape[2:], mode="bilinear", align_corners=False)


class ConvBlock(nn.Module):
    """3x3 convolution, batch norm, ReLU, under the published names."""

    def __init__(self, channels_in: int, channels_out: int, dilation: int = 1) -> None:
        """Build the block; padding keeps height and width."""
        super().__init__()
        self.conv_s1 = nn.Conv2d(channels_in, channels_out, 3, padding=dilation, dilation=dilation)
        self.bn_s1: nn.Module = nn.BatchNorm2d(channels_out)
        self.relu_s1 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N,channels_in,H,W) to (N,channels_out,H,W), values >= 0."""
        out: Tensor = self.relu_s1(self.bn_s1(self.conv_s1(x)))
        return out


class RSU(nn.Module):
    """Residual U-block of any depth; with `dilated`, it widens by dilation instead of pooling."""

    def __init__(self, stage: RsuSpec) -> None:
        """Build the block that one row of the size table describes."""
        super().__init__()
        self.depth, self.dilated = stage.depth, stage.dilated
        mid, out = stage.channels_mid, stage.channels_out
        self.rebnconvin = ConvBlock(stage.channels_in, out)
        for level in range(1, stage.depth + 1):
            block = ConvBlock(out if level == 1 else mid, mid, self._dilation(level))
            self.add_module(f"rebnconv{level}", block)
        for level in range(stage.depth - 1, 0, -1):
            dilation = self._dilation(level) if stage.dilated else 1
            block = ConvBlock(2 * mid, out if level == 1 else mid, dilation)
            self.add_module(f"rebnconv{level}d", block)

    def _dilation(self, level: int) -> int:
        if self.dilated:
            return int(2 ** (level - 1))
        return 2 if level == self.depth else 1

    def forward(self, x: Tensor) -> Tensor:
        """Map (N,channels_in,H,W) to (N,channels_out,H,W)."""
        x = self.rebnconvin(x)
        skips: list[Tensor] = []
        h = x
        for level in range(1, self.depth):
            h = self.get_submodule(f"rebnconv{level}")(h)
            skips.append(h)
            if not self.dilated and level < self.depth - 1:
                h = F.max_pool2d(h, 2, stride=2, ceil_mode=True)
        h = self.get_submodule(f"rebnconv{self.depth}")(h)
        for level in range(self.depth - 1, 0, -1):
            skip = skips[level - 1]
            h = h if h.shape[2:] == skip.shape[2:] else upsample_like(h, skip)
            h = self.get_submodule(f"rebnconv{level}d")(torch.cat((h, skip), 1))
        result: Tensor = h + x
        return result


class U2Net(nn.Module):
    """U²-Net of either size.

    Attributes:
        all_outputs: whether calling the network gives the seven maps d0..d6 instead of d0 alone.
    """

    def __init__(self, architecture: Architecture, *, all_outputs: bool = False) -> None:
        """Build the network with PyTorch's own random initial values."""
        super().__init__()
        self.all_outputs = all_outputs
        rows = {row.name: row for row in RSU_SPECS[architecture]}
        for name, row in rows.items():
            self.add_module(name, RSU(row))
        for index, name in enumerate((*reversed(DECODER), "stage6"), start=1):
            self.add_module(f"side{index}", nn.Conv2d(rows[name].channels_out, 1, 3, padding=1))
        self.outconv = nn.Conv2d(OUTPUTS - 1, 1, 1)

    def logits(self, x: Tensor) -> tuple[Tensor, ...]:
        """Give d0..d6 before the sigmoid.

        Args:
            x: (N,3,H,W) float, from `u2export.images.preprocess`; sides are multiples of 32.

        Returns:
            Seven tensors (N,1,H,W); the first is the fused map, then the side maps of the decoder
            stages 1 to 5 and of encoder stage 6.
        """
        features: list[Tensor] = []
        h = x
        for name in ENCODER:
            if features:
                h = F.max_pool2d(h, 2, stride=2, ceil_mode=True)
            h = self.get_submodule(name)(h)
            features.append(h)
        decoded = [features.pop()]
        for name in DECODER:
            skip = features.pop()
            joined = torch.cat((upsample_like(decoded[-1], skip), skip), 1)
            decoded.append(self.get_submodule(name)(joined))
        sides: list[Tensor] = []
        for index, feature in enumerate(reversed(decoded), start=1):
            side = self.get_submodule(f"side{index}")(feature)
            sides.append(upsample_like(side, sides[0]) if sides else side)
        return (self.outconv(torch.cat(sides, 1)), *sides)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Give the saliency map(s), (N,1,H,W) in [0,1]; see `logits` for the order."""
        maps = self.logits(x)
        if self.all_outputs:
            return tuple(torch.sigmoid(d) for d in maps)
        return torch.sigmoid(maps[0])


def empty_state(architecture: Architecture) -> dict[str, Tensor]:
    """Names, shapes and types of the network's values, as tensors on the meta device.

    Nothing is allocated or drawn, so this is quick for any size.
    """
    with torch.device("meta"):
        return U2Net(architecture).state_dict()


@torch.no_grad()
def fold_batch_norm(network: U2Net) -> U2Net:
    """Return a copy in which every batch norm is part of the convolution before it.

    The folding is computed in double precision. The copy is in evaluation mode and computes the
    same function up to float32 rounding; its parameters keep their published names.
    """
    folded = copy.deepcopy(network).eval()
    for block in folded.modules():
        if isinstance(block, ConvBlock) and isinstance(block.bn_s1, nn.BatchNorm2d):
            conv, norm = block.conv_s1, block.bn_s1
            assert conv.bias is not None
            assert norm.running_mean is not None
            assert norm.running_var is not None
            scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
            bias = (conv.bias.double() - norm.running_mean.double()) * scale + norm.bias.double()
            conv.weight.copy_((conv.weight.double() * scale[:, None, None, None]).float())
            conv.bias.copy_(bias.float())
            block.bn_s1 = nn.Identity()
    return folded


@contextmanager
def current_module(network: nn.Module) -> Iterator[list[str]]:
    """Give a list whose last entry is the name of the module that is being computed."""
    place = ["the network's end"]
    handles = []
    for name, module in network.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(_push_hook(place, name)))
            handles.append(module.register_forward_hook(_pop_hook(place)))
    try:
        yield place
    finally:
        for handle in handles:
            handle.remove()


def _push_hook(place: list[str], name: str) -> Any:
    def hook(module: nn.Module, args: Any) -> None:
        place.append(name)

    return hook


def _pop_hook(place: list[str]) -> Any:
    def hook(module: nn.Module, args: Any, result: Any) -> None:
        place.pop()

    return hook
