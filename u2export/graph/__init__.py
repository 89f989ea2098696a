"""Passes over an ONNX graph: from the reference network to a file every runtime takes."""
