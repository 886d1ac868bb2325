"""Weights in low precision: the way into a bundle, the way back, and how little of them is in memory meanwhile."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx_ir import external_data
from stored_weights import eventful_weights, state_of

from mythos_export.number_formats import FORMATS, block_scales, channel_scales, dequantize, quantize
from mythos_export.weights import store
from mythos_export.weights.names import read_name, stack_members, weights_of
from mythos_export.weights.packing import packed
from mythos_export.weights.restore import TIED_HEAD, restored_tensors
from mythos_export.weights.store import Quantizer
from mythos_export.weights.views import cut_out
from mythos_export.weights.write import bind, expected, quantizer_of
from reference_model.open_mythos.config import MythosConfig
from reference_model.open_mythos.description import architecture
from reference_model.open_mythos.parameters import ROUTED_EXPERTS

GATE_UP, DOWN = (f"{ROUTED_EXPERTS}.{name}.int4b32.stacked" for name in ("gate_up", "down"))
WIDE = "coda.0.ffn.down.weight.T"  # contraction 85: the last block is short
ABSORBED = [f"coda.0.attn.kv_up.weight.{part}" for part in ("key", "value")]
BLOCKS = {"int4b32": 32, "int4b32.packed": 32, "int4b128.packed": 128, "int8b32.packed": 32, "int8b64.packed": 64}
# The same experts in the 8-bit layout.
GATE_UP_8, DOWN_8 = (f"{ROUTED_EXPERTS}.{name}.int8b32.stacked" for name in ("gate_up", "down"))


def quantizer(config: MythosConfig) -> Quantizer:
    return quantizer_of(eventful_weights(config), architecture(config))


def stored_arrays(config: MythosConfig, *names: str) -> dict[str, np.ndarray]:
    """What a bundle would hold of parameters, and of their scales."""
    maker, arrays = quantizer(config), {}
    for name in names:
        for parameter in (name, f"{name}.scale"):
            stored = read_name(parameter)
            assert stored is not None
            arrays[parameter] = maker.tensor(stored, parameter).numpy()
    return arrays


def rounded(config: MythosConfig, weight: str, kind: str) -> np.ndarray:
    """A weight in the graph's layout, quantised and back."""
    plain = np.ascontiguousarray(
        expected(weight, torch.float32, eventful_weights(config), architecture(config)).numpy()
    )
    block, fmt = BLOCKS.get(kind), FORMATS[kind[:4] if kind in BLOCKS else kind]
    scales = block_scales(plain, block, fmt) if block else channel_scales(plain, -2, fmt)
    return dequantize(quantize(plain, scales, fmt, block), scales, block)


@pytest.mark.parametrize("kind", ["int8", "fp8", *BLOCKS])
@pytest.mark.parametrize("weight", [WIDE, "recurrent.block.attn.wo.weight.T", "embed.weight.T"])
def test_a_linear_layer_comes_back_in_upstreams_layout(mla_config: MythosConfig, weight: str, kind: str) -> None:
    state = state_of(stored_arrays(mla_config, f"{weight}.{kind}"), mla_config)
    (name,) = state
    assert name == (TIED_HEAD if weight.startswith("embed.") else weight.removesuffix(".T"))
    np.testing.assert_array_equal(state[name].numpy().T, rounded(mla_config, weight, kind))


@pytest.mark.parametrize("kind", ["int8", "fp8", "int4b32"])
def test_the_absorbed_weights_come_back_as_one(mla_config: MythosConfig, kind: str) -> None:
    state = state_of(stored_arrays(mla_config, *(f"{weight}.{kind}" for weight in ABSORBED)), mla_config)
    ((name, whole),) = state.items()
    assert name == "coda.0.attn.kv_up.weight"
    for weight in ABSORBED:
        np.testing.assert_array_equal(
            cut_out(whole, weights_of(architecture(mla_config))[weight].view), rounded(mla_config, weight, kind)
        )


def test_half_of_the_absorbed_weights_says_which_half(mla_config: MythosConfig) -> None:
    key = stored_arrays(mla_config, f"{ABSORBED[0]}.int8")
    (part,) = restored_tensors(f"{ABSORBED[0]}.int8", *key.values(), architecture(mla_config))
    assert part.rows is not None
    upstream = eventful_weights(mla_config).read(part.name).numpy()[part.rows]
    assert np.abs(part.read() - upstream).max() <= np.abs(upstream).max() / 254 * 1.001


def test_the_table_comes_back_by_rows(mla_config: MythosConfig) -> None:
    state = state_of(stored_arrays(mla_config, "embed.weight.rows"), mla_config)
    plain = eventful_weights(mla_config).read("embed.weight").numpy()
    scales = channel_scales(plain, -1, FORMATS["int8"])
    wanted = dequantize(quantize(plain, scales, FORMATS["int8"]), scales)
    np.testing.assert_array_equal(state["embed.weight"], wanted)


