import jax
import jax.numpy as jnp
import pytest
from attention_cases import NAMED, Case, make_inputs
from triton_interpreter import interpreted

from pallas_kernels import select_blocks
from pallas_kernels.block_selection import triton as on_gpu

SHORT = Case("last queries, padded", 150, queries=90, kv_heads=2, groups=2, batch=2, lengths=(150, 127))


@pytest.fixture(autouse=True)
def on_the_interpreter(monkeypatch):
    with interpreted(monkeypatch):
        yield


def select(inputs, impl, **options):
    rows = {key: inputs.options[key] for key in ("lengths", "segment_ids")}

    @jax.jit
    def run(q, k):
        return select_blocks(3 * q, k, threshold=0.7, stride=4, block_size=16, impl=impl, **rows, **options)

    return jax.block_until_ready(run(inputs.q, inputs.k))


@pytest.mark.parametrize(
    "case, options",
    [
        pytest.param(SHORT, {}, id="padded"),
        pytest.param(SHORT, {"heads": jnp.asarray([[True, False], [False, True]])}, id="some heads"),
        pytest.param(NAMED["packed"], {}, id="packed"),
        pytest.param(NAMED["packed"], {"compat": True}, id="packed, compat", marks=pytest.mark.slow),
        pytest.param(Case("several tiles", 700, groups=2), {}, id="several tiles"),
    ],
)
def test_equals_the_definition(case, options):
    inputs = make_inputs(case)
    got, wanted = (select(inputs, impl, **options) for impl in ("triton", "reference"))
    assert bool((got == wanted).all())
    assert 0.1 < float(wanted.mean()) < 0.9


def test_heads_in_parts(monkeypatch):
    """Where the sums of all heads together would take too much memory."""
    inputs = make_inputs(SHORT)
    whole = select(inputs, "triton")
    monkeypatch.setattr(on_gpu, "SCRATCH_BYTES", 1)
    jax.clear_caches()  # the program for these shapes takes all heads together
    assert bool((select(inputs, "triton") == whole).all())


def test_padding_may_hold_anything():
    inputs = make_inputs(SHORT)
    exists = (jnp.arange(150)[None] < inputs.options["lengths"][:, None])[..., None, None]
    dirty = type(inputs)(
        jnp.where(exists[:, -90:], inputs.q, jnp.nan), jnp.where(exists, inputs.k, jnp.nan), inputs.v, inputs.mode,
        inputs.d_out, inputs.options,
    )  # fmt: skip
    assert bool((select(inputs, "triton") == select(dirty, "triton")).all())


def test_groups_that_no_tile_divides_are_refused():
    inputs = make_inputs(SHORT)
    with pytest.raises(ValueError, match="A block has 3 groups of tokens; on a GPU wanted a power of two"):
        select_blocks(inputs.q, inputs.k, stride=16, block_size=48, impl="triton")
