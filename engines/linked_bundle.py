"""Bundles whose files are links, as the cache of the Hugging Face Hub lays them: `snapshots/<revision>/<name>`."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from engines.errors import EngineError, one_line
from mythos_export.bundle import Bundle

__all__ = ["plain_folder"]


@contextlib.contextmanager
def plain_folder(bundle: Bundle) -> Iterator[Path]:
    """A folder in which the bundle's files lie under their names and are no links.

    ONNX Runtime takes no weights that lie outside the folder it is told, wherever a link in it leads. Second names of
    the same files (hard links) cost no disk.

    Raises:
        EngineError: the files cannot get second names there.
    """
    if not bundle.is_linked:
        yield bundle.path.resolve()
        return
    names = [name for name in bundle.manifest.files if "/" not in name]
    beside = bundle.file(names[0]).resolve().parent
    try:
        with tempfile.TemporaryDirectory(prefix=".mythos-linked-", dir=beside) as folder:
            for name in names:
                os.link(bundle.file(name).resolve(), Path(folder) / name)
            yield Path(folder).resolve()
    except OSError as error:
        raise EngineError(
            f"{bundle.path}: its files are links, and cannot be linked to again beside {beside} ({one_line(error)}); "
            "copy the bundle, following links (cp -rL)"
        ) from error
