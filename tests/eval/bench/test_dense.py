import jax
import jax.numpy as jnp
import pytest
from attention_cases import assert_close
from jax.experimental.pallas import tpu as pltpu
from tpu_tools import lower_for

from eval.bench.dense import dense_kernels
from eval.bench.work import HeadShape
from pallas_kernels import hybrid_attention

SHAPE, TOKENS = HeadShape(4, 2, 128), 256


def operands():
    heads = (SHAPE.query_heads, SHAPE.kv_heads, SHAPE.kv_heads)
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(key, (1, TOKENS, n, SHAPE.head_dim)) for key, n in zip(keys, heads, strict=True)]


def test_a_cpu_has_the_standard_one_and_it_computes_what_ours_does():
    (kernel,) = dense_kernels("cpu", SHAPE, TOKENS)
    wanted = hybrid_attention(*operands(), jnp.zeros((1, 2), jnp.int8), impl="reference")
    assert_close(kernel.attend(*kernel.prepare(*operands())), wanted, 1e-5)


def test_flash_of_a_tpu_computes_what_ours_does():
    flash = dense_kernels("tpu", SHAPE, TOKENS)[-2]
    with pltpu.force_tpu_interpret_mode():
        out_BNTH = flash.attend(*flash.prepare(*operands()))
    wanted = hybrid_attention(*operands(), jnp.zeros((1, 2), jnp.int8), impl="reference")
    assert_close(jnp.swapaxes(out_BNTH, 1, 2), wanted, 1e-5)


@pytest.mark.parametrize("position", [-1, -2])
def test_kernels_of_a_tpu_lower_with_their_gradients(position):
    kernel = dense_kernels("tpu", SHAPE, TOKENS)[position]

    def train(*prepared):
        out, pull = jax.vjp(kernel.attend, *prepared)
        return out, pull(out)

    shapes = jax.eval_shape(kernel.prepare, *operands())
    assert "tpu_custom_call" in lower_for("v6e", train, *shapes).as_text()