@pytest.mark.parametrize("name", [WIDE, *ABSORBED, "coda.0.ffn_norm.weight", "recurrent.lora.B"])
def test_what_is_kept_in_float_comes_back_as_it_was(mla_config: MythosConfig, name: str) -> None:
    source = eventful_weights(mla_config)
    array = expected(name, torch.float32, source, architecture(mla_config)).contiguous().numpy()
    (part,) = restored_tensors(name, array, None, architecture(mla_config))
    wanted = source.read(part.name).numpy()
    np.testing.assert_array_equal(part.read(), wanted if part.rows is None else wanted[part.rows])


@pytest.mark.parametrize(
    ("stacks", "kind"), [((GATE_UP, DOWN), "int4b32.packed"), ((GATE_UP_8, DOWN_8), "int8b32.packed")]
)
def test_a_stack_holds_what_its_layers_would_alone(
    mla_config: MythosConfig, stacks: tuple[str, str], kind: str
) -> None:
    state = state_of(stored_arrays(mla_config, *stacks), mla_config)
    alone = {
        name: rounded(mla_config, f"{name}.T", kind).T
        for expert in range(mla_config.n_experts)
        for name in (f"{ROUTED_EXPERTS}.{expert}.{part}.weight" for part in ("gate", "up", "down"))
    }
    assert state.keys() == alone.keys()
    for name, wanted in alone.items():
        np.testing.assert_array_equal(state[name], wanted)


@pytest.mark.parametrize("stack", [GATE_UP, GATE_UP_8])
def test_rows_of_gate_and_up_alternate(mla_config: MythosConfig, stack: str) -> None:
    arrays, kind = stored_arrays(mla_config, stack), stack.split(".")[-2]
    for offset, part in enumerate(("gate", "up")):
        single = stored_arrays(mla_config, f"{ROUTED_EXPERTS}.3.{part}.weight.T.{kind}.packed")
        numbers, scales = single.values()
        np.testing.assert_array_equal(arrays[stack][3, offset::2], numbers.reshape(len(numbers), -1))
        np.testing.assert_array_equal(arrays[f"{stack}.scale"][3, offset::2], scales)


NAMES = [
    *(f"{WIDE}.{kind}" for kind in ("int8", "int4b32", "int4b32.packed", "int8b64.packed")),
    f"{ABSORBED[0]}.fp8",
    "embed.weight.rows",
    GATE_UP,
    DOWN,
    GATE_UP_8,
    DOWN_8,
]


@pytest.mark.parametrize("name", NAMES)
def test_what_quantising_gives_is_told_from_anything_else(mla_config: MythosConfig, name: str) -> None:
    numbers, scales = stored_arrays(mla_config, name).values()
    differing = quantizer(mla_config).differing
    assert differing(name, numbers, scales) == []
    assert differing(name, numbers, scales * np.float32(1 + 1e-7)) == [f"{name}.scale"]
    damaged = numbers.copy()
    damaged.reshape(-1).view(np.uint8)[-1] ^= 1
    assert differing(name, damaged, scales) == [name]
    assert differing(name, numbers[:-1], scales) == [name]
    assert differing(name, np.concatenate([numbers, numbers]), scales) == [name]
    assert differing(name, numbers, scales.astype(np.float64)) == [f"{name}.scale"]
    assert set(differing(name, np.array(7), np.array(7))) == {name, f"{name}.scale"}


@pytest.mark.parametrize(
    "name",
    [
        f"{WIDE}.int4b31.packed",
        "coda.0.ffn.int4b32.stacked",
        f"{GATE_UP}.scales",
        WIDE,
        f"{WIDE}.int4b0",
        f"{WIDE}.fp8b32.packed",
        f"{WIDE}.int8.packed",
    ],
)
def test_other_names_are_not_quantised_weights(mla_config: MythosConfig, name: str) -> None:
    assert read_name(name) is None


@pytest.mark.parametrize("name", ["coda.9.ffn.up.weight.T.int4b32.packed", "coda.9.ffn.up.weight.T", "x.rows"])
def test_weights_of_another_model_are_refused(mla_config: MythosConfig, name: str) -> None:
    with pytest.raises(ValueError, match=r"the model has no weight (coda\.9\.ffn\.up|x)"):
        restored_tensors(name, np.zeros((1, 1)), np.zeros(1), architecture(mla_config))


@pytest.mark.parametrize(("name", "scales"), [(f"{WIDE}.int8", None), (f"{WIDE}.int8.scale", np.zeros(1))])
def test_numbers_or_scales_alone_are_refused(mla_config: MythosConfig, name: str, scales: np.ndarray | None) -> None:
    with pytest.raises(ValueError, match="stand for no weight"):
        restored_tensors(name, np.zeros((1, 1)), scales, architecture(mla_config))


