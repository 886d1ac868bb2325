"""How a bundle is written: beside its final name, which it gets once it is whole.

The folder it is written in is locked for as long as its process lives, and the system lets go of the lock however that
ends. So what a killed export leaves behind can be told from what another one is writing.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mythos_export.bundle import BundleError, is_bundle

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, and so nothing is taken for abandoned
    fcntl = None  # type: ignore[assignment]

__all__ = ["remove_abandoned", "staged"]

_NAME = re.compile(r"\.(?P<output>.+)\.(?P<kind>partial|old)-[a-z0-9_]{8}")
# What an export writes into its folder, from the first file to the last.
_OURS = re.compile(
    r"(.+\.onnx|.+\.onnx\.data|manifest\.json|config\.json|parity\.json|recipe\.json|report\.html|tokenizer\.json"
    r"|\.float|\.float\.partial-.*|\.\.float\.partial-.*|\.optimised-.*|\.report\.html\..*|\.manifest\.json\..*)"
)


@contextlib.contextmanager
def staged(output: Path, *, force: bool = False) -> Iterator[Path]:
    """A folder to write a bundle into; it gets its final name only if the block ends well.

    Whatever goes wrong inside, an interruption too, removes what was written and leaves an older
    bundle of that name as it was.

    Raises:
        BundleError: `output` exists (and `force` is off, or it is no bundle), or cannot be written.
    """
    remove_abandoned(output.parent, output.name)
    _check_output(output, force)
    made: list[Path] = []
    folder: Path | None = None
    lock: int | None = None
    try:
        made = _missing_parents(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        # Locked before it has the name by which others may take it for abandoned.
        fresh = Path(tempfile.mkdtemp(prefix=f".{output.name}.new-", dir=output.parent))
        folder, lock = fresh, _locked(fresh)
        folder = fresh.rename(fresh.with_name(fresh.name.replace(".new-", ".partial-")))
        yield folder
        folder.chmod(0o777 & ~_umask())
        _check_output(output, force)  # it may have come into being since
        _take_name(folder, output)
    except OSError as error:
        raise BundleError(f"{output}: cannot be written ({error.strerror or error}); nothing was kept") from error
    finally:
        try:
            _discard(folder, made)
        except KeyboardInterrupt:  # an impatient second Ctrl-C
            _discard(folder, made)
            raise
        finally:
            if lock is not None:
                os.close(lock)


def remove_abandoned(parent: Path, name: str | None = None) -> dict[Path, int]:
    """Remove what killed exports left in a folder; a bundle that one of them was about to replace gets its name back.

    Args:
        parent: the folder; what is in folders below it stays.
        name: only what was to become this bundle.

    Returns:
        What was removed, and the bytes it took.
    """
    removed = {}
    for folder in sorted(parent.iterdir()) if parent.is_dir() else ():
        match = _NAME.fullmatch(folder.name)
        if match is None or name not in (None, match["output"]) or folder.is_symlink() or not folder.is_dir():
            continue
        lock = _locked(folder)
        if lock is None:
            continue
        try:
            output = parent / match["output"]
            if not _is_ours(folder):
                continue
            if match["kind"] == "old" and not os.path.lexists(output):
                folder.rename(output)
                continue
            removed[folder] = sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
    return removed


def _is_ours(folder: Path) -> bool:
    try:
        return all(_OURS.fullmatch(entry.name) for entry in folder.iterdir())
    except OSError:  # another process was quicker
        return False


def _locked(folder: Path) -> int | None:
    """A lock on a folder, as an open file; None if another process has it, or there are no locks here."""
    if fcntl is None:
        return None
    try:
        file = os.open(folder, os.O_RDONLY)
    except OSError:  # gone, or not ours to read
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a file system without locks
        os.close(file)
        return None
    return file


def _check_output(output: Path, force: bool) -> None:
    if not os.path.lexists(output):
        return
    if not force:
        raise BundleError(f"{output}: exists already; pass --force to replace it, or --output for another place")
    if output.is_symlink() or not is_bundle(output):
        raise BundleError(
            f"{output}: exists and is not a bundle, so --force will not replace it; choose another --output"
        )


def _missing_parents(output: Path) -> list[Path]:
    """Folders above `output` that are not there yet, the innermost first."""
    return [parent for parent in output.parents if not os.path.lexists(parent)]


def _discard(folder: Path | None, made: list[Path]) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    for parent in made:
        with contextlib.suppress(OSError):  # it holds the bundle
            parent.rmdir()


def _take_name(folder: Path, output: Path) -> None:
    if not output.exists():
        folder.rename(output)
        return
    old = folder.with_name(folder.name.replace(".partial-", ".old-"))
    try:
        output.rename(old)
        folder.rename(output)
    finally:  # whichever of the two was reached, an interruption too
        if os.path.lexists(output):
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(output)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
