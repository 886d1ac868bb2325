"""How results are printed."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Container, Iterable, Sequence
from typing import Any

__all__ = ["print_json", "size", "text_table"]


def print_json(values: dict[str, Any]) -> None:
    """One JSON object on stdout; what is no finite number is null, as in the files that pydantic writes."""
    print(json.dumps(_finite(values), indent=2, default=str, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def size(count: float) -> str:
    """Bytes, readably: 4.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def text_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, left: Container[int] = (0,), markdown: bool = False
) -> str:
    """A table as plain text: no lines around it, as wide as its cells, the same in a pipe as on a terminal.

    Args:
        left: the columns that hold words; the others hold numbers, and are aligned to the right.
        markdown: with the bars that make it a table there.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.MARKDOWN if markdown else None, padding=(0, 1) if markdown else (0, 2, 0, 0), pad_edge=markdown
    )
    for index, name in enumerate(head):
        table.add_column(Text(name), justify="left" if index in left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(file=io.StringIO(), width=1 << 20, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().strip("\n").splitlines())
