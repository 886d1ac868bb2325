"""The tensor-level model over HTTP and gRPC: the graph's own answers, and an error for each request that has none."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from served import Served

import engines
from engines.cache import KVCache
from mythos_export.bundle import Bundle, Manifest

Arrays = dict[str, NDArray[Any]]
REPLAY = Path(__file__).with_name("replay.py")


class Client:
    """Calls a model of the server by one protocol, and keeps every call with its answer."""

    def __init__(self, protocol: ModuleType, address: str, model: str, manifest: Manifest) -> None:
        self._protocol, self._client = protocol, protocol.InferenceServerClient(address)
        self._model, self._types = model, {spec.name: spec.dtype for spec in manifest.inputs + manifest.outputs}
        self.calls: list[tuple[Arrays, Arrays]] = []

    def __call__(self, arrays: Mapping[str, NDArray[Any]], outputs: list[str] | None = None) -> Arrays:
        from tritonclient.utils import np_to_triton_dtype

        inputs = []
        for name, array in arrays.items():
            native = self._native(name, array)
            tensor = self._protocol.InferInput(name, list(native.shape), np_to_triton_dtype(native.dtype))
            inputs.append(tensor.set_data_from_numpy(np.ascontiguousarray(native)))
        wanted = None if outputs is None else [self._protocol.InferRequestedOutput(name) for name in outputs]
        result = self._client.infer(self._model, inputs, outputs=wanted)
        answer = {name: result.as_numpy(name) for name in self._types if result.get_output(name) is not None}
        bits = {name: array.view(np.uint16) if self._is_half(name) else array for name, array in answer.items()}
        self.calls.append(({name: array.copy() for name, array in arrays.items()}, bits))
        return bits

    def _native(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        import ml_dtypes

        half = self._is_half(name) and array.dtype == np.uint16
        return np.atleast_1d(array.view(ml_dtypes.bfloat16) if half else array)

    def _is_half(self, name: str) -> bool:
        return self._types.get(name) == "bfloat16"


Connect = Callable[..., Client]


@pytest.fixture(params=["http", "grpc"])
def connect(request: pytest.FixtureRequest, server: Served) -> Connect:
    """A client of a model by each protocol."""
    protocol = pytest.importorskip(f"tritonclient.{request.param}")
    address = server.http[7:] if request.param == "http" else server.grpc

    def make(model: str, path: Path) -> Client:
        return Client(protocol, address, model, Bundle.open(path).manifest)

    return make


@pytest.fixture
def bundles(tiny_bundle: Path, tiny_gqa_bundle: Path, half_bundle: Path) -> dict[str, Path]:
    return {"mla": tiny_bundle, "gqa": tiny_gqa_bundle, "half": half_bundle}


class Sequences:
    """Sequences whose cache a client keeps: it grows by what each call returns."""

    def __init__(self, call: Client, path: Path, loops: list[int], capacity: int = 32) -> None:
        self._call, self._loops = call, np.array(loops)
        manifest = Bundle.open(path).manifest
        self._cache = KVCache(manifest.cache, loops=max(loops), batch=len(loops), capacity=capacity)
        self._lengths = np.zeros(len(loops), np.int64)

    def inputs(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Arrays:
        positions = (self._lengths[:, None] + mask.cumsum(axis=1) - 1).clip(min=0)
        plain = {"input_ids": ids, "position_ids": positions, "n_loops": self._loops, "logits_to_keep": np.array(1)}
        return {**plain, **self._cache.inputs(mask)}

    def extend(self, ids: list[list[int]], mask: list[list[int]] | None = None) -> list[int]:
        """Feed tokens; the likeliest next one of each sequence."""
        shown = np.ones_like(ids) if mask is None else np.array(mask)
        answer = self._call(self.inputs(np.array(ids), shown))
        self._cache.append([answer[name] for name in self._cache.outputs], shown)
        self._lengths += shown.sum(axis=1)
        return [int(token) for token in answer["logits"][:, -1].argmax(axis=-1)]


def _same_in_process(environment: Path, path: Path, client: Client, folder: Path) -> None:
    """Every answer so far is to the bit what the graph gives in a process of the server's environment."""
    calls = {f"{index}/{name}": array for index, (given, _) in enumerate(client.calls) for name, array in given.items()}
    np.savez(folder / "calls.npz", **calls)
    subprocess.run([environment / "python", REPLAY, path, folder / "calls.npz", folder / "answers.npz"], check=True)
    wanted = np.load(folder / "answers.npz")
    assert len(wanted.files) == len(client.calls) * len(client.calls[0][1])
    for index, (_, answer) in enumerate(client.calls):
        for name, array in answer.items():
            assert array.shape == wanted[f"{index}/{name}"].shape, name
            np.testing.assert_array_equal(array, wanted[f"{index}/{name}"], err_msg=f"call {index}, {name}")


