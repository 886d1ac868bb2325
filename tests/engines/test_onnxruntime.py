"""Sessions: which graph, which options, and errors in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import engines
from engines import EngineError
from engines.onnxruntime import OnnxRuntimeEngine
from mythos_export.bundle import Bundle, BundleError

MakeToy = Callable[..., Bundle]
Tokens = Callable[[Sequence[int], int, int], list[int]]


def loaded(engine: engines.Engine) -> list[str]:
    return sorted(engine._graphs)


class TestWhichGraph:
    @pytest.mark.parametrize(
        ("graphs", "loops", "expected"),
        [
            (["dynamic", 2, 4], 4, "model-4.onnx"),
            (["dynamic", 2, 4], 3, "model-dynamic.onnx"),
            ([2, 4], 3, "model-4.onnx"),
            ([4, 2], 1, "model-2.onnx"),
            ([4, 2], [1, 4], "model-4.onnx"),
            (["dynamic", 2, 4], [1, 2], "model-2.onnx"),
        ],
    )
    def test_picked(self, toy: MakeToy, toy_tokens: Tokens, graphs: list[Any], loops: Any, expected: str) -> None:
        engine = engines.load(toy(loops=graphs).path)
        assert loaded(engine) == []  # nothing is loaded before it is needed
        depths = loops if isinstance(loops, list) else [loops]
        steps = list(engine.generate([[3, 1]] * len(depths), loops=loops, max_new_tokens=6))
        assert loaded(engine) == [expected]
        for index, depth in enumerate(depths):  # shallower than an unrolled graph is exact too
            assert [int(step[index]) for step in steps] == toy_tokens([3, 1], depth, 6)

    def test_deeper_than_every_graph(self, toy: MakeToy) -> None:
        engine = engines.load(toy(loops=[4, 2]).path)
        for request in (lambda: engine.generate([1], loops=5), lambda: engine.logits([1], loops=5)):
            with pytest.raises(EngineError) as raised:
                request()
            assert str(raised.value) == (
                "loops is 5, but the graphs of this bundle are unrolled to 2, 4; export with --loops dynamic"
            )

    @pytest.mark.parametrize(("graphs", "expected"), [(["dynamic", 2], 6), ([2, 4], 4)])
    def test_default_depth(self, toy: MakeToy, graphs: list[Any], expected: int) -> None:
        assert engines.load(toy(loops=graphs).path).default_loops == expected


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_cache_in_half_precision(toy: MakeToy, toy_tokens: Tokens, dtype: str) -> None:
    engine = engines.load(toy(dtype=dtype).path)
    assert list(engine.generate([3, 1], loops=4, max_new_tokens=9, prefill_chunk=1)) == toy_tokens([3, 1], 4, 9)
    assert engine.start([3, 1], loops=4, capacity=5).cache.past["past.recurrent.latent"].dtype.itemsize == 2


class TestOptions:
    def test_session_options_of_the_manifest_reach_the_session(
        self, toy: MakeToy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bundle = toy(session={"session.disable_quant_qdq": "1", "disabled_optimizers": "MatMulAddFusion, GeluFusion"})
        engine = OnnxRuntimeEngine(bundle, threads=2, spinning=False)
        created: list[tuple[Any, dict[str, Any]]] = []
        real = engine._ort.InferenceSession

        def session(path: str, options: Any, **rest: Any) -> Any:
            created.append((options, rest))
            return real(path, options, **rest)

        monkeypatch.setattr(engine._ort, "InferenceSession", session)
        engine.logits([1])
        ((options, rest),) = created
        assert options.get_session_config_entry("session.disable_quant_qdq") == "1"
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
        assert options.intra_op_num_threads == 2
        assert rest == {"providers": ["CPUExecutionProvider"], "disabled_optimizers": ["MatMulAddFusion", "GeluFusion"]}

    def test_an_option_that_is_not_known_is_refused(self, toy: MakeToy) -> None:
        engine = OnnxRuntimeEngine(toy(session={"session.model_external_initializers_file_folder_path": "/etc"}))
        with pytest.raises(EngineError, match=r"this release does not know session option 'session.model_external"):
            engine.logits([1])

    def test_threads(self, toy: MakeToy) -> None:
        with pytest.raises(EngineError, match="threads is 0; it must be an integer of at least 1"):
            OnnxRuntimeEngine(toy(), threads=0)

    def test_a_provider_that_is_not_there(self, toy: MakeToy) -> None:
        with pytest.raises(EngineError, match=r"NoSuchProvider is not in this onnxruntime \(it has .*CPUExecution"):
            OnnxRuntimeEngine(toy(), providers="NoSuchProvider")

    def test_cuda_names_its_extra(self, toy: MakeToy, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
        with pytest.raises(EngineError, match=r'CUDAExecutionProvider .*; pip install "mythos-export\[gpu\]"'):
            OnnxRuntimeEngine(toy(), providers="cuda")

    def test_a_provider_that_silently_fell_back(self, toy: MakeToy, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            "onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
        )
        engine = OnnxRuntimeEngine(toy(), providers="cuda")
        real = engine._ort.InferenceSession
        monkeypatch.setattr(
            engine._ort, "InferenceSession", lambda *a, **k: real(*a, **{**k, "providers": ["CPUExecutionProvider"]})
        )
        with pytest.raises(EngineError, match="CUDAExecutionProvider could not start on this machine"):
            engine.logits([1])


class TestErrors:
    def test_onnxruntime_missing(self, toy: MakeToy, monkeypatch: pytest.MonkeyPatch) -> None:
        path = toy().path
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(EngineError) as raised:
            engines.load(path)
        assert str(raised.value) == (
            'this bundle needs onnxruntime: pip install "mythos-export[cpu]" (or "mythos-export[gpu]" for CUDA)'
        )

    def test_a_damaged_bundle_is_the_bundles_error(self, toy: MakeToy) -> None:
        bundle = toy()
        graph = bundle.path / "model-dynamic.onnx"
        content = graph.read_bytes()
        graph.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(BundleError, match="altered since it was exported"):
            engines.load(bundle.path)

    def test_a_graph_that_does_not_load(self, toy: MakeToy, capfd: pytest.CaptureFixture[str]) -> None:
        bundle = toy()
        (bundle.path / "model-dynamic.onnx").write_bytes(b"not a graph")
        with pytest.raises(EngineError, match=r"model-dynamic.onnx: ONNX Runtime cannot load it: ") as raised:
            OnnxRuntimeEngine(Bundle(bundle.path, bundle.manifest)).logits([1])  # not checked, so it has not changed
        assert "\n" not in str(raised.value)
        assert capfd.readouterr().err == ""

    def test_a_run_that_fails(self, toy: MakeToy, capfd: pytest.CaptureFixture[str]) -> None:
        engine = OnnxRuntimeEngine(toy())
        graph = engine.graph(np.array([1]))
        with pytest.raises(EngineError, match=r"model-dynamic.onnx: ONNX Runtime failed: ") as raised:
            graph.run({"input_ids": np.zeros((1, 1), np.int64)}, ["logits"])
        assert "\n" not in str(raised.value)
        assert capfd.readouterr().err == ""

    def test_a_graph_of_another_signature(self, toy: MakeToy) -> None:
        bundle = toy()
        manifest = bundle.manifest.model_copy(update={"inputs": bundle.manifest.inputs[1:]})
        with pytest.raises(EngineError, match="its inputs differ from the manifest's in input_ids"):
            OnnxRuntimeEngine(Bundle(bundle.path, manifest)).logits([1])


def test_two_threads_share_one_session(toy: MakeToy) -> None:
    import threading

    engine = OnnxRuntimeEngine(toy())
    results: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda: results.append(list(engine.generate([3], max_new_tokens=20)))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(result == results[0] for result in results)
    assert loaded(engine) == ["model-dynamic.onnx"]
