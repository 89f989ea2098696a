"""Quantization to int8 that preserves the masks."""
