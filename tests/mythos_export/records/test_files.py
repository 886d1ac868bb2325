"""Files are read whole, or refused in one line."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from pydantic import BaseModel

from mythos_export.records.files import InputFileError, file_sha256, read_model, strict_json


class Point(BaseModel, extra="forbid"):
    x: int


def test_a_hash_is_the_contents_and_progress_adds_up(tmp_path: Path) -> None:
    path, content = tmp_path / "a", bytes(range(256)) * 40_000
    path.write_bytes(content)
    done: list[int] = []
    assert file_sha256(path, done.append) == hashlib.sha256(content).hexdigest()
    assert sum(done) == len(content) and len(done) > 1


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 2}', '[{"b": {"a": 1, "a": 1}}]', "NaN", "[Infinity]", "[-Infinity]", ""]
)
def test_what_two_readers_might_take_differently_is_no_json(text: str) -> None:
    with pytest.raises(ValueError, match=r"twice|is not JSON|Expecting value"):
        strict_json(text)


def test_a_file_that_fits_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('{"x": 3}')
    assert read_model(Point, tmp_path / "a", "write it again") == Point(x=3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "Invalid JSON"),
        (b"\xff", "Invalid JSON|valid UTF-8"),
        (b"[" * 100_000, "Invalid JSON"),
        (b"{}", "x: Field required"),
        (b'{"x": 1, "\\u001b[2J\\n": 1}', r"\?\[2J\?: Extra inputs"),
        (b" " * 200, "larger than"),
    ],
)
def test_one_that_does_not_is_refused_in_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(InputFileError, match=words) as refused:
        read_model(Point, tmp_path / "a", "write it again", most=150 if content.startswith(b" ") else 1 << 20)
    assert str(refused.value).isprintable() and str(refused.value).endswith("; write it again")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, words in ((tmp_path, "not a regular file"), (tmp_path / "pipe", "not a regular file")):
        with pytest.raises(InputFileError, match=words):
            read_model(Point, path, "write it again")
    for path in (tmp_path / "none", tmp_path / ("x" * 400), Path("a\0b")):
        with pytest.raises(InputFileError, match="cannot be read"):
            read_model(Point, path, "write it again")
