"""Prefill attention with a mode for every row and KV head."""
