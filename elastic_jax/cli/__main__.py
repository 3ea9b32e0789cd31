"""`python -m elastic_jax.cli`: the `elastic-jax` command."""

import sys

from elastic_jax.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