class Watched:
    """A reader of weights that counts what of them is still in memory."""

    def __init__(self, config: MythosConfig) -> None:
        self.source, self.config = eventful_weights(config), config
        self.read: list[str] = []
        self.alive: list[weakref.ref[np.ndarray]] = []
        self.most = 0

    def __call__(self, name: str) -> np.ndarray:
        self.most = max(self.most, sum(array() is not None for array in self.alive))
        array = expected(name, torch.float32, self.source, architecture(self.config)).numpy().copy()
        self.read.append(name)
        self.alive.append(weakref.ref(array))
        return array


class CountedFile:
    """A file that remembers how much it was given at once."""

    def __init__(self, path: Path) -> None:
        self.file, self.name, self.largest = path.open("wb"), str(path), 0

    def write(self, content: bytes) -> int:
        self.largest = max(self.largest, len(content))
        return self.file.write(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many numbers' scales have been searched for, call by call."""
    calls: list[int] = []

    def counted(weight: np.ndarray, *rest: Any) -> np.ndarray:
        calls.append(weight.size)
        return block_scales(weight, *rest)

    monkeypatch.setattr(store, "block_scales", counted)
    return calls


@pytest.mark.parametrize("stack", [GATE_UP, DOWN, GATE_UP_8])
def test_a_stack_is_written_one_expert_at_a_time(
    mla_config: MythosConfig, tmp_path: Path, searches: list[int], stack: str
) -> None:
    watched = Watched(mla_config)
    maker, file = Quantizer(watched, architecture(mla_config)), CountedFile(tmp_path / "data")
    order = [f"{stack}.scale", stack]
    tensors = [maker.tensor(read_name(name), name) for name in order]  # type: ignore[arg-type]
    assert watched.read == [], "nothing is read before it is written"
    for tensor in tensors:
        tensor.tofile(file)
    file.close()
    stored = read_name(stack)
    assert stored is not None
    members = [each.name for expert in stack_members(stored.weight, architecture(mla_config)) for each in expert]
    assert watched.read == members * 2, "once for the scales, once for the numbers"
    assert watched.most <= 1
    assert file.largest == tensors[1].nbytes / mla_config.n_experts
    assert len(searches) == len(members), "the numbers take the scales from the file"
    content = (tmp_path / "data").read_bytes()
    wanted = stored_arrays(mla_config, stack)
    assert content == b"".join(wanted[name].tobytes() for name in order)


def test_numbers_that_are_written_before_their_scales_are_the_same(mla_config: MythosConfig, tmp_path: Path) -> None:
    maker, wanted = quantizer(mla_config), stored_arrays(mla_config, DOWN)
    tensors = [maker.tensor(read_name(name), name) for name in (DOWN, f"{DOWN}.scale", DOWN)]  # type: ignore[arg-type]
    for index, tensor in enumerate(tensors):
        with (tmp_path / str(index)).open("wb") as file:
            tensor.tofile(file)
        assert (tmp_path / str(index)).read_bytes() == wanted[str(tensor.name)].tobytes()


def test_a_stack_streams_through_the_writer_of_bundles(
    mla_config: MythosConfig, tmp_path: Path, searches: list[int]
) -> None:
    """The tensors are wrapped once more on that way, and lie behind others in the file."""
    shapes = {
        "norm.weight": [64],
        f"{DOWN}.scale": [6, 64, 1],
        DOWN: [6, 64, 16],
        f"{WIDE}.int4b32.packed": [64, 3, 16],
    }
    parameters = {
        name: ir.Value(
            name=name,
            type=ir.TensorType(ir.DataType.FLOAT if name.endswith(("scale", "norm.weight")) else ir.DataType.UINT8),
            shape=ir.Shape(shape),
        )
        for name, shape in shapes.items()
    }
    tensors = bind(parameters, eventful_weights(mla_config), architecture(mla_config))
    written = external_data.convert_tensors_to_external(tensors, tmp_path, "data", alignment=4096, align_threshold=0)
    assert len(searches) == 6 + 1, "six experts and a layer, once each"
    wanted = stored_arrays(mla_config, DOWN, f"{WIDE}.int4b32.packed")
    for tensor in written[1:]:
        np.testing.assert_array_equal(tensor.numpy(), wanted[str(tensor.name)])


def test_a_stack_of_experts_that_the_model_does_not_have_is_refused(mla_config: MythosConfig) -> None:
    name = "coda.0.ffn.routed_experts.down.int4b32.stacked"
    stored = read_name(name)
    assert stored is not None
    with pytest.raises(ValueError, match=r"the model has no weight coda\.0\.ffn\.routed_experts\.down"):
        quantizer(mla_config).tensor(stored, name)


def test_packed_is_the_same_as_plain(mla_config: MythosConfig) -> None:
    """One quantised model, two layouts."""
    arrays = stored_arrays(mla_config, f"{WIDE}.int4b32", f"{WIDE}.int4b32.packed")
    plain, scales, ours, our_scales = arrays.values()
    np.testing.assert_array_equal(ours, packed(plain.astype(np.float32), 32, 4))
    np.testing.assert_array_equal(our_scales, scales.T)
