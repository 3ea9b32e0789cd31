"""Where arrays are: one mesh of devices, and how parameters, batches and attention are divided over it.

Importing this package does not import jax: settings classes need `MeshConfig`.
"""

from elastic_jax.sharding.mesh import MeshConfig, make_mesh

__all__ = ["MeshConfig", "make_mesh"]
