"""Attention of a few queries over a quantised cache."""
