"""bfloat16 by DLPack, against PyTorch's own."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from engines.triton.backend import dlpack
from engines.triton.backend.dlpack import BFloat16Tensor, read_bfloat16


@pytest.mark.parametrize("shape", [(3,), (2, 1, 4), (2, 1, 0, 16), ()])
def test_what_torch_gives_is_read(shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape).to(torch.bfloat16)
    bits = read_bfloat16(tensor.__dlpack__())
    assert bits.dtype == np.uint16
    assert np.array_equal(bits, tensor.view(torch.uint16).numpy())


@pytest.mark.parametrize("shape", [(3,), (2, 1, 4), (2, 1, 0, 16)])
def test_what_is_offered_reads_as_bfloat16_and_is_let_go(shape: tuple[int, ...]) -> None:
    values = torch.randn(shape).to(torch.bfloat16)
    lent = len(dlpack._lent)
    taken = torch.from_dlpack(BFloat16Tensor(values.view(torch.uint16).numpy()))
    assert taken.dtype == torch.bfloat16
    gc.collect()
    assert torch.equal(taken, values), "its memory is held for as long as it is read"
    assert len(dlpack._lent) == lent + 1
    del taken
    assert len(dlpack._lent) == lent


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(3),
        torch.zeros(3, dtype=torch.float16),
        torch.zeros(3, dtype=torch.int16),
        torch.zeros((3, 2), dtype=torch.bfloat16).T,
    ],
)
def test_another_type_is_refused(tensor: torch.Tensor) -> None:
    with pytest.raises(TypeError, match="not a contiguous bfloat16 tensor"):
        read_bfloat16(tensor.__dlpack__())


def test_bits_that_do_not_lie_in_a_row_are_copied() -> None:
    bits = np.arange(12, dtype=np.uint16).reshape(3, 4).T
    assert torch.equal(torch.from_dlpack(BFloat16Tensor(bits)).view(torch.uint16), torch.from_numpy(bits.copy()))
