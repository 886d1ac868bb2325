"""Real engines of TensorRT-RTX, built without a GPU."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from engines.errors import EngineError
from engines.receipts import Receipt, read_receipt, receipt_path
from engines.tensorrt_library import Library, find_library
from mythos_export.building.build import BuildError, BuildFailed, build_engines, check_request
from mythos_export.building.profiles import make_profile
from mythos_export.bundle import Bundle, Manifest, file_entry
from mythos_export.progress import Reporter
from reference_model import nano
from reference_model.config import MythosConfig

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")
pytestmark = pytest.mark.dear  # seconds for each engine, minutes for all of them

MakeBundle = Callable[..., Bundle]
ROOT = Path(__file__).parents[3]
QUIET = Reporter(quiet=True)
MATRIX = [
    *(("fp16", sm) for sm in ("8.0", "8.6", "8.9", "12.0")),
    *(("int8", sm) for sm in ("8.0", "8.6", "8.9", "12.0")),
    *(("fp8", sm) for sm in ("8.9", "12.0")),
    ("fp32", "8.9"),
    ("bf16", "8.9"),
    ("int4", "8.6"),
]


@pytest.fixture(scope="module")
def library() -> Library:
    return find_library("tensorrt_rtx")


@pytest.fixture(scope="module")
def fp16(make_bundle: MakeBundle, mla_config: MythosConfig) -> Bundle:
    """An fp16 bundle; do not change it (copy it)."""
    return make_bundle(mla_config, target="tensorrt", precision="fp16")


@pytest.fixture(scope="module")
def int8(make_bundle: MakeBundle, gqa_config: MythosConfig) -> Bundle:
    """An int8 bundle of the other attention; do not change it (copy it)."""
    return make_bundle(gqa_config, target="tensorrt", precision="int8")


def built(bundle: Bundle, library: Library, sm: str = "8.9", **sizes: str) -> Receipt:
    return build_engines(bundle, library, sm, make_profile(bundle.manifest.limits, **sizes), QUIET)


def copied(bundle: Bundle, folder: Path) -> Bundle:
    return Bundle.open(shutil.copytree(bundle.path, folder / "copy", ignore=shutil.ignore_patterns("engines")))


def changed(bundle: Bundle, change: Callable[[ir.Model], None]) -> Bundle:
    """A bundle whose graph was changed, and whose manifest says so."""
    path = bundle.file("model.onnx")
    model = ir.load(path)
    change(model)
    ir.save(model, path)
    files = bundle.manifest.files | {"model.onnx": file_entry(path)}
    return Bundle(bundle.path, bundle.manifest.model_copy(update={"files": files}))


def test_an_engine_and_its_receipt(fp16: Bundle, library: Library) -> None:
    receipt = built(fp16, library, seq="1:16:64", past="0:16:64")
    assert [(engine.graph, engine.loops) for engine in receipt.engines] == [("model.onnx", "dynamic")]
    assert {path.name for path in (fp16.path / "engines").iterdir()} == {"sm89.json", "sm89.model.plan"}
    assert Bundle.open(fp16.path).manifest == fp16.manifest, "engines do not disturb a bundle"
    assert read_receipt(fp16, "8.9", runtime=library.name, version=library.version) == receipt
    assert receipt.profile.seq.opt == 16 and receipt.flags == ["STRONGLY_TYPED"]


@pytest.mark.dear
def test_every_graph_becomes_an_engine(make_bundle: MakeBundle, mla_config: MythosConfig, library: Library) -> None:
    bundle = make_bundle(mla_config, target="tensorrt", precision="fp16", loops="2,3")
    assert [(engine.file, engine.graph, engine.loops) for engine in built(bundle, library).engines] == [
        ("sm89.model.plan", "model.onnx", "dynamic"),
        ("sm89.model.loops2.plan", "model.loops2.onnx", 2),
        ("sm89.model.loops3.plan", "model.loops3.onnx", 3),
    ]


def test_every_quantised_product_runs_in_int8(int8: Bundle, library: Library) -> None:
    (engine,) = built(int8, library).engines
    assert engine.gemms is not None and engine.gemms.type == "int8"
    config = json.loads((int8.path / "config.json").read_text())
    # q, k, v, o; gate, up and down of every expert, the shared one too
    assert engine.gemms.in_loop == 4 + 3 * (config["n_experts"] + config["n_shared_experts"])


def test_a_product_that_falls_back_to_float_fails_the_build(int8: Bundle, library: Library, tmp_path: Path) -> None:
    """A scale gathered by depth: TensorRT-RTX builds it without a word, and multiplies in float."""

    def gather_scale(model: ir.Model) -> None:
        body = next(node for node in model.graph if node.op_type == "Loop").attributes["body"].as_graph()
        node = next(node for node in body if node.op_type == "QuantizeLinear")
        (reader,) = node.outputs[0].consumers()
        scale = node.inputs[1]
        assert scale is not None and scale.const_value is not None
        table = ir.Value(name="scales", const_value=ir.tensor([float(scale.const_value.numpy())] * 4, name="scales"))
        table.type, table.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([4])
        body.register_initializer(table)
        gather = ir.Node("", "Gather", [table, body.inputs[0]], [ir.AttrInt64("axis", 0)], name="scale.by_depth")
        gather.outputs[0].name = "scale.by_depth"
        body.insert_before(node, gather)
        for user in (node, reader):
            user.replace_input_with(1, gather.outputs[0])

    bundle = changed(copied(int8, tmp_path), gather_scale)
    with pytest.raises(BuildFailed, match=r"do not run in int8"):
        built(bundle, library)
    assert not list((bundle.path / "engines").iterdir()), "nothing is kept"


def test_what_the_parser_refuses_is_named_by_node(fp16: Bundle, library: Library, tmp_path: Path) -> None:
    def plant(model: ir.Model) -> None:
        unique = ir.Node("", "Det", [model.graph.outputs[0]], name="planted.det")
        unique.outputs[0].name = "planted"
        unique.outputs[0].type, unique.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["batch"])
        model.graph.append(unique)
        model.graph.outputs.append(unique.outputs[0])

    with pytest.raises(BuildFailed, match=r"tensorrt_rtx .* does not take planted\.det \(Det\)"):
        built(changed(copied(fp16, tmp_path), plant), library)


def test_the_command(fp16: Bundle, tmp_path: Path) -> None:
    bundle = copied(fp16, tmp_path)
    command = [sys.executable, "-m", "mythos_export", "build", str(bundle.path), "--sm", "8.6", "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    (receipt,) = json.loads(ran.stdout)["receipts"]
    assert receipt == json.loads(receipt_path(bundle, "8.6").read_text())
    assert ran.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--sm is missing"),
        (["--sm", "9"], "give a compute capability such as 8.9"),
        (["--sm", "8.7"], "builds for SM120, SM121, SM75, SM80, SM86, SM89 only"),
        (["--sm", "8.9", "--sm", "sm89"], "--sm names 8.9 twice"),
        (["--sm", "8.9", "--batch", "4:1"], "--batch is '4:1'; give MIN:OPT:MAX"),
        (["--sm", "8.9", "--past", "0:1:900"], "max_seq_len is 256"),
        (["--sm", "8.9", "--runtime", "tensorflow"], "'tensorflow' is no TensorRT"),
    ],
)
def test_bad_options_are_one_line(arguments: list[str], message: str, fp16: Bundle) -> None:
    command = [sys.executable, "-m", "mythos_export", "build", str(fp16.path), *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 2 and ran.stdout == ""
    assert message in ran.stderr and len(ran.stderr.splitlines()) == 1


def test_a_portable_bundle_is_not_built(tiny_bundle: Path, library: Library) -> None:
    with pytest.raises(BuildError, match="made for target 'portable'; export it with --target tensorrt"):
        check_request(Bundle.open(tiny_bundle), library, ["8.9"])


@pytest.mark.parametrize(("precision", "sm"), [("fp8", "8.6")])
def test_precisions_that_an_architecture_lacks(precision: str, sm: str, fp16: Bundle, library: Library) -> None:
    manifest: Manifest = fp16.manifest.model_copy(update={"precision": precision})
    with pytest.raises(BuildError, match=f"--sm {sm} has no {precision}"):
        check_request(Bundle(fp16.path, manifest), library, [sm])


def test_an_architecture_that_no_graph_compiles_for(fp16: Bundle, library: Library) -> None:
    with pytest.raises(BuildError, match=r"--sm 7\.5: .* has no fp32 products there.*from 8\.0 on"):
        check_request(fp16, library, ["7.5"])


def test_it_needs_neither_torch_nor_onnx(fp16: Bundle, tmp_path: Path) -> None:
    bundle = copied(fp16, tmp_path)
    code = (
        "import sys\n"
        "absent = ('torch', 'onnx', 'onnx_ir', 'onnxscript', 'onnxruntime', 'safetensors')\n"
        "sys.modules.update(dict.fromkeys(absent))\n"
        f"sys.argv = ['mythos-export', 'build', {str(bundle.path)!r}, '--sm', '8.9']\n"
        "from mythos_export.cli import main\n"
        "main()\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr


def test_a_stale_engine_is_refused(fp16: Bundle, library: Library, tmp_path: Path) -> None:
    bundle = copied(fp16, tmp_path)
    built(bundle, library)

    def rename(model: ir.Model) -> None:
        model.graph.name = "another"

    with pytest.raises(EngineError, match=r"sm89\.model\.plan was built from another model\.onnx"):
        read_receipt(changed(bundle, rename), "8.9", runtime=library.name, version=library.version)


@pytest.mark.dear
@pytest.mark.parametrize(("precision", "sm"), MATRIX)
def test_nano(precision: str, sm: str, make_bundle: MakeBundle, library: Library, nanos: dict[str, Bundle]) -> None:
    from reference_model.checkpoint import open_checkpoint

    if precision not in nanos:
        config, source = MythosConfig.from_file(nano.CONFIG), open_checkpoint(nano.CHECKPOINT)
        nanos[precision] = make_bundle(config, source=source, target="tensorrt", precision=precision)
    (engine,) = built(nanos[precision], library, sm).engines
    assert (engine.gemms is not None) == (precision in ("int8", "fp8"))


@pytest.fixture(scope="module")
def nanos() -> dict[str, Bundle]:
    """Bundles of nano by precision, each made once."""
    return {}
