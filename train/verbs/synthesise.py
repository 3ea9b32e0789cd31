"""`elastic-jax train synthesise`: makes training data on long texts from judgements of short ones."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

from elastic_jax import smollm2
from elastic_jax.cli.args import parse_verb, required
from elastic_jax.files import check_output
from train.reward.synthesis.settings import SynthesisSettings

_ANY_DATE = "2026-01-01"
"""The date that chat templates write while prompts are measured, so that lengths do not depend on the day."""


def _digest(content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def main(argv: Sequence[str]) -> int:
    """Put judged short texts among irrelevant ones, for training long-context judges; vote where judgements differ."""
    asked = parse_verb(SynthesisSettings, argv, verb="train synthesise", summary=str(main.__doc__))
    settings = asked.settings
    source = Path(required(settings.samples, "--samples FILE", "file of samples"))
    out = Path(required(settings.out, "--out FILE", "file to write"))
    check_output(out)

    from elastic_jax.text.chat import fix_date
    from elastic_jax.weights.tokenizer import load_tokenizer
    from train.data.corpus import from_folder, from_standard_library
    from train.loop.reporting import CountProgress
    from train.reward.synthesis.files import Lengthener, prompt_line, write_lines_of
    from train.reward.synthesis.short_samples import read_short_samples

    items = read_short_samples(source)
    if asked.dry_run:
        print(f"{len(items)} samples in {source}")
        return 0
    inputs = {"samples": _digest(items)}  # the output depends on the content of files, not on their names
    if settings.stage == "prompts":
        make = prompt_line
    else:
        corpus = from_standard_library() if settings.filler is None else from_folder(Path(settings.filler))
        tokenizer = load_tokenizer(smollm2.source(settings.model))
        fix_date(tokenizer, _ANY_DATE)
        make = Lengthener(tokenizer, corpus.prose, settings).line
        written = tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template
        inputs |= {"filler": _digest(corpus.prose), "model": _digest(written)}
    identity = dataclasses.asdict(dataclasses.replace(settings, out=None, samples=None)) | inputs
    with CountProgress("samples", len(items)) as bar:
        tally = write_lines_of(items, make, out, identity, bar.update)
    print(f"{out}: {tally}")
    return 0
