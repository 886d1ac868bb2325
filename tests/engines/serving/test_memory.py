"""What the machine has, and what control groups leave of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engines.serving.memory import available_memory

MACHINE = 4096 * 1000


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What the machine says."""
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__, raising=False)
    return sizes


def groups(root: Path, own: str, **limits: str) -> Path:
    """A file system with these groups; `a__b` stands for a/b."""
    files = {
        "proc/self/cgroup": own,
        **{f"sys/fs/cgroup/{name.replace('__', '/')}": text for name, text in limits.items()},
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_without_groups_it_is_the_machines(sizes: dict[str, int], tmp_path: Path) -> None:
    assert available_memory(tmp_path) == MACHINE
    assert 0 < available_memory() <= MACHINE, "whatever groups the tests run in"


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("0::/\n", {"memory.max": "3000\n"}, 3000),
        ("0::/\n", {"memory.max": "max\n"}, MACHINE),
        ("0::/\n", {"memory.max": f"{1 << 62}"}, MACHINE),
        ("0::/a/b\n", {"a__b__memory.max": "max", "a__memory.max": "2000", "memory.max": "max"}, 2000),
        ("0::/a/b\n", {"a__b__memory.max": "1000", "a__memory.max": "2000"}, 1000),
        ("0::/not/seen/from/here\n", {"memory.max": "3000"}, 3000),
        ("3:cpu:/\n4:memory:/a\n0::/\n", {"memory__a__memory.limit_in_bytes": "500"}, 500),
        ("4:cpu,memory:/a\n", {"memory__memory.limit_in_bytes": "700"}, 700),
        ("3:cpu:/a\n", {"memory__a__memory.limit_in_bytes": "500"}, MACHINE),
        ("nonsense\n:\n", {"memory.max": "5"}, MACHINE),
        ("0::/\n", {"memory.max": "-5"}, MACHINE),
    ],
)
def test_the_least_of_all_groups_counts(tmp_path: Path, own: str, limits: dict[str, str], expected: int) -> None:
    assert available_memory(groups(tmp_path, own, **limits)) == expected


def test_a_machine_that_does_not_know(sizes: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes["SC_PHYS_PAGES"] = -1
    assert available_memory(tmp_path) == 4 << 30
    monkeypatch.delattr(os, "sysconf")
    assert available_memory(tmp_path) == 4 << 30
    assert available_memory(groups(tmp_path, "0::/", **{"memory.max": "3000"})) == 3000
