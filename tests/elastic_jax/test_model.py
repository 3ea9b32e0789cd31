import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import CONFIG, random_ids

from elastic_jax.errors import CheckpointError, ConfigError, ShapeError
from elastic_jax.model import ElasticForCausalLM, from_params, param_shapes, to_params
from elastic_jax.routing import Gates

LENGTHS = jnp.array([100, 100])
FULL, SPARSE = np.zeros((2, 2, 2), np.int32), np.ones((2, 2, 2), np.int32)


@nnx.jit
def run(model, ids, lengths=None, segment_ids=None, modes=None, bias=0.0):
    return model(ids, lengths=lengths, segment_ids=segment_ids, routing=modes, router_bias=bias)


def test_padded_rows_equal_the_rows_alone(model):
    ids = random_ids((2, 100))
    both = run(model, ids, jnp.array([100, 61]))
    alone = run(model, ids[1:, :61])
    np.testing.assert_allclose(both.logits[1, :61], alone.logits[0], atol=2e-5)
    np.testing.assert_array_equal(both.routing.mode[:, 1], alone.routing.mode[:, 0])
    np.testing.assert_allclose(both.routing.logits[:, 1], alone.routing.logits[:, 0], atol=1e-5)


def test_packed_sequences_equal_rows_of_their_own(model):
    ids, lengths = random_ids((1, 160)), [61, 86]
    segments, rows = np.zeros((1, 160), np.int32), np.zeros((2, 100), np.int32)
    for index, (start, length) in enumerate(zip((0, 64), lengths, strict=True)):
        segments[0, start : start + length] = index + 1
        rows[index, :length] = ids[0, start : start + length]
    packed, alone = run(model, ids, None, segments), run(model, rows, jnp.array(lengths))
    for index, (start, length) in enumerate(zip((0, 64), lengths, strict=True)):
        np.testing.assert_allclose(packed.logits[0, start : start + length], alone.logits[index, :length], atol=2e-5)
        np.testing.assert_array_equal(packed.routing.mode[:, 0, index], alone.routing.mode[:, index])


def test_the_routers_decide_and_their_decision_can_be_imposed(model):
    ids = random_ids((2, 100))
    routed = run(model, ids, LENGTHS)
    full, sparse, again = (run(model, ids, LENGTHS, None, modes) for modes in (FULL, SPARSE, routed.routing.mode))
    assert 0 < float(routed.routing.msr().mean()) < 1
    assert float(full.routing.msr().max()) == 0 and float(sparse.routing.msr().min()) == 1
    np.testing.assert_allclose(full.routing.logits[0], sparse.routing.logits[0], atol=1e-6)
    assert np.abs(full.logits - sparse.logits).max() > 1e-2
    np.testing.assert_allclose(again.logits, routed.logits, atol=1e-5)


def test_router_bias_trades_sparsity_for_quality(model):
    ids = random_ids((2, 100))
    assert float(run(model, ids, LENGTHS, bias=100.0).routing.msr().max()) == 0
    assert float(run(model, ids, LENGTHS, bias=-100.0).routing.msr().min()) == 1


def test_short_sequences_do_not_depend_on_the_routing(model):
    full, sparse = (run(model, random_ids((2, 100)), jnp.array([48, 33]), None, modes) for modes in (FULL, SPARSE))
    for row, length in enumerate((48, 33)):
        np.testing.assert_allclose(full.logits[row, :length], sparse.logits[row, :length], atol=1e-5)


def test_answers_are_not_pooled_when_prompt_lengths_are_given(model):
    @nnx.jit
    def router_logits(model, ids, lengths, prompts):
        return model.hidden(ids, lengths=lengths, prompt_lengths=prompts).logits

    twice = jnp.repeat(random_ids((1, 100)), 2, axis=0)
    prompt, longer = np.moveaxis(router_logits(model, twice, jnp.array([61, 100]), jnp.array([61, 61])), 1, 0)
    np.testing.assert_allclose(longer[0], prompt[0], atol=1e-5)
    whole = router_logits(model, twice, jnp.array([61, 100]), jnp.array([61, 100]))[:, 1]
    assert np.abs(whole[0] - prompt[0]).max() > 1e-3


def test_soft_gates_mix_both_attentions_and_carry_their_derivative(model):
    ids = random_ids((1, 160))
    segments = jnp.asarray(np.repeat([[1, 2]], [96, 64], axis=1), jnp.int32)
    modes = jnp.asarray(np.random.default_rng(3).integers(0, 2, (2, 1, 2, 2)))

    @nnx.jit
    def imposed(model):
        return model.hidden(ids, segment_ids=segments, num_segments=2, gates=modes).hidden_BTD

    def score(model, z):
        out = model.hidden(ids, segment_ids=segments, num_segments=2, gates=Gates(z, mixed=True))
        return jnp.sin(out.hidden_BTD).sum(), out.hidden_BTD

    run = nnx.jit(nnx.value_and_grad(score, argnums=1, has_aux=True))
    np.testing.assert_allclose(run(model, 1.0 - modes.astype(jnp.float32))[0][1], imposed(model), atol=2e-5)
    z = jnp.full((2, 1, 2, 2), 0.6)
    above, below = (run(model, z.at[1, 0, 0, 1].add(step))[0][0] for step in (0.05, -0.05))
    difference = float(above - below) / 0.1
    np.testing.assert_allclose(run(model, z)[1][1, 0, 0, 1], difference, rtol=0.02)
    assert abs(difference) > 1e-3
    with pytest.raises(ShapeError, match=r"routing has shape \(2, 1, 2\)"):
        run(model, z[:, :, 0])


def test_params_round_trip_and_every_misfit_is_listed(model):
    params = to_params(model)
    assert {path: x.shape for path, x in params.items()} == {
        path: x.shape for path, x in param_shapes(CONFIG, jnp.float32).items()
    }
    rebuilt = to_params(from_params(CONFIG, params))
    assert all(np.array_equal(rebuilt[path], params[path]) for path in params)
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
        ({"input_ids_BT": [[1, 2], [3]]}, "rows of input_ids have different lengths"),
        ({"input_ids_BT": [[1.0, 2.0]]}, "input_ids holds float64; want whole numbers"),
        ({"input_ids_BT": [[1, 64]]}, "Wrong tokenizer"),
        ({"input_ids_BT": [[1, 64]], "lengths": [2]}, "Wrong tokenizer"),
        ({"input_ids_BT": jnp.zeros((1, 5), int), "routing": "both"}, "both"),
        ({"input_ids_BT": jnp.zeros((1, 5), int), "routing": jnp.zeros((2, 1, 3))}, r"want \(2, 1, 2\)"),
    ],
)
def test_calls_that_do_not_fit_are_refused(model, arguments, message):
    with pytest.raises(ShapeError, match=message):
        model(**arguments)


def test_padding_may_hold_any_number(model):
    want = model([[5, 6]], routing="full").logits
    np.testing.assert_array_equal(model([[5, 6, -1]], lengths=[2], routing="full").logits[:, :2], want)


def test_64_bit_mode_is_refused():
    with jax.enable_x64(True), pytest.raises(ConfigError, match="Unset JAX_ENABLE_X64"):
        ElasticForCausalLM(CONFIG, rngs=nnx.Rngs(0))
