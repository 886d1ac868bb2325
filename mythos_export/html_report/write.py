"""How the report gets into a bundle, and how a bundle that has one already gets another, staying valid throughout."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mythos_export.bundle import MANIFEST, Bundle, BundleError, Manifest, file_entry
from mythos_export.html_report.page import render
from mythos_export.html_report.subject import read_subject
from mythos_export.records.measurements import ACCURACY, LATENCY, Evaluation, Latency, stored

__all__ = ["REPORT", "add_report", "remake_report"]

REPORT = "report.html"


def add_report(bundle: Bundle) -> Manifest:
    """Write the report into a bundle that is just being made; returns the manifest that lists it."""
    path = bundle.path / REPORT
    path.write_bytes(_rendered(bundle, None, None))
    return _listing(bundle.manifest, {REPORT: path})


def remake_report(bundle: Bundle, accuracy: Evaluation | None = None, latency: Latency | None = None) -> Bundle:
    """Write the report of an existing bundle anew.

    What was measured is kept in the bundle too, and what an earlier report showed stays in it. A file and the
    manifest that has its hash cannot be renamed at once: so the manifest first forgets what is to be replaced, and
    lists it again afterwards. Wherever that is interrupted, the bundle is valid.

    Args:
        accuracy, latency: None to keep what the bundle holds, if anything.

    Raises:
        BundleError: a file of it is damaged, or it cannot be written.
        InputFileError: measurements that it holds are damaged.
    """
    new = {
        name: (values.model_dump_json(indent=2) + "\n").encode()
        for name, values in ((ACCURACY, accuracy), (LATENCY, latency))
        if values is not None
    }
    new[REPORT] = _rendered(bundle, accuracy or stored(Evaluation, bundle), latency or stored(Latency, bundle))
    manifest = bundle.manifest
    try:
        _replace(bundle.path / MANIFEST, _json(_without(manifest, new)))
        for name, content in new.items():
            _replace(bundle.path / name, content)
        listed = _listing(manifest, {name: bundle.path / name for name in new})
        _replace(bundle.path / MANIFEST, _json(listed))
    except OSError as error:
        raise BundleError(f"{bundle.path}: cannot be written ({error.strerror or error})") from error
    return Bundle(bundle.path, listed)


def _rendered(bundle: Bundle, accuracy: Evaluation | None, latency: Latency | None) -> bytes:
    """The page says what else is in the bundle, but not its own hash; what is added with it is not in there yet."""
    own = (REPORT, ACCURACY, LATENCY)
    before = Bundle(bundle.path, _without(bundle.manifest, own))
    return render(read_subject(before, accuracy, latency)).encode()


def _without(manifest: Manifest, names: object) -> Manifest:
    assert isinstance(names, (dict, tuple))
    return manifest.model_copy(update={"files": {k: v for k, v in manifest.files.items() if k not in names}})


def _listing(manifest: Manifest, paths: dict[str, Path]) -> Manifest:
    files = manifest.files | {name: file_entry(path) for name, path in paths.items()}
    return manifest.model_copy(update={"files": files})


def _json(manifest: Manifest) -> bytes:
    return (manifest.model_dump_json(indent=2) + "\n").encode()


def _replace(path: Path, content: bytes) -> None:
    """Write beside a file and take its name; a reader finds the one or the other, whole."""
    with _beside(path) as work:
        with work.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        # as open to others as the bundle is, which its owner may have closed
        work.chmod(stat.S_IMODE((path.parent / MANIFEST).stat().st_mode))
        os.replace(work, path)


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    work = Path(name)
    try:
        yield work
    finally:
        work.unlink(missing_ok=True)
