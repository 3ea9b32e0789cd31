"""`elastic-jax train example-data`: made-up preferences, judgements and a benchmark, as files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from elastic_jax.cli.args import parse_verb, required
from elastic_jax.files import FileLock, check_output, write_json_lines
from elastic_jax.settings import FilePath, check_least, check_seed
from train.reward.data.records import JudgeRecord, PreferenceRecord


@dataclass(frozen=True)
class ExampleDataSettings:
    """How many records are made of each kind, and how long they are."""

    out: FilePath | None = None
    """Folder to write; files of the same names are replaced."""
    train: int = 1024
    """Records to train on, of each kind of file."""
    held_out: int = 128
    """Records to evaluate on while training, of each kind of file."""
    pairs: int = 200
    """Pairs of the benchmark."""
    rankings: int = 20
    """Rankings in the benchmark: this many of 2 answers, of 3 and of 4."""
    rejects: int = 2
    """Rejected answers of each preference record, each with another flaw."""
    buildings: int = 4
    """Buildings that a text describes: 4 make about 180 tokens (SmolLM2), each further one adds about 42."""
    seed: int = 0
    """Seed of everything that is drawn; the records of the benchmark are drawn apart from the held-out ones."""

    def __post_init__(self) -> None:
        check_least(self, 1, "train", "held_out", "pairs")
        check_least(self, 0, "rankings")
        check_seed(self.seed, bits=63)


def main(argv: Sequence[str]) -> int:
    """Write made-up training data for judges and reward models, in the forms that can be read, and a benchmark."""
    asked = parse_verb(ExampleDataSettings, argv, verb="train example-data", summary=str(main.__doc__))
    settings = asked.settings
    folder = Path(required(settings.out, "--out FOLDER", "folder to write"))
    check_output(folder, folder=True)
    if asked.dry_run:
        print(settings)
        return 0

    from train.reward.examples.benchmark_file import write_long_rewardbench
    from train.reward.examples.generate import judge_preferences, judge_records, records

    def write(name: str, made: Iterable[PreferenceRecord | JudgeRecord]) -> None:
        write_json_lines(folder / f"{name}.jsonl", (record.to_json() for record in made))

    folder.mkdir(parents=True, exist_ok=True)
    size = {"buildings": settings.buildings}
    with FileLock(folder / ".lock", folder):  # two processes would write files that do not belong together
        for name, count, split in (("train", settings.train, "train"), ("held_out", settings.held_out, "evaluation")):
            seed = settings.seed
            write(f"answers_{name}", records(count, seed, split, rejects=settings.rejects, **size))
            write(f"judge_{name}", judge_records(count, seed, split, **size))
            rejects = min(settings.rejects, 2)
            judged = judge_preferences(count, seed, split, rejects=rejects, **size)
            write(f"judge_preferences_{name}", judged)
        pairs = records(settings.pairs + settings.rankings, settings.seed + 1, "evaluation", **size)
        ranked = pairs[settings.pairs :]
        write_long_rewardbench(folder / "long-rewardbench", pairs[: settings.pairs], ranked, settings.seed)
    print(f"{folder}: answers, judge and judge_preferences of {settings.train} and {settings.held_out} records,")
    print(f"  long-rewardbench of {settings.pairs} pairs and {3 * settings.rankings} rankings")
    return 0
