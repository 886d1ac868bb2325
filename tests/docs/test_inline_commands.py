"""No command hides in running text: it stands in a block, which a test runs, or in a list here that says why not."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import PAGES, blocks, names

# By page: a command in running text that no test runs as it stands there, and why.
INLINE = {
    ("CONTRIBUTING.md", "CI=1 make test"): "runs these tests",
    ("CONTRIBUTING.md", "pytest -m dear"): "runs these tests",
    ("docs/performance.md", "python -m tools.moe_formulations --tokens 1,8,32,128 --rounds 3"): (
        "what a table was measured with; tests/tools/test_moe_formulations.py tries its parts in small"
    ),
    (
        "docs/serving.md",
        "python -m tools.serving_load BUNDLE --concurrency 1,4,16 --requests 48 --rounds 1",
    ): "what a table was measured with, against an older commit",
    ("docs/serving.md", "curl -d"): "names an option",
}
_INSTALLS = re.compile(r'pip install "mythos-export\[[a-z,-]+\]"')  # test_links.py looks the extras up

_PROGRAMS = r"mythos-export|python3?|make|pytest|pip|polygraphy|trtexec|curl|docker|kubectl|tritonserver"
_COMMAND = re.compile(rf"(?:[A-Z_0-9]+=\S+ )*(?:\S+/)?(?:{_PROGRAMS}) \S.*")
_NAME = re.compile(r"mythos-export [a-z]+(?: --[a-z-]+)?")  # `mythos-export verify`, and an option of one


def commands_in_text(page: str) -> list[str]:
    """Commands with arguments that stand between backticks in a page's text."""
    return [name for name in names(page) if _COMMAND.fullmatch(name) and not _NAME.fullmatch(name)]


def in_blocks() -> set[str]:
    """Every command of every page's blocks, those included that say why they are not run."""
    return {line for page in PAGES for block in blocks(page) if block.language == "sh" for line in block.commands}


@pytest.mark.parametrize("page", PAGES)
def test_a_command_in_running_text_is_run_or_listed(page: str) -> None:
    known = in_blocks()
    hidden = [
        command
        for command in commands_in_text(page)
        if command not in known and (page, command) not in INLINE and not _INSTALLS.fullmatch(command)
    ]
    assert not hidden, f"{page}: in running text, so no test runs it; move it to a block (```sh), or into INLINE"


def test_what_is_listed_is_in_the_pages() -> None:
    gone = [each for each in INLINE if each[0] in PAGES and each[1] not in commands_in_text(each[0])]
    assert not gone, f"in INLINE, but not in the pages: {gone}"


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("python -m tools.benchmark --steps 4", True),
        ("mythos-export build runs/trt --sm 8.9", True),
        ("mythos-export --scale 1b", True),
        ("CI=1 make test", True),
        (".venv/bin/pytest -m dear", True),
        ("mythos-export verify", False),
        ("mythos-export report --latency", False),
        ("--scale 1b --no-validate", False),
        ("make", False),
        ("makes nothing", False),
    ],
)
def test_what_counts_as_a_command(text: str, is_one: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.docs.test_inline_commands.names", lambda page: [text])
    assert commands_in_text("any") == [text] * is_one
