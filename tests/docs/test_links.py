"""What the pages point at is there: files, headings, options, names in the source."""

from __future__ import annotations

import functools
import re

import pytest
import typer

from mythos_export.cli import app
from tests.docs.pages import PAGES, ROOT, anchors, blocks, links, names, prose

FOLDERS = ("calibration", "docs", "engines", "mythos_export", "reference_model", "tests", "tools")
# Options of other tools that the pages speak of.
FOREIGN = {"--onnxrt", "--no-deps"}
# CamelCase, UPPER_CASE and lower_case, but not plain words.
WORDS = re.compile(r"_?[A-Z][A-Za-z]*[a-z][A-Z][A-Za-z]*|_?[A-Z]+(_[A-Z]+)+|_?[a-z]+(_[a-z]+)+(\(\))?")
# Names from other libraries.
LIBRARIES = {"FakeTensorMode", "while_loop"}


@functools.cache
def _sources() -> str:
    """All that is not written in prose."""
    folders = [ROOT / folder for folder in FOLDERS if folder != "docs"]
    files = [path for folder in folders for path in folder.rglob("*.py") if ROOT / "tests" / "docs" not in path.parents]
    return "\n".join(path.read_text(encoding="utf-8") for path in [*files, ROOT / "Makefile", ROOT / "pyproject.toml"])


@functools.cache
def _words() -> frozenset[str]:
    return frozenset(re.findall(r"\w+", _sources()))


@functools.cache
def _files() -> frozenset[str]:
    """Files and folders of the repository, from its root."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts]
    return frozenset(path.relative_to(ROOT).as_posix() for path in [*found, *(ROOT / folder for folder in FOLDERS)])


@functools.cache
def _options() -> frozenset[str]:
    """Those of the command line, and those that tools read."""
    command = typer.main.get_command(app)
    commands = [command, *getattr(command, "commands", {}).values()]
    own = {option for each in commands for param in each.params for option in (*param.opts, *param.secondary_opts)}
    tools = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tools").rglob("*.py"))
    return frozenset(own | set(re.findall(r'"(--[a-z][a-z-]*)"', tools)) | FOREIGN | {"--help"})


@pytest.mark.parametrize("page", PAGES)
def test_links(page: str) -> None:
    for link in links(page):
        file, _, anchor = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), f"{page}: ({link}) leads nowhere"
        if anchor:
            there = target.resolve().relative_to(ROOT.resolve()).as_posix()
            assert anchor in anchors(there), f"{page}: ({link}): {there} has no such heading"


@pytest.mark.parametrize("page", PAGES)
def test_files(page: str) -> None:
    """`passes/tidy.py` may leave out the folders above; what has no folder and is not Python may be of a bundle."""
    for name in names(page):
        path = name.rstrip("/")
        if not re.fullmatch(r"[\w./-]+", path) or not (path.endswith(".py") or path.split("/")[0] in FOLDERS):
            continue
        if path.endswith(".py") or "/" in name:
            assert _is_there(path) or _is_made(page, path), f"{page}: there is no {name}"


def _is_there(path: str) -> bool:
    return any(file == path or file.endswith(f"/{path}") for file in _files())


def _is_made(page: str, path: str) -> bool:
    """Is it a file of a bundle (`engines/sm89.json`) that the page's commands write, as their output says?"""
    return any(path in block.text for block in blocks(page))


@pytest.mark.parametrize("page", PAGES)
def test_options(page: str) -> None:
    told = [option for name in names(page) for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", name)]
    commands = [line for block in blocks(page) if block.language == "sh" for line in block.commands]
    ours = [line for line in commands if line.startswith("mythos-export ")]
    told += [option for line in ours for option in re.findall(r"(?<= )--[a-z][a-z-]*", line)]
    unknown = sorted(set(told) - _options())
    assert not unknown, f"{page}: no such options: {unknown}"


@pytest.mark.parametrize("page", PAGES)
def test_names(page: str) -> None:
    """`LowerNorm`, `cache_parts`, `engines.load` and the like occur in the source."""
    for name in names(page):
        dotted = re.fullmatch(r"[a-z]+(_[a-z]+)*(\.\w+)+(\(\))?", name) and name.split(".")[0] in FOLDERS
        if not dotted and not WORDS.fullmatch(name):
            continue
        parts = re.findall(r"\w+", re.sub(r"^mythos_(?!export)(\w+?)(_total)?$", r"\1", name))  # a metric, by template
        unknown = [part for part in parts if part not in _words() | LIBRARIES]
        assert not unknown, f"{page}: `{name}` is nowhere in the source"


def test_extras() -> None:
    """What the pages install can be installed."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    declared = re.search(r"(?ms)^\[project\.optional-dependencies\]$(.*?)^\[", project)
    assert declared is not None
    extras = set(re.findall(r"(?m)^([a-z-]+) = \[", declared[1]))
    for page in PAGES:
        text = prose(page) + "".join(block.text for block in blocks(page))
        for named in re.findall(r'(?:mythos-export|"\.|`)\[([a-z,-]+)\]', text):
            unknown = set(named.split(",")) - extras
            assert not unknown, f"{page}: no extra {unknown}; there are {sorted(extras)}"
