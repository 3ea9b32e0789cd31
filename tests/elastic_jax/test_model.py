import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import CONFIG, random_ids, tiny_model

from elastic_jax.errors import CheckpointError, ShapeError
from elastic_jax.model import from_params, param_shapes, to_params
from elastic_jax.router import SampledGates
from elastic_jax.routing import Gates


@nnx.jit(static_argnames=("routing",))
def run(model, ids, lengths=None, segment_ids=None, routing=None, bias=0.0):
    return model(ids, lengths=lengths, segment_ids=segment_ids, routing=routing, router_bias=bias)


@nnx.jit
def run_modes(model, ids, modes):
    return model(ids, routing=modes)


def test_padded_rows_equal_the_rows_alone():
    model, ids = tiny_model(), random_ids((2, 100))
    both = run(model, ids, jnp.array([100, 61]))
    alone = run(model, ids[1:, :61])
    np.testing.assert_allclose(both.logits[1, :61], alone.logits[0], atol=2e-5)
    np.testing.assert_array_equal(both.routing.mode[:, 1], alone.routing.mode[:, 0])
    np.testing.assert_allclose(both.routing.logits[:, 1], alone.routing.logits[:, 0], atol=1e-5)


def test_packed_sequences_equal_the_sequences_alone():
    model, ids = tiny_model(), random_ids((1, 160))
    segments = np.zeros((1, 160), np.int32)
    segments[0, :61], segments[0, 64:150] = 1, 2
    packed = run(model, ids, None, jnp.asarray(segments))
    for index, (start, end) in enumerate([(0, 61), (64, 150)]):
        alone = run(model, ids[:, start:end])
        np.testing.assert_allclose(packed.logits[0, start:end], alone.logits[0], atol=2e-5)
        np.testing.assert_array_equal(packed.routing.mode[:, 0, index], alone.routing.mode[:, 0])


def test_the_routers_decide_and_their_decision_can_be_imposed():
    model, ids = tiny_model(), random_ids((2, 100))
    routed, full, sparse = run(model, ids), run(model, ids, routing="full"), run(model, ids, routing="sparse")
    assert 0 < float(routed.routing.msr().mean()) < 1
    assert float(full.routing.msr().max()) == 0 and float(sparse.routing.msr().min()) == 1
    np.testing.assert_allclose(full.routing.logits[0], sparse.routing.logits[0], atol=1e-6)
    assert np.abs(full.logits - sparse.logits).max() > 1e-2
    again = run_modes(model, ids, routed.routing.mode)
    np.testing.assert_allclose(again.logits, routed.logits, atol=1e-5)


def test_router_bias_trades_sparsity_for_quality():
    model, ids = tiny_model(), random_ids((2, 100))
    assert float(run(model, ids, bias=100.0).routing.msr().max()) == 0
    assert float(run(model, ids, bias=-100.0).routing.msr().min()) == 1


def test_short_sequences_do_not_depend_on_the_routing():
    model, ids = tiny_model(), random_ids((1, 48))
    full, sparse = run(model, ids, routing="full"), run(model, ids, routing="sparse")
    np.testing.assert_allclose(full.logits, sparse.logits, atol=1e-5)


def test_answers_are_not_pooled_when_prompt_lengths_are_given():
    model, ids = tiny_model(), random_ids((1, 100))
    prompt = model.hidden(ids[:, :61])
    longer = model.hidden(ids, prompt_lengths=jnp.array([61]))
    np.testing.assert_allclose(longer.logits[0], prompt.logits[0], atol=1e-5)


def test_remat_changes_nothing_and_sampled_gates_reach_every_router():
    model, ids = tiny_model(), random_ids((1, 100))
    graph, routers, rest = nnx.split(model, lambda path, _: "router" in path, ...)

    def loss(routers, remat):
        gates = SampledGates(jax.random.key(0), 1.0)
        merged = nnx.merge(graph, routers, rest)
        return (merged.hidden(ids, gates=gates, remat=remat).hidden_BTD ** 2 * jnp.arange(32)).sum()

    plain, *others = (
        jax.jit(jax.grad(lambda r, remat=remat: loss(r, remat)))(routers) for remat in (False, True, "offload")
    )
    pairs = [pair for other in others for pair in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True)]
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
        assert (np.abs(a).reshape(len(a), -1).max(1) > 0).all()


def test_soft_gates_mix_both_attentions_and_carry_their_derivative():
    model, ids = tiny_model(), random_ids((1, 160))
    segments = jnp.asarray(np.repeat([[1, 2]], [96, 64], axis=1), jnp.int32)
    modes = jnp.asarray(np.random.default_rng(3).integers(0, 2, (2, 1, 2, 2)))

    @nnx.jit
    def score(model, z):
        out = model.hidden(ids, segment_ids=segments, num_segments=2, gates=Gates(z, mixed=True))
        return jnp.sin(out.hidden_BTD).sum(), out.hidden_BTD

    slope = nnx.jit(nnx.grad(lambda model, z: score(model, z)[0], argnums=1))
    imposed = model.hidden(ids, segment_ids=segments, num_segments=2, gates=modes)
    np.testing.assert_allclose(score(model, 1.0 - modes)[1], imposed.hidden_BTD, atol=2e-5)
    z = jnp.full((2, 1, 2, 2), 0.6)
    bumped = [z.at[1, 0, 0, 1].add(step) for step in (0.05, -0.05)]
    difference = (score(model, bumped[0])[0] - score(model, bumped[1])[0]) / 0.1
    np.testing.assert_allclose(slope(model, z)[1, 0, 0, 1], difference, rtol=0.02)
    assert abs(float(difference)) > 1e-3
    with pytest.raises(ShapeError, match=r"routing has shape \(2, 1, 2\)"):
        score(model, z[:, :, 0])


def test_params_round_trip_and_every_misfit_is_listed():
    params = to_params(tiny_model())
    assert {path: x.shape for path, x in params.items()} == {
        path: x.shape for path, x in param_shapes(CONFIG, jnp.float32).items()
    }
    rebuilt = to_params(from_params(CONFIG, params))
    assert all((rebuilt[path] == params[path]).all() for path in params)
    broken = dict(params)
    del broken["norm.scale"]
    broken["extra.kernel"] = params["norm.scale"]
    broken["layers.mlp.up_proj.kernel"] = params["layers.mlp.up_proj.kernel"][:, :-1]
    with pytest.raises(CheckpointError) as error:
        from_params(CONFIG, broken)
    for part in ("missing norm.scale", "unexpected extra.kernel", "got (2, 31, 48), want (2, 32, 48)"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids_BT": jnp.zeros((5,), int)}, "Add a batch axis"),
        ({"input_ids_BT": jnp.zeros((1, 5), int), "routing": "both"}, "both"),
        ({"input_ids_BT": jnp.zeros((1, 5), int), "routing": jnp.zeros((2, 1, 3))}, r"want \(2, 1, 2\)"),
    ],
)
def test_calls_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ShapeError, match=message):
        tiny_model()(**arguments)
