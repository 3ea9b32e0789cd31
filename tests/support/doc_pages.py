"""The README and the pages of the documentation, taken apart: code blocks, shell commands, inline code, links."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *(str(page.relative_to(ROOT)) for page in sorted(ROOT.glob("docs/**/*.md")))]
TOY, AS_IT_IS = "<!-- toy -->", "<!-- test -->"
"""What stands before a block that is run with a tiny model and small sizes, and before one that is run unchanged."""

_FENCE = re.compile(r"^(<!-- [^\n]* -->\n)?```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_ASSIGNED = re.compile(r'^(\w+)=(?:"([^"]*)"|(\S*))$')


@dataclass(frozen=True)
class Block:
    """A fenced block; `mark` is the HTML comment on the line before it, or nothing."""

    page: str
    line: int
    mark: str
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    text = text_of(page)
    return [
        Block(page, text.count("\n", 0, found.start(2)) + 1, (found[1] or "").strip(), found[2], found[3])
        for found in _FENCE.finditer(text)
    ]


def shell_commands(block: Block) -> list[list[str]]:
    """Words of every command of a block; names that it assigns are put in, comments are left out.

    A block without a language is somebody's output, in which only `elastic-jax` begins a command.
    """
    known: dict[str, str] = {}
    commands = []
    if block.language == "":
        return [shlex.split(line) for line in block.text.splitlines() if line.startswith("elastic-jax ")]
    for line in re.sub(r"\\\n\s*", "", block.text).splitlines():
        for name, value in known.items():
            line = line.replace(f"${name}", value)
        assigned = _ASSIGNED.match(line.partition("#")[0].strip())
        if assigned:
            known[assigned[1]] = assigned[2] or assigned[3]
        elif words := shlex.split(line, comments=True):
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
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]


def links(page: str) -> list[str]:
    """Targets of links and pictures inside the repository."""
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if "://" not in target]


def anchors(page: str) -> set[str]:
    """Names that a link may give after `#`, by the rule of GitHub and of the site; of `:::` the name itself."""
    text = prose(page)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    names = {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}
    return names | set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))
