"""`mythos-export export --scale ... --loops ...`: the main job, which need not be named."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import typer

from mythos_export.bundle import Bundle
from mythos_export.commands.options import ExportOptions
from mythos_export.commands.output import print_json, size
from mythos_export.loops import parse_loops
from mythos_export.progress import Reporter
from reference_model import nano

if TYPE_CHECKING:
    from mythos_export.pipeline import ExportRequest, Prove

__all__ = ["run", "without_folders"]


def run(options: ExportOptions) -> None:
    """Export, or say what an export would make."""
    loops = parse_loops(options.loops)
    report = Reporter(quiet=options.json)
    from mythos_export.gates import GateFailed
    from mythos_export.lints import LintFailed
    from mythos_export.model_choice import resolve_model
    from mythos_export.pipeline import ExportRequest, ParityFailed, export
    from mythos_export.requests import check_target, default_name, oldest_runtime, quantize_options
    from mythos_export.text_files import read_text_files

    checkpoint = options.checkpoint
    if options.scale == "nano" and checkpoint is None:
        checkpoint = nano.CHECKPOINT
    opset = check_target(options.target, options.precision, options.opset)
    model = resolve_model(options.scale, options.config, checkpoint, options.attn, options.seed)
    quantize = quantize_options(
        options.target,
        options.precision,
        model.config,
        data=options.calibration_data,
        method=options.calibration_method,
        depths=options.calibration_loops,
        ranges=options.ranges,
        recipe=options.recipe,
        keep=options.keep,
    )
    text = read_text_files(checkpoint, options.special_tokens, model.config.vocab_size)
    name = default_name(model.name, options.attn, options.target, options.precision)
    request = ExportRequest(
        name=name,
        config=model.config,
        source=model.source,
        output=options.output or Path(name),
        target=options.target,
        precision=options.precision,
        loops=loops,
        opset=opset,
        tokenizer=text.tokenizer,
        text=text.record,
        runtime=oldest_runtime(options.minimum_runtime, options.target, options.precision),
        quantize=quantize,
        force=options.force,
        command=("mythos-export", *map(without_folders, sys.argv[1:])),
    )
    for note in (*model.notes, *text.notes):
        report.say(note)
    if checkpoint is None:
        report.say(f"no --checkpoint: the weights are random (seed {options.seed})")
    if options.dry_run:
        _dry_run(request, report, options.json)
        return
    try:
        bundle = export(request, report, _prover() if options.validate else None)
    except (GateFailed, LintFailed, ParityFailed) as error:
        print(f"failed: {error}; no bundle was kept", file=sys.stderr)
        raise typer.Exit(1) from error
    _say_done(bundle, request.output, report, options.json)


_WORD = re.compile(r"(--[a-z-]+=|-[a-z](?=.))?(.*)", re.DOTALL)  # an option that has its value in the same word, and it


def without_folders(word: str) -> str:
    """A word of the command line for the manifest: of a path its last part, for a bundle is shown to others."""
    match = _WORD.fullmatch(word)
    assert match is not None
    option, value = match[1] or "", match[2]
    is_path = os.sep in value or (os.altsep or os.sep) in value
    if not is_path or value.startswith("hf://"):
        return word
    return option + (PurePath(value).name or value)


def _prover() -> Prove:
    from mythos_export.parity.run import prove  # needs a runtime, which --no-validate does not

    return prove


def _dry_run(request: ExportRequest, report: Reporter, json: bool) -> None:
    from mythos_export.plan import plan_export

    plan = plan_export(request, report)
    if json:
        print_json(plan.model_dump())
        return
    print(f"{plan.name}: {plan.parameters:,} parameters, {size(plan.weight_bytes)} of weights ({plan.precision})")
    fixed, per_loop = size(plan.cache_bytes_per_token), size(plan.cache_bytes_per_token_and_loop)
    print(f"cache: {fixed} a token, and {per_loop} a token and loop")
    for file, ops in plan.graphs.items():
        print(f"{file}: {sum(ops.values())} nodes, {ops.get('Loop', 0)} Loop")


def _say_done(bundle: Bundle, output: Path, report: Reporter, json: bool) -> None:
    manifest = bundle.manifest
    if json:
        print_json({"bundle": str(output), **manifest.model_dump()})
        return
    report.say(f"spectral radius of the injection: {manifest.spectral_radius:.4f} (stable below 1)")
    same = "equal to PyTorch" if manifest.quantization is None else "equal to PyTorch that rounds alike"
    proof = "not validated" if manifest.parity is None else same
    print(f"{output}: {size(bundle.total_bytes)}, {manifest.precision}, loops {manifest.loops}, {proof}")
