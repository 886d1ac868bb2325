"""The TensorRT engine on a stand-in: device memory is the host's, and ONNX Runtime computes what TensorRT would.

What drives TensorRT is shown here: shapes, addresses, the cache on the device, profiles, receipts. That TensorRT
itself computes it, only a GPU can show.
"""

from __future__ import annotations

import ctypes
import importlib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import engines
from engines import tensorrt, tensorrt_library
from engines.cuda import Cuda
from engines.errors import EngineError
from engines.receipts import Axis, EngineEntry, Profile, Receipt, read_receipt, receipt_path, source_hash
from engines.tensorrt import TensorRtEngine
from mythos_export.bundle import Bundle, file_entry

VERSION = "10.3.0"
WIDE = Profile(
    batch=Axis(min=1, opt=1, max=4),
    seq=Axis(min=1, opt=8, max=64),
    past=Axis(min=0, opt=8, max=64),
    loops=Axis(min=1, opt=4, max=8),
)


class HostCuda(Cuda):
    """Device memory that is the host's."""

    def __init__(self) -> None:
        self.stream, self.memory = 7, dict[int, Any]()
        self.uploaded = self.copied = self.allocations = 0

    @property
    def compute_capability(self) -> str:
        return "8.9"

    def allocate(self, size: int) -> int:
        block = ctypes.create_string_buffer(max(size, 1))
        self.allocations += 1
        self.memory[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def free(self, address: int) -> None:
        del self.memory[address]

    def upload(self, address: int, array: np.ndarray) -> None:
        self.uploaded += array.nbytes
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def download(self, array: np.ndarray, address: int) -> None:
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def copy_rows(self, to: int, to_pitch: int, source: int, width: int, count: int) -> None:
        self.copied += width * count
        for row in range(count):
            ctypes.memmove(to + row * to_pitch, source + row * width, width)


class Context:
    """An execution context over an ONNX Runtime session; the plan is the graph's path."""

    def __init__(self, plan: bytes) -> None:
        self.session = onnxruntime.InferenceSession(plan.decode(), providers=["CPUExecutionProvider"])
        self.inputs = {node.name: np.dtype(types_of(node.type)) for node in self.session.get_inputs()}
        self.outputs = [node.name for node in self.session.get_outputs()]
        self.shapes: dict[str, tuple[int, ...]] = {"logits_to_keep": ()}
        self.addresses: dict[str, int] = {}
        self.bindings = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return name in self.inputs

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        self.bindings += 1
        return True

    def execute_async_v3(self, stream: int) -> bool:
        feeds = {}
        for name, dtype in self.inputs.items():
            array = np.empty(self.shapes[name], dtype)
            ctypes.memmove(array.ctypes.data, self.addresses[name], array.nbytes)
            feeds[name] = array
        for name, array in zip(self.outputs, self.session.run(self.outputs, feeds)):
            array = np.ascontiguousarray(array)
            ctypes.memmove(self.addresses[name], array.ctypes.data, array.nbytes)
        return True


def types_of(name: str) -> str:
    return {"tensor(int64)": "int64", "tensor(float)": "float32", "tensor(float16)": "float16"}[name]


CONTEXTS: list[Context] = []


class Loaded:
    def __init__(self, plan: bytes) -> None:
        self.plan = plan

    def create_execution_context(self) -> Context:
        CONTEXTS.append(Context(self.plan))
        return CONTEXTS[-1]


class Runtime:
    def __init__(self, logger: Any) -> None:
        pass

    def deserialize_cuda_engine(self, plan: Any) -> Loaded | None:
        content = bytes(memoryview(plan))
        return Loaded(content) if content.endswith(b".onnx") else None


class Logger:
    class Severity:
        ERROR, INTERNAL_ERROR = 1, 0


STAND_IN = types.SimpleNamespace(__version__=VERSION, Runtime=Runtime, ILogger=Logger)


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def only_the_stand_in(name: str, package: str | None = None) -> Any:
        if name == "tensorrt_rtx":
            raise ImportError(name)
        return STAND_IN if name == "tensorrt" else real(name, package)

    monkeypatch.setattr(tensorrt_library.importlib, "import_module", only_the_stand_in)
    monkeypatch.setattr(Logger, "__init__", lambda self: None)


def write_engines(bundle: Bundle, profile: Profile = WIDE) -> Receipt:
    """Engines of every graph for the stand-in."""
    folder = bundle.path / "engines"
    folder.mkdir()
    entries = []
    for graph in bundle.manifest.graphs:
        plan = folder / f"sm89.{Path(graph.file).stem}.plan"
        plan.write_text(str(bundle.file(graph.file)))
        entries.append(
            EngineEntry(
                file=plan.name,
                loops=graph.loops,
                graph=graph.file,
                source=source_hash(bundle, graph.file),
                entry=file_entry(plan),
                seconds=0.0,
                gemms=None,
            )
        )
    receipt = Receipt(
        format_version=1,
        sm="8.9",
        runtime="tensorrt",
        runtime_version=VERSION,
        tool="0",
        created="now",
        precision=bundle.manifest.precision,
        flags=[],
        profile=profile,
        engines=entries,
    )
    receipt_path(bundle, "8.9").write_text(receipt.model_dump_json())
    return receipt


@pytest.fixture
def bundle(copy_of: Callable[[Path], Bundle], tiny_bundle: Path) -> Bundle:
    return copy_of(tiny_bundle)


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Bundle]:
    import shutil

    return lambda path: Bundle.open(shutil.copytree(path, tmp_path / "bundle"))


