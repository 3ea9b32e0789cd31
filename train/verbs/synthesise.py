"""`elastic-jax train synthesise`: judgements of short texts become training data on long ones."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from elastic_jax import smollm2
from elastic_jax.cli.args import parse_verb, required
from elastic_jax.errors import ConfigError
from train.reward.synthesis.voting import VotingConfig


@dataclass(frozen=True)
class SynthesisSettings:
    """What is made of which samples."""

    samples: str | None = None
    """JSON-lines, Parquet or Arrow file: perspective, question, response, chunks, and judgement or judgements."""
    out: str | None = None
    """JSON-lines file to write; an interrupted run goes on with the same command."""
    stage: Literal["long", "prompts"] = "long"
    """prompts: what to ask a strong judge about the short texts; long: the training data, once it has answered."""
    model: str = smollm2.NAME
    """Model whose tokenizer and chat template count tokens: directory or hub id, .gguf file, or smollm2."""
    filler: str | None = None
    """Folder of .txt files that irrelevant text is cut from; by default the texts that Python itself brings along."""
    target_tokens: tuple[int, ...] = (32768,)
    """Lengths of prompt and judgement together, in tokens; each sample draws one."""
    reserve: int = 1024
    """Tokens of these that are kept for the judgement."""
    chunk_tokens: int = 512
    """Most tokens of one piece of filler."""
    voting: VotingConfig = field(default_factory=VotingConfig)
    """How several judgements become a preference."""
    seed: int = 0
    """Chooses lengths, places and filler."""

    def __post_init__(self) -> None:
        if not self.target_tokens or min(self.target_tokens) <= self.reserve or self.reserve < 0:
            raise ConfigError(
                f"target_tokens is {list(self.target_tokens)}, reserve {self.reserve}; want one length or more, each "
                "longer than the reserve."
            )
        if self.chunk_tokens < 16:
            raise ConfigError(f"chunk_tokens is {self.chunk_tokens}; want at least 16.")


def main(argv: Sequence[str]) -> int:
    """Put judged short texts among irrelevant ones, for training long-context judges; vote where judgements differ."""
    asked = parse_verb(SynthesisSettings, argv, verb="train synthesise", summary=str(main.__doc__))
    settings = asked.settings
    source = Path(required(settings.samples, "--samples FILE", "file of samples"))
    out = Path(required(settings.out, "--out FILE", "file to write"))

    from elastic_jax.weights.tokenizer import load_tokenizer
    from train.data.corpus import from_folder, from_standard_library
    from train.loop.reporting import CountProgress
    from train.reward.synthesis.files import Lengthener, prompt_line, write_lines_of
    from train.reward.synthesis.short_samples import read_short_samples

    items = read_short_samples(source)
    if asked.dry_run:
        print(f"{len(items)} samples in {source}")
        return 0
    if settings.stage == "prompts":

        def make(item):
            return prompt_line(item), None
    else:
        corpus = from_standard_library() if settings.filler is None else from_folder(Path(settings.filler))
        make = Lengthener(
            load_tokenizer(smollm2.source(settings.model)),
            corpus.prose,
            target_tokens=settings.target_tokens,
            reserve=settings.reserve,
            chunk_tokens=settings.chunk_tokens,
            voting=settings.voting,
            seed=settings.seed,
        ).line
    digest = hashlib.sha256(repr(items).encode()).hexdigest()[:16]
    identity = dataclasses.asdict(dataclasses.replace(settings, out=None, samples=None)) | {"samples": digest}
    with CountProgress("samples", len(items)) as bar:
        tally = write_lines_of(items, make, out, identity, bar.update)
    print(f"{out}: {tally}")
    return 0
