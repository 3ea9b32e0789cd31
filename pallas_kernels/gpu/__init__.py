"""What the GPU implementations of the attention ops share: kernels, visiting plans, tile sizes, launching."""
