"""The pages as their tests read them: fenced blocks, headings, links and names in backticks."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PAGES", "ROOT", "Block", "anchors", "blocks", "links", "names", "prose"]

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(r"```(\w*)$")
_NOTE = re.compile(r"<!-- (.*) -->$")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        line: of the page, counted from 1, where its text begins.
        note: the HTML comment on the line above it, or "".
        output: of a block of commands, the block without a language that follows it; "" if none does.
    """

    page: str
    line: int
    language: str
    text: str
    note: str = ""
    output: str = ""

    @property
    def commands(self) -> list[str]:
        """Its lines without comments, those that end in a backslash joined to the next."""
        joined = self.text.replace("\\\n", " ").splitlines()
        return [line for each in joined if (line := re.sub(r"(^|\s)#\s.*", "", " ".join(each.split())))]

    @property
    def where(self) -> str:
        """For a message."""
        return f"{self.page}:{self.line}"


@functools.cache
def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, each block of commands with the output shown below it."""
    found = list(_raw_blocks(page))
    return [
        Block(each.page, each.line, each.language, each.text, each.note, _output_below(each, after))
        for each, after in zip(found, [*found[1:], None])
    ]


def _raw_blocks(page: str) -> Iterator[Block]:
    lines = _lines(page)
    start = None
    for number, line in enumerate(lines):
        fence = _FENCE.match(line)
        if start is None and fence:
            start = number
        elif start is not None and line == "```":
            opened = _FENCE.match(lines[start])
            note = _NOTE.match(lines[start - 1]) if start else None
            text = "\n".join(lines[start + 1 : number]) + "\n"
            assert opened is not None
            yield Block(page, start + 2, opened[1], text, note[1] if note else "")
            start = None
    assert start is None, f"{page}:{(start or 0) + 1}: a block that does not end"


def _output_below(block: Block, after: Block | None) -> str:
    if block.language != "sh" or after is None or after.language:
        return ""
    end = block.line + block.text.count("\n")  # the closing fence
    between = _lines(block.page)[end : after.line - 2]
    return after.text if not any(between) else ""


def prose(page: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"(?ms)^```\w*$.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"))


def links(page: str) -> list[str]:
    """Where a page's links and pictures point, those that lead out of the repository left out."""
    found = re.findall(r"!?\[[^\]]*\]\(([^)\s]+)\)", prose(page)) + re.findall(r'(?:src|srcset)="([^"]+)"', prose(page))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors(page: str) -> set[str]:
    """What a link may name behind #, by GitHub's rule."""
    headings = re.findall(r"(?m)^#+ (.+)$", prose(page))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def names(page: str) -> list[str]:
    """What stands in backticks in a page's text."""
    return re.findall(r"`([^`\n]+)`", prose(page))


@functools.cache
def _lines(page: str) -> list[str]:
    return (ROOT / page).read_text(encoding="utf-8").splitlines()
