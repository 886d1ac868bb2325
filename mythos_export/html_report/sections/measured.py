"""What was measured after the export: accuracy on a task, and latency. Absent, the section says how to get it."""

from __future__ import annotations

from collections.abc import Sequence

from mythos_export.html_report.blocks import Table, figure, paragraph, section
from mythos_export.html_report.markup import Markup, tag
from mythos_export.html_report.measurements import LATENCY, Accuracy, Latency, Measured, Score
from mythos_export.html_report.pictures.axes import thinned
from mythos_export.html_report.pictures.heat_map import Cell, HeatMap, heat_map, level_of
from mythos_export.html_report.pictures.line_chart import DISTINCT, LineChart, Series, line_chart
from mythos_export.html_report.subject import Subject
from mythos_export.html_report.words import count, drawn, percent, plural, short, tenths

__all__ = ["speed", "task"]

_MOST_COLUMNS = 10  # of a picture
_MOST_FIGURES = 4


def task(subject: Subject) -> Markup:
    """Accuracy against loops."""
    title = "Task accuracy"
    if subject.accuracy is None:
        hint = [
            "Not measured: ",
            tag("code", "mythos-export evaluate BUNDLE --json > FILE"),
            " (bundles of nano), then ",
        ]
        hint += [tag("code", "mythos-export report BUNDLE --accuracy FILE"), "."]
        return section("task", title, paragraph(hint))
    found = subject.accuracy
    figures = [_accuracy(found)] + ([_against_pytorch(found)] if found.reference else [])
    return section("task", title, paragraph(_asked(found)), tag("div", figures, class_="grid pairs"))


def speed(subject: Subject) -> Markup:
    """Latency against loops."""
    title = "Speed"
    if subject.latency is None:
        hint = [
            "Not measured: ",
            tag("code", "mythos-export report BUNDLE --latency FILE"),
            " adds a file of latencies.",
        ]
        return section("speed", title, paragraph(hint))
    settings = _by_setting(subject.latency)
    names = list(settings)
    figures = [names[start : start + DISTINCT] for start in range(0, len(names), DISTINCT)][:_MOST_FIGURES]
    words = f"Measured on {subject.latency.machine}, {subject.latency.measured}."
    if left_out := len(names) - sum(map(len, figures)):
        words += f" {plural(left_out, 'setting')} of {count(len(names))} left out here, from the end; "
        words += f"{LATENCY} has all."
    pictures = [
        _latency({name: settings[name] for name in each}, f", {index} of {len(figures)}" if len(figures) > 1 else "")
        for index, each in enumerate(figures, 1)
    ]
    return section("speed", title, paragraph(words), tag("div", pictures, class_="grid pairs"))


def _asked(found: Accuracy) -> str:
    text = f"{plural(found.prompts, 'test prompt')} at each loop count, in {found.precision}."
    if found.differing is not None:
        asked = found.prompts * len(found.loops)
        text += f" Answers that differ from PyTorch's: {count(found.differing)} of {count(asked)}."
    return text


def _accuracy(found: Accuracy) -> Markup:
    hops = sorted({score.hops for score in found.scores})
    loops = [found.loops[index] for index in thinned(len(found.loops), _MOST_COLUMNS)]
    scores = {(score.hops, score.loops): score for score in found.scores}
    picture = heat_map(
        HeatMap(
            name="Accuracy in %, by number of hops and loop count",
            columns=[str(each) for each in loops],
            rows=[str(hop) for hop in hops],
            cells=[[_cell(scores.get((hop, each))) for each in loops] for hop in hops],
            across="loops",
            down="hops",
            better_deep=True,
        )
    )
    table = Table(
        ["hops", *(plural(each, "loop") for each in found.loops)],
        [[str(hop), *(_interval(scores.get((hop, each))) for each in found.loops)] for hop in hops],
    )
    trained = plural(found.trained_hops, "hop")
    note = f"Right answers in %, beneath with their 95 % intervals. The model was trained on up to {trained}."
    note += drawn(list(map(str, loops)), list(map(str, found.loops)), "loop counts")
    return figure("Accuracy against loops", note, picture, table)


