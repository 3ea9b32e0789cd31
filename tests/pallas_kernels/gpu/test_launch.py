import importlib.util
import inspect

import jax
import jax.extend
import jax.numpy as jnp
import pytest

from pallas_kernels import hybrid_attention, routed_attention
from pallas_kernels.gpu import launch


def test_the_rule_for_dead_code_takes_what_jax_passes(monkeypatch):
    """A jax-triton whose rule has another signature than jax calls gets a rule that keeps everything alive."""
    from jax_triton import triton_lib

    rules, primitive = triton_lib.pe.dce_rules, triton_lib.triton_kernel_call_p
    monkeypatch.setitem(rules, primitive, lambda only_one_argument: None)
    launch.jax_triton.__wrapped__()
    wanted = len(inspect.signature(rules[jax.extend.core.primitives.scan_p]).parameters)
    equation = jax.make_jaxpr(jnp.add)(1.0, 2.0).eqns[0]
    assert rules[primitive](*[None] * (wanted - 1), equation) == ([True, True], equation)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax_cuda13_plugin") is None, reason="needs jax[cuda13]; no GPU is needed")
@pytest.mark.parametrize("capability, tokens", [(80, 8192), (90, 8192), (90, 1)])
def test_lowers_for_cuda(capability, tokens, monkeypatch):
    """Prefill with masks and a training step become programs that call the compiled kernels."""
    monkeypatch.setattr(launch, "nvidia_capability", lambda: capability)
    q, kv = (jax.ShapeDtypeStruct((2, tokens, heads, 64), jnp.bfloat16) for heads in (9, 3))
    z = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    blocks = -(-tokens // 128)
    mask = jax.ShapeDtypeStruct((2, 9, blocks, blocks), jnp.bool_)

    def prefill(q, k, v, z, mask):
        return hybrid_attention(q, k, v, (z < 0.5).astype(jnp.int8), block_mask=mask, impl="triton")

    def step(q, k, v, z, mask):
        out, pull = jax.vjp(lambda *a: routed_attention(*a, impl="triton"), q, k, v, z)
        return pull(out)

    for function, kernels in ((prefill, 2), (step, 3)):
        text = jax.jit(function).trace(q, kv, kv, z, mask).lower(lowering_platforms=("cuda",)).as_text()
        assert text.count("@triton_kernel_call_ffi") == kernels
