from eval.bench.settings import BenchCacheSettings
from eval.harness.provenance import command_line, text_digest
from eval.verbs.ruler import RulerSettings


def test_the_command_repeats_the_run_and_hides_where_folders_are(tmp_path):
    settings = RulerSettings(model="owner/name", out=str(tmp_path / "ruler"), shard="0/4", lengths=(512,), chat=True)
    words = command_line("eval ruler", settings).split(" --")
    assert words[0] == "elastic-jax eval ruler"
    assert set(words[1:]) == {"model owner/name", "out ruler", "shard 0/4", "lengths 512", "chat"}
    settings = RulerSettings(endpoint="http://localhost:1/v1", endpoint_model="a/b")
    assert "--endpoint http://localhost:1/v1 --endpoint-model a/b" in command_line("eval ruler", settings)


def test_what_is_switched_off_is_said():
    settings = BenchCacheSettings(speed=False, quality=True)
    assert command_line("bench cache", settings) == "elastic-jax bench cache --no-speed --quality"


def test_digests_tell_apart_texts_that_join_to_the_same():
    assert text_digest("ab", "c") != text_digest("a", "bc")
    assert text_digest("ab", "c") == text_digest("ab", "c")
