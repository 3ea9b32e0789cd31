"""Models behind the evaluation runner: which answers carry times, and where answers end."""

from types import SimpleNamespace

from tiny import random_ids

from eval.harness.backends.local import ModelBackend
from eval.samples import Arm, Kind, Prompt, Sample


def timed(backend: ModelBackend, count: int, arm: Arm, kind: Kind = "generate") -> list[bool]:
    """Whether each of `count` prompts, asked one by one, came with times."""
    sample = Sample("toy", {}, (), {}, 4, {})
    prompts = [
        Prompt(sample, random_ids((1, 40), seed=i)[0], max_new_tokens=4, option_ids=((1,), (2,))) for i in range(count)
    ]
    replies = backend.run(kind, prompts, arm, batch_tokens=1, most_rows=8)
    return [{"prefill_s", "decode_s"} <= reply.numbers.keys() for _, reply in replies]


def test_no_time_holds_the_compilers(model):
    tokenizer = SimpleNamespace(decode=lambda ids, **_: " ".join(map(str, ids)), all_special_ids=())
    backend = ModelBackend(model, tokenizer)
    assert timed(backend, 2, Arm("full"), "choose") == [False, False], "another program, which compiles none of these"
    assert timed(backend, 3, Arm("full")) == [False, True, True], "the first batch compiles"
    assert timed(backend, 2, Arm("full")) == [True, True]
    assert timed(backend, 1, Arm("all-sparse", "sparse")) == [True], "a single batch runs again"


def test_an_answer_ends_at_the_end_token_of_the_tokenizer_too(model):
    def reply(end):
        tokenizer = SimpleNamespace(
            decode=lambda ids, **_: " ".join(map(str, ids)), all_special_ids=(), eos_token_id=end
        )
        prompt = Prompt(Sample("toy", {}, (), {}, 4, {}), random_ids((1, 40))[0], max_new_tokens=4)
        backend = ModelBackend(model, tokenizer)
        [(_, reply)] = backend.run("generate", [prompt], Arm("full"), batch_tokens=1, most_rows=1)
        return reply

    whole = reply(None)
    assert (whole.new_tokens, whole.finish) == (4, "length")
    ended = reply(int(whole.text.split()[0]))
    assert (ended.new_tokens, ended.finish) == (1, "stop")
