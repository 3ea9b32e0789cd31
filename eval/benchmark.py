"""Runs a benchmark through the one journal and writes its report: JSON, CSV, Markdown, pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastic_jax.cli.model import load_model_tokenizer
from elastic_jax.errors import ConfigError
from elastic_jax.files import write_json, write_text
from elastic_jax.journal import Journal, journal_settings
from elastic_jax.settings import settings_yaml
from elastic_jax.text.chat import fix_date, template_date
from eval.harness.backends.base import Backend
from eval.harness.encoding import Encoder
from eval.harness.opening import arms_of, open_backend
from eval.harness.provenance import command_line, program, prompts_digest, text_digest
from eval.harness.records import check_record
from eval.harness.runner import Outcome, Record, Shard, first_prompts, measure
from eval.harness.settings import BenchmarkSettings
from eval.report.figures import draw_benchmark
from eval.report.page import csv_text, render_benchmark
from eval.report.tables import Row, means_over_tasks, overall_rows, summarise
from eval.samples import Arm
from eval.tasks import Group

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RESULTS = "results"


@dataclass(frozen=True)
class Benchmark:
    """A benchmark, ready to run."""

    verb: str
    """Words of the command, such as `eval ruler`."""
    title: str
    groups: Callable[[Encoder], Sequence[Group]]
    """Makes the groups of samples; must be the same for the same settings and encoder."""
    axes: tuple[str, ...] = ()
    """Axes of the samples by which results are grouped."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """Settings that results depend on and that the prompts do not show."""
    inputs: Callable[[], Mapping[str, str]] = dict
    """Digests, by name, of the texts that samples are made of; asked once the groups are made. Records of a file need
    none: their groups have a digest of each (`Group.contents`)."""
    limit: int | None = None
    """Most tokens of prompt and answer; by default what the model can take."""
    method: str = ""
    """How it is measured, for the report: Markdown."""
    notes: Callable[[Sequence[Record], Path], str] | None = None
    """A further section of the report, from the records: Markdown; it may write files into the folder."""
    join: Callable[[Sequence[Record]], Sequence[Record]] | None = None
    """Makes the records to report out of those of the journal, where one result takes several replies."""
    open_backend: Callable[[Any, PreTrainedTokenizerBase], Backend] = open_backend
    """Opens what the settings (a `BenchmarkSettings` or a class of it) name to be measured."""
    overall: bool = False
    """All samples together, and those of each value of an axis, get a row of their own."""
    refuse_too_long: bool = True
    """Prompts that cannot fit are an error in the settings; otherwise they are counted."""


def run_benchmark(
    benchmark: Benchmark,
    settings: BenchmarkSettings,
    out: Path,
    *,
    dry_run: bool = False,
    backend: Backend | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> dict[str, Any]:
    """Measures what the journal in `out` lacks, writes the report there and returns its contents.

    Args:
        dry_run: make the first prompt of every group, print what would run, write nothing.
        backend, tokenizer: used instead of those that the settings name.

    Raises:
        ConfigError: settings that do not fit the model.
        DataError: unusable data, a journal made under other settings, a backend that keeps failing.
    """
    shard, arms = Shard.parse(settings.shard), arms_of(settings)
    tokenizer = tokenizer or load_model_tokenizer(settings)
    if settings.chat:
        _keep_date(tokenizer, out)
    encoder = Encoder(tokenizer, chat=settings.chat)
    groups = benchmark.groups(encoder)
    if dry_run:
        print(settings_yaml(settings) + _plan(benchmark, groups, arms, encoder), end="")
        return {}
    if backend is None:
        backend = benchmark.open_backend(settings, tokenizer)
    if benchmark.refuse_too_long:
        _check_lengths(groups, backend)
    identity = _identity(benchmark, settings, backend, encoder, groups)
    name = "journal.jsonl" if shard.count == 1 else f"journal-{shard.index}-of-{shard.count}.jsonl"
    others = [path for path in sorted(out.glob("journal*.jsonl")) if path.name != name]
    outcome = Outcome()
    with Journal(out / name, identity, others=others, newer=_NEWER) as journal:
        for key, value in journal.items():
            check_record(f"{journal.path}, key {key!r},", value)
        records = measure(
            backend,
            encoder,
            groups,
            arms,
            journal,
            batch_tokens=settings.batch_tokens,
            limit=benchmark.limit,
            shard=shard,
            outcome=outcome,
        )
        made_with = journal.settings
    return write_report(benchmark, settings, out, records, arms, groups, made_with, outcome)


def _keep_date(tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Has the chat template write the date of the day on which the run in `out` began."""
    found = map(journal_settings, sorted(out.glob("journal*.jsonl")))
    date = next((settings["template_date"] for settings in found if settings and "template_date" in settings), None)
    if date is not None:
        fix_date(tokenizer, date)