def _cell(score: Score | None) -> Cell | None:
    return None if score is None else Cell(level_of(score.accuracy, 0.0, 1.0), tenths(score.accuracy))


def _interval(score: Score | None) -> str:
    """As `mythos-export evaluate` writes it."""
    if score is None:
        return ""
    return f"{100 * score.accuracy:.1f} [{100 * score.low:.1f}, {100 * score.high:.1f}]"


def _against_pytorch(found: Accuracy) -> Markup:
    ours, theirs = _over_trained(found, found.scores), _over_trained(found, found.reference)
    picture = line_chart(
        LineChart(
            name="Accuracy over the hops that were trained, this bundle's and PyTorch's, by loop count",
            steps=[str(each) for each in found.loops],
            series=[Series(f"this bundle, {found.precision}", ours), Series("PyTorch, fp32", theirs)],
            below="loops",
            most=1.0,
            write=percent,
        )
    )
    table = Table(
        ["loops", "this bundle", "PyTorch", "difference in points"],
        [
            [str(each), percent(own), percent(other), _points(own, other)]
            for each, own, other in zip(found.loops, ours, theirs)
        ],
    )
    note = f"Right answers over 1 to {count(found.trained_hops)} hops."
    return figure("Against PyTorch", note, picture, table)


def _over_trained(found: Accuracy, scores: list[Score]) -> list[float | None]:
    shares: list[float | None] = []
    for loops in found.loops:
        counted = [score for score in scores if score.loops == loops and score.hops <= found.trained_hops]
        asked = sum(score.total for score in counted)
        shares.append(sum(score.correct for score in counted) / asked if asked else None)
    return shares


def _points(own: float | None, other: float | None) -> str:
    if own is None or other is None:
        return short(None)
    return f"{100 * (own - other):+.2f}".replace("-", "\N{MINUS SIGN}")


def _by_setting(found: Latency) -> dict[str, dict[int, Measured]]:
    """Measurements by what they were made with, then by loop count."""
    settings: dict[str, dict[int, Measured]] = {}
    for each in found.measurements:
        settings.setdefault(_setting(each), {})[each.loops] = each
    return settings


def _latency(settings: dict[str, dict[int, Measured]], which: str) -> Markup:
    loops = sorted({loops for times in settings.values() for loops in times})
    picture = line_chart(
        LineChart(
            name=f"Milliseconds per token, by loop count{which}",
            steps=[str(each) for each in loops],
            series=[_series(name, [times.get(each) for each in loops]) for name, times in settings.items()],
            below="loops",
        )
    )
    table = Table(
        ["runtime", "loops", "past", "batch", "threads", "ms per token", "95 % interval"],
        [
            [
                each.runtime,
                str(each.loops),
                count(each.past),
                count(each.batch),
                short(each.threads),
                short(each.ms_per_token),
                f"{short(each.low_ms)} to {short(each.high_ms)}" if each.low_ms and each.high_ms else short(None),
            ]
            for times in settings.values()
            for each in times.values()
        ],
    )
    note = "Milliseconds that one more token takes."
    if any(_interval_of(each) for times in settings.values() for each in times.values()):
        note += " Whiskers are 95 % intervals."
    return figure(f"Latency against loops{which}", note, picture, table)


def _series(name: str, measured: Sequence[Measured | None]) -> Series:
    times = [None if each is None else each.ms_per_token for each in measured]
    return Series(name, times, intervals=[None if each is None else _interval_of(each) for each in measured])


def _interval_of(each: Measured) -> tuple[float, float] | None:
    return None if each.low_ms is None or each.high_ms is None else (each.low_ms, each.high_ms)


def _setting(each: Measured) -> str:
    threads = f", {plural(each.threads, 'thread')}" if each.threads else ""
    batch = f", batch {each.batch}" if each.batch > 1 else ""
    return f"{each.runtime}, past {each.past}{batch}{threads}"
