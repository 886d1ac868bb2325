"""The target `onnxruntime` as a whole: its int8 and int4 graphs, what they compute, and the gates before them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from stored_weights import RUNS_INT4, bound, eventful_weights, reference_of, session, state_of

from mythos_export import weights
from mythos_export.bundle import Bundle
from mythos_export.gates import GateFailed, check_quantized
from mythos_export.graphs import build_graphs
from mythos_export.linears import layer_names
from mythos_export.loops import parse_loops
from mythos_export.parity.cases import cases_for
from mythos_export.parity.exported import run_graph
from mythos_export.parity.probe import PROBES, add_probes
from mythos_export.parity.reference import run_reference
from mythos_export.parity.run import prove
from mythos_export.quantization import QUANTIZED, ROUTED_EXPERTS, Choices, Quantization
from mythos_export.quantized_weights import HEAD
from mythos_export.signature import cache_parts
from mythos_export.targets import TARGETS, quantization_of, settled
from reference_model.config import SCALES, MythosConfig, config_for_scale

needs_runtime = pytest.mark.skipif(not RUNS_INT4, reason="this onnxruntime is older than the target's minimum")

KEEP = Choices(keep=frozenset({f"{ROUTED_EXPERTS}.*.up", "coda.1.ffn.down", "head"}))


@pytest.fixture(scope="module", params=["mla", "gqa"])
def config(request: pytest.FixtureRequest) -> MythosConfig:
    found: MythosConfig = request.getfixturevalue(f"{request.param}_config")
    return found


@pytest.fixture(scope="module", params=["int8", "int4"])
def precision(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def built(
    config: MythosConfig,
    precision: str,
    *,
    target: str = "onnxruntime",
    loops: str = "dynamic",
    choices: Choices | None = None,
) -> dict[str, ir.Model]:
    return build_graphs(
        config, target=target, precision=precision, loops=parse_loops(loops), opset=21, choices=choices or Choices()
    )


class Running:
    """A graph in a session, as the parity check runs them."""

    def __init__(self, model: ir.Model | Path, loops: Any = "dynamic") -> None:
        self._session, self.loops = session(model), loops

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        return self._session.run(list(outputs), dict(inputs))


def errors(
    config: MythosConfig,
    arrays: dict[str, np.ndarray],
    graph: Running,
    choices: Choices,
    *,
    deepest: int,
    quantization: Quantization,
) -> np.ndarray:
    """Of the logits, at every position, as a share of their range: all depths, ways of feeding, and a padded batch."""
    model = reference_of(
        arrays, config, quantization, settled(choices, "onnxruntime", config, quantization.format.name)
    )
    found = []
    for case in cases_for(config, range(1, deepest + 1)):
        if case.kind not in ("prefill", "mixed") and case.trips < deepest:
            continue
        wanted, got = (
            run_reference(model, case).logits,
            run_graph(graph, cache_parts(config, quantization.format.name), case).logits,
        )
        found.append((np.abs(wanted - got).max(axis=-1) / np.ptp(wanted))[case.real])
    return np.concatenate(found)


def check_alike(found: np.ndarray) -> None:
    """The same but for the order of sums, which moves a value across a rounding of activations now and then.

    Over 12 models, half of seeded and half of eventful weights: errors of a position are below 4e-7 (75 to 99 % of
    them) or, behind such a rounding, up to 1.1e-2. Without the roundings they are 2e-3 to 7e-3 for the median and
    below 1e-5 for none.
    """
    assert np.median(found) <= 1e-6
    assert (found <= 1e-5).mean() >= 0.5
    assert found.max() <= 3e-2


@needs_runtime
def test_it_computes_what_the_reference_computes(config: MythosConfig, precision: str) -> None:
    check_computation(config, precision, block=32)


@needs_runtime
@pytest.mark.parametrize("block", [64, 128])
def test_larger_blocks_compute_it_too(mla_config: MythosConfig, precision: str, block: int) -> None:
    """Blocks longer than most contractions of so small a model."""
    check_computation(replace(mla_config, dim=2 * block, expert_dim=block), precision, block=block)


def check_computation(config: MythosConfig, precision: str, *, block: int) -> None:
    (model,) = built(config, precision).values()
    arrays = bound([model], eventful_weights(config, 1), config)
    assert f"{ROUTED_EXPERTS}.down.{precision}b{block}.stacked" in arrays
    graph, quantization = Running(model), quantization_of("onnxruntime", precision, config)
    check_alike(errors(config, arrays, graph, Choices(), deepest=8, quantization=quantization))
    plain = replace(quantization, dynamic_block=None)
    unrounded = errors(config, arrays, graph, Choices(), deepest=2, quantization=plain)
    assert (unrounded <= 1e-5).mean() < 0.01, "the kernels round activations, and the comparison sees it"


@needs_runtime
def test_layers_kept_in_float_are_computed_in_float(mla_config: MythosConfig, precision: str) -> None:
    """Experts of which a part is kept run one by one; a fixed depth is the same graph unrolled."""
    models = built(mla_config, precision, choices=KEEP, loops="2")
    (model,) = models.values()
    ops = Counter(node.op_type for node in model.graph.all_nodes())
    assert "QMoE" not in ops and ops["MatMulNBits"] > 2 * 2 * mla_config.n_experts
    arrays = bound([model], eventful_weights(mla_config, 3), mla_config)
    assert {"embed.weight", f"{ROUTED_EXPERTS}.0.up.weight.T", "coda.1.ffn.down.weight.T"} <= arrays.keys()
    quantization = quantization_of("onnxruntime", precision, mla_config)
    check_alike(errors(mla_config, arrays, Running(model, 2), KEEP, deepest=2, quantization=quantization))


def test_int4_holds_the_numbers_of_the_portable_target(config: MythosConfig) -> None:
    """In blocks of the same size; int8 has a scale per channel there."""
    source = eventful_weights(config)
    ours, theirs = (
        state_of(bound([model], source, config), config)
        for target in ("onnxruntime", "portable")
        for model in built(config, "int4", target=target).values()
    )
    assert ours.keys() == theirs.keys() == source.names() | {HEAD}
    for name, found in ours.items():
        if name.endswith("kv_up.weight"):  # left in float
            np.testing.assert_array_equal(found, source.read(name))
        else:
            np.testing.assert_array_equal(found, theirs[name])


def test_a_layer_is_one_node(config: MythosConfig, precision: str) -> None:
    (model,) = built(config, precision).values()
    ops = Counter(node.op_type for node in model.graph.all_nodes() if node.domain == "com.microsoft")
    attention = {"mla": 5, "gqa": 4}[config.attn_type]  # of MLA's six, one is absorbed
    blocks = config.prelude_layers + config.coda_layers
    assert ops == {"MatMulNBits": blocks * (attention + 3) + attention + 3 * config.n_shared_experts + 1, "QMoE": 1}
    assert dict(model.opset_imports) == {"": 21, "com.microsoft": 1}
    add_probes(model)  # raises where the parity check would find nothing to look at
    assert {"probe.router_scores", "probe.experts"} <= {str(value.name) for value in model.graph.outputs}
    assert PROBES["experts"] == "step.router.experts"


def test_scales_of_stacks_are_written_before_their_numbers(config: MythosConfig, precision: str) -> None:
    """Else each expert's scales are searched for twice, which is most of what an export takes."""
    names = list(weights.parameters_of(built(config, precision).values()))
    stacks = [name for name in names if name.endswith(".stacked")]
    assert len(stacks) == 2
    assert all(names.index(f"{name}.scale") < names.index(name) for name in stacks)


