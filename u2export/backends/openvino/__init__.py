"""OpenVINO: converted from the ONNX artifact, run in exactly the requested arithmetic."""

from u2export.backends.openvino.backend import BACKEND

__all__ = ["BACKEND"]
