"""Hashes of everything that a matrix of exports makes, to show that a change of the code changes nothing.

    python tools/hash_exports.py > after.txt
    PYTHONPATH=OTHER_CHECKOUT python tools/hash_exports.py > before.txt
    diff before.txt after.txt

It drives the command line of whatever `mythos_export` is imported, so that one copy of this file works on older and
newer commits. A data file is hashed byte by byte. A graph is hashed by its structure: a value is what computes it
(operator, attributes, inputs) or, of an input or a parameter, its name; names of nodes and of computed values, and the
order of nodes that do not depend on each other, do not count, nor do initializers that no node reads. How many nodes
there are of each operator does, and so does where in the data file a parameter lies.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx

TINY = {
    "vocab_size": 97,
    "dim": 64,
    "n_heads": 4,
    "n_kv_heads": 2,
    "max_seq_len": 256,
    "max_loop_iters": 6,
    "prelude_layers": 1,
    "coda_layers": 2,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
    "n_experts": 6,
    "n_shared_experts": 1,
    "n_experts_per_tok": 2,
    "expert_dim": 32,
    "lora_rank": 4,
}
MODELS: dict[str, dict[str, Any] | None] = {
    "nano": None,
    "mla": {**TINY, "attn_type": "mla"},
    "gqa": {**TINY, "attn_type": "gqa"},
    # experts that no fused kernel takes, and no dense layers
    "bare": {**TINY, "expert_dim": 40, "prelude_layers": 0, "coda_layers": 0},
}
CALIBRATED = ("int8", "fp8")  # of the targets that quantise activations
KEEP = ("", "coda.*,head,*.kv_up.key", "embed,*routed_experts*")


def main() -> None:
    """Export and print a line per file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="nano,mla,gqa", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--targets", default="", help="default: all")
    parser.add_argument("--precisions", default="", help="default: all of a target")
    parser.add_argument("--loops", default="dynamic;4,8", help="values of --loops, separated by ;")
    parser.add_argument("--keep", action="store_true", help="quantised precisions once more with layers kept in float")
    options = parser.parse_args()

    from mythos_export.targets import TARGETS

    with tempfile.TemporaryDirectory() as folder:
        for model in options.models.split(","):
            recipes: dict[str, Path] = {}
            for target in options.targets.split(",") if options.targets else TARGETS:
                for precision in TARGETS[target].precisions:
                    if not options.precisions or precision in options.precisions.split(","):
                        for extra in _variants(model, precision, options.loops.split(";"), keep=options.keep):
                            _export(Path(folder), model, target, precision, extra, recipes)


def _variants(model: str, precision: str, loops: list[str], *, keep: bool) -> Iterator[dict[str, str]]:
    for each in loops:
        yield {"--loops": each}
    if keep and precision in ("int8", "fp8", "int4"):
        for patterns in KEEP[1:]:
            if model in ("mla", "nano") or "kv_up" not in patterns:
                yield {"--loops": "dynamic", "--keep": patterns}


def _export(
    folder: Path, model: str, target: str, precision: str, extra: dict[str, str], recipes: dict[str, Path]
) -> None:
    output = folder / "bundle"
    extra = dict(extra)
    if precision in CALIBRATED and target != "onnxruntime" and precision in recipes:
        extra["--recipe"] = str(recipes[precision])
    arguments = [*_model(model, folder), "--target", target, "--precision", precision, "--output", str(output)]
    arguments += [part for pair in extra.items() for part in pair]
    words = " ".join(f"{name} {value}" for name, value in extra.items() if name != "--recipe")
    title = f"{model} {target} {precision} {words}"
    problem = _run([*arguments, "--no-validate"])
    if problem is not None:
        print(f"{title}: {problem}", flush=True)
        return
    if (output / "recipe.json").exists() and precision not in recipes:
        recipes[precision] = Path(shutil.copy(output / "recipe.json", folder / f"{model}-{precision}.json"))
    for name, digest in _digests(output):
        print(f"{title}: {name} {digest}", flush=True)
    shutil.rmtree(output)


