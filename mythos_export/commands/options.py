"""The options of commands that have many, each declared once: its name, its type, its default and its help."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Optional, TypeVar, get_type_hints

import typer

__all__ = ["ExportOptions", "JsonFlag", "PlanOptions", "takes"]

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]


@dataclass(frozen=True)
class ExportOptions:
    """What the user typed after `export`."""

    scale: Annotated[
        Optional[str],
        typer.Option(help="nano (trained, ships here), or a published scale: 1b 3b 10b 50b 100b 500b 1t."),
    ] = None
    config: Annotated[Optional[Path], typer.Option(help="A config.json in open-mythos' field names.")] = None
    checkpoint: Annotated[
        Optional[Path], typer.Option(help="Weights: .safetensors, a sharded index or its folder, or a torch.save file.")
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of the random weights used without a checkpoint.")] = 0
    attn: Annotated[
        Optional[str], typer.Option(help="Attention, where the scale is to have the other: mla or gqa.")
    ] = None
    loops: Annotated[str, typer.Option(help="dynamic, a fixed depth N, or several: N,M,...")] = "dynamic"
    target: Annotated[
        str,
        typer.Option(help="portable: ONNX for any runtime; onnxruntime: its own kernels; tensorrt: for `build`."),
    ] = "portable"
    precision: Annotated[str, typer.Option(help="fp32, fp16, bf16, int8, fp8 or int4.")] = "fp32"
    calibration_data: Annotated[
        Optional[Path], typer.Option(help="Token ids (.npy, .jsonl) or text (.jsonl, .txt) to measure ranges on.")
    ] = None
    calibration_method: Annotated[
        Optional[str], typer.Option(help="How a range is chosen: minmax, percentile, entropy or mse.")
    ] = None
    calibration_loops: Annotated[
        Optional[int], typer.Option(min=1, max=256, help="Depths to measure; the model's own by default.")
    ] = None
    ranges: Annotated[
        Optional[str], typer.Option(help="shared by all depths, per-depth, or auto: by depth where they differ.")
    ] = None
    special_tokens: Annotated[
        str,
        typer.Option(help="Around every prompt: auto (tokenizer_config.json's, else none), none, bos, tokenizer."),
    ] = "auto"
    minimum_runtime: Annotated[
        Optional[str],
        typer.Option(help="The oldest ONNX Runtime to run on, such as 1.22 (onnxruntime, quantized)."),
    ] = None
    recipe: Annotated[Optional[Path], typer.Option(help="A recipe.json of an earlier calibration.")] = None
    keep: Annotated[
        Optional[str],
        typer.Option(help="Layers to leave in float: names with *, or auto[:SHARE] for those that cost most."),
    ] = None
    opset: Annotated[Optional[int], typer.Option(help="ONNX opset, where the target's own will not do.")] = None
    output: Annotated[
        Optional[Path], typer.Option("--output", "-o", help="Folder to make; mythos-<scale>-<precision> by default.")
    ] = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Build the graph and say what it would take; no weights.")
    ] = False
    validate: Annotated[bool, typer.Option("--validate/--no-validate", help="Compare the bundle with PyTorch.")] = True
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False
    json: JsonFlag = False


@dataclass(frozen=True)
class PlanOptions:
    """What the user typed after `plan`."""

    scale: Annotated[Optional[str], typer.Option(help="As for an export: nano, or 1b 3b 10b 50b 100b 500b 1t.")] = None
    config: Annotated[Optional[Path], typer.Option(help="A config.json in open-mythos' field names.")] = None
    bundle: Annotated[Optional[Path], typer.Option(help="A bundle that is there already, in place of a model.")] = None
    attn: Annotated[Optional[str], typer.Option(help="The other attention: mla or gqa.")] = None
    target: Annotated[Optional[str], typer.Option(help="portable (the default), onnxruntime or tensorrt.")] = None
    precision: Annotated[Optional[str], typer.Option(help="fp32 (the default), fp16, bf16, int8, fp8 or int4.")] = None
    context: Annotated[
        Optional[int], typer.Option(help="Tokens in a sequence; the model's own limit by default, 4096 at most.")
    ] = None
    loops: Annotated[Optional[int], typer.Option(help="Depth; the model's own by default.")] = None
    batch: Annotated[int, typer.Option(help="Sequences at once.")] = 1
    chunk: Annotated[int, typer.Option(help="Tokens of the prompt in one call.")] = 512
    device: Annotated[
        Optional[str], typer.Option(help="What it is to run on, such as jetson-orin-nano-8gb, or FILE.json.")
    ] = None
    compare: Annotated[bool, typer.Option("--compare", help="Every precision of the target, side by side.")] = False
    json: JsonFlag = False


Options = TypeVar("Options")


def takes(options: type[Options]) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Decorator: give a command the fields of a dataclass as its options."""
    hints = get_type_hints(options, include_extras=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter(field.name, keyword, default=field.default, annotation=hints[field.name])
        for field in fields(options)  # type: ignore[arg-type]  # a dataclass, which TypeVar cannot say
    ]

    def decorate(command: Callable[[Options], None]) -> Callable[..., None]:
        @functools.wraps(command)
        def call(**values: Any) -> None:
            command(options(**values))

        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
        call.__annotations__ = hints
        return call

    return decorate
