"""Does a command print what its page shows?"""

from __future__ import annotations

import re

__all__ = ["not_printed", "renewed"]

_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
_GAP = "..."
_PROGRESS = re.compile(r"[a-zA-Z .]+: \d+ %")  # of a step that takes more than a few seconds here


def not_printed(shown: str, printed: str, *, exact: bool = False) -> str | None:
    """The first line that a page shows and a command did not print there; None if all is as shown.

    `...` stands for anything, as a line and within one. Lines between two such stand together and in order; what
    comes before the first and after the last matters not. Blanks count as one, blank lines as none, and a number as any
    number.

    Args:
        exact: numbers are to be the very ones.
    """
    lines, at = [" ".join(line.split()) for line in printed.splitlines() if line.strip()], 0
    lines = [line for line in lines if not _PROGRESS.fullmatch(line)]
    for passage in _passages(shown):
        patterns = [_pattern(line, exact) for line in passage]
        reached = 0
        for start in range(at, len(lines) + 1):
            matched = _matched(patterns, lines[start:])
            reached = max(reached, matched)
            if matched == len(patterns):
                at = start + matched
                break
        else:
            return passage[reached]
    return None


def renewed(shown: str, printed: str) -> str:
    """What a page shows, as it was printed: all of it, or where it leaves something out, with the numbers printed.

    Then it is, line for line, the next one that was printed and differs in numbers alone; one that has none stays.
    """
    lines, at = [line.rstrip() for line in printed.splitlines()], 0
    if _GAP not in shown:
        return "".join(f"{line}\n" for line in lines)
    found = []
    for line in shown.splitlines():
        pattern = _pattern(line, exact=False)
        place = next((i for i in range(at, len(lines)) if pattern.fullmatch(" ".join(lines[i].split()))), None)
        if place is None or not line.strip() or _GAP in line:
            found.append(line)
        else:
            found.append(lines[place])
            at = place + 1
    return "".join(f"{line}\n" for line in found)


def _passages(shown: str) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for line in shown.splitlines():
        if line.strip() == _GAP:
            found.append([])
        elif line.strip():
            found[-1].append(line)
    return [passage for passage in found if passage]


def _pattern(line: str, exact: bool) -> re.Pattern[str]:
    parts = []
    for part in " ".join(line.split()).split(_GAP):
        texts = [re.escape(text) for text in _NUMBER.split(part)]
        parts.append(re.escape(part) if exact else _NUMBER.pattern.join(texts))
    return re.compile(".*".join(parts))


def _matched(patterns: list[re.Pattern[str]], lines: list[str]) -> int:
    """How many of the patterns the lines fulfil, one by one, from the first."""
    count = 0
    while count < min(len(patterns), len(lines)) and patterns[count].fullmatch(lines[count]):
        count += 1
    return count
