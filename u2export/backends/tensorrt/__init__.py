"""TensorRT in its two flavours: `tensorrt`, and `rtx`, which builds without a GPU."""

from u2export.backends.tensorrt.backend import BACKEND

__all__ = ["BACKEND"]
