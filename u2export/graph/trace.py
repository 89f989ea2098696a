"""The reference network as an ONNX graph whose names are those of the PyTorch modules."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx
import torch

from u2export.errors import ExportError
from u2export.u2net import OUTPUTS, U2Net

INPUT = "input"
SALIENCY = "saliency"


def output_names(all_outputs: bool) -> list[str]:
    """Names of the graph's outputs: `saliency` (d0), then `d1` to `d6` where all are asked for."""
    return [SALIENCY, *(f"d{i}" for i in range(1, OUTPUTS))] if all_outputs else [SALIENCY]


def trace(network: U2Net, size: int, opset: int) -> onnx.ModelProto:
    """Export a network whose batch norms are folded, for one picture at a time.

    Args:
        network: from `u2export.u2net.fold_batch_norm`.
        size: side of the square input, in pixels.
        opset: of the result.

    Returns:
        The graph as torch's exporter writes it.

    Raises:
        ExportError: the exporter failed, or left the graph at another opset.
    """
    example = torch.zeros(1, 3, size, size)
    try:
        with _quiet():
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=output_names(network.all_outputs),
                verbose=False,
            )
    except Exception as error:  # the exporter has no common base for what it raises
        raise ExportError(f"torch.onnx could not export the network: {error}") from error
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    found = {item.domain: item.version for item in model.opset_import}.get("")
    if found != opset:
        raise ExportError(f"opset {opset} was asked for, torch.onnx wrote {found}")
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's chatter out of our output: its own deprecations and absent torchvision.

    Failures still arrive as exceptions, and the result is checked by running it.
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
