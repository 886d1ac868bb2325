"""What quantising costs against the model in fp32, and why ranges go by depth."""

from __future__ import annotations

from collections.abc import Sequence

from calibration.recipe import ActivationRange, Recipe
from mythos_export.bundle import QuantizationRecord
from mythos_export.html_report.blocks import Table, card, figure, paragraph, section, table
from mythos_export.html_report.markup import Markup, tag
from mythos_export.html_report.parity_file import Loss
from mythos_export.html_report.pictures.heat_map import Cell, level_of
from mythos_export.html_report.pictures.line_chart import LineChart, Series, line_chart
from mythos_export.html_report.sections.parity import agreement_cell, by_depth
from mythos_export.html_report.subject import Subject
from mythos_export.html_report.words import DASH, count, percent, plural, short, tenths

__all__ = ["cost", "ranges"]

_MOST_LINES = 6
_DEEP = 0.3  # of the hidden state: the deepest shade


def cost(subject: Subject) -> Markup | None:
    """The price of a quantised bundle; None where nothing is quantised."""
    if not subject.quantized:
        return None
    title = "What quantising costs"
    if subject.parity is None or not subject.parity.loss:
        hint = paragraph("Not measured: export without ", tag("code", "--no-validate"), " to have it here.")
        return section("cost", title, hint)
    losses = subject.parity.loss
    return section(
        "cost",
        title,
        paragraph(
            "Not a question of right or wrong: the bundle against the same model in fp32, each running freely, so "
            "that errors feed back from loop to loop."
        ),
        tag("div", _logits(losses), _divergence(losses), _hidden(losses), _router(losses), class_="grid pairs"),
    )


def ranges(subject: Subject) -> Markup | None:
    """The ranges of activations by depth; None where nothing is quantised."""
    record, recipe = subject.manifest.quantization, subject.recipe
    if record is None:
        return None
    title = "Activation ranges"
    if recipe is None:
        words = "For this target the precision quantises weights only: no activation has a range."
        return section("ranges", title, paragraph(words), tag("div", _kept(record), class_="grid"))
    looped = {name: found for name, found in recipe.activations.items() if len(found.limit) > 1}
    widest = sorted(looped, key=lambda name: -looped[name].drift)[:_MOST_LINES]
    figures = [_limits(looped, widest, recipe), _drift(looped, widest, record, recipe)] if looped else []
    return section(
        "ranges", title, paragraph(_calibration(recipe)), tag("div", figures, _kept(record), class_="grid pairs")
    )


def _logits(losses: Sequence[Loss]) -> Markup:
    picture = line_chart(
        LineChart(
            name="Error of the logits against fp32, by loop count",
            steps=[str(loss.loops) for loss in losses],
            series=[Series("|difference| / |fp32|", [loss.relative_error for loss in losses])],
            below="loops",
            write=percent,
        )
    )
    numbers = Table(
        ["loops", "error", "cosine", "KL", "same top token", "halting"],
        [
            [
                str(loss.loops),
                percent(loss.relative_error),
                DASH if loss.cosine is None else f"{loss.cosine:.5f}",
                short(loss.kl),
                percent(loss.top1_agreement),
                percent(loss.halting_agreement),
            ]
            for loss in losses
        ],
    )
    return figure("Logits against loops", "Norm of the difference over the norm of fp32's logits.", picture, numbers)


def _divergence(losses: Sequence[Loss]) -> Markup:
    picture = line_chart(
        LineChart(
            name="KL divergence of the next token from fp32's, by loop count",
            steps=[str(loss.loops) for loss in losses],
            series=[Series("mean KL, nats", [None if loss.kl is None else max(loss.kl, 0.0) for loss in losses])],
            below="loops",
        )
    )
    numbers = Table(["loops", "KL, nats"], [[str(loss.loops), short(loss.kl)] for loss in losses])
    return figure("Next token against loops", "How far its distribution moves from fp32's.", picture, numbers)


