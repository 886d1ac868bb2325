"""Writing a bundle: under its name stands a whole one, or what stood there before."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mythos_export.bundle import BundleError
from mythos_export.staging import staged

OURS = json.dumps({"format_version": 1, "graphs": [], "files": {}})


def write(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(OURS)
    (folder / "content").write_text(content)


def nothing() -> None:
    """What happens while a bundle is written, if nothing does."""


def failing(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def make(output: Path, content: str, *, force: bool = False, meanwhile: Callable[[], object] = nothing) -> Path:
    with staged(output, force=force) as folder:
        write(folder, content)
        meanwhile()
    return output


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_folder_gets_its_name_at_the_end(tmp_path: Path) -> None:
    output = tmp_path / "made" / "on" / "the way"
    with staged(output) as folder:
        write(folder, "new")
        assert not output.exists()
        assert folder.parent == output.parent
    assert tree(output) == ["content", "manifest.json"]
    assert len(list(output.parent.iterdir())) == 1


@pytest.mark.parametrize("error", [RuntimeError(), KeyboardInterrupt(), SystemExit()])
def test_a_failure_leaves_nothing_not_even_parents(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        make(tmp_path / "made" / "on" / "bundle", "new", meanwhile=failing(error))
    assert tree(tmp_path) == []


def test_a_parent_that_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(RuntimeError):
        make(tmp_path / "there" / "made" / "bundle", "new", meanwhile=failing(RuntimeError()))
    assert tree(tmp_path) == ["there"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), OSError("4096 requested and 7 written")]
)
def test_a_full_disk_is_one_line(tmp_path: Path, error: OSError) -> None:
    with pytest.raises(BundleError, match=error.strerror or "4096 requested") as raised:
        make(tmp_path / "x", "new", meanwhile=failing(error))
    assert "None" not in str(raised.value)


def test_a_second_interruption_while_cleaning_up_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, calls = shutil.rmtree, []

    def interrupted(path: Path, ignore_errors: bool) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise KeyboardInterrupt
        remove(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "x", "new", meanwhile=failing(KeyboardInterrupt()))
    assert tree(tmp_path) == []


class TestAnOlderBundle:
    def test_is_kept_without_force(self, tmp_path: Path) -> None:
        make(tmp_path / "x", "old")
        with pytest.raises(BundleError, match="exists already; pass --force"):
            make(tmp_path / "x", "new", meanwhile=lambda: pytest.fail("nothing may be written"))
        assert (tmp_path / "x" / "content").read_text() == "old"

    def test_is_replaced_with_force(self, tmp_path: Path) -> None:
        make(tmp_path / "x", "old")
        with staged(tmp_path / "x", force=True) as folder:
            write(folder, "new")
            assert (tmp_path / "x" / "content").read_text() == "old"
        assert (tmp_path / "x" / "content").read_text() == "new"
        assert [path.name for path in tmp_path.iterdir()] == ["x"]

    def test_survives_a_failure(self, tmp_path: Path) -> None:
        make(tmp_path / "x", "old")
        with pytest.raises(BundleError, match="full"):
            make(tmp_path / "x", "new", force=True, meanwhile=failing(OSError(errno.ENOSPC, "full")))
        assert tree(tmp_path) == ["x", "x/content", "x/manifest.json"]
        assert (tmp_path / "x" / "content").read_text() == "old"

    @pytest.mark.parametrize("error", [OSError(errno.EACCES, "denied"), KeyboardInterrupt()])
    def test_comes_back_if_the_new_one_cannot_take_its_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
    ) -> None:
        make(tmp_path / "x", "old")
        rename = Path.rename

        def fails(path: Path, target: Path) -> Path:
            if ".partial-" in path.name:
                raise error
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", fails)
        with pytest.raises((BundleError, KeyboardInterrupt)):
            make(tmp_path / "x", "new", force=True)
        assert (tmp_path / "x" / "content").read_text() == "old"
        assert [path.name for path in tmp_path.iterdir()] == ["x"]

    def test_that_appeared_meanwhile_is_kept(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match="exists already"):
            make(tmp_path / "x", "slow", meanwhile=lambda: make(tmp_path / "x", "quick"))
        assert (tmp_path / "x" / "content").read_text() == "quick"
        assert [path.name for path in tmp_path.iterdir()] == ["x"]


class TestForceDoesNotReplace:
    def test_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "x").mkdir()
        self.refused(tmp_path / "x")

    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_text("mine")
        self.refused(tmp_path / "x")

    def test_another_programs_folder_with_a_manifest(self, tmp_path: Path) -> None:
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "manifest.json").write_text('{"manifest_version": 3, "name": "an extension"}')
        self.refused(tmp_path / "x")

    def test_a_link_to_a_bundle(self, tmp_path: Path) -> None:
        (tmp_path / "x").symlink_to(make(tmp_path / "real", "old"))
        self.refused(tmp_path / "x")

    @staticmethod
    def refused(output: Path) -> None:
        before = tree(output.parent)
        with pytest.raises(BundleError, match="is not a bundle, so --force will not replace it"):
            make(output, "new", force=True, meanwhile=lambda: pytest.fail("nothing may be written"))
        assert tree(output.parent) == before