_NEWER = ("inputs", "chat_template", "template_date")
"""Settings that journals of earlier versions lack; in those, the tokens of the first prompts stand for them."""


def _identity(
    benchmark: Benchmark, settings: BenchmarkSettings, backend: Backend, encoder: Encoder, groups: Sequence[Group]
) -> dict[str, Any]:
    """What results depend on."""
    identity = {
        **backend.identity(),
        **benchmark.identity,
        "benchmark": benchmark.title,
        "seed": settings.seed,
        "chat": settings.chat,
        "limit_tokens": benchmark.limit,
        "first_prompts": {
            prompt.sample.uid: prompts_digest([prompt]) for prompt in first_prompts(groups, encoder, benchmark.limit)
        },
    }
    inputs = benchmark.inputs()
    if inputs:
        identity["inputs"] = dict(inputs)
    if settings.chat:
        identity["chat_template"] = text_digest(str(encoder.tokenizer.chat_template))
        date = template_date(encoder.tokenizer)
        if date is not None:
            identity["template_date"] = date
    return identity


def write_report(
    benchmark: Benchmark,
    settings: BenchmarkSettings,
    out: Path,
    records: Sequence[Record],
    arms: Sequence[Arm],
    groups: Sequence[Group],
    identity: Mapping[str, Any],
    outcome: Outcome,
) -> dict[str, Any]:
    """Writes `results.json`, `.csv`, `.md` and `.png` into `out` and returns the contents of the first."""
    wanted = len(arms) * sum(len(group.showings(index)) for group in groups for index in range(group.count))
    done = len(records)
    if benchmark.join is not None:
        records = benchmark.join(records)
    rows = summarise(records, benchmark.axes)
    report = {
        "title": benchmark.title,
        "command": command_line(benchmark.verb, settings),
        "settings": dict(identity),
        "program": program(),
        "axes": list(benchmark.axes),
        "arms": [arm.name for arm in arms],
        "rows": rows,
        "means": means_over_tasks(rows, benchmark.axes)
        + (overall_rows(records, benchmark.axes) if benchmark.overall else []),
        "done": done,
        "wanted": wanted,
        "errors": outcome.errors,
    }
    further = benchmark.notes(records, out) if benchmark.notes is not None and records else ""
    pictures = draw_benchmark(report, records, out) if records else []
    write_json(out / f"{RESULTS}.json", report)
    write_text(out / f"{RESULTS}.csv", rows_csv([*rows, *report["means"]]))
    write_text(out / f"{RESULTS}.md", render_benchmark(report, benchmark.method, further, pictures))
    return report


def rows_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV, the interval in two columns."""
    flat = []
    for row in rows:
        low, high = row["interval"]
        flat.append({k: v for k, v in row.items() if k != "interval"} | {"interval_low": low, "interval_high": high})
    return csv_text(flat)


def _check_lengths(groups: Sequence[Group], backend: Backend) -> None:
    for group in groups:
        fits = backend.max_tokens is None or group.tokens <= backend.max_tokens
        if group.task.policy == "skip" and not fits:
            raise ConfigError(
                f"task {group.task.name} has prompts of {group.tokens} tokens; the model has {backend.max_tokens} "
                "positions. Ask for shorter ones, or give the checkpoint a rope scaling for longer contexts."
            )


def _plan(benchmark: Benchmark, groups: Sequence[Group], arms: Sequence[Arm], encoder: Encoder) -> str:
    """What would run: a line per group with the tokens of its first prompt, and the sum."""
    lines = [f"\n# {benchmark.title}: {', '.join(arm.name for arm in arms)}"]
    for group in groups:
        made = list(first_prompts([group], encoder, benchmark.limit))
        tokens = f"{len(made[0].prompt_ids)} tokens" if made else "too long"
        cut = f", {made[0].cut_tokens} cut" if made and made[0].cut_tokens else ""
        lines.append(
            f"# {group.task.name}, about {group.tokens} tokens: {group.count} samples, the first has {tokens}{cut}"
        )
    total = sum(group.tokens * sum(len(group.showings(index)) for index in range(group.count)) for group in groups)
    return "\n".join([*lines, f"# about {total * len(arms):,} tokens to read in all"]) + "\n"