def test_absorbed_layers_stay_float_with_a_reason(config: MythosConfig, precision: str) -> None:
    """And no others: each token's activations are rounded by their own largest, however small ACT has made them."""
    target = TARGETS["onnxruntime"]
    found = target.float_layers(config, precision)
    absorbed = [name for name in layer_names(config) if ".kv_up." in name]
    assert list(found) == absorbed
    assert len(absorbed) == (8 if config.attn_type == "mla" else 0)
    assert all("absorbed into attention" in reason for reason in found.values())
    assert not TARGETS["portable"].float_layers(config, "int4"), "portable int4 dequantises whatever it is"
    chosen = settled(KEEP, "onnxruntime", config, precision)
    assert chosen.keep == KEEP.keep | set(absorbed)
    assert settled(chosen, "onnxruntime", config, precision) == chosen


def test_fp32_is_that_of_the_portable_target(config: MythosConfig) -> None:
    ours, portable = TARGETS["onnxruntime"], TARGETS["portable"]
    assert not ours.session
    assert not ours.float_layers(config, "fp32")
    for passes in (
        lambda target: target.lowerings(config, "fp32", Choices()),
        lambda target: target.precision_passes(config, "fp32", Choices()),
    ):
        assert [(type(one), vars(one)) for one in passes(ours)] == [(type(one), vars(one)) for one in passes(portable)]


def test_what_a_precision_means_depends_on_the_target(mla_config: MythosConfig) -> None:
    for name, bits in (("int8", 8), ("int4", 4)):
        found = quantization_of("onnxruntime", name, mla_config)
        assert (found.block, found.dynamic_block, found.format.bits) == (32, 32, bits)
        assert found.packed and not found.activations and not found.tied_head
        assert quantization_of("portable", name, mla_config) == QUANTIZED[name]
    for target, unknown in (("onnxruntime", "fp32"), ("onnxruntime", "fp8"), ("portable", "fp32")):
        with pytest.raises(KeyError):
            quantization_of(target, unknown, mla_config)


@pytest.mark.parametrize(
    ("dim", "expert_dim", "block"),
    [(128, 128, 128), (128, 384, 128), (2048, 64, 64), (192, 128, 64), (96, 160, 32), (256, 40, 32), (80, 128, 32)],
)
def test_the_block_is_the_largest_that_the_experts_take(
    mla_config: MythosConfig, precision: str, dim: int, expert_dim: int, block: int
) -> None:
    config = replace(mla_config, dim=dim, expert_dim=expert_dim)
    assert quantization_of("onnxruntime", precision, config).block == block
    assert quantization_of("portable", "int4", config).block == 32