PROMPTS = [[5, 6, 7], [1, 2, 3, 4, 5, 6], [9]]


def test_it_generates_what_onnx_runtime_generates(bundle: Bundle) -> None:
    write_engines(bundle)
    ours = engines.load(bundle.path, runtime="tensorrt", cuda=HostCuda())
    theirs = engines.load(bundle.path)
    for options in ({}, {"prefill_chunk": 2}):
        got, wanted = (
            np.stack(list(engine.generate(PROMPTS, [4, 2, 6], max_new_tokens=12, **options)))
            for engine in (ours, theirs)
        )
        np.testing.assert_array_equal(got, wanted)
    np.testing.assert_allclose(ours.logits(PROMPTS, 3), theirs.logits(PROMPTS, 3), atol=1e-5)
    np.testing.assert_array_equal(ours.halting_depth([1, 2], 4), theirs.halting_depth([1, 2], 4))


def test_a_step_moves_its_own_rows_and_binds_nothing_new(bundle: Bundle) -> None:
    write_engines(bundle)
    cuda = HostCuda()
    running = TensorRtEngine(bundle, cuda=cuda).start([1, 2, 3], 4, capacity=12)
    for token in (5, 6):
        running.step([token])
    before = cuda.uploaded, cuda.copied, cuda.allocations, CONTEXTS[-1].bindings
    running.step([7])
    uploaded, copied, allocations, bindings = (
        after - was for after, was in zip((cuda.uploaded, cuda.copied, cuda.allocations, CONTEXTS[-1].bindings), before)
    )
    row = sum((4 if part.depth == "loops" else part.depth) * np.prod(part.row) * 4 for part in bundle.manifest.cache)
    assert copied == row
    assert uploaded == 8 * (1 + 13 + 1 + 1)  # a token, the mask, a position, a depth
    assert (allocations, bindings) == (0, 0)


def test_memory_is_given_back(bundle: Bundle) -> None:
    write_engines(bundle)
    cuda = HostCuda()
    engine = TensorRtEngine(bundle, cuda=cuda)
    list(engine.generate([1, 2], 2, max_new_tokens=3))
    held = len(cuda.memory)
    list(engine.generate([1, 2], 2, max_new_tokens=3))
    assert len(cuda.memory) == held


def test_the_right_engine_for_a_depth(make_bundle, mla_config, copy_of) -> None:  # type: ignore[no-untyped-def]
    bundle = copy_of(make_bundle(mla_config, target="tensorrt", loops="2,3").path)
    write_engines(bundle)
    engine = TensorRtEngine(bundle, cuda=HostCuda())
    assert [engine.graph(np.array([depth]))._name for depth in (2, 3, 4)] == [
        "sm89.model.loops2.plan",
        "sm89.model.loops3.plan",
        "sm89.model.plan",
    ]


@pytest.mark.parametrize(
    ("prompt", "loops", "message"),
    [([[1]] * 5, 2, "built for batch 1 to 4, not 5"), ([1] * 65, 2, "seq 1 to 64"), ([1], 9, "loops 1 to 8, not 9")],
)
def test_beyond_the_profile(prompt: list[Any], loops: int, message: str, bundle: Bundle) -> None:
    write_engines(bundle)
    with pytest.raises(EngineError, match=message):
        TensorRtEngine(bundle, cuda=HostCuda()).logits(prompt, loops)


