"""Training attention: full and sparse outputs from one pass."""
