"""The check that quantised products run quantised, on text such as an engine holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from mythos_export.building.gemms import FellBack, check_gemms, quantized_products

LOOP = "$$myelin$$(Unnamed Loop* 0)^"
GATE, UP, HEAD = "step.gate.quantized.MatMul_3", "step.up.quantized.MatMul_3", "head.quantized.MatMul_3"


def engine(path: Path, *, x: str = "int8", head: str = "int8", merged: str = f"{LOOP}{GATE}+{LOOP}{UP}_U477") -> Path:
    """An engine with two products: the Loop's two merged into one, and the head's."""
    text = f"""
  tensor={{ alignment=128 dims={{ 1 }} name="x^deref" offset=0 strides={{ 1 }} type={x} }}
  tensor={{ alignment=128 const_payload_size=9 dims={{ 4 4 }} name="w_dconst" offset=0 type=int8 }}
  tensor={{ alignment=128 dims={{ 1 }} name="z" offset=0 strides={{ 1 }} type={head} }}
  fully_connected={{ name="{merged}" output={{"y" }} input={{"x^deref" "w_dconst" "alpha" "beta" }} stream=0 }}
  fully_connected={{ name="{HEAD}" output={{"l" }} input={{"z^deref" "w_dconst" "alpha" "beta" }} stream=0 }}
  fully_connected={{ name="step.router.MatMul_0" output={{"r" }} input={{"a" "b" }} stream=0 }}
"""
    path.write_bytes(b"\0\1\2" + text.encode() + b"\xff\0")
    return path


def test_names_of_the_quantised(tmp_path: Path) -> None:
    layers = ["x.MatMul_0", f"{LOOP}{GATE}", HEAD, "head.quantized.Mul_4", "head.quantized.QuantizeLinear_0"]
    assert quantized_products(layers) == {GATE, HEAD}


def test_all_run_in_int8(tmp_path: Path) -> None:
    found = check_gemms(engine(tmp_path / "e"), {GATE, UP, HEAD}, "int8")
    assert found is not None
    assert (found.quantized, found.in_loop, found.kernels, found.type) == (3, 2, 2, "int8")


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        ({"x": "float"}, "2 products do not run in int8: step.* in float x int8"),
        ({"head": "half"}, "1 products do not run in int8: head.* in half x int8"),
        ({"merged": f"{LOOP}{GATE}"}, "step.up.* not found"),
    ],
)
def test_one_that_fell_back(plant: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(FellBack, match=message):
        check_gemms(engine(tmp_path / "e", **plant), {GATE, UP, HEAD}, "int8")


def test_another_type(tmp_path: Path) -> None:
    with pytest.raises(FellBack, match="do not run in fp8_e4m3"):
        check_gemms(engine(tmp_path / "e"), {GATE, UP, HEAD}, "fp8")


def test_nothing_quantised_at_all(tmp_path: Path) -> None:
    with pytest.raises(FellBack, match="no product of the graph is quantised"):
        check_gemms(engine(tmp_path / "e"), set(), "int8")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int4"])
def test_what_multiplies_in_float_by_design(precision: str, tmp_path: Path) -> None:
    assert check_gemms(engine(tmp_path / "e"), {GATE}, precision) is None
