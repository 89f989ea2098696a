from __future__ import annotations

import pytest
import torch
from torch import nn

from u2export.core.enums import Architecture
from u2export.network.u2net import ConvBlock, U2Net, fold_batch_norm


@pytest.fixture(scope="module")
def small() -> U2Net:
    torch.manual_seed(0)
    net = U2Net(Architecture.SMALL).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    return net


@pytest.mark.parametrize(
    ("architecture", "parameters"),
    [(Architecture.FULL, 44_009_869), (Architecture.SMALL, 1_131_181)],
)
def test_sizes_are_the_published_ones(architecture: Architecture, parameters: int):
    net = U2Net(architecture)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert len(net.state_dict()) == 798
    assert sum(isinstance(m, nn.Conv2d) for m in net.modules()) == 119
    assert sum(isinstance(m, ConvBlock) for m in net.modules()) == 112


def test_names_are_the_published_ones(small: U2Net):
    state = small.state_dict()
    for name, shape in {
        "stage1.rebnconvin.conv_s1.weight": (64, 3, 3, 3),
        "stage1.rebnconv7.bn_s1.running_mean": (16,),
        "stage5.rebnconv4.conv_s1.bias": (16,),
        "stage1d.rebnconv1d.conv_s1.weight": (64, 32, 3, 3),
        "side6.weight": (1, 64, 3, 3),
        "outconv.bias": (1,),
    }.items():
        assert tuple(state[name].shape) == shape


def test_dilations_are_the_published_ones(small: U2Net):
    def dilation(name: str) -> int:
        return int(small.get_submodule(name).conv_s1.dilation[0])

    # U-2-Net model/u2net.py: the deepest convolution of RSU4..7 has dirate 2, RSU4F 1 2 4 8 4 2 1
    assert dilation("stage1.rebnconv7") == 2
    assert dilation("stage1.rebnconv6") == 1
    names = ("1", "2", "3", "4", "3d", "2d", "1d")
    assert [dilation(f"stage5.rebnconv{n}") for n in names] == [1, 2, 4, 8, 4, 2, 1]


def test_all_outputs_are_seven_maps_and_the_first_is_the_one_given_alone(small: U2Net):
    x = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        alone = small(x)
        small.all_outputs = True
        every = small(x)
        small.all_outputs = False
    assert [tuple(d.shape) for d in every] == [(2, 1, 64, 96)] * 7
    assert torch.equal(alone, every[0])
    assert not torch.allclose(every[1], every[2])


def test_the_fused_map_is_the_outer_convolution_of_the_side_maps(small: U2Net):
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        fused, *sides = small.logits(x)
        again = small.outconv(torch.cat(sides, 1))
    assert torch.allclose(fused, again)


def test_folding_changes_nothing_but_rounding(small: U2Net):
    x = torch.randn(1, 3, 64, 64)
    folded = fold_batch_norm(small)
    with torch.inference_mode():
        assert torch.allclose(folded(x), small(x), atol=1e-5)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert sum(isinstance(m, nn.BatchNorm2d) for m in small.modules()) == 112
