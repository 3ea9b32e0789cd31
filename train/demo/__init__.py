"""The demonstration: the whole job on a real model, on any CPU, without a network."""
