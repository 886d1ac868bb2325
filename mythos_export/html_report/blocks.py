"""The blocks that pages are built of: sections, figures with their numbers beneath, tables, lists of facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mythos_export.html_report.markup import Content, Markup, tag
from mythos_export.html_report.pictures.axes import thinned

__all__ = ["Table", "card", "facts", "figure", "paragraph", "section", "table"]

_MOST_ROWS, _MOST_COLUMNS = 80, 40


@dataclass(frozen=True)
class Table:
    """Rows of text; the first of each names it."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: bool = True  # right-aligned behind the first column


def section(identity: str, title: str, *content: Content) -> Markup:
    """One part of the page."""
    heading = f"{identity}-title"
    return tag("section", tag("h2", title, id=heading), content, id=identity, aria_labelledby=heading)


def paragraph(*content: Content) -> Markup:
    """Running text."""
    return tag("p", content)


def figure(
    title: str, note: str, picture: Markup | None, numbers: Table | None, *, level: int = 3, class_: str | None = None
) -> Markup:
    """A picture with what it shows above it, and its numbers beneath."""
    return tag(
        "figure",
        tag("figcaption", tag(f"h{level}", title), tag("p", note)),
        picture,
        None if numbers is None else _folded(title, numbers),
        class_=class_,
    )


def card(title: str, *content: Content, level: int = 3, width: str | None = None) -> Markup:
    """A block beside figures; `width` is "wide" for two columns, "whole" for all."""
    return tag("div", tag(f"h{level}", title), content, class_=f"card {width}" if width else "card")


def table(name: str, numbers: Table) -> Markup:
    """A table in a box of its own, which scrolls where the page must not.

    Of very many rows it has every so-manieth, so of columns, and says so.
    """
    rows = [numbers.rows[index] for index in thinned(len(numbers.rows), _MOST_ROWS)]
    columns = [0, *(1 + index for index in thinned(len(numbers.head) - 1, _MOST_COLUMNS - 1))]
    left_out = _left_out(numbers, len(rows), len(columns))
    return tag(
        "div",
        tag(
            "table",
            tag("caption", f"{name} ({left_out})" if left_out else name, class_="seen" if left_out else None),
            tag("thead", tag("tr", [tag("th", numbers.head[index], scope="col") for index in columns])),
            tag("tbody", [_row([row[index] for index in columns]) for row in rows]),
            class_="numbers" if numbers.numbers else None,
        ),
        class_="scroll",
        role="region",
        aria_label=f"{name}, table",
        tabindex=0,
    )


def facts(pairs: Sequence[tuple[str, Content]], *, class_: str = "facts") -> Markup:
    """Names and what they are."""
    return tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs], class_=class_)


def _left_out(numbers: Table, rows: int, columns: int) -> str:
    """`20 of 100 rows and 24 of 64 columns left out`; nothing where all is there."""
    counts = (("rows", rows, len(numbers.rows)), ("columns", columns, len(numbers.head)))
    parts = [f"{every - shown} of {every} {what}" for what, shown, every in counts if shown < every]
    return f"{' and '.join(parts)} left out" if parts else ""


def _folded(title: str, numbers: Table) -> Markup:
    summary = tag("summary", "Numbers", tag("span", f": {title}", class_="unseen"))
    return tag("details", summary, table(title, numbers))


def _row(cells: Sequence[str]) -> Markup:
    return tag("tr", tag("th", cells[0], scope="row"), [tag("td", cell) for cell in cells[1:]])
