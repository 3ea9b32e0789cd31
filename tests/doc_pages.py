"""The README and the pages of the documentation, taken apart: code blocks, shell commands, inline code, links."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *(str(page.relative_to(ROOT)) for page in sorted(ROOT.glob("docs/*.md")))]
TOY = "<!-- toy -->"
"""Stands before a block that is run on a tiny model, with smaller sizes."""

_FENCE = re.compile(
    r"^(?P<mark>(?:<!-- \w+ -->)?)\n?^```(?P<language>\w*)\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL
)
_ASSIGNED = re.compile(r'^(\w+)=(?:"([^"]*)"|(\S*))$')


@dataclass(frozen=True)
class Block:
    """A fenced block; `mark` is the HTML comment on the line before it."""

    page: str
    line: int
    language: str
    mark: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    text = text_of(page)
    return [
        Block(page, text.count("\n", 0, found.start("language")) + 1, found["language"], found["mark"], found["text"])
        for found in _FENCE.finditer(text)
    ]


def shell_commands(block: Block) -> list[list[str]]:
    """Words of every command of a shell block; names that the block assigns are put in, comments are left out."""
    known: dict[str, str] = {}
    commands = []
    for line in re.sub(r"\\\n\s*", "", block.text).splitlines():
        for name, value in known.items():
            line = line.replace(f"${name}", value)
        words = shlex.split(line, comments=True)
        assigned = _ASSIGNED.match(line.partition("#")[0].strip())
        if assigned:
            known[assigned[1]] = assigned[2] or assigned[3]
        elif words:
            commands.append(words)
    return commands


def elastic_arguments(words: list[str]) -> list[list[str]]:
    """Arguments of each `elastic-jax` among the words: behind a launcher, or inside the text that one is given."""
    found = []
    for position, word in enumerate(words):
        if Path(word).name == "elastic-jax":
            found.append(words[position + 1 :])
        elif word.startswith("elastic-jax "):
            found.append(shlex.split(word)[1:])
    return found


def prose(page: str) -> str:
    """The text of a page without its blocks."""
    return _FENCE.sub("", text_of(page))


def inline_code(page: str) -> list[str]:
    return re.findall(r"`([^`]+)`", prose(page).replace("\n", " "))


def links(page: str) -> list[str]:
    """Targets of links and pictures inside the repository."""
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if "://" not in target]


def anchors(page: str) -> set[str]:
    """Names that a link may give after `#`, by the rule of GitHub and of the site for plain headings."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}
