"""The command line: options and words; what they do is elsewhere.

Nothing heavy is imported here: `--help` must answer at once, and a device that only runs bundles has
no torch.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn, Optional

import typer
from typer.core import TyperGroup

from mythos_export import __version__
from mythos_export.commands.options import ExportOptions, JsonFlag, PlanOptions, takes
from mythos_export.console import prepare_signals, prepare_streams
from mythos_export.installation import BrokenInstallation, check_installation

__all__ = ["app", "main"]

_HELP = """Export looped (recurrent-depth) language models to ONNX, proven equal to PyTorch at every loop count.

The word export may be left out: mythos-export --scale 1b --loops dynamic"""


class _Commands(TyperGroup):
    """Commands, of which `export` need not be named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args:
            print(ctx.get_help())
            raise typer.Exit
        if args[0].startswith("-") and args[0] not in ("-h", "--help", "--version"):
            args = ["export", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="mythos-export",
    cls=_Commands,
    help=_HELP,
    add_completion=False,
    rich_markup_mode=None,  # its columns cut the names of long options off
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Where each kind of mistake a user can make is defined; only modules already loaded can have raised it.
_USER_ERRORS = (
    ("calibration.errors", "CalibrationError"),
    ("reference_model.config", "ConfigError"),
    ("reference_model.weight_source", "CheckpointError"),
    ("mythos_export.building.build", "BuildError"),
    ("mythos_export.building.profiles", "ProfileError"),
    ("mythos_export.bundle", "BundleError"),
    ("mythos_export.html_report.measurements", "MeasurementError"),
    ("mythos_export.linears", "UnknownLayer"),
    ("mythos_export.loops", "LoopsError"),
    ("mythos_export.planning.devices", "DeviceError"),
    ("mythos_export.planning.request", "PlanError"),
    ("mythos_export.passes.rewriting", "NothingToQuantize"),
    ("mythos_export.quantization", "MissingRange"),
    ("mythos_export.errors", "RequestError"),
    ("engines.errors", "EngineError"),
)
_NO_MEMORY = "not enough memory; a smaller model, --no-validate, a shorter context or another machine needs less of it"
_EXTRAS = {
    **dict.fromkeys(("torch", "onnx", "onnx_ir", "onnxscript", "safetensors"), "export"),
    "onnxruntime": "cpu",
    **dict.fromkeys(("google", "tritonclient"), "triton"),
}


def _version(wanted: bool) -> None:
    if wanted:
        print(f"mythos-export {__version__}")
        raise typer.Exit


@app.callback()
def _any_command(
    version: Annotated[
        Optional[bool], typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = None,
) -> None:
    pass


@app.command()
@takes(ExportOptions)
def export(options: ExportOptions) -> None:
    """Export a model.

    The word export may be left out: mythos-export --scale 1b --loops dynamic
    """
    from mythos_export.commands import export as command

    command.run(options)


BundleArgument = Annotated[Path, typer.Argument(help="A bundle's folder.", show_default=False)]


@app.command()
def verify(
    bundle: BundleArgument,
    loops: Annotated[Optional[str], typer.Option(help="Loop counts to compare at, e.g. 1,2,4,8,16.")] = None,
    checkpoint: Annotated[Optional[Path], typer.Option(help="The source checkpoint, where it is not nearby.")] = None,
    json: JsonFlag = False,
) -> None:
    """Hash every file again and repeat the comparison with PyTorch."""
    from mythos_export.commands import verify as command

    command.run(bundle, loops=loops, checkpoint=checkpoint, json=json)


@app.command()
def generate(
    bundle: BundleArgument,
    prompt: Annotated[Optional[str], typer.Option(help="Text, through the bundle's tokenizer.")] = None,
    tokens: Annotated[Optional[str], typer.Option(help="Token ids: 1,2,3.")] = None,
    loops: Annotated[Optional[int], typer.Option(help="Depth; the model's own by default.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Sample among the k likeliest; 0 for all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Sample within this share of the probability.")] = 1.0,
    seed: Annotated[Optional[int], typer.Option(help="Seed of the sampling.")] = None,
    stop: Annotated[Optional[list[str]], typer.Option(help="Text that ends the answer; may be given again.")] = None,
    stop_id: Annotated[Optional[list[int]], typer.Option(help="A token id that does; may be given again.")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on after the model's own end tokens.")] = False,
    threads: Annotated[Optional[int], typer.Option(min=1, max=1024, help="Threads of the runtime.")] = None,
    runtime: Annotated[
        str, typer.Option(help="onnxruntime, or from built engines: tensorrt_rtx or tensorrt.")
    ] = "onnxruntime",
    json: JsonFlag = False,
) -> None:
    """Generate tokens from a bundle; needs neither torch nor onnx."""
    from mythos_export.commands import generate as command

    command.run(
        bundle,
        prompt=prompt,
        tokens=tokens,
        loops=loops,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop_words=stop or [],
        stop_ids=stop_id or [],
        ignore_eos=ignore_eos,
        threads=threads,
        runtime=runtime,
        json=json,
    )


@app.command()
def evaluate(
    bundle: BundleArgument,
    loops: Annotated[str, typer.Option(help="Loop counts to ask at.")] = "1,2,4,8,12,16",
    per_hop: Annotated[int, typer.Option(help="Test prompts for each k in 1..12.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the prompts.")] = 0,
    reference: Annotated[bool, typer.Option("--reference/--no-reference", help="Ask PyTorch the same prompts.")] = True,
    json: JsonFlag = False,
) -> None:
    """Measure task accuracy by hops and loops (bundles of nano)."""
    from mythos_export.commands import evaluate as command

    command.run(bundle, loops=loops, per_hop=per_hop, seed=seed, reference=reference, json=json)


@app.command()
def sensitivity(
    bundle: BundleArgument,
    precision: Annotated[
        Optional[str], typer.Option(help="int8, fp8 or int4; that of the bundle if it is quantised, else int8.")
    ] = None,
    calibration_data: Annotated[Optional[Path], typer.Option(help="As for an export; a default set if absent.")] = None,
    checkpoint: Annotated[Optional[Path], typer.Option(help="The source checkpoint, where it is not nearby.")] = None,
    json: JsonFlag = False,
) -> None:
    """Quantise each layer alone, and say which cost most."""
    from mythos_export.commands import sensitivity as command

    command.run(bundle, precision=precision, calibration_data=calibration_data, checkpoint=checkpoint, json=json)


@app.command()
def build(
    bundle: BundleArgument,
    sm: Annotated[
        Optional[list[str]], typer.Option(help="Compute capability of the GPU, such as 8.9; may be given again.")
    ] = None,
    batch: Annotated[Optional[str], typer.Option(help="Sequences at once, MIN:OPT:MAX.")] = None,
    seq: Annotated[Optional[str], typer.Option(help="Tokens in one call, MIN:OPT:MAX.")] = None,
    past: Annotated[Optional[str], typer.Option(help="Tokens before it, MIN:OPT:MAX.")] = None,
    loops: Annotated[Optional[str], typer.Option(help="Depths that a cache holds, MIN:OPT:MAX.")] = None,
    runtime: Annotated[
        Optional[str], typer.Option(help="tensorrt_rtx or tensorrt; by default the first that is installed.")
    ] = None,
    timing_cache: Annotated[
        Optional[Path], typer.Option(help="Folder of timings to reuse (TensorRT proper measures kernels).")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Build TensorRT engines from a bundle of target tensorrt."""
    from mythos_export.commands import build as command

    command.run(
        bundle,
        sm=sm or [],
        batch=batch,
        seq=seq,
        past=past,
        loops=loops,
        runtime=runtime,
        timing_cache=timing_cache,
        json=json,
    )


@app.command()
def triton(
    bundle: BundleArgument,
    repository: Annotated[Path, typer.Option(help="Folder to make, or a repository to add to.")],
    backend: Annotated[
        str, typer.Option(help="Of the tensor-level model: onnxruntime, tensorrt or python.")
    ] = "onnxruntime",
    device: Annotated[
        Optional[str], typer.Option(help="Of the tensor-level model: cpu, or gpu (as for tensorrt always).")
    ] = None,
    name: Annotated[Optional[str], typer.Option(help="Of the generator; the bundle's own by default.")] = None,
    tensors: Annotated[
        bool, typer.Option("--tensors/--no-tensors", help="The tensor-level model too: the weights twice in memory.")
    ] = True,
    max_batch: Annotated[Optional[int], typer.Option(min=1, help="Sequences that decode together.")] = None,
    max_queue: Annotated[Optional[int], typer.Option(min=1, help="Requests that wait; more are refused.")] = None,
    max_loops: Annotated[Optional[int], typer.Option(min=1, help="The deepest a request may ask for.")] = None,
    prefill_chunk: Annotated[Optional[int], typer.Option(min=1, help="Prompt tokens in one call.")] = None,
    cache_bytes: Annotated[Optional[int], typer.Option(min=1, help="Memory for all caches.")] = None,
    threads: Annotated[Optional[int], typer.Option(min=1, max=1024, help="Threads of the runtime.")] = None,
    kserve: Annotated[Optional[Path], typer.Option(help="File for a KServe InferenceService over it.")] = None,
    storage_uri: Annotated[
        Optional[str], typer.Option(help="For KServe: where the repository will lie, such as s3://bucket/models.")
    ] = None,
    image: Annotated[
        Optional[str], typer.Option(help="For KServe: of the container, Triton with what the models need.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace models of this name that are there.")] = False,
    json: JsonFlag = False,
) -> None:
    """Write a model repository for Triton Inference Server."""
    from mythos_export.commands import triton as command

    command.run(
        bundle,
        repository=repository,
        backend=backend,
        device=device,
        name=name,
        tensors=tensors,
        max_batch=max_batch,
        max_queue=max_queue,
        max_loops=max_loops,
        prefill_chunk=prefill_chunk,
        cache_bytes=cache_bytes,
        threads=threads,
        kserve=kserve,
        storage_uri=storage_uri,
        image=image,
        force=force,
        json=json,
    )


@app.command()
def serve(
    bundle: Annotated[Optional[Path], typer.Argument(help="A bundle's folder.", show_default=False)] = None,
    repository: Annotated[
        Optional[Path], typer.Option(help="In place of a bundle: a model repository; its programs run here.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8000,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8001,
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8002,
    tensors: Annotated[
        bool, typer.Option("--tensors/--no-tensors", help="The tensor-level model too: the weights twice in memory.")
    ] = True,
    max_batch: Annotated[Optional[int], typer.Option(min=1, help="Sequences that decode together.")] = None,
    max_queue: Annotated[Optional[int], typer.Option(min=1, help="Requests that wait; more are refused.")] = None,
    max_loops: Annotated[Optional[int], typer.Option(min=1, help="The deepest a request may ask for.")] = None,
    prefill_chunk: Annotated[Optional[int], typer.Option(min=1, help="Prompt tokens in one call.")] = None,
    cache_bytes: Annotated[Optional[int], typer.Option(min=1, help="Memory for all caches.")] = None,
    threads: Annotated[Optional[int], typer.Option(min=1, max=1024, help="Threads of the runtime.")] = None,
    log_verbose: Annotated[bool, typer.Option("--log-verbose", help="Show all that the server logs.")] = False,
) -> None:
    """Serve a bundle with Triton here, until Ctrl-C.

    Needs neither torch nor onnx.
    """
    from engines.triton.server.launch import Ports
    from mythos_export.commands import serve as command

    command.run(
        bundle,
        repository=repository,
        host=host,
        ports=Ports(http_port, grpc_port, metrics_port),
        log_verbose=log_verbose,
        tensors=tensors,
        max_batch=max_batch,
        max_queue=max_queue,
        max_loops=max_loops,
        prefill_chunk=prefill_chunk,
        cache_bytes=cache_bytes,
        threads=threads,
    )


@app.command()
def inspect(bundle: BundleArgument, json: JsonFlag = False) -> None:
    """Show what is in a bundle; needs neither torch nor onnx."""
    from mythos_export.commands import inspect as command

    command.run(bundle, json=json)


@app.command()
@takes(PlanOptions)
def plan(options: PlanOptions) -> None:
    """Say what a model takes on a device, and how fast it can be."""
    from mythos_export.commands import plan as command

    command.run(options)


@app.command()
def report(
    bundle: BundleArgument,
    accuracy: Annotated[
        Optional[Path], typer.Option(help="What `mythos-export evaluate --json` printed of this bundle.")
    ] = None,
    latency: Annotated[Optional[Path], typer.Option(help="Measured latencies; docs/report.md says how.")] = None,
    json: JsonFlag = False,
) -> None:
    """Make report.html again, with what was measured.

    Needs neither torch nor onnx.
    """
    from mythos_export.commands import report as command

    command.run(bundle, accuracy=accuracy, latency=latency, json=json)


@app.command()
def clean(
    folder: Annotated[Path, typer.Argument(help="Where bundles are written to.")] = Path(),
    json: JsonFlag = False,
) -> None:
    """Remove what killed exports left in a folder.

    What a running export is writing stays.
    """
    from mythos_export.commands import clean as command

    command.run(folder, json=json)


def main() -> NoReturn:
    """Entry point: one line on stderr and exit code 2 for whatever the user can mend."""
    prepare_streams()
    prepare_signals()
    try:
        _check_encoding()
        check_installation()
        _invoke()
        sys.stdout.flush()
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; nothing was kept")
    except BrokenInstallation as error:
        _fail(str(error))
    except Exception as error:
        line = _mendable(error)
        if line is None:
            raise
        _fail(line)
    sys.exit(0)


def _invoke() -> None:
    """As `app()`, but for typer's own handling of Ctrl-C and of a closed pipe, which differs between its releases."""
    command = typer.main.get_command(app)
    with command.make_context("mythos-export", sys.argv[1:]) as context:
        command.invoke(context)


def _mendable(error: Exception) -> str | None:
    """What to tell the user; None for a defect of ours."""
    from engines.errors import lacks_memory  # not before the installation is known to be whole

    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").split(".")[0]
        extra = _EXTRAS.get(package)
        return extra and f'this needs {package}, which is not installed; run: pip install "mythos-export[{extra}]"'
    if lacks_memory(error):
        return _NO_MEMORY
    if isinstance(error, OSError):
        _drop_stdout()
        return f"{error.filename or 'the result'}: {error.strerror or error}"
    if callable(usage := getattr(error, "format_message", None)):  # click's, whichever copy typer brings
        return str(usage())
    return str(error) if isinstance(error, _user_errors()) else None


def _user_errors() -> tuple[type[BaseException], ...]:
    return tuple(getattr(sys.modules[module], name) for module, name in _USER_ERRORS if module in sys.modules)


def _check_encoding() -> None:
    """Names go into manifests, which are UTF-8."""
    for argument in sys.argv[1:]:
        try:
            argument.encode()
        except UnicodeEncodeError:
            _fail(f"{argument!r} is not valid UTF-8; rename it")


def _drop_stdout() -> None:
    """What could not be printed is not to be tried again when Python exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str) -> NoReturn:
    line = " ".join(message.split())
    print("error: " + "".join(letter if letter.isprintable() else "?" for letter in line), file=sys.stderr)
    sys.exit(2)
