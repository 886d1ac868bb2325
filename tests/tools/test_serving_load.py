"""The load script, against a server that it starts itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mythos_export.bundle import Bundle
from tools.serving_load import make_work

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def environment() -> Path:
    """One with the triton extra; `make test` makes it."""
    folder = Path(os.environ.get("MYTHOS_TRITON_ENV", ROOT / ".venv-triton"))
    if not (folder / "bin" / "mythos-export").exists():
        pytest.skip(f"no {folder}/bin/mythos-export; run `make test`")
    return folder


def load(bundle: Path, environment: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.serving_load", str(bundle), "--environment", str(environment), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=180)


def test_it_measures_every_concurrency_on_the_same_requests(tiny_bundle: Path, environment: Path) -> None:
    options = ("--concurrency=1,4", "--requests=6", "--rounds=2", "--tokens=2,5", "--loops=1,3", "--threads=1")
    ran = load(tiny_bundle, environment, *options, "--json")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert (found["bundle"], found["requests"], found["rounds"]) == ("tiny", 6, 2)
    one, four = found["rows"]
    assert (one["concurrency"], four["concurrency"], one["times_the_first"]) == (1, 4, 1.0)
    ratio = four["tokens_per_second"] / one["tokens_per_second"]
    assert four["times_the_first"] == pytest.approx(ratio, rel=0.02)
    for row in found["rows"]:
        assert 0 < row["first_token_ms"]["p50"] <= row["first_token_ms"]["p99"]
        assert 0 < row["per_token_ms"]["p50"] <= row["per_token_ms"]["p99"]
    rounds = [line.split(":")[0] for line in ran.stderr.splitlines() if line.startswith("round ")]
    assert rounds == [f"round {index} of 2, {count} at a time" for index in (1, 2) for count in (1, 4)]


def test_the_work_is_the_same_each_time_and_mixed(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    work = make_work(bundle, 50, [3, 9], [4, 8], [1, 6])
    assert work == make_work(bundle, 50, [3, 9], [4, 8], [1, 6])
    assert {(len(one.ids), one.tokens, one.loops) for one in work} == {
        (length, tokens, loops) for length in (3, 9) for tokens in (4, 8) for loops in (1, 6)
    }
    assert all(0 <= token < 97 for one in work for token in one.ids)


def test_a_server_elsewhere_is_left_alone(tiny_bundle: Path, environment: Path) -> None:
    ran = load(tiny_bundle, environment, "--url=203.0.113.7:8001")
    assert ran.returncode != 0 and "load belongs on a server of your own" in ran.stderr.splitlines()[-1]