def test_an_engine_that_does_not_load(bundle: Bundle) -> None:
    receipt = write_engines(bundle)
    plan = bundle.path / "engines" / receipt.engines[0].file
    plan.write_bytes(b"nonsense")
    entry = receipt.engines[0].model_copy(update={"entry": file_entry(plan)})
    changed = receipt.model_copy(update={"engines": [entry]})
    receipt_path(bundle, "8.9").write_text(changed.model_dump_json())
    with pytest.raises(EngineError, match=r"tensorrt 10\.3\.0 cannot load it"):
        TensorRtEngine(bundle, cuda=HostCuda()).logits([1], 1)


def spoil_plan(bundle: Bundle, receipt: Receipt) -> None:
    (bundle.path / "engines" / receipt.engines[0].file).write_bytes(b"x")


def rewrite(**changes: Any) -> Callable[[Bundle, Receipt], None]:
    def spoil(bundle: Bundle, receipt: Receipt) -> None:
        entry = receipt.engines[0].model_copy(update=changes.pop("entry", {}))
        changed = receipt.model_copy(update={"engines": [entry], **changes})
        receipt_path(bundle, "8.9").write_text(changed.model_dump_json())

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda bundle, receipt: receipt_path(bundle, "8.9").unlink(), "no engine for compute capability 8.9"),
        (lambda bundle, receipt: receipt_path(bundle, "8.9").write_text("{}"), "not a usable receipt"),
        (lambda bundle, receipt: receipt_path(bundle, "8.9").write_bytes(b"\xff"), "not a usable receipt"),
        (spoil_plan, "altered since it was built"),
        (lambda bundle, receipt: (bundle.path / "engines" / receipt.engines[0].file).unlink(), "missing"),
        (rewrite(runtime="tensorrt_rtx"), "built by tensorrt_rtx 10.3.0, and this is tensorrt 10.3.0"),
        (rewrite(runtime_version="10.4.0"), "built by tensorrt 10.4.0, and this is tensorrt 10.3.0"),
        (rewrite(sm="8.6"), "a receipt for compute capability 8.6, not 8.9"),
        (rewrite(entry={"source": "0" * 64}), "another model.onnx or other weights"),
        (rewrite(entry={"graph": "other.onnx"}), "which this bundle does not have"),
        (rewrite(entry={"file": "../../x.plan"}), "not a usable receipt"),
    ],
)
def test_foreign_stale_and_altered_engines(spoil: Callable[..., Any], message: str, bundle: Bundle) -> None:
    receipt = write_engines(bundle)
    read_receipt(bundle, "8.9", runtime="tensorrt", version=VERSION)
    spoil(bundle, receipt)
    with pytest.raises(EngineError, match=message) as refused:
        TensorRtEngine(bundle, cuda=HostCuda())
    assert "mythos-export build" in str(refused.value)


def test_a_release_that_is_too_old(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STAND_IN, "__version__", "8.6.1")
    with pytest.raises(EngineError, match=r"8\.6\.1 is too old; 10\.3"):
        TensorRtEngine(bundle, cuda=HostCuda())


def test_nothing_is_installed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(tensorrt_library.importlib, "import_module", absent)
    with pytest.raises(EngineError, match=r'pip install "mythos-export\[tensorrt-rtx\]"'):
        engines.load(bundle.path, runtime="tensorrt")


@pytest.mark.parametrize(
    ("text", "wanted"), [("8.9", "8.9"), ("sm89", "8.9"), ("89", "8.9"), ("SM_120", "12.0"), ("12.0", "12.0")]
)
def test_architectures(text: str, wanted: str) -> None:
    assert tensorrt_library.architecture(text) == wanted


@pytest.mark.parametrize("text", ["", "9", "8.9.1", "ada", "8.", "-8.9", "8.99", "8,9"])
def test_what_is_no_architecture(text: str) -> None:
    with pytest.raises(EngineError, match=r"give a compute capability such as 8\.9"):
        tensorrt_library.architecture(text)


def test_the_module_says_that_it_has_not_run_on_hardware() -> None:
    assert "not yet run on hardware" in str(tensorrt.__doc__)