def _model(model: str, folder: Path) -> list[str]:
    config = MODELS[model]
    if config is None:
        return ["--scale", model]
    (folder / f"{model}.json").write_text(json.dumps(config))
    return ["--config", str(folder / f"{model}.json")]


def _run(arguments: list[str]) -> str | None:
    """The command line in this process; what it said if it failed."""
    from mythos_export import cli

    sys.argv = ["mythos-export", *arguments]
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as ended:
        if ended.code:
            return err.getvalue().strip().splitlines()[-1][:200]
    return None


def _digests(bundle: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(bundle.iterdir()):
        if path.suffix == ".onnx":
            yield path.name, _graph_digest(onnx.load(path, load_external_data=False))
        elif path.suffix == ".data" or path.name in ("recipe.json", "config.json"):
            yield path.name, _digest(path.read_bytes())
    manifest = json.loads((bundle / "manifest.json").read_text())
    for key in ("quantization", "inputs", "outputs", "cache", "parameters", "session", "minimum_runtime"):
        yield key, _digest(manifest.get(key))


def _digest(value: Any) -> str:
    content = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True, default=str).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def _graph_digest(model: onnx.ModelProto) -> str:
    values: dict[str, str] = {}
    opsets = sorted((entry.domain, entry.version) for entry in model.opset_import)
    return _digest([_structure(model.graph, values, ""), opsets, model.ir_version])


def _structure(graph: onnx.GraphProto, outer: Mapping[str, str], depth: str) -> list[Any]:
    """What a graph computes, given what the values around it are."""
    values = dict(outer)
    inputs = []
    for place, value in enumerate(graph.input):
        # inputs of the bundle go by their names, those of a body by their places
        values[value.name] = f"input {value.name if not depth else (depth, place)}"
        inputs.append([values[value.name], _digest(value.type.SerializeToString(deterministic=True))])
    for tensor in graph.initializer:
        values[tensor.name] = _tensor(tensor)
    counts: Counter[str] = Counter()
    for node in graph.node:
        counts[f"{node.domain}::{node.op_type}"] += 1
        attributes = [_attribute(each, values, depth) for each in sorted(node.attribute, key=lambda each: each.name)]
        key = _digest([node.domain, node.op_type, [values[name] if name else "" for name in node.input], attributes])
        for place, name in enumerate(node.output):
            values[name] = f"{key}.{place}"
    outputs = [
        [value.name if not depth else "", _digest(value.type.SerializeToString(deterministic=True)), values[value.name]]
        for value in graph.output
    ]
    used = set(_read(graph)) | {value.name for value in graph.output}
    parameters = sorted(values[tensor.name] for tensor in graph.initializer if tensor.name in used)
    return [inputs, outputs, parameters, sorted(counts.items())]


def _read(graph: onnx.GraphProto) -> Iterator[str]:
    """Names that nodes read, here and in graphs within this one."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _read(attribute.g)
                yield from (value.name for value in attribute.g.output)


def _tensor(tensor: onnx.TensorProto) -> str:
    shape = [tensor.data_type, list(tensor.dims)]
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        place = sorted((entry.key, entry.value) for entry in tensor.external_data)
        return f"parameter {tensor.name} {_digest([shape, place])}"
    return f"constant {_digest([shape, onnx.numpy_helper.to_array(tensor).tobytes().hex()])}"


def _attribute(attribute: onnx.AttributeProto, values: Mapping[str, str], depth: str) -> list[Any]:
    if attribute.type == onnx.AttributeProto.GRAPH:
        return [attribute.name, _structure(attribute.g, values, f"{depth}/{attribute.name}")]
    if attribute.type == onnx.AttributeProto.TENSOR:
        return [attribute.name, _tensor(attribute.t)]
    return [attribute.name, str(onnx.helper.get_attribute_value(attribute))]


if __name__ == "__main__":
    main()
