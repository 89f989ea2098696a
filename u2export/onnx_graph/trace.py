"""The reference network as an ONNX graph."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx
import torch

from u2export.errors import ExportError
from u2export.network.u2net import OUTPUTS, U2Net

INPUT_NAME = "input"
SALIENCY_NAME = "saliency"


def trace_network(network: U2Net, size: int, opset: int) -> onnx.ModelProto:
    """Export a network with torch.onnx, for a batch of one.

    Args:
        network: from `u2export.network.u2net.fold_batch_norm`.
        size: side of the square input in pixels.
        opset: of the result.

    Returns:
        The graph as torch's exporter writes it.

    Raises:
        ExportError: the exporter failed, or wrote another opset.
    """
    example = torch.zeros(1, 3, size, size)
    try:
        with _silent_exporter():
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT_NAME],
                output_names=output_names(network.all_outputs),
                verbose=False,
            )
    except Exception as error:  # the exporter's exceptions share no base class
        raise ExportError(f"torch.onnx could not export the network: {error}") from error
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    written_opset = {item.domain: item.version for item in model.opset_import}.get("")
    if written_opset != opset:
        raise ExportError(f"opset {opset} was asked for, torch.onnx wrote {written_opset}")
    return model


def output_names(all_outputs: bool) -> list[str]:
    """Name the graph's outputs: `saliency` (d0), then `d1` to `d6` if all outputs are exported."""
    side_outputs = [f"d{i}" for i in range(1, OUTPUTS)] if all_outputs else []
    return [SALIENCY_NAME, *side_outputs]


@contextlib.contextmanager
def _silent_exporter() -> Iterator[None]:
    """Suppress the exporter's messages about its own deprecations and absent torchvision.

    Failures still arrive as exceptions, and a later step runs the result to check it.
    """
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
