"""`mythos-export plan --scale 3b --device ...`: will it fit, and how fast can it possibly be; needs no torch."""

from __future__ import annotations

from mythos_export.commands.options import PlanOptions
from mythos_export.commands.output import print_json
from mythos_export.planning.models import Stored, stored_from_config
from mythos_export.planning.plan import plan
from mythos_export.planning.remedies import remedies
from mythos_export.planning.report import render, render_comparison
from mythos_export.planning.request import PlanError, precisions_of, read_bundle, read_config, read_question

__all__ = ["run"]


def run(options: PlanOptions) -> None:
    """Plan; whether it fits is an answer, not an error."""
    stored = _stored(options)
    question = read_question(
        stored,
        context=options.context,
        loops=options.loops,
        batch=options.batch,
        chunk=options.chunk,
        device=options.device,
    )
    if options.compare:
        plans = [
            plan(stored_from_config(stored.name, stored.architecture, stored.target, precision), question)
            for precision in precisions_of(stored.target)
        ]
        if options.json:
            print_json({"plans": [found.model_dump() for found in plans]})
        else:
            print(render_comparison(plans))
        return
    found = plan(stored, question)
    would_do = remedies(stored, question)
    if options.json:
        print_json({**found.model_dump(), "remedies": would_do})
    else:
        print(render(found, would_do))


def _stored(options: PlanOptions) -> Stored:
    if options.bundle is None:
        if options.compare and options.precision is not None:
            raise PlanError("--compare shows every precision; leave out --precision")
        return read_config(options.scale, options.config, options.attn, options.target, options.precision)
    if options.compare:
        raise PlanError("--compare wants a model, not a bundle, which has one precision; give --scale or --config")
    return read_bundle(
        options.bundle,
        scale=options.scale,
        config=options.config,
        attn=options.attn,
        target=options.target,
        precision=options.precision,
    )
