"""Bundles whose report is read: copies of the session's, and a subject with more in it than any export writes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Copy = Callable[[Path], Path]


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """A bundle that a test may change."""

    def copied(bundle: Path) -> Path:
        return Path(shutil.copytree(bundle, tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"))

    return copied


@pytest.fixture(scope="session")
def proven_int8(quantized_bundle: Callable[..., Path]) -> Path:
    """An int8 bundle, compared with PyTorch; do not change it (copy it)."""
    return quantized_bundle("mla", "int8")


@pytest.fixture
def accuracy() -> dict[str, Any]:
    """As `mythos-export evaluate --json` prints it: two hops at two loop counts."""

    def scores(wrong: int) -> list[dict[str, Any]]:
        return [
            {"hops": hops, "loops": loops, "correct": 20 - wrong * hops, "total": 20, "low": 0.5, "high": 1.0}
            for hops in (1, 2)
            for loops in (4, 8)
        ]

    return {
        "precision": "int8",
        "prompts": 40,
        "trained_hops": 2,
        "loops": [4, 8],
        "scores": scores(1),
        "reference": scores(0),
        "differing": 6,
    }


@pytest.fixture
def latency() -> dict[str, Any]:
    """Three measurements."""
    return {
        "format_version": 1,
        "precision": "int8",
        "machine": "a test",
        "measured": "2026-11-22",
        "measurements": [
            {"runtime": "onnxruntime 1.31.1", "loops": 4, "past": 128, "ms_per_token": 2.5, "threads": 1},
            {"runtime": "onnxruntime 1.31.1", "loops": 8, "past": 128, "ms_per_token": 5.0, "threads": 1},
            {
                "runtime": "tensorrt_rtx 1.7",
                "loops": 8,
                "past": 128,
                "ms_per_token": 1.25,
                "low_ms": 1.2,
                "high_ms": 1.3,
            },
        ],
    }
