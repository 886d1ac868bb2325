"""What quantizing costs against the model in fp32, and the ranges of activations by depth."""

from __future__ import annotations

from calibration.recipe import ActivationRange, Recipe
from mythos_export.bundle import QuantizationRecord
from mythos_export.html_report.blocks import Figure, Section, Table, by_depth, shade
from mythos_export.html_report.chart import MOST_LINES, Chart, Series
from mythos_export.html_report.subject import Subject
from mythos_export.html_report.words import DASH, count, percent, plural, short

__all__ = ["cost", "ranges"]

_DEEP = 0.3  # of the hidden state: the deepest shade


def cost(subject: Subject) -> Section | None:
    """The price of a quantized bundle; None where nothing is quantized."""
    if not subject.quantized:
        return None
    title = "What quantizing costs"
    if subject.parity is None or not subject.parity.loss:
        return Section("cost", title, ["Not measured: export without `--no-validate` to have it here."])
    losses = subject.parity.loss
    rows = [
        [
            str(loss.loops),
            percent(loss.relative_error),
            f"{loss.cosine:.5f}" if loss.cosine == loss.cosine else DASH,
            short(loss.kl),
            percent(loss.top1_agreement),
            percent(loss.halting_agreement),
        ]
        for loss in losses
    ]
    columns = [(plural(loss.loops, "loop"), loss.depths) for loss in losses]
    head = ["loops", "|error| / |fp32|", "cosine", "KL, nats", "same top token", "halting"]
    return Section(
        "cost",
        title,
        [
            "Accuracy, not correctness: the bundle against the same model in fp32, each running freely, so that errors "
            "feed back from loop to loop."
        ],
        [
            Table("Logits against fp32", head, rows, "Norm of the difference over the norm of fp32's logits."),
            by_depth(
                "Hidden state against fp32",
                f"|difference| / |fp32|. The deepest shade is {percent(_DEEP)}.",
                [(name, {depth.depth: depth.hidden_error for depth in depths}) for name, depths in columns],
                percent,
                lambda error: shade(error, 0.0, _DEEP),
            ),
            by_depth(
                "Routing against fp32",
                "Tokens sent to the experts that fp32 chose.",
                [(name, {depth.depth: depth.router_agreement for depth in depths}) for name, depths in columns],
                percent,
                lambda share: shade(share, 1.0, 0.5),
            ),
        ],
    )


def ranges(subject: Subject) -> Section | None:
    """The ranges of activations by depth; None where nothing is quantized."""
    record, recipe = subject.manifest.quantization, subject.recipe
    if record is None:
        return None
    title = "Activation ranges"
    kept = Table("What stays in float", ["layer", "why"], [[*each] for each in record.kept.items()], numbers=False)
    if recipe is None:
        words = "For this target the precision quantizes weights only: no activation has a range."
        return Section("ranges", title, [words], [kept])
    looped = {name: activation for name, activation in recipe.activations.items() if len(activation.limit) > 1}
    blocks: list[Table | Figure] = [kept]
    if looped:
        blocks = [_limits(looped, recipe), _drift(looped, record, recipe), kept]
    words = (
        f"Measured on {plural(recipe.samples, 'sequence')} ({plural(recipe.tokens, 'token')}) of {recipe.data}, over "
        f"{plural(recipe.depths, 'depth')}, by {recipe.method}. Ranges change with depth: one scale for all depths "
        "must fit the widest, and is coarse for the others."
    )
    return Section("ranges", title, [words], blocks)


def _limits(looped: dict[str, ActivationRange], recipe: Recipe) -> Figure:
    widest = sorted(looped, key=lambda name: -looped[name].drift)[:MOST_LINES]
    steps = [str(depth) for depth in range(1, recipe.depths + 1)]
    rows = [
        [step, *(short(activation.limit[depth]) for activation in looped.values())] for depth, step in enumerate(steps)
    ]
    note = "Largest |x| that is not cut off, in the loop's body."
    if len(widest) < len(looped):
        note += f" Drawn are the {len(widest)} of {len(looped)} activations that drift most."
    return Figure(
        Chart(
            "Limits of activations at each depth",
            steps,
            [Series(_brief(name), looped[name].limit) for name in widest],
            "depth",
            log=True,
        ),
        Table("Limits by depth", ["depth", *map(_brief, looped)], rows, note),
    )


def _drift(looped: dict[str, ActivationRange], record: QuantizationRecord, recipe: Recipe) -> Table:
    used = recipe.limits(record.ranges) if record.ranges is not None else {}
    own = {name for name in looped if len(used.get(name, ())) > 1}
    rows = [
        [_brief(name), short(activation.drift), "per depth" if name in own else "shared"]
        for name, activation in looped.items()
    ]
    note = f"With ranges {record.ranges}, {count(len(own))} of {plural(len(looped), 'activation')} in the loop "
    note += f"{'has' if len(own) == 1 else 'have'} one per depth."
    return Table("Drift with depth", ["activation", "widest / narrowest", "range"], rows, note)


def _brief(name: str) -> str:
    return name.removeprefix("recurrent.block.").removesuffix(".input")
