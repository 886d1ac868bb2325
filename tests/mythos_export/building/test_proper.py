"""What TensorRT proper is asked for, shown on a stand-in: it needs a GPU even to build."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest

from engines.errors import EngineError
from engines.tensorrt_library import Library
from mythos_export.building.build import BuildError, BuildFailed, build_engines, check_request
from mythos_export.building.profiles import make_profile
from mythos_export.bundle import Bundle
from mythos_export.progress import Reporter


class Cache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content + b"+"


class Config:
    made: list[Config] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.profiles: list[Any] = []
        Config.made.append(self)

    def add_optimization_profile(self, profile: Any) -> None:
        self.profiles.append(profile)

    def create_timing_cache(self, content: bytes) -> Cache:
        return Cache(content)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        self.cache, self.given = cache, cache.content
        return not ignore_mismatch

    def get_timing_cache(self) -> Cache:
        return self.cache


class Input:
    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape, self.is_shape_tensor = name, shape, name == "logits_to_keep"


class Network:
    num_layers = 0

    def __init__(self) -> None:
        self.inputs = [
            Input("input_ids", (-1, -1)),
            Input("logits_to_keep", ()),
            Input("past.coda.latent", (2, -1, -1, 16)),
        ]
        self.num_inputs = len(self.inputs)

    def get_input(self, index: int) -> Input:
        return self.inputs[index]


class Profile(dict[str, Any]):
    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self[name] = shapes

    def set_shape_input(self, name: str, *values: list[int]) -> None:
        self[name] = values


class Builder:
    plan: bytes | None = b"engine"

    def __init__(self, logger: Any) -> None:
        pass

    def create_network(self, flags: int) -> Network:
        assert flags == 2, "strongly typed"
        return Network()

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        assert network.inputs[1].shape == (1,), "Triton's TensorRT backend takes no scalars"
        return self.plan


class Parser:
    num_errors = 0

    def __init__(self, network: Network, logger: Any) -> None:
        pass

    def parse_from_file(self, path: str) -> bool:
        return Path(path).is_file()


class Base:
    class Severity:
        ERROR, INTERNAL_ERROR = 1, 0


class Device:
    compute_capability = "8.7"


STAND_IN = types.SimpleNamespace(
    Builder=Builder,
    OnnxParser=Parser,
    ILogger=type("ILogger", (Base,), {"__init__": lambda self: None}),
    IProgressMonitor=type("IProgressMonitor", (), {"__init__": lambda self: None}),
    NetworkDefinitionCreationFlag=types.SimpleNamespace(STRONGLY_TYPED=1),
)


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Bundle:
    import shutil

    opened = Bundle.open(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    return Bundle(opened.path, opened.manifest.model_copy(update={"target": "tensorrt", "precision": "int8"}))


def library(version: str = "10.3.0") -> Library:
    return Library("tensorrt", version, STAND_IN)


def built(bundle: Bundle, cache: Path, *, version: str = "10.3.0", sm: str = "8.7") -> Config:
    profile = make_profile(bundle.manifest.limits, past="0:8:16")
    receipt = build_engines(bundle, library(version), sm, profile, Reporter(quiet=True), cache=cache)
    assert (receipt.runtime, receipt.runtime_version, receipt.sm) == ("tensorrt", version, sm)
    assert receipt.engines[0].gemms is None, "nothing was looked at, and nothing is claimed"
    return Config.made[-1]


def test_the_profile_and_no_other_architecture(bundle: Bundle, tmp_path: Path) -> None:
    config = built(bundle, tmp_path / "timings")
    assert not hasattr(config, "num_compute_capabilities")
    (profile,) = config.profiles
    assert profile["past.coda.latent"] == ((2, 1, 0, 16), (2, 1, 8, 16), (2, 4, 16, 16))
    assert profile["logits_to_keep"] == ([0], [1], [bundle.manifest.limits.max_seq_len])


def test_timings_are_reused_by_release_and_architecture(bundle: Bundle, tmp_path: Path) -> None:
    cache = tmp_path / "timings"
    assert [built(bundle, cache).given for _ in range(3)] == [b"", b"+", b"++"]
    assert built(bundle, cache, version="10.4.0").given == b""
    assert built(bundle, cache, sm="8.9").given == b""
    assert sorted(path.name for path in cache.iterdir()) == [
        "tensorrt-10.3.0-sm87.timings",
        "tensorrt-10.3.0-sm89.timings",
        "tensorrt-10.4.0-sm87.timings",
    ]


def test_timings_that_cannot_be_written(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "timings").write_text("a file")
    with pytest.raises(EngineError, match="pass --timing-cache"):
        built(bundle, tmp_path / "timings")


def test_a_build_that_fails_leaves_nothing(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Builder, "plan", None)
    with pytest.raises(BuildFailed, match=r"model\.onnx for 8\.7: tensorrt 10\.3\.0 cannot compile it"):
        built(bundle, tmp_path / "timings")
    assert not list((bundle.path / "engines").iterdir())


def test_the_device_decides_the_architecture(bundle: Bundle) -> None:
    check_request(bundle, library(), ["8.7"], cuda=Device())  # type: ignore[arg-type]
    for wanted in (["8.9"], ["8.7", "8.9"]):
        with pytest.raises(BuildError, match=r"builds for the GPU it runs on; give --sm 8\.7 alone"):
            check_request(bundle, library(), wanted, cuda=Device())  # type: ignore[arg-type]