def test_every_published_scale_takes_blocks_of_128(precision: str) -> None:
    blocks = {scale: quantization_of("onnxruntime", precision, config).block for scale, config in SCALES.items()}
    assert blocks == dict.fromkeys(SCALES, 128)
    assert quantization_of("onnxruntime", precision, config_for_scale("nano")).block == 32


@pytest.fixture(scope="module")
def original(config: MythosConfig, precision: str, make_bundle: Callable[..., Bundle]) -> Bundle:
    """An exported bundle; do not change it. The export itself has passed the gates."""
    return make_bundle(config, source=eventful_weights(config), target="onnxruntime", precision=precision)


def kept(config: MythosConfig) -> frozenset[str]:
    return frozenset(settled(Choices(), "onnxruntime", config, "int8").keep)  # and in int4


@needs_runtime
def test_the_checker_and_the_gates_pass_it(original: Bundle, config: MythosConfig, precision: str) -> None:
    onnx.checker.check_model(str(original.path / "model.onnx"), full_check=True)
    kernels = check_quantized(original, kept(config))
    assert kernels == {"MatMulNBits": 33 if config.attn_type == "mla" else 29, "QMoE": 1}
    record = original.manifest.quantization
    assert record is not None and record.kernels == kernels
    assert TARGETS["onnxruntime"].float_layers(config, precision).items() <= record.kept.items()
    assert record.ranges is None and "recipe.json" not in original.manifest.files
    assert original.manifest.minimum_runtime == "1.31" and not original.manifest.session


def test_experts_of_an_older_runtime_are_layers_like_others(
    config: MythosConfig, precision: str, make_bundle: Callable[..., Bundle]
) -> None:
    bundle = make_bundle(
        config, source=eventful_weights(config), target="onnxruntime", precision=precision, runtime=(1, 22), prove=prove
    )
    record = bundle.manifest.quantization
    assert bundle.manifest.parity is not None and bundle.manifest.parity.passed
    assert bundle.manifest.minimum_runtime is None
    assert record is not None and set(record.kernels) == {"MatMulNBits"}


Edit = Callable[[dict[str, onnx.NodeProto], Path], None]


def gate_says(original: Bundle, config: MythosConfig, tmp_path: Path, edit: Edit) -> str:
    """Plant a fault in a copy of the bundle; what the gates make of it."""
    for file in original.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    (loop,) = (node for node in model.graph.node if node.op_type == "Loop")
    edit({node.name: node for node in (*model.graph.node, *loop.attribute[0].g.node)}, tmp_path)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(GateFailed) as failed:
        check_quantized(Bundle(tmp_path, original.manifest), kept(config))
    return str(failed.value)


def the(nodes: dict[str, onnx.NodeProto], op_type: str) -> onnx.NodeProto:
    return next(node for node in nodes.values() if node.op_type == op_type)


@needs_runtime
@pytest.mark.parametrize("op_type", ["MatMulNBits", "QMoE"])
def test_a_kernel_that_computes_in_float_fails(
    original: Bundle, config: MythosConfig, tmp_path: Path, op_type: str
) -> None:
    def edit(nodes: dict[str, onnx.NodeProto], _: Path) -> None:
        (level,) = (found for found in the(nodes, op_type).attribute if found.name == "accuracy_level")
        level.i = 0

    said = gate_says(original, config, tmp_path, edit)
    assert f"in float ({op_type} at accuracy level 0)" in said


@needs_runtime
def test_a_layer_left_in_float_fails(original: Bundle, config: MythosConfig, tmp_path: Path) -> None:
    """Here: weights of the experts that are called as if nobody had quantised them."""

    def edit(nodes: dict[str, onnx.NodeProto], _: Path) -> None:
        the(nodes, "QMoE").input[5] = f"{ROUTED_EXPERTS}.down"

    said = gate_says(original, config, tmp_path, edit)
    assert f"{ROUTED_EXPERTS}.down was to be quantised" in said


@needs_runtime
def test_a_scale_of_zero_fails(original: Bundle, config: MythosConfig, precision: str, tmp_path: Path) -> None:
    name = f"{ROUTED_EXPERTS}.gate_up.{precision}b32.stacked.scale"

    def edit(_: dict[str, onnx.NodeProto], folder: Path) -> None:
        scales = ir.load(folder / "model.onnx").graph.initializers[name].const_value
        assert isinstance(scales, ir.ExternalTensor) and scales.offset is not None
        data = np.memmap(folder / weights.DATA_FILE, np.uint8, "r+")
        data[scales.offset + scales.nbytes - 4 : scales.offset + scales.nbytes] = 0
        data.flush()

    assert f"{name} holds a scale that is 0" in gate_says(original, config, tmp_path, edit)


@needs_runtime
def test_absorbed_layers_need_leave_to_stay_float(original: Bundle, config: MythosConfig) -> None:
    if config.attn_type == "mla":
        with pytest.raises(GateFailed, match=r"kv_up\.weight\.key was to be quantised"):
            check_quantized(original, frozenset())
    else:
        check_quantized(original, frozenset())
