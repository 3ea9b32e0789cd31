"""Choice of the key blocks that block-sparse heads attend to."""
