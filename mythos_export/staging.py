"""How a bundle is written: beside its final name, which it gets once it is whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mythos_export.bundle import BundleError, is_bundle

__all__ = ["staged"]


@contextlib.contextmanager
def staged(output: Path, *, force: bool = False) -> Iterator[Path]:
    """A folder to write a bundle into; it gets its final name only if the block ends well.

    Whatever goes wrong inside, an interruption too, removes what was written and leaves an older
    bundle of that name as it was.

    Raises:
        BundleError: `output` exists (and `force` is off, or it is no bundle), or cannot be written.
    """
    _check_output(output, force)
    made: list[Path] = []
    folder: Path | None = None
    try:
        made = _missing_parents(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.partial-", dir=output.parent))
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