@pytest.mark.parametrize("name", ["mla", "gqa", "half"])
def test_prefill_and_steps_equal_the_engine(
    connect: Connect, environment: Path, bundles: dict[str, Path], tmp_path: Path, name: str
) -> None:
    client = connect(f"{name}-tensors", bundles[name])
    sequences = Sequences(client, bundles[name], [4])
    tokens = sequences.extend([[5, 6, 7]])
    for _ in range(5):
        tokens += sequences.extend([[tokens[-1]]])
    wanted = engines.load(bundles[name], threads=1).generate([5, 6, 7], loops=4, max_new_tokens=6)
    assert tokens == list(wanted)
    _same_in_process(environment, bundles[name], client, tmp_path)


def test_chunks_mixed_depths_and_padding_equal_the_engine(
    connect: Connect, environment: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    client = connect("mla-tensors", tiny_bundle)
    prompts, loops = [[5, 6, 7, 8, 9], [10, 11]], [2, 6]
    sequences = Sequences(client, tiny_bundle, loops)
    sequences.extend([[5, 6], [0, 0]], [[1, 1], [0, 0]])  # the second has not begun
    step = sequences.extend([[7, 8, 9], [0, 10, 11]], [[1, 1, 1], [0, 1, 1]])
    steps = [step]
    for _ in range(4):
        steps.append(sequences.extend([[token] for token in steps[-1]]))
    engine = engines.load(tiny_bundle, threads=1)
    for index, (prompt, depth) in enumerate(zip(prompts, loops)):
        assert [step[index] for step in steps] == list(engine.generate(prompt, loops=depth, max_new_tokens=5))
    _same_in_process(environment, tiny_bundle, client, tmp_path)


def test_only_the_outputs_asked_for_come_back(connect: Connect, tiny_bundle: Path) -> None:
    client = connect("mla-tensors", tiny_bundle)
    inputs = Sequences(client, tiny_bundle, [3]).inputs(np.array([[5, 6]]), np.array([[1, 1]]))
    assert client(inputs, ["halting.depth"]).keys() == {"halting.depth"}
    answer = client({**inputs, "logits_to_keep": np.array(0)}, ["logits"])
    assert answer.keys() == {"logits"}
    assert answer["logits"].shape == (1, 2, 97)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("n_loops", np.array([0]), "n_loops holds 0; it must lie in 1..24"),
        ("n_loops", np.array([1 << 40]), "n_loops holds 1099511627776"),
        ("n_loops", np.array([4]), "holds 3 depths and the loop runs 4 times"),
        ("n_loops", np.array([3, 3]), "n_loops has shape [2]"),
        ("input_ids", np.array([[5, 97]]), "input_ids holds 97; it must lie in 0..96"),
        ("input_ids", np.array([[5, -1]]), "input_ids holds -1"),
        ("input_ids", np.zeros((1, 0), np.int64), "has shape"),
        ("input_ids", np.array([5, 6]), "input_ids"),
        ("input_ids", np.array([[5, 6]], np.int32), "INT32"),
        ("attention_mask", np.ones((1, 3), np.int64), "attention_mask is 3 wide; it must be 2"),
        ("attention_mask", np.array([[1, 2]]), "attention_mask holds 2"),
        ("position_ids", np.array([[0, 256]]), "position_ids holds 256; it must lie in 0..255"),
        ("position_ids", np.array([[0, 1, 2]]), "position_ids has shape [1, 3]"),
        ("logits_to_keep", np.array(3), "logits_to_keep holds 3; it must lie in 0..2"),
        ("logits_to_keep", np.array([1, 1]), "logits_to_keep"),
        ("past.coda.latent", np.zeros((2, 1, 5, 16), np.float32), "past"),
        ("past.coda.latent", np.zeros((2, 1, 0, 17), np.float32), "past.coda.latent"),
        ("past.coda.latent", np.zeros((2, 1, 0, 16), np.float16), "FP16"),
        ("past.recurrent.latent", np.zeros((3, 2, 0, 16), np.float32), "past.recurrent.latent has shape [3, 2, 0, 16]"),
        ("n_loops", None, "n_loops"),
        ("past.coda.rope", None, "past.coda.rope"),
        ("nonsense", np.array([1]), "nonsense"),
    ],
)
def test_a_malformed_request_is_its_own_error(
    connect: Connect, tiny_bundle: Path, name: str, value: NDArray[Any] | None, said: str
) -> None:
    from tritonclient.utils import InferenceServerException

    client = connect("mla-tensors", tiny_bundle)
    good = Sequences(client, tiny_bundle, [3]).inputs(np.array([[5, 6]]), np.array([[1, 1]]))
    bad = {key: array for key, array in {**good, name: value}.items() if array is not None}
    with pytest.raises(InferenceServerException) as refused:
        client(bad)
    assert said in refused.value.message()
    assert "Traceback" not in refused.value.message()
    assert refused.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")
    assert client(good)["logits"].shape == (1, 1, 97), "the server lives on"
