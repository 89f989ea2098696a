"""Whole numbers of 8 bits that keep the mask: what to calibrate, how to round, what stays float."""
