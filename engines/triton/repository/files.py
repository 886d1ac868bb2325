"""Files of a repository: how they come there, and how the repository comes into being all at once."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from mythos_export.bundle import MANIFEST, Bundle, Progress

__all__ = ["Placer", "replace_entries", "workplace"]

_BLOCK = 4 << 20


class Placer:
    """Puts files of a bundle into a repository: each is copied once, and linked wherever it is wanted again.

    The bundle itself gets no second name, unless that is asked for: the onnx package, and whatever reads weights
    through it, refuses a file that has one.
    """

    def __init__(self, *, link: bool = False, progress: Progress | None = None) -> None:
        """Begin.

        Args:
            link: link to the bundle too, where its file system allows it.
            progress: called with the number of bytes just copied.
        """
        self._link, self._progress = link, progress
        self._placed: dict[Path, Path] = {}

    def place(self, source: Path, target: Path) -> None:
        """Put one file where nothing is yet."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(target):  # it may be a link, and writing to it would write to what it links to
            raise FileExistsError(errno.EEXIST, "named twice", str(target))
        before = self._placed.get(source)
        if not ((before or self._link) and _linked(before or source, target)):
            self._copy(source, target)
        self._placed.setdefault(source, target)

    def place_bundle(self, bundle: Bundle, folder: Path) -> None:
        """The files that a bundle's manifest lists, and the manifest; nothing else that lies there."""
        for name in (*bundle.manifest.files, MANIFEST):
            self.place((bundle.path / name).resolve(), folder / name)  # not a link, which would lead nowhere there

    def _copy(self, source: Path, target: Path) -> None:
        with source.open("rb") as reader, target.open("xb") as writer:
            while block := reader.read(_BLOCK):
                writer.write(block)
                if self._progress:
                    self._progress(len(block))


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target, follow_symlinks=False)
    except (OSError, NotImplementedError):
        return False
    return True


@contextlib.contextmanager
def workplace(destination: Path) -> Iterator[Path]:
    """A folder beside the destination to write in; it is gone afterwards, and so are parents made for nothing."""
    missing = [parent for parent in destination.parents if not parent.exists()]
    folder: Path | None = None
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{destination.name}.partial-", dir=destination.parent))
        yield folder
    finally:
        try:
            _discard(folder, missing)
        except KeyboardInterrupt:  # an impatient second Ctrl-C
            _discard(folder, missing)
            raise


def _discard(folder: Path | None, missing: list[Path]) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    for parent in missing:
        with contextlib.suppress(OSError):  # it holds the repository
            parent.rmdir()


def replace_entries(new: Path, destination: Path, old: Path, gone: Collection[str] = ()) -> None:
    """Give everything in `new` its place in `destination`: all of it, or after a failure none.

    Args:
        new: folder on the same file system.
        destination: made from `new` as a whole if it is not there, or empty.
        old: empty folder that takes what is replaced.
        gone: what else of `destination` it takes.
    """
    if not destination.exists() or not any(destination.iterdir()):
        if destination.exists():
            destination.rmdir()
        new.rename(destination)
        return
    names = sorted(path.name for path in new.iterdir())
    try:
        for name in (*names, *gone):
            _move(name, destination, old)
            _move(name, new, destination)
    except BaseException:  # an interruption too; wherever the exchange had come to
        for name in names:
            if not os.path.lexists(new / name):
                _move(name, destination, new)
        for name in (*names, *gone):
            _move(name, old, destination)
        raise


def _move(name: str, source: Path, target: Path) -> None:
    """An entry, if it is there."""
    if os.path.lexists(source / name):
        (source / name).rename(target / name)
