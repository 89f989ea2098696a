from __future__ import annotations

import onnx
import pytest

from u2export.onnx_graph.versions import IR_VERSIONS, tiny_model


@pytest.mark.parametrize(("opset", "ir"), IR_VERSIONS.items())
def test_the_tiny_model_is_what_the_onnx_package_reads(opset: int, ir: int):
    model = onnx.load_from_string(tiny_model(opset, ir))
    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, model.opset_import[0].version) == (ir, opset)
    assert [node.op_type for node in model.graph.node] == ["Relu"]


def test_our_ir_is_no_newer_than_the_opsets_own_release():
    """The onnx package's own table of releases says which IR came with which opset."""
    released = {int(row[2]): int(row[1]) for row in onnx.helper.VERSION_TABLE}
    for opset, ir in IR_VERSIONS.items():
        assert ir <= released[opset]
