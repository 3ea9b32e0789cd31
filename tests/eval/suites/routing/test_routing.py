import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG, random_ids

from elastic_jax.config import HeadMode
from elastic_jax.errors import DataError
from eval.harness.backends.local import ModelBackend
from eval.harness.routing import forced_modes, needle_attention, read_head_scores, read_routing
from eval.samples import Arm, Prompt, Sample, Showing
from eval.suites.routing.summary import (
    full_frequency,
    heads_section,
    kinds_of_heads,
    mean_similarity,
    routing_section,
    task_similarity,
)
from eval.suites.routing.tasks import record_groups

LENGTHS = (150, 97)


def prompts(**fields) -> list[Prompt]:
    return [
        Prompt(Sample(str(row), fields), random_ids((length,), row).tolist(), [1, 2, 3])
        for row, length in enumerate(LENGTHS)
    ]


def test_reading_says_what_the_model_does(model):
    read = read_routing(model, prompts(), Arm("elastic", "elastic"), tokens=160, rows=3)
    assert len(read) == 2
    for prompt, (numbers, details) in zip(prompts(), read, strict=True):
        out = model.hidden(jnp.asarray([prompt.prompt_ids]))
        assert (np.asarray(details["full"]) == (np.asarray(out.routing.mode[:, 0]) == HeadMode.FULL)).all()
        assert numbers["msr"] == pytest.approx(float(out.routing.msr()[0]))
        np.testing.assert_allclose(details["before"], np.asarray(out.pooled[:, 0]).mean(1), atol=1e-4)
        assert np.shape(details["after"]) == (CONFIG.num_layers, CONFIG.head_dim)
        assert np.abs(np.asarray(details["after"]) - details["before"]).max() > 1e-3
    (numbers, details), _ = read_routing(model, prompts(), Arm("all-sparse", "sparse"), tokens=160, rows=3)
    assert numbers["msr"] == 1 and not np.any(details["full"])


def test_needle_attention_is_that_of_the_plain_softmax(model):
    """Against the first layer's attention worked out from its weights, one answer token at a time."""
    from flax import nnx

    from elastic_jax.rope import rope_tables

    first, end = 20, 31
    got = needle_attention(model, prompts(needle=(first, end)), tokens=160, rows=3)
    graph, stacked = nnx.split(model.layers)
    layer = nnx.merge(graph, jax.tree.map(lambda x: x[0], stacked))
    for prompt, mass_LK in zip(prompts(), got, strict=True):
        ids = jnp.asarray([[*prompt.prompt_ids, *prompt.continuation_ids]])
        place = jnp.arange(ids.shape[1])[None]
        rope = rope_tables(CONFIG, place, place + 1)
        q, k = (np.asarray(x[0]) for x in rope.rotate(0, *layer.project(model.embed(ids))[:2]))
        shares = np.zeros((3, CONFIG.num_heads))
        for answer in range(3):
            at = len(prompt.prompt_ids) - 1 + answer
            for head in range(CONFIG.num_heads):
                scores = np.exp(k[: at + 1, head // 2] @ q[at, head] / np.sqrt(CONFIG.head_dim))
                shares[answer, head] = scores[first:end].sum() / scores.sum()
        want = shares.mean(0).reshape(CONFIG.num_kv_heads, 2).max(1)
        np.testing.assert_allclose(mass_LK[0], want, rtol=1e-4)


def test_the_whole_text_holds_all_attention(model):
    assert needle_attention(model, prompts(needle=(0, 153)), tokens=160, rows=3)[0] == pytest.approx(1, abs=1e-5)


def test_forced_modes_make_the_heads_sparse_that_score_least():
    scores = [[0.9, 0.1], [0.2, 0.8]]
    assert forced_modes(scores, 0) == ((0, 0), (0, 0))
    assert forced_modes(scores, 0.5) == ((0, 1), (1, 0))
    assert forced_modes(scores, 0.25) == ((0, 1), (0, 0))
    assert forced_modes(scores, 1) == ((1, 1), (1, 1))


def test_imposed_modes_have_a_label_of_their_own(model):
    backend = ModelBackend(model)
    half, other = (Arm("forced MSR 0.5", "elastic", modes_LK=modes) for modes in (((0, 1),), ((1, 0),)))
    assert len({backend.label(half), backend.label(other), backend.label(Arm("elastic", "elastic"))}) == 3
    assert backend.label(Arm("full")) == "full"


def records():
    rng = np.random.default_rng(0)
    made = []
    for task, full, after in (("code", 0, [1.0, 0.0]), ("qa", 1, [0.0, 1.0])):
        for _ in range(4):
            details = {"full": [[full, int(rng.random() < 0.5)]], "before": [[1.0, 1.0]], "after": [after]}
            made.append({"task": task, "arm": "elastic", "details": details})
    return made


def test_frequency_similarity_and_their_section(tmp_path):
    frequency = full_frequency(records())
    assert frequency["code"][0, 0] == 0 and frequency["qa"][0, 0] == 1 and frequency["all"][0, 0] == 0.5
    assert kinds_of_heads(np.array([[0.95, 0.5, 0.02]])) == {"full": 1, "mixed": 1, "sparse": 1}
    tasks, before = task_similarity(records(), "before")
    assert tasks == ["code", "qa"] and mean_similarity(before) == pytest.approx(1)
    assert mean_similarity(task_similarity(records(), "after")[1]) == pytest.approx(0)
    text = routing_section(records(), tmp_path)
    assert "| code | 4 |" in text and "between different tasks 0.000 on average" in text
    assert (tmp_path / "routing.png").read_bytes().startswith(b"\x89PNG")
    assert routing_section([{"arm": "full", "task": "x"}], tmp_path) == ""


def test_a_biased_arm_has_its_routing_section_too(tmp_path):
    first, second = ([made | {"arm": f"elastic, bias {bias}"} for made in records()] for bias in ("+1", "+2"))
    text = routing_section([*first, *second], tmp_path)
    assert "Arm: elastic, bias +1." in text and "| code | 4 |" in text


def test_heads_are_ranked_written_and_read_back(tmp_path):
    found = [{"details": {"needle_attention": [[0.1, 0.5], [0.3, 0.0]]}}] * 2
    text = heads_section(found, tmp_path)
    assert text.index("layer 0, KV head 1") < text.index("layer 1, KV head 0") < text.index("layer 0, KV head 0")
    assert read_head_scores(tmp_path / "heads.json") == [[0.1, 0.5], [0.3, 0.0]]
    for content in ("{", "{}", json.dumps({"needle_attention": [1]}), json.dumps([1])):
        (tmp_path / "heads.json").write_text(content)
        with pytest.raises(DataError, match="is no heads.json"):
            read_head_scores(tmp_path / "heads.json")


def test_records_of_a_user_are_routed_by_their_task(tmp_path):
    path = tmp_path / "records.jsonl"
    rows = [
        {"context": f"Text {i}. ", "question": "Q?", "metadata": {"task": "Code" if i % 2 else "QA"}} for i in range(6)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    groups = {group.task.name: group for group in record_groups(path, 2, tokens=100)}
    assert [group.count for group in groups.values()] == [2, 2]
    assert groups["Code"].task.template(groups["Code"].build(0), Showing()).messages[0].text == "Text 1. \n\nQ?"
    path.write_text(json.dumps(rows[0]) + "\n" + json.dumps({"context": "x", "question": ""}) + "\n")
    with pytest.raises(DataError, match="records.jsonl:2: no task under metadata"):
        record_groups(path, 2, tokens=100)
