"""Asymmetric min-max quantisation of cache groups, and the packed tiles that hold the codes."""
