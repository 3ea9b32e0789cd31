"""Attention on TPU (Pallas Mosaic): the kernels and what they share."""
