"""The formats against ml_dtypes, Python's own rounding and ONNX Runtime; scales against what they must never be."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from functools import cache

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from onnx import TensorProto, helper

from mythos_export.number_formats import (
    FORMATS,
    NumberFormat,
    block_scales,
    channel_scales,
    dequantize,
    quantize,
    scales_of,
)

Floats = NDArray[np.float32]

INT8, FP8, INT4 = (FORMATS[name] for name in ("int8", "fp8", "int4"))
EVERY = pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
ONNX = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN, "int4": TensorProto.INT4}
STORED = {"int8": np.dtype(np.int8), "fp8": np.dtype(ml_dtypes.float8_e4m3fn), "int4": np.dtype(ml_dtypes.int4)}
# any float32 there is (subnormals, both zeros) up to 1e38, where a product with the scale may no longer be finite
FINITE = st.floats(min_value=-float(np.float32(1e38)), max_value=float(np.float32(1e38)), width=32)
WEIGHTS = arrays(np.float32, array_shapes(min_dims=2, max_dims=3, max_side=7), elements=FINITE)


def halves() -> Floats:
    """Every float16: all ties of every format are among them; infinities and NaN too."""
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


def neighbours() -> Floats:
    """Both neighbours of every finite float16: just beside every tie."""
    numbers = halves()
    numbers = numbers[np.isfinite(numbers)]
    return np.concatenate([np.nextafter(numbers, np.float32(side)) for side in (-np.inf, np.inf)])


def any_bits() -> Floats:
    return np.random.default_rng(0).integers(0, 1 << 32, 100_000, np.uint32).view(np.float32)


def inputs() -> Floats:
    numbers = np.concatenate([halves(), neighbours(), any_bits()])
    return np.where(np.isnan(numbers), np.float32(np.nan), numbers)  # a signalling NaN would only warn


def assert_same_bits(got: Floats, expected: Floats) -> None:
    """Equal down to the sign of zero; NaN where NaN."""
    assert got.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(got[number].view(np.uint32), expected[number].view(np.uint32))


@cache
def runtime(name: str, axis: int, block: int, rank: int) -> onnxruntime.InferenceSession:
    """x, scale, one -> the numbers that QuantizeLinear gives, and what DequantizeLinear makes of them."""
    layout = {"axis": axis, "block_size": block}
    saturate = {"saturate": 1} if name == "fp8" else {}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale"], ["q"], output_dtype=ONNX[name], **layout, **saturate),
        helper.make_node("DequantizeLinear", ["q", "one"], ["levels"], **layout),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["y"], **layout),
    ]
    of_scale = rank if block else 1 if rank > 1 else 0
    graph = helper.make_graph(
        nodes,
        "round_trip",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * rank),
            *(helper.make_tensor_value_info(each, TensorProto.FLOAT, [None] * of_scale) for each in ("scale", "one")),
        ],
        [helper.make_tensor_value_info(each, TensorProto.FLOAT, [None] * rank) for each in ("levels", "y")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    # else ONNX Runtime may drop the very pair that is asked about
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(fmt: NumberFormat, x: Floats, scale: Floats, axis: int = 0, block: int = 0) -> tuple[Floats, Floats]:
    session = runtime(fmt.name, axis, block, x.ndim)
    levels, y = session.run(None, {"x": x, "scale": scale, "one": np.ones_like(scale)})
    return levels, y


def absmax_scales(weight: Floats, block: int, fmt: NumberFormat) -> Floats:
    """Of each block [..., K, N], without any search."""
    rows = [
        scales_of(np.abs(weight[..., start : start + block, :]).max(axis=-2, keepdims=True), fmt)
        for start in range(0, weight.shape[-2], block)
    ]
    return np.concatenate(rows, axis=-2)


def squared_errors(weight: Floats, scales: Floats, fmt: NumberFormat, block: int) -> NDArray[np.float64]:
    """Of each block: [..., blocks, N]."""
    levels = quantize(weight, scales, fmt, block).astype(np.float64)
    errors = [
        (weight[..., start : start + block, :] - levels[..., start : start + block, :] * scales[..., [index], :]) ** 2
        for index, start in enumerate(range(0, weight.shape[-2], block))
    ]
    return np.stack([error.sum(axis=-2) for error in errors], axis=-2)


def test_what_the_formats_hold() -> None:
    assert {name: (fmt.name, fmt.smallest, fmt.largest) for name, fmt in FORMATS.items()} == {
        "int8": ("int8", -128, 127),
        "fp8": ("fp8", -448, 448),
        "int4": ("int4", -8, 7),
    }


def test_fp8_rounds_as_ml_dtypes_does() -> None:
    x = inputs()
    # ml_dtypes turns what is too large into NaN, ONNX into the largest number
    expected = np.clip(x, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert_same_bits(FP8.round(x), expected)


def test_fp8_keeps_each_of_its_numbers() -> None:
    numbers = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.isnan(numbers).sum() == 2
    assert_same_bits(FP8.round(numbers), numbers)


@pytest.mark.parametrize("fmt", [INT8, INT4], ids=lambda fmt: fmt.name)
def test_integers_round_as_python_does(fmt: NumberFormat) -> None:
    x = np.concatenate([halves(), neighbours()])
    x = x[np.isfinite(x)]
    expected = [min(max(round(value), int(fmt.smallest)), int(fmt.largest)) for value in x.tolist()]
    assert_same_bits(fmt.round(x), np.array(expected, np.float32))


@EVERY
def test_infinities_saturate_and_nan_stays(fmt: NumberFormat) -> None:
    rounded = fmt.round(np.array([np.inf, -np.inf, np.nan, 3e38, -3e38], np.float32))
    np.testing.assert_array_equal(rounded, [fmt.largest, fmt.smallest, np.nan, fmt.largest, fmt.smallest])


@EVERY
def test_it_rounds_as_onnxruntime_does(fmt: NumberFormat) -> None:
    x = inputs()
    if fmt is not FP8:  # what integer NaN becomes is the runtime's affair
        x = x[~np.isnan(x)]
    levels, y = run(fmt, x, np.array(1, np.float32))
    assert_same_bits(fmt.round(x), levels)
    assert_same_bits(fmt.round(x), y)


@EVERY
@pytest.mark.parametrize("scale", [0.1, 1 / 3, 7.3e-5, 1e-30, 3.0e5])
def test_with_a_scale_it_is_what_onnxruntime_computes(fmt: NumberFormat, scale: float) -> None:
    x = (np.random.default_rng(1).standard_normal(50_000) * fmt.largest * scale).astype(np.float32)
    own = np.float32(scale)
    levels, y = run(fmt, x, np.array(own))
    assert_same_bits(fmt.round(x / own), levels)
    assert_same_bits(fmt.round(x / own) * own, y)


@EVERY
@pytest.mark.parametrize(("shared", "channels"), [(-2, 1), (0, 1), (-1, 0)])
def test_channels_are_what_onnxruntime_computes(fmt: NumberFormat, shared: int, channels: int) -> None:
    """The axis that shares a scale goes; ONNX names the other one."""
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((96, 80)).astype(np.float32)
    weight *= np.exp(rng.uniform(-12, 12, (96, 1))).astype(np.float32)
    scales = channel_scales(weight, shared, fmt)
    levels, y = run(fmt, weight, scales.reshape(-1), channels)
    assert_same_bits(quantize(weight, scales, fmt), levels)
    assert_same_bits(dequantize(levels, scales), y)


@EVERY
def test_near_ties_fall_as_in_onnxruntime(fmt: NumberFormat) -> None:
    """Halves of a scale, as float32 has them: a product with the reciprocal lands on the other side of many."""
    halves_of_one = np.arange(-2 * fmt.largest, 2 * fmt.largest + 1, dtype=np.float32) / 2
    weight = halves_of_one[:, None] * np.random.default_rng(9).uniform(0.1, 10, 64).astype(np.float32)
    scales = channel_scales(weight, -2, fmt)
    levels, _ = run(fmt, weight, scales.reshape(-1), 1)
    assert_same_bits(quantize(weight, scales, fmt), levels)
    inverted = np.clip(fmt.round(weight * (1 / scales)), -fmt.largest, fmt.largest)
    assert (inverted != levels).any()


@EVERY
@pytest.mark.parametrize("block", [1, 16, 32, 100])
@pytest.mark.parametrize("shape", [(96, 40), (3, 50, 24)])
def test_blocks_are_what_onnxruntime_computes(fmt: NumberFormat, block: int, shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    scales = block_scales(weight, block, fmt)
    assert scales.shape == (*shape[:-2], -(-shape[-2] // block), shape[-1])
    # ONNX clips a weight at -8 or -128 where ours stay symmetric: all else must be equal
    levels, _ = run(fmt, weight, scales, len(shape) - 2, block)
    ours = quantize(weight, scales, fmt, block)
    assert_same_bits(ours, np.maximum(levels, np.float32(-fmt.largest)))
    _, y = run(fmt, dequantize(ours, scales, block), scales, len(shape) - 2, block)
    assert_same_bits(dequantize(ours, scales, block), y)


def test_a_weight_is_clipped_symmetrically() -> None:
    weight = np.array([[-9.0, 9.0, -7.6, 7.6, -7.4]], np.float32)
    one = np.ones((1, 1), np.float32)
    assert quantize(weight, one, INT4).tolist() == [[-7, 7, -7, 7, -7]]
    assert INT4.round(weight).tolist() == [[-8, 7, -8, 7, -7]]


@EVERY
def test_numbers_fit_what_they_are_stored_in(fmt: NumberFormat) -> None:
    weight = np.random.default_rng(4).standard_normal((64, 64)).astype(np.float32)
    levels = quantize(weight, block_scales(weight, 16, fmt), fmt, 16)
    assert_same_bits(levels.astype(STORED[fmt.name]).astype(np.float32), levels)


@EVERY
@settings(deadline=None, max_examples=100)
@given(weight=WEIGHTS, axis=st.integers(-2, 1))
def test_a_channel_scale_is_usable(fmt: NumberFormat, weight: Floats, axis: int) -> None:
    scales = channel_scales(weight, axis, fmt)
    reach = np.abs(weight).max(axis=axis, keepdims=True)
    assert scales.dtype == np.float32 and scales.shape == reach.shape
    assert (scales[reach == 0] == 1).all()
    check_scales(weight, scales, quantize(weight, scales, fmt), fmt)


def check_scales(weight: Floats, scales: Floats, levels: Floats, fmt: NumberFormat) -> None:
    """All normal, so never 0, infinite or NaN; and no number lies further from its weight than rounding puts it."""
    normal = np.finfo(np.float32).smallest_normal
    assert np.isfinite(scales).all() and (scales >= normal).all()
    assert np.isfinite(np.float32(1) / scales).all()
    exact = scales.astype(np.float64)
    error = np.abs(levels * exact - weight)
    spacing = exact if fmt is not FP8 else np.maximum(np.abs(weight) / 8, exact * 2.0**-9)
    assert (error <= spacing * 0.50001).all()


@EVERY
@settings(deadline=None, max_examples=100)
@given(weight=WEIGHTS, block=st.integers(1, 8))
def test_a_block_scale_is_usable_and_never_worse_than_absmax(fmt: NumberFormat, weight: Floats, block: int) -> None:
    scales, widest = block_scales(weight, block, fmt), absmax_scales(weight, block, fmt)
    normal = np.finfo(np.float32).smallest_normal
    assert np.isfinite(scales).all() and (scales >= normal).all() and np.isfinite(np.float32(1) / scales).all()
    assert np.isfinite(dequantize(quantize(weight, scales, fmt, block), scales, block)).all()
    found, simple = (squared_errors(weight, each, fmt, block) for each in (scales, widest))
    # both in float32's own rounding: what is less than that apart counts as equal
    assert (found <= simple * (1 + 1e-4) + (widest.astype(np.float64) * 1e-5) ** 2).all()


@pytest.mark.parametrize("block", [16, 32, 128])
def test_the_search_finds_the_best_of_its_grid(block: int) -> None:
    rng = np.random.default_rng(5)
    weight = rng.standard_t(4, (200, 24)).astype(np.float32)
    grid = [absmax_scales(weight, block, INT4) * np.float32(0.6 + 0.025 * step) for step in range(17)]
    best = np.min([squared_errors(weight, scales, INT4, block) for scales in grid], axis=0)
    found = squared_errors(weight, block_scales(weight, block, INT4), INT4, block)
    np.testing.assert_allclose(found, best, rtol=1e-4)
    assert found.sum() < 0.95 * squared_errors(weight, grid[-1], INT4, block).sum()


@EVERY
def test_a_block_of_zeros_gets_scale_one(fmt: NumberFormat) -> None:
    weight = np.zeros((5, 3), np.float32)
    weight[4, 1] = fmt.largest
    assert block_scales(weight, 2, fmt).tolist() == [[1, 1, 1]] * 3


def test_a_block_of_exact_numbers_keeps_its_scale() -> None:
    weight = np.array([[-7, 7], [3, 0], [1, -2]], np.float32) * np.float32(0.25)
    scales = block_scales(weight, 3, INT4)
    assert scales.tolist() == [[0.25, 0.25]]
    assert_same_bits(dequantize(quantize(weight, scales, INT4, 3), scales, 3), weight + np.float32(0))


@EVERY
def test_a_stack_and_a_view_are_quantised_as_each_alone(fmt: NumberFormat) -> None:
    rng = np.random.default_rng(6)
    stack = rng.standard_normal((2, 3, 24, 40)).astype(np.float32).swapaxes(-1, -2)  # no copy: not contiguous
    scales, channels = block_scales(stack, 16, fmt), channel_scales(stack, -2, fmt)
    levels = quantize(stack, scales, fmt, 16)
    for lead in np.ndindex(2, 3):
        alone = np.ascontiguousarray(stack[lead])
        assert_same_bits(scales[lead], block_scales(alone, 16, fmt))
        assert_same_bits(channels[lead], channel_scales(alone, -2, fmt))
        assert_same_bits(quantize(stack, channels, fmt)[lead], quantize(alone, channels[lead], fmt))
        assert_same_bits(levels[lead], quantize(alone, scales[lead], fmt, 16))
        assert_same_bits(dequantize(levels, scales, 16)[lead], dequantize(levels[lead], scales[lead], 16))


def test_pieces_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(7).standard_normal((70, 50)).astype(np.float32)

    def outcome() -> list[Floats]:
        channels, blocks = channel_scales(weight, 1, INT8), block_scales(weight, 32, INT4)
        return [blocks, quantize(weight, channels, INT8), quantize(weight, blocks, INT4, 32)]

    whole = outcome()
    monkeypatch.setattr("mythos_export.number_formats._PIECE", 1)
    for ours, theirs in zip(outcome(), whole):
        assert_same_bits(ours, theirs)


@pytest.mark.parametrize(
    "work",
    [
        lambda weight: block_scales(weight, 64, INT4),
        lambda weight: channel_scales(weight, -2, INT8),
        lambda weight: quantize(weight, np.ones((1, 1), np.float32), FP8),
        lambda weight: dequantize(weight, np.ones((1, 1), np.float32)),
    ],
    ids=["block_scales", "channel_scales", "quantize", "dequantize"],
)
def test_memory_does_not_grow_with_the_weight(work: Callable[[Floats], Floats]) -> None:
    weight = np.random.default_rng(8).standard_normal((512, 8192), np.float32)  # 16 MiB
    tracemalloc.start()
    result = work(weight)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak - result.nbytes < 3 << 20


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0), (2, 0, 4)])
def test_a_weight_without_numbers(shape: tuple[int, ...]) -> None:
    weight = np.empty(shape, np.float32)
    channels, blocks = channel_scales(weight, -1, INT8), block_scales(weight, 2, INT4)
    assert (channels == 1).all()
    assert quantize(weight, channels, INT8).shape == quantize(weight, blocks, INT4, 2).shape == shape


@EVERY
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_must_be_finite(fmt: NumberFormat, bad: float) -> None:
    weight = np.ones((5, 4), np.float32)
    weight[3, 2] = bad
    with pytest.raises(ValueError, match="must be finite; this tensor holds nan or inf"):
        channel_scales(weight, 0, fmt)
    with pytest.raises(ValueError, match="must be finite; this tensor holds nan or inf"):
        block_scales(weight, 2, fmt)


def test_a_limit_of_zero_gives_scale_one_and_a_negative_one_none() -> None:
    limits = np.array([0, 127, 254, 1e-45, 1e-38], np.float32)
    assert scales_of(limits, INT8).tolist() == [1, 1, 2, 2.0**-125, 2.0**-125]
    with pytest.raises(ValueError, match="must be at least 0"):
        scales_of(np.array([1, -1], np.float32), INT8)


def test_scales_of_another_block() -> None:
    weight = np.ones((64, 4), np.float32)
    scales = block_scales(weight, 16, INT4)
    with pytest.raises(ValueError, match="4 rows of scales; 64 rows in blocks of 32 need 2"):
        quantize(weight, scales, INT4, 32)
    with pytest.raises(ValueError, match="4 rows of scales; 64 rows in blocks of 8 need 8"):
        dequantize(weight, scales, 8)
    with pytest.raises(ValueError, match="block is 0; it must be at least 1"):
        block_scales(weight, 0, INT4)
