"""LongBench and LongBench-E (arXiv 2308.14508): their record format, prompts in our own words, metrics by task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from elastic_jax.errors import ConfigError, shown
from eval.harness.thinking import answer_of
from eval.samples import Message, Rendered, Reply, Sample, Segment, Showing, Verdict
from eval.suites.metrics import (
    chinese_words,
    classification,
    code_similarity,
    first_line,
    number_share,
    paragraph_share,
    rouge_l,
    token_f1,
)
from eval.suites.records import JsonRecord, Lazy, read_records
from eval.tasks import Group, Task, loaded_group

_QA = (
    "Answer the question from the text below. Give the answer only, in a few words.\n\n{context}\n\n"
    "Answer the question from the text above. Give the answer only, in a few words.\n\nQuestion: {input}\nAnswer:"
)
_QA_DOCUMENTS = (
    "Answer the question from the passages below. Give the answer only, in a few words.\n\n{context}\n\n"
    "Answer the question from the passages above. Give the answer only, in a few words.\n\n"
    "Question: {input}\nAnswer:"
)
_QA_CHINESE = (
    "请根据下面的文字回答问题，只给出答案。\n\n{context}\n\n"
    "请根据上面的文字回答问题，只给出答案。\n\n问题：{input}\n答案："
)


_F1 = partial(token_f1, chinese=False)
_F1_CHINESE = partial(token_f1, chinese=True)
_ROUGE = partial(rouge_l, chinese=False)
_ROUGE_CHINESE = partial(rouge_l, chinese=True)


@dataclass(frozen=True)
class Form:
    """What one task asks and how it is scored. `{context}` is the part that may be long."""

    prompt: str
    new_tokens: int
    metric: Callable[[str, str], float] | None = _F1
    """None for tasks that ask for a class name; the classes are listed in each record."""
    chat: bool = True
    """False for prompts of examples or code to continue, which get no chat template, even for chat models."""
    one_line: bool = False
    """Whether only the first line of the reply counts."""


FORMS = {
    "narrativeqa": Form(
        "Below is a story, a novel or a script. Answer the question about it in a single phrase.\n\n"
        "Story: {context}\n\n"
        "Now answer the question about the story in a single phrase, without explanation.\n\nQuestion: {input}\n\n"
        "Answer:",
        128,
    ),
    "qasper": Form(
        'Below is a scientific article. Answer the question about it in a phrase or a sentence; write "unanswerable" '
        "if the article does not say, and yes, no or unanswerable to a question of yes or no.\n\nArticle: {context}\n\n"
        "Answer the question about the article in the same way, without explanation.\n\nQuestion: {input}\n\nAnswer:",
        128,
    ),
    "multifieldqa_en": Form(_QA, 64),
    "multifieldqa_zh": Form(_QA_CHINESE, 64, _F1_CHINESE),
    "hotpotqa": Form(_QA_DOCUMENTS, 32),
    "2wikimqa": Form(_QA_DOCUMENTS, 32),
    "musique": Form(_QA_DOCUMENTS, 32),
    "dureader": Form(_QA_CHINESE, 128, _ROUGE_CHINESE),
    "gov_report": Form(
        "Below is a report by a government agency. Write a one-page summary of it.\n\nReport:\n{context}\n\n"
        "Now write a one-page summary of the report.\n\nSummary:",
        512,
        _ROUGE,
    ),
    "qmsum": Form(
        "Below is the transcript of a meeting. Answer the query about it in one or more sentences.\n\nTranscript:\n"
        "{context}\n\nNow answer the query about the meeting in one or more sentences.\n\nQuery: {input}\nAnswer:",
        512,
        _ROUGE,
    ),
    "multi_news": Form(
        "Below are several news articles. Write a one-page summary of all of them.\n\nNews:\n{context}\n\n"
        "Now write a one-page summary of all the news.\n\nSummary:",
        512,
        _ROUGE,
    ),
    "vcsum": Form("下面是一份会议记录，请写一段总结。\n\n会议记录：\n{context}\n\n会议总结：", 512, _ROUGE_CHINESE),
    "trec": Form(
        "Find the type of the last question. Here are some questions with their types.\n\n{context}\n{input}",
        64,
        None,
        chat=False,
        one_line=True,
    ),
    "triviaqa": Form(
        "Answer the question from the passage. Give the answer only. Here are some examples.\n\n{context}\n\n{input}",
        32,
        chat=False,
        one_line=True,
    ),
    "samsum": Form(
        "Sum up the dialogue in a few short sentences. Here are some examples.\n\n{context}\n\n{input}",
        128,
        _ROUGE,
        chat=False,
        one_line=True,
    ),
    "lsht": Form(
        "请判断最后一条新闻的类别，下面是一些例子。\n\n{context}\n{input}", 64, None, chat=False, one_line=True
    ),
    "passage_count": Form(
        "Below are paragraphs, some of which may appear more than once. Find out how many different ones there are."
        "\n\n{context}\n\nHow many different paragraphs are there, repeats counted once? Answer with a number only, "
        "such as 1, 2 or 3.\n\nThe number is:",
        32,
        number_share,
    ),
    "passage_retrieval_en": Form(
        "Below are 30 numbered paragraphs, and a summary of one of them.\n\n{context}\n\nSummary:\n\n{input}\n\n"
        'Which paragraph does the summary belong to? Answer with its number, such as "Paragraph 1".\n\nThe answer is:',
        32,
        paragraph_share,
    ),
    "passage_retrieval_zh": Form(
        "下面是若干段落和其中一段的摘要。\n\n{context}\n\n摘要：\n{input}\n\n摘要属于哪一段？请只回答段落编号，例如“段落1”。\n\n答案是：",
        32,
        paragraph_share,
    ),
    "lcc": Form("Complete the code below.\n{context}Next line of code:\n", 64, code_similarity, chat=False),
    "repobench-p": Form(
        "Complete the code below.\n{context}{input}Next line of code:\n", 64, code_similarity, chat=False
    ),
}
"""The 21 tasks, with the published lengths of answers."""

E_BUCKETS = ((4000, "0-4k"), (8000, "4-8k"))


def longbench_groups(
    source: str | Path, tasks: Sequence[str], *, extended: bool, count: int | None, tokens: int
) -> list[Group]:
    """The samples of each task, from `<task>.jsonl` (`<task>_e.jsonl` of LongBench-E) below a folder or on the hub.

    Args:
        count: at most this many of each task, the first ones.
        tokens: about how long prompts are: the limit that they are cut to.

    Raises:
        ConfigError: a task that LongBench does not have, or one in Chinese without the word segmenter.
        DataError: a file that is missing or a record that cannot be used, by file and line.
    """
    for name in tasks:
        if name not in FORMS:
            raise ConfigError(f"LongBench has no task {name!r}; it has {', '.join(FORMS)}.")
        if FORMS[name].metric in (_F1_CHINESE, _ROUGE_CHINESE):
            chinese_words("")  # fails here, not at the first score
    groups = []
    for name in tasks:
        records = read_records(source, f"{name}_e.jsonl" if extended else f"{name}.jsonl", folder="data")
        samples = Lazy(
            min(count or len(records), len(records)),
            lambda number, name=name, records=records: _sample(name, records[number], number, extended),
        )
        groups.append(loaded_group(_task(name), samples, tokens=tokens))
    return groups


def _sample(name: str, record: JsonRecord, number: int, extended: bool) -> Sample:
    fields = {field: record.text(field, empty=True) for field in ("input", "context")}
    answers = record.texts("answers", 1)
    if FORMS[name].metric is number_share and not all(answer.isdecimal() for answer in answers):
        raise record.error(f"answers is {shown(answers)}; want whole numbers")
    classes = record.fields.get("all_classes")
    if FORMS[name].metric is None and answers[0] not in record.texts("all_classes", 1):
        raise record.error(f"all_classes is {shown(classes)}; want the list of class names, the answer among them")
    axes: dict[str, str | int] = {}
    if extended:
        length = record.fields.get("length")
        if not isinstance(length, int):
            raise record.error(f"length is {length!r}; want the number of words")
        axes["words"] = next((label for bound, label in E_BUCKETS if length < bound), "8k+")
    uid = f"{name}/{record.fields.get('_id') or number}"
    return Sample(uid, fields | {"classes": classes}, tuple(answers), axes, FORMS[name].new_tokens)


def _task(name: str) -> Task:
    form = FORMS[name]

    def template(sample: Sample, showing: Showing) -> Rendered:
        before, _, after = form.prompt.partition("{context}")
        text = after.replace("{input}", sample.fields["input"])
        parts = (Segment(before), Segment(sample.fields["context"], cuttable=True), Segment(text))
        return Rendered((Message("user", parts),), chat=form.chat)

    def judge(sample: Sample, showing: Showing, reply: Reply) -> Verdict:
        answer = answer_of(reply.text)
        if answer != reply.text:
            answer = answer.strip()  # removes the blank lines between thinking and answer
        said = first_line(answer) if form.one_line else answer
        classes: Any = sample.fields["classes"]
        metric = form.metric or (lambda text, gold: classification(text, gold, classes))
        score = max(metric(said, gold) for gold in sample.references)
        return Verdict({"score": score}, "ok" if answer.strip() else "empty")

    return Task(name, "generate", template, judge, "score", policy="middle")
