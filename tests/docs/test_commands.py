"""Every command in the pages runs, and prints what the page shows; every piece of Python in them runs too.

A page's blocks run in order in one folder that is empty at first. An HTML comment above a block says what else it is:

    <!-- not run: needs a GPU -->      listed in NOT_RUN below, so that leaving a command out is a decision
    <!-- from engines/engine.py -->    quoted from that file, word for word (`...` stands for lines left out)
    <!-- written to box.json -->       a file that the commands below it read

The figures of `plan` and `inspect` must be the very ones. Where they have changed for a reason, write the new ones with

    MYTHOS_RENEW_PAGES=1 pytest tests/docs/test_commands.py -k "test_commands and (planning or README)"
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from tests.docs.outputs import not_printed, renewed
from tests.docs.pages import PAGES, ROOT, Block, blocks
from tests.docs.shell import Shell, missing_for

# By page: how a block begins that no test runs, and why not.
NOT_RUN = {
    ("docs/performance.md", "mythos-export --scale 1b --no-validate --output f32"): "half an hour and 17 GB",
    (
        "docs/serving.md",
        "mythos-export --scale nano\nmythos-export --scale nano --precision int8\n",
    ): "takes ten minutes, of a machine that does nothing else",
    ("docs/tensorrt.md", "import mythos_export"): "needs a GPU",
    ("docs/tensorrt.md", "mythos-export generate runs/trt --runtime tensorrt_rtx"): "needs a GPU",
    (
        "docs/tensorrt.md",
        "polygraphy run runs/trt32/engines/sm89.model.plan --model-type engine --trt",
    ): "needs a GPU",
    ("docs/tensorrt.md", "polygraphy run runs/trt32/model.onnx --onnxrt"): "needs a GPU",
}

# Blocks that take a minute or more, or gigabytes: these run in the dear tier.
DEAR = {
    ("README.md", "mythos-export evaluate runs/demo --loops 1,2,4,8,12,16"),
    ("README.md", "mythos-export --scale 10b --precision fp16 --dry-run"),
    ("README.md", "mythos-export --scale 1b --loops dynamic"),
    ("README.md", "mythos-export evaluate mythos-nano-int8 --loops 1,2,4,8,16"),
    ("README.md", "import mythos_export"),  # of the 1b bundle
    ("README.md", "python -m tools.measure_export"),
    ("docs/quantisation.md", "python -m tools.quantization_table"),
    ("docs/tensorrt.md", "python -m tools.measure_build"),
    ("docs/quantisation.md", "mythos-export --scale nano --precision int4"),
    ("docs/report.md", "mythos-export evaluate mythos-nano-int8 --json > accuracy.json"),
}

# The same figures anywhere: sizes, bounds and numbers of nodes. What is not (times, versions) the pages leave out.
_EXACT = ("mythos-export plan ", "mythos-export inspect ")
# With this set, pages are given the figures that were printed: what a change of the graph makes stale.
_RENEW = "MYTHOS_RENEW_PAGES"


def _listed(block: Block, listed: set[tuple[str, str]]) -> bool:
    return any(page == block.page and block.text.startswith(start) for page, start in listed)


def _is_dear(block: Block) -> bool:
    return _listed(block, DEAR)


def _runs(block: Block) -> bool:
    return block.language in ("sh", "python") and not block.note.startswith(("not run: ", "from "))


def _run_page(page: str, shell: Shell, *, dear: bool) -> None:
    """Run a page's blocks; skips, at the end, if something was left out that this machine cannot run."""
    names: dict[str, Any] = {"__name__": "__main__"}
    left_out: list[str] = []
    for block in blocks(page):
        if block.note.startswith("written to "):
            shell.write(block.note.removeprefix("written to "), block.text)
        if not _runs(block) or (_is_dear(block) and not dear):
            continue
        if missing := missing_for(block):
            left_out.append(f"{block.where} wants {', '.join(missing)}")
        elif block.language == "python":
            exec(compile(block.text, block.where, "exec", dont_inherit=True), names)
        else:
            _run_block(block, shell)
    if left_out:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("; ".join(left_out))


def _run_block(block: Block, shell: Shell) -> None:
    outputs = [shell.run(command) for command in block.commands]
    printed, exact = "\n".join(outputs), block.commands[-1].startswith(_EXACT)
    if exact and block.output and os.environ.get(_RENEW):
        _renew(block, outputs[-1])
        return
    line = not_printed(block.output, printed, exact=exact)
    assert line is None, f"{block.where}: the page shows a line that was not printed there:\n{line}\n\n{printed}"


def _renew(block: Block, printed: str) -> None:
    page = ROOT / block.page
    text = page.read_text(encoding="utf-8")
    assert text.count(f"```\n{block.output}```") == 1, block.where
    new = f"```\n{renewed(block.output, printed)}```"
    page.write_text(text.replace(f"```\n{block.output}```", new), encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_commands(page: str, shell: Shell) -> None:
    _run_page(page, shell, dear=False)


@pytest.mark.dear
@pytest.mark.parametrize("page", sorted({page for page, _ in DEAR}))
def test_every_command(page: str, shell: Shell) -> None:
    _run_page(page, shell, dear=True)


def test_what_is_not_run_is_decided_here() -> None:
    """The pages and the list agree, one to one."""
    excluded = [each for page in PAGES for each in blocks(page) if each.note.startswith("not run: ")]
    listed = dict.fromkeys(NOT_RUN, 0)
    for block in excluded:
        keys = [key for key in NOT_RUN if key[0] == block.page and block.text.startswith(key[1])]
        assert len(keys) == 1, f"{block.where}: not run, and not in NOT_RUN"
        assert block.note == f"not run: {NOT_RUN[keys[0]]}", block.where
        listed[keys[0]] += 1
    assert set(listed.values()) <= {1}, f"in NOT_RUN, but not in the pages: {listed}"


def test_what_is_dear_is_in_the_pages() -> None:
    for page, start in DEAR:
        assert any(each.text.startswith(start) and _runs(each) for each in blocks(page)), f"{page}: no block {start}"


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_kind_that_is_checked(page: str) -> None:
    for block in blocks(page):
        assert block.language in ("", "sh", "python", "json", "text"), f"{block.where}: {block.language}"
        if not block.language:
            shown = any(each.output == block.text for each in blocks(page))
            assert shown, f"{block.where}: no commands above it (```sh), and not marked as ```text"
        if block.language == "json":
            json.loads(block.text)


@pytest.mark.parametrize("page", PAGES)
def test_quotations(page: str) -> None:
    for block in blocks(page):
        if block.note.startswith("from "):
            source = (ROOT / block.note.removeprefix("from ")).read_text(encoding="utf-8")
            at = 0
            for part in block.text.split("...\n"):
                at = source.find(part, at)
                assert at >= 0, f"{block.where}: {block.note.removeprefix('from ')} does not read\n{part}"
                at += len(part)
