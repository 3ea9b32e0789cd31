"""Training data: records with task labels, builders, templates, packing and the grain pipeline."""
