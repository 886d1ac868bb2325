"""What was measured after the export: accuracy on a task, and latency. Absent, the section says how to get it."""

from __future__ import annotations

from collections.abc import Sequence

from mythos_export.html_report.blocks import Figure, Section, Table, shade
from mythos_export.html_report.chart import MOST_LINES, Chart, Series
from mythos_export.html_report.subject import Subject
from mythos_export.html_report.words import DASH, count, percent, plural, short
from mythos_export.records.measurements import LATENCY, Evaluation, Measured, Score

__all__ = ["speed", "task"]

_MOST_FIGURES = 4


def task(subject: Subject) -> Section:
    """Accuracy against loops."""
    title, result = "Task accuracy", subject.accuracy
    if result is None:
        hint = "Not measured: `mythos-export evaluate BUNDLE --json > FILE` (bundles of nano), then "
        return Section("task", title, [hint + "`mythos-export report BUNDLE --accuracy FILE`."])
    words = f"{plural(result.prompts, 'test prompt')} at each loop count, in {result.precision}."
    if result.differing is not None:
        asked = result.prompts * len(result.loops)
        words += f" Answers that differ from PyTorch's: {count(result.differing)} of {count(asked)}."
    return Section("task", title, [words], [_against_pytorch(result), _by_hops(result)])


def speed(subject: Subject) -> Section:
    """Latency against loops."""
    title, result = "Speed", subject.latency
    if result is None:
        return Section(
            "speed", title, ["Not measured: `mythos-export report BUNDLE --latency FILE` adds a file of latencies."]
        )
    settings: dict[str, list[Measured]] = {}
    for measured in result.measurements:
        settings.setdefault(measured.setting, []).append(measured)
    names = list(settings)
    parts = [names[start : start + MOST_LINES] for start in range(0, len(names), MOST_LINES)][:_MOST_FIGURES]
    words = f"Measured on {result.machine}, {result.measured}."
    if left_out := len(names) - sum(map(len, parts)):
        words += (
            f" {plural(left_out, 'setting')} of {count(len(names))} left out here, from the end; {LATENCY} has all."
        )
    figures = [
        _latency({name: settings[name] for name in part}, f", {index} of {len(parts)}" if len(parts) > 1 else "")
        for index, part in enumerate(parts, 1)
    ]
    return Section("speed", title, [words], figures)


def _by_hops(result: Evaluation) -> Table:
    scores = {(score.hops, score.loops): score for score in result.scores}
    hops = sorted({score.hops for score in result.scores})
    cells = [[scores.get((each, loops)) for loops in result.loops] for each in hops]
    trained = plural(result.trained_hops, "hop")
    return Table(
        "Accuracy by hops and loops",
        ["hops", *(plural(loops, "loop") for loops in result.loops)],
        [[str(each), *map(_interval, row)] for each, row in zip(hops, cells)],
        f"Right answers in %, with their 95 % intervals. The model was trained on up to {trained}.",
        shades=[["", *map(_shade, row)] for row in cells],
    )


def _shade(score: Score | None) -> str:
    return shade(score.accuracy, 0.0, 1.0, ramp="g") if score is not None else ""


def _interval(score: Score | None) -> str:
    """As `mythos-export evaluate` writes it."""
    if score is None:
        return ""
    return f"{100 * score.accuracy:.1f} [{100 * score.low:.1f}, {100 * score.high:.1f}]"


def _against_pytorch(result: Evaluation) -> Figure:
    ours, theirs = _over_trained(result, result.scores), _over_trained(result, result.reference)
    series = [Series(f"this bundle, {result.precision}", ours)]
    series += [Series("PyTorch, fp32", theirs)] if result.reference else []
    rows = [
        [str(loops), percent(own), percent(other), _points(own, other)]
        for loops, own, other in zip(result.loops, ours, theirs)
    ]
    return Figure(
        Chart(
            "Accuracy over the hops that were trained, by loop count",
            list(map(str, result.loops)),
            series,
            "loops",
            most=1.0,
            write=percent,
        ),
        Table(
            "Accuracy against loops",
            ["loops", "this bundle", "PyTorch", "difference in points"],
            rows,
            f"Right answers over 1 to {count(result.trained_hops)} hops.",
        ),
    )


def _over_trained(result: Evaluation, scores: Sequence[Score]) -> list[float | None]:
    shares: list[float | None] = []
    for loops in result.loops:
        counted = [score for score in scores if score.loops == loops and score.hops <= result.trained_hops]
        asked = sum(score.total for score in counted)
        shares.append(sum(score.correct for score in counted) / asked if asked else None)
    return shares


def _points(own: float | None, other: float | None) -> str:
    if own is None or other is None:
        return DASH
    return f"{100 * (own - other):+.2f}".replace("-", "\N{MINUS SIGN}")


def _latency(settings: dict[str, list[Measured]], which: str) -> Figure:
    loops = sorted({each.loops for measured in settings.values() for each in measured})
    series = []
    for name, measured in settings.items():
        at = {each.loops: each for each in measured}
        times = [at[number].ms_per_token if number in at else None for number in loops]
        series.append(Series(name, times, [_ends(at[number]) if number in at else None for number in loops]))
    rows = [
        [
            each.runtime,
            str(each.loops),
            count(each.past),
            count(each.batch),
            short(each.threads),
            short(each.ms_per_token),
            f"{short(each.low_ms)} to {short(each.high_ms)}" if each.low_ms else DASH,
        ]
        for measured in settings.values()
        for each in measured
    ]
    head = ["runtime", "loops", "past", "batch", "threads", "ms per token", "95 % interval"]
    note = "Milliseconds that one more token takes."
    if any(_ends(each) for measured in settings.values() for each in measured):
        note += " Whiskers are 95 % intervals."
    return Figure(
        Chart(f"Milliseconds per token, by loop count{which}", list(map(str, loops)), series, "loops"),
        Table(f"Latency against loops{which}", head, rows, note),
    )


def _ends(measured: Measured) -> tuple[float, float] | None:
    return None if measured.low_ms is None or measured.high_ms is None else (measured.low_ms, measured.high_ms)
