"""Will a training run fit, where, and at what cost: an estimate, and the real TPU compiler where it is installed."""
