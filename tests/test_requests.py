from __future__ import annotations

import pytest

from u2export.core.enums import Precision
from u2export.core.models import MODELS, find_model
from u2export.core.requests import ExportSpec, parse_batch
from u2export.errors import InputError

SMALL = MODELS["u2netp"]


@pytest.mark.parametrize("size", [0, 16, 31, 300, 321, 2080, -32])
def test_a_size_that_no_network_takes_is_refused(size: int):
    with pytest.raises(InputError, match=f"multiple of 32 from 32 to 2048, got {size}$"):
        ExportSpec(SMALL, size)


@pytest.mark.parametrize("batch", [0, -1, 1025])
def test_a_batch_out_of_range_is_refused(batch: int):
    with pytest.raises(InputError, match=f"batch must be 1 to 1024 or 'dynamic', got {batch}"):
        ExportSpec(SMALL, 320, batch=batch)


@pytest.mark.parametrize("opset", [15, 23])
def test_an_opset_out_of_range_is_refused(opset: int):
    with pytest.raises(InputError, match=f"opset must be 16 to 22, got {opset}"):
        ExportSpec(SMALL, 320, opset=opset)


@pytest.mark.parametrize(
    ("spec", "stem"),
    [
        (ExportSpec(SMALL, 320), "u2netp-fp32"),
        (ExportSpec(SMALL, 320, Precision.FP16), "u2netp-fp16"),
        (ExportSpec(SMALL, 512, Precision.FP16, batch=None), "u2netp-fp16-512-bN"),
        (ExportSpec(SMALL, 320, batch=8, all_outputs=True), "u2netp-fp32-b8-all"),
        (ExportSpec(SMALL, 320, opset=17), "u2netp-fp32-opset17"),
        (ExportSpec(SMALL, 320, opset=18), "u2netp-fp32"),
        (ExportSpec(MODELS["u2net_portrait"], 512), "u2net_portrait-fp32"),
        (ExportSpec(SMALL, 320, variant="random0"), "u2netp-random0-fp32"),
    ],
)
def test_a_file_name_says_what_is_not_the_default(spec: ExportSpec, stem: str):
    assert spec.stem == stem


def test_batch_is_a_number_or_dynamic():
    assert (parse_batch("8"), parse_batch("dynamic")) == ((8, None), (None, None))
    with pytest.raises(InputError, match="got 'many'"):
        parse_batch("many")


def test_an_unknown_model_is_answered_with_the_known_ones():
    with pytest.raises(InputError, match="u2net, u2netp, u2net_human_seg, u2net_portrait"):
        find_model("u2nett")


def test_the_table_holds_what_the_authors_published():
    # shared facts and the authors' README; the portrait network is fed 512x512 and inverted
    assert MODELS["u2net"].sha256.startswith("10025a17f49cd320")
    assert MODELS["u2netp"].sha256.startswith("e7567cde013fb648")
    portrait = MODELS["u2net_portrait"].picture
    assert (portrait.size, portrait.inverted) == (512, True)
    assert MODELS["u2net"].picture.mean == (0.485, 0.456, 0.406)
    assert MODELS["u2net"].picture.std == (0.229, 0.224, 0.225)
