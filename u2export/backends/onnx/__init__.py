"""ONNX: exported by torch.onnx and our own graph passes, run by onnxruntime."""

from u2export.backends.onnx.backend import BACKEND

__all__ = ["BACKEND"]
