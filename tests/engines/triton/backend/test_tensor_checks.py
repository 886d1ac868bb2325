"""Whatever a client sends, it is refused in one line or the graph can run it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as drawn
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.triton.backend.tensor_checks import check_tensors
from mythos_export.bundle import CachePart, Limits, Manifest, TensorSpec

Arrays = dict[str, NDArray[Any]]
VOCAB, LONGEST, MOST_LOOPS = 11, 20, 8
PARTS: dict[str, Any] = {"prelude.latent": 1, "recurrent.latent": "loops", "coda.latent": 2}
PLAIN: dict[str, list[int | str]] = {
    "input_ids": ["batch", "seq"],
    "attention_mask": ["batch", "past_plus_seq"],
    "position_ids": ["batch", "seq"],
    "n_loops": ["batch"],
    "logits_to_keep": [],
}
MANIFEST = Manifest.model_construct(
    inputs=[
        *(TensorSpec(name=name, dtype="int64", shape=shape) for name, shape in PLAIN.items()),
        *(
            TensorSpec(name=f"past.{name}", dtype="float32", shape=[depth, "batch", "past", 3])
            for name, depth in PARTS.items()
        ),
    ],
    cache=[CachePart(name=name, depth=depth, row=[3], dtype="float32") for name, depth in PARTS.items()],
    limits=Limits(vocab_size=VOCAB, max_seq_len=LONGEST, max_loop_iters=2),
)


def _call(batch: int = 2, seq: int = 3, past: int = 4, loops: int = 5) -> Arrays:
    """A good one."""
    caches = {
        f"past.{name}": np.zeros((loops if depth == "loops" else depth, batch, past, 3), np.float32)
        for name, depth in PARTS.items()
    }
    return {
        "input_ids": np.full((batch, seq), VOCAB - 1),
        "attention_mask": np.ones((batch, past + seq), np.int64),
        "position_ids": np.full((batch, seq), LONGEST - 1),
        "n_loops": np.full(batch, loops),
        "logits_to_keep": np.array([seq]),
        **caches,
    }


def _check(arrays: dict[str, Any], graph_loops: Any = "dynamic") -> Arrays:
    return check_tensors(arrays, MANIFEST, graph_loops=graph_loops, max_loops=MOST_LOOPS)


@pytest.mark.parametrize("sizes", [{}, {"past": 0}, {"batch": 1, "seq": 1}, {"loops": 1}, {"loops": MOST_LOOPS}])
def test_a_good_call_passes_as_it_is(sizes: dict[str, int]) -> None:
    given = _call(**sizes)
    checked = _check(given)
    assert checked.keys() == given.keys()
    assert checked["logits_to_keep"].shape == ()
    assert all(np.array_equal(checked[name], array.reshape(checked[name].shape)) for name, array in given.items())


def test_a_cache_may_be_deeper_than_the_call() -> None:
    assert _check({**_call(loops=5), "n_loops": np.array([1, 2])})["past.recurrent.latent"].shape[0] == 5


@pytest.mark.parametrize(("asked", "held", "passes"), [(3, 4, True), (4, 4, True), (5, 5, False), (2, 3, False)])
def test_an_unrolled_graph_wants_its_own_depths(asked: int, held: int, passes: bool) -> None:
    call = {**_call(loops=held), "n_loops": np.full(2, asked)}
    if passes:
        _check(call, graph_loops=4)
        return
    with pytest.raises(EngineError, match=r"must lie in 1\.\.4|holds 3 depths and the loop runs 4 times"):
        _check(call, graph_loops=4)


@given(
    name=st.sampled_from([spec.name for spec in MANIFEST.inputs]),
    other=st.none()
    | drawn.arrays(
        st.sampled_from([np.dtype(np.int64), np.dtype(np.float32), np.dtype(np.int32)]),
        drawn.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
        elements={"min_value": -2, "max_value": 2},
    ),
)
def test_one_input_replaced_is_refused_or_consistent(name: str, other: NDArray[Any] | None) -> None:
    call: dict[str, Any] = {**_call(batch=1, seq=1, past=1, loops=2), name: other}
    try:
        checked = _check(call)
    except EngineError as error:
        assert name in str(error) or "attention_mask" in str(error) or "past." in str(error)
        assert str(error).isprintable()
        return
    batch, seq = checked["input_ids"].shape
    past = checked["past.prelude.latent"].shape[2]
    assert checked["attention_mask"].shape == (batch, past + seq)
    assert set(checked["attention_mask"].flat) <= {0, 1}
    assert checked["n_loops"].shape == (batch,)
    assert 1 <= checked["n_loops"].min() <= checked["n_loops"].max() <= checked["past.recurrent.latent"].shape[0]
    assert 0 <= checked["input_ids"].min() <= checked["input_ids"].max() < VOCAB
    assert 0 <= checked["position_ids"].min() <= checked["position_ids"].max() < LONGEST
    assert 0 <= checked["logits_to_keep"] <= seq
    for part, depth in PARTS.items():
        array = checked[f"past.{part}"]
        assert array.dtype == np.float32
        assert array.shape[1:] == (batch, past, 3)
        assert depth == "loops" or array.shape[0] == depth