def _hidden(losses: Sequence[Loss]) -> Markup:
    picture, numbers, rest = by_depth(
        [(loss.loops, loss.depths) for loss in losses],
        lambda depth: Cell(level_of(depth.hidden_error, 0.0, _DEEP), tenths(depth.hidden_error)),
        lambda depth: percent(depth.hidden_error),
        "Error of the hidden state against fp32, by depth and loop count",
    )
    note = f"|difference| / |fp32| in %. The deepest shade is {percent(_DEEP)}.{rest}"
    return figure("Hidden state against fp32", note, picture, numbers)


def _router(losses: Sequence[Loss]) -> Markup:
    picture, numbers, rest = by_depth(
        [(loss.loops, loss.depths) for loss in losses],
        agreement_cell,
        lambda depth: percent(depth.router_agreement),
        "Share of tokens sent to fp32's experts, by depth and loop count",
    )
    note = f"Tokens sent to the experts that fp32 chose, in %.{rest}"
    return figure("Routing against fp32", note, picture, numbers)


def _calibration(recipe: Recipe) -> str:
    return (
        f"Measured on {plural(recipe.samples, 'sequence')} ({plural(recipe.tokens, 'token')}) of {recipe.data}, over "
        f"{plural(recipe.depths, 'depth')}, by {recipe.method}. What one loop computes another reads, and ranges move "
        "with depth: one scale for all depths must fit the widest, and is coarse for the others."
    )


def _limits(looped: dict[str, ActivationRange], widest: Sequence[str], recipe: Recipe) -> Markup:
    picture = line_chart(
        LineChart(
            name="Limits of activations at each depth",
            steps=[str(depth) for depth in range(1, recipe.depths + 1)],
            series=[Series(_brief(name), looped[name].limit) for name in widest],
            below="depth",
            log=True,
        )
    )
    head = ["depth", *map(_brief, looped)]
    limits = [found.limit for found in looped.values()]
    rows = [[str(depth + 1), *(short(each[depth]) for each in limits)] for depth in range(recipe.depths)]
    note = f"Largest |x| that is not cut off, in the loop's body.{_drawn(looped, widest)}"
    return figure("Limits by depth", note, picture, Table(head, rows))


def _drift(
    looped: dict[str, ActivationRange], widest: Sequence[str], record: QuantizationRecord, recipe: Recipe
) -> Markup:
    picture = line_chart(
        LineChart(
            name="Limits of activations at each depth, as multiples of the narrowest",
            steps=[str(depth) for depth in range(1, recipe.depths + 1)],
            series=[
                Series(_brief(name), [limit / min(looped[name].limit) for limit in looped[name].limit])
                for name in widest
            ],
            below="depth",
            least=1.0,
        )
    )
    used = recipe.limits(record.ranges) if record.ranges is not None else {}
    own = sum(len(used.get(name, ())) > 1 for name in looped)
    rows = [
        [_brief(name), short(found.drift), "per depth" if len(used.get(name, ())) > 1 else "shared"]
        for name, found in looped.items()
    ]
    note = (
        f"Each limit as a multiple of its narrowest depth's. With ranges {record.ranges}, {count(own)} of "
        f"{plural(len(looped), 'activation')} in the loop {'has' if own == 1 else 'have'} one per depth."
        f"{_drawn(looped, widest)}"
    )
    return figure("Drift with depth", note, picture, Table(["activation", "widest / narrowest", "range"], rows))


def _drawn(looped: dict[str, ActivationRange], widest: Sequence[str]) -> str:
    """Which lines there are; nothing where there are all."""
    if len(widest) == len(looped):
        return ""
    return f" Drawn are the {len(widest)} of {len(looped)} activations that drift most."


def _brief(name: str) -> str:
    return name.removeprefix("recurrent.block.").removesuffix(".input")


def _kept(record: QuantizationRecord) -> Markup:
    rows = [[name, reason] for name, reason in record.kept.items()]
    numbers = Table(["layer", "why"], rows, numbers=False)
    return card("What stays in float", table("What stays in float", numbers), width="whole")
