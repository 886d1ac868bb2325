"""What fits, what limits, what is unknown."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mythos_export.building import build
from mythos_export.capabilities import LEAST_CAPABILITY
from mythos_export.planning.devices import (
    Device,
    DeviceError,
    Rates,
    find_device,
    kernels,
    known_devices,
    rate_of,
)
from mythos_export.planning.models import stored_from_config
from mythos_export.planning.plan import Question, plan
from mythos_export.planning.remedies import remedies
from reference_model.config import SCALES, MythosConfig

BOX = Device(
    label="a box",
    kind="cpu",
    memory_bytes=2_000_000,
    reserved_bytes=100_000,
    bandwidth=1e9,
    rates=Rates(fp32=1e9, int8=4e9),
)


class TestFits:
    @pytest.mark.parametrize("memory", [700_000, 1_000_000, 2_000_000])
    def test_the_largest_is_the_largest(self, mla_config: MythosConfig, memory: int) -> None:
        stored = stored_from_config("tiny", mla_config, "portable", "fp32")
        device = BOX.model_copy(update={"memory_bytes": memory})
        question = Question(context=10, loops=4, batch=2, chunk=8, device=device)
        found = plan(stored, question)
        assert found.largest_context is not None and found.largest_loops is not None
        assert found.largest_loops < 1 << 20
        for field, largest, limit in (
            ("context", found.largest_context, mla_config.max_seq_len),
            ("loops", found.largest_loops, 1 << 20),
        ):
            if largest:
                assert plan(stored, replace(question, **{field: largest})).fits
            if largest < limit:
                assert not plan(stored, replace(question, **{field: largest + 1})).fits

    def test_a_byte_decides(self, mla_config: MythosConfig) -> None:
        stored = stored_from_config("tiny", mla_config, "portable", "fp32")
        needed = plan(stored, Question(10, 4, 1, 8, BOX)).memory.total
        just, short = (BOX.model_copy(update={"memory_bytes": size}) for size in (needed, needed - 1))
        assert plan(stored, Question(10, 4, 1, 8, just)).fits is True
        assert plan(stored, Question(10, 4, 1, 8, short)).fits is False

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_memory_adds_up_and_keeps_the_allowance(self, mla_config: MythosConfig, precision: str) -> None:
        memory = plan(stored_from_config("tiny", mla_config, "portable", precision), Question(10, 4, 1, 8, BOX)).memory
        assert memory.reserved == 100_000
        held = memory.weights_held + memory.packing
        assert (held == memory.weights) is (precision == "fp32")
        assert memory.total == held + memory.cache + memory.activations + memory.reserved

    @pytest.mark.parametrize("precision", ["bf16", "fp8", "int4"])
    def test_what_is_held_decides_and_not_what_is_stored(self, mla_config: MythosConfig, precision: str) -> None:
        small, plain = (stored_from_config("tiny", mla_config, "portable", each) for each in (precision, "fp32"))
        device = BOX.model_copy(update={"memory_bytes": plan(plain, Question(10, 4, 1, 8, BOX)).memory.total})
        found = plan(small, Question(10, 4, 1, 8, device))
        assert found.memory.weights < found.memory.weights_held
        assert (found.fits, found.largest_context, found.largest_loops, found.kernels) == (False, 0, 0, False)
        assert found.decode.weight_bytes == pytest.approx(
            plan(plain, Question(10, 4, 1, 8)).decode.weight_bytes, rel=0.02
        )
        offered = remedies(small, Question(10, 4, 1, 8, device))
        assert [each for each in offered if each.startswith("--precision")] == ["--precision fp32", "--precision int8"]

    def test_without_a_device_there_are_sizes_only(self, mla_config: MythosConfig) -> None:
        found = plan(stored_from_config("tiny", mla_config, "portable", "fp32"), Question(10, 4, 1, 8))
        assert (found.fits, found.kernels, found.largest_context, found.largest_loops) == (None,) * 4
        assert found.decode.seconds is None and found.decode.weight_bytes > 0


class TestBounds:
    def test_the_slower_of_memory_and_arithmetic(self, mla_config: MythosConfig) -> None:
        stored = stored_from_config("tiny", mla_config, "portable", "fp32")
        decode = plan(stored, Question(10, 4, 1, 8, BOX)).decode
        moved = decode.weight_bytes + decode.cache_read_bytes + decode.cache_written_bytes
        assert decode.memory_seconds == pytest.approx(moved / 1e9)
        assert decode.compute_seconds == pytest.approx(decode.operations["fp32"] / 1e9)
        assert decode.seconds == max(decode.memory_seconds, decode.compute_seconds)
        assert decode.limited_by == "memory"
        prompt = plan(stored, Question(200, 4, 1, 200, BOX)).prefill
        assert prompt.limited_by == "compute"

    def test_each_arithmetic_at_its_own_rate(self, mla_config: MythosConfig) -> None:
        found = plan(stored_from_config("tiny", mla_config, "portable", "int8"), Question(10, 4, 1, 8, BOX)).decode
        operations = found.operations
        assert found.compute_seconds == pytest.approx(operations["fp32"] / 1e9 + operations["int8"] / 4e9)

    @pytest.mark.parametrize("unknown", ["bandwidth", "rates"])
    def test_what_is_not_known_is_not_made_up(self, mla_config: MythosConfig, unknown: str) -> None:
        blind = BOX.model_copy(update={unknown: None if unknown == "bandwidth" else Rates(int8=1e9)})
        found = plan(stored_from_config("tiny", mla_config, "portable", "fp32"), Question(10, 4, 1, 8, blind)).decode
        known, other = (found.memory_seconds, found.compute_seconds)[:: -1 if unknown == "bandwidth" else 1]
        assert other is None and found.limited_by is None
        assert found.seconds == known

    def test_the_cache_decides_whether_the_loop_is_read_again(self, mla_config: MythosConfig) -> None:
        stored = stored_from_config("tiny", mla_config, "portable", "fp32")
        found = [
            plan(stored, Question(10, 16, 1, 8, BOX.model_copy(update={"last_level_cache_bytes": size})))
            for size in (None, 1000, 1 << 20)
        ]
        assert [each.loop_stays_in_cache for each in found] == [None, False, True]
        uncached, little, all_of_it = (each.decode.weight_bytes for each in found)
        assert uncached - little == 15 * 1000  # at each loop but the first
        assert uncached > 3 * all_of_it


class TestDevices:
    def test_each_says_where_its_figures_come_from(self) -> None:
        for name, device in known_devices().items():
            assert device.sources, name
            for source in device.sources:
                assert re.fullmatch(r"https://\S+ \(.+\)", source), f"{name}: which document, and where in it"
            assert device.bandwidth is not None and device.reserved_bytes > 0, name
            assert (device.compute_capability is None) == (device.kind == "cpu"), name

    def test_orin_figures_agree_with_its_architecture(self) -> None:
        """A streaming multiprocessor has 128 cores and tensor cores for 4096 int8 operations a clock: 16 times fp32."""
        orins = [device for name, device in known_devices().items() if "orin" in name]
        assert len(orins) == 6
        for device in orins:
            rates = device.rates
            assert rates.int8 is not None and rates.fp32 is not None
            assert (rates.int8, rates.fp16, rates.bf16, rates.tf32) == tuple(
                times * rates.fp32 for times in (16, 8, 8, 4)
            ), device.label
            clock = re.search(r"fp32 is 2 x cores x maximum clock: (\d+) x (\d+) MHz", device.note)
            assert clock is not None and rates.fp32 == 2e6 * int(clock[1]) * int(clock[2]), device.label

    def test_limits_are_those_of_build(self) -> None:
        assert build.LEAST_CAPABILITY is LEAST_CAPABILITY

    @pytest.mark.parametrize(
        ("device", "target", "precision", "able"),
        [
            ("jetson-orin-nano-8gb", "tensorrt", "int8", True),
            ("jetson-orin-nano-8gb", "tensorrt", "fp8", False),
            ("jetson-orin-nano-8gb", "tensorrt", "int4", True),
            ("rtx-4060", "tensorrt", "fp8", True),
            ("h200-sxm", "tensorrt", "int4", True),
            ("raspberry-pi-5-8gb", "onnxruntime", "int4", True),
            ("raspberry-pi-5-8gb", "onnxruntime", "int8", True),
            ("raspberry-pi-5-8gb", "portable", "int4", False),
            ("raspberry-pi-5-8gb", "portable", "bf16", False),
            ("raspberry-pi-5-8gb", "portable", "fp16", False),
            ("rtx-4060", "portable", "fp16", True),
            ("rtx-4060", "portable", "bf16", False),
            ("raspberry-pi-5-8gb", "tensorrt", "fp32", False),
        ],
    )
    def test_kernels(self, device: str, target: str, precision: str, able: bool) -> None:
        assert kernels(find_device(device), target, precision) is able

    def test_fp32_on_a_gpu_may_be_tf32(self) -> None:
        orin = find_device("jetson-agx-orin-64gb")
        assert rate_of(orin, "fp32") == orin.rates.tf32

    def test_every_gpu_has_a_time_for_fp32(self) -> None:
        """Every model computes something in fp32."""
        for name, device in known_devices().items():
            assert device.kind == "cpu" or rate_of(device, "fp32") is not None, name

    @pytest.mark.parametrize(("capability", "rate"), [("7.5", 8e12), ("8.0", None)])
    def test_a_gpu_older_than_tf32_has_its_fp32_rate(self, capability: str, rate: float | None) -> None:
        device = Device(
            label="old", kind="gpu", compute_capability=capability, memory_bytes=1 << 33, rates=Rates(fp32=8e12)
        )
        assert rate_of(device, "fp32") == rate


GOOD = {"label": "mine", "kind": "gpu", "compute_capability": "8.9", "memory_bytes": 10**9, "bandwidth": 1e9}


def write(path: Path, content: Any) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


class TestOwnDevice:
    def test_it_is_read(self, tmp_path: Path) -> None:
        device = find_device(write(tmp_path / "mine.json", GOOD))
        assert (device.label, device.bandwidth, device.rates.fp32) == ("mine", 1e9, None)

    def test_bytes_may_be_written_as_8e9(self, tmp_path: Path) -> None:
        path = write(tmp_path / "mine.json", json.dumps(GOOD).replace("1000000000,", "8e9,"))
        assert find_device(path).memory_bytes == 8 * 10**9

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"memory_bytes": 0}, "memory_bytes"),
            ({"memory_bytes": "much"}, "memory_bytes"),
            ({"memory_bytes": None}, "memory_bytes"),
            ({"memory_bytes": True}, "memory_bytes: .*a number"),
            ({"last_level_cache_bytes": "4"}, "last_level_cache_bytes: .*a number"),
            ({"bandwidth": "68e9"}, "bandwidth: .*a number"),
            ({"bandwidth": 5e-324}, "bandwidth: .*greater"),
            ({"rates": {"fp32": 1e308}}, r"rates\.fp32: .*less"),
            ({"label": "\x1b[31mred"}, "label: .*printed"),
            ({"label": "two\nlines"}, "label: .*printed"),
            ({"bandwidth": -1}, "bandwidth"),
            ({"bandwidth": 1e999}, "bandwidth"),
            ({"kind": "tpu"}, "kind"),
            ({"compute_capability": None}, "compute_capability is missing"),
            ({"compute_capability": "89"}, "compute_capability"),
            ({"rates": {"fp12": 1}}, "fp12"),
            ({"colour": "green"}, "colour"),
        ],
    )
    def test_a_bad_field_is_named(self, tmp_path: Path, change: dict[str, Any], words: str) -> None:
        with pytest.raises(DeviceError, match=words):
            find_device(write(tmp_path / "mine.json", GOOD | change))

    def test_what_is_no_json_has_no_field(self, tmp_path: Path) -> None:
        with pytest.raises(DeviceError, match=r"mine\.json: Invalid JSON"):
            find_device(write(tmp_path / "mine.json", "{"))

    @pytest.mark.parametrize("content", ["", "[]", "{", "nonsense", "[" * 10_000, " " * (1 << 17)])
    def test_what_is_no_device_is_refused(self, tmp_path: Path, content: str) -> None:
        with pytest.raises(DeviceError, match=r"mine\.json: "):
            find_device(write(tmp_path / "mine.json", content))

    def test_a_missing_file_and_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "folder.json").mkdir()
        with pytest.raises(DeviceError, match="cannot be read"):
            find_device(str(tmp_path / "none.json"))
        with pytest.raises(DeviceError, match="not a regular file"):
            find_device(str(tmp_path / "folder.json"))

    def test_an_unknown_name_lists_the_known(self) -> None:
        with pytest.raises(DeviceError, match=r"known: .*rtx-4090"):
            find_device("toaster")


def test_a_dense_target_says_so() -> None:
    stored = stored_from_config("1b", SCALES["1b"], "tensorrt", "fp16")
    assert plan(stored, Question(64, 4, 1, 64)).every_expert


def test_every_target_has_its_kernels_listed() -> None:
    """A new target wants its entries, or `plan --device` could not speak of it."""
    from mythos_export.targets import TARGETS

    for target in TARGETS:
        for device in known_devices().values():
            assert isinstance(kernels(device, target, "fp32"), bool)
