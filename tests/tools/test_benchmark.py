"""The yardstick itself: what it counts, how it pairs, and that all contestants are given the same work."""

from __future__ import annotations

import contextlib
import json
import math
import os
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from engines.cache import slots_for
from mythos_export.bundle import Bundle, file_entry
from reference_model.checkpoint import SeededWeights, load_model, parameter_shapes
from reference_model.open_mythos.config import MythosConfig
from tools import benchmark
from tools.benchmarking import machine
from tools.benchmarking.contestants import BundleContestant, Spec
from tools.benchmarking.context import make_context
from tools.benchmarking.measure import Cell, Measurements, Plan, agreement, mixed_depths
from tools.benchmarking.memory import Memory, own_memory, return_freed
from tools.benchmarking.pairing import fit_line, interval_of_median, order_of_round, ratio
from tools.benchmarking.plot import draw
from tools.benchmarking.profiling import own_times
from tools.benchmarking.pytorch import CompiledReference, OpenMythos, latent_gains
from tools.benchmarking.results import doubts, figures
from tools.benchmarking.tables import tables
from tools.benchmarking.traffic import Tensor, bundle_traffic, pytorch_traffic, traffic_of
from tools.benchmarking.worker import BenchmarkError, Turn, Worker

# pairing


def test_each_contestant_leads_as_often_as_the_others() -> None:
    orders = [order_of_round(["a", "b", "c"], index) for index in range(6)]
    assert [order[0] for order in orders] == ["a", "b", "c", "a", "b", "c"]
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert orders[1] == ["b", "c", "a"]


def test_a_ratio_is_taken_within_rounds_so_that_drift_cancels() -> None:
    drift = [1.0, 2.0, 40.0, 4.0, 5.0]
    slower, faster = [3 * factor for factor in drift], list(drift)
    faster[2], faster[3] = 4.0, 40.0  # medians alone would say 12 / 4 or worse
    assert ratio(slower, faster) == 3.0


def test_other_rounds_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="only the same rounds"):
        ratio([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("count", "ranks"),
    # tables of the sign test: from n = 6 the extremes (96.9 %), from n = 9 the second, at n = 20 the sixth
    [(5, None), (6, (1, 6)), (8, (1, 8)), (9, (2, 8)), (20, (6, 15))],
)
def test_the_interval_of_a_median_is_that_of_the_sign_test(count: int, ranks: tuple[int, int] | None) -> None:
    values = [float(value) for value in reversed(range(1, count + 1))]
    assert interval_of_median(values) == ranks


def test_a_line_is_found_again_and_a_bend_lowers_its_r_squared() -> None:
    line = fit_line([4, 8, 16], [7.0, 11.0, 19.0])
    assert line is not None
    assert line.intercept == pytest.approx(3)
    assert line.slope == pytest.approx(1)
    assert line.r_squared == pytest.approx(1)
    bent = fit_line([1, 2, 3], [0.0, 0.0, 3.0])  # best line -2 + 1.5 x, which leaves 1.5 of 6
    assert bent is not None
    assert bent.r_squared == pytest.approx(0.75)
    assert fit_line([4, 8], [1.0, 2.0]) is None


# bytes


def test_weights_count_as_often_as_a_token_reads_them(mla_config: MythosConfig) -> None:
    config = replace(mla_config, n_experts=6, n_experts_per_tok=2)
    tensors = [
        Tensor("embed.weight.rows", 970, 97, looked_up=True),  # a row of 10
        Tensor("head", 500, 5, looked_up=False),
        Tensor("recurrent.block.ffn.routed_experts.gate_up.int4b32.stacked", 600, 6, looked_up=False),  # 2 of 6
        Tensor("recurrent.lora.scale.weight", 60, 6, looked_up=True),  # a row of 10 a loop
        Tensor("recurrent.block.attn.wo.weight", 7, 1, looked_up=False),
    ]
    traffic = traffic_of(tensors, config, dense_row=3, loop_row=2)
    assert traffic.once == pytest.approx(510)
    assert traffic.per_loop == pytest.approx(200 + 10 + 7)
    assert traffic.stored == 970 + 500 + 600 + 60 + 7
    assert traffic.step(past=10, loops=4) == pytest.approx(510 + 4 * 217 + 10 * (3 + 4 * 2))


def test_an_fp32_bundle_moves_what_its_parameters_say(tiny_bundle: Path, mla_config: MythosConfig) -> None:
    found = bundle_traffic(Bundle.open(tiny_bundle), mla_config)
    wanted = pytorch_traffic(mla_config, key_per_head=False)
    assert (found.dense_row, found.loop_row) == (wanted.dense_row, wanted.loop_row)
    # the graph holds a few constants besides (shapes, RoPE), and nothing twice
    parameters = 4 * sum(math.prod(shape) for shape in parameter_shapes(mla_config).values())
    assert wanted.stored == parameters <= found.stored < 1.05 * parameters
    assert wanted.once <= found.once < 1.05 * wanted.once
    assert wanted.per_loop <= found.per_loop < 1.05 * wanted.per_loop


def test_open_mythos_caches_a_key_for_each_head(mla_config: MythosConfig, gqa_config: MythosConfig) -> None:
    ours, theirs = (pytorch_traffic(mla_config, key_per_head=each) for each in (False, True))
    assert ours.loop_row == 4 * (16 + 8)
    assert theirs.loop_row == 4 * (16 + 4 * 8)
    assert ours.dense_row == 3 * ours.loop_row
    assert pytorch_traffic(gqa_config, key_per_head=True).loop_row == 4 * 2 * 2 * 16


def test_the_cache_counted_is_the_cache_held(tiny_gqa_bundle: Path, gqa_config: MythosConfig) -> None:
    bundle = Bundle.open(tiny_gqa_bundle)
    spec = Spec("tiny", "bundle", 1, asdict(gqa_config), None, 0, tiny_gqa_bundle)
    contestant = BundleContestant(spec)
    contestant.import_runtime()
    contestant.load([3])
    running = contestant.resume(make_context(gqa_config, {}, 5, 3), [3, 2], room=9)
    assert running.cache_bytes == 2 * bundle_traffic(bundle, gqa_config).cache(slots_for(9), 3)


# figures


def test_figures_are_held_against_the_bytes_they_move(mla_config: MythosConfig) -> None:
    found, plan = _made_up()
    traffic = {name: pytorch_traffic(mla_config, key_per_head=False) for name in ("slow", "fast")}
    result = figures(found, plan, traffic)
    row = next(row for row in result["decode"] if row["contestant"] == "fast" and row["loops"] == 4)
    moved = traffic["fast"].step(10, 4)
    assert row["ms_per_token"] == pytest.approx(14)  # 10 + 1 a loop
    assert row["bytes"] == int(moved)
    assert row["roofline_ms"] == pytest.approx(moved / 1e6)
    assert row["roofline_share"] == pytest.approx(moved / 1e6 / 14)
    assert row["speedup_over"] == {"slow": pytest.approx(3)}
    assert row["outside_ms"] == pytest.approx(1)
    assert row["error_over_range"] == pytest.approx(0.5)
    lines = {(line["contestant"], line["past"]): line for line in result["against_loops"] if "past" in line}
    assert lines["fast", 10]["intercept_ms"] == pytest.approx(10)
    assert lines["slow", 10]["ms_per_loop"] == pytest.approx(3)
    assert result["against_context"][0]["us_per_past_token"] == pytest.approx(
        1e3 * 3 * 2 / 10
    )  # slow, 2 ms over 10 tokens
    (batch,) = result["batch"]
    assert batch["depths"] == [2, 4, 8, 2]
    assert batch["gain"] == pytest.approx((12 + 14 + 18 + 12) / 28)
    assert batch["tokens_per_s"] == pytest.approx(4 / 0.028)
    assert batch["deepest_alone_tokens_per_s"] == pytest.approx(1 / 0.018)
    assert batch["gain_over_deepest"] == pytest.approx(4 * 18 / 28)


def test_a_round_is_held_against_what_memory_gave_in_that_round(mla_config: MythosConfig) -> None:
    """While another machine reads, everything takes twice as long, and the share reached is the same."""
    found, plan = _made_up()
    traffic = {name: pytorch_traffic(mla_config, key_per_head=False) for name in ("slow", "fast")}
    quiet = figures(found, plan, traffic)["decode"][0]
    for cell, rates in found.read_rates.items():
        for name, turns in found.turns[cell].items():
            rates[name] = [1e9, 5e8]
            turns[1] = turns[1]._replace(seconds=[2 * seconds for seconds in turns[1].seconds])
    shared = figures(found, plan, traffic)["decode"][0]
    assert shared["roofline_share"] == pytest.approx(quiet["roofline_share"])
    assert shared["ms_per_token"] == pytest.approx(1.5 * quiet["ms_per_token"])
    assert shared["roofline_ms"] == pytest.approx(1.5 * quiet["roofline_ms"])
    assert shared["read_bytes_per_s"] == pytest.approx(7.5e8)


def test_memory_counts_from_before_loading_at_its_worst(mla_config: MythosConfig) -> None:
    found, plan = _made_up()
    traffic = {name: pytorch_traffic(mla_config, key_per_head=False) for name in ("slow", "fast")}
    stored = traffic["fast"].stored
    result = figures(found, plan, traffic)
    memory = result["contestants"][1]["memory"]
    assert memory["at"] == {"past": 20, "loops": 8}
    assert memory["loaded_bytes"] == 100
    assert memory["decoding_bytes"] == 2 * stored
    assert memory["decoding_anonymous_bytes"] == stored + 1
    assert memory["times_weights_and_cache"] == pytest.approx(2 * stored / (stored + 7))
    assert memory["peak_bytes"] == 3 * stored


def test_what_speaks_against_the_figures_is_said(mla_config: MythosConfig) -> None:
    found, plan = _made_up()
    found.idle["slow"] = 0.5
    traffic = {name: pytorch_traffic(mla_config, key_per_head=False) for name in ("slow", "fast")}
    said = doubts(figures(found, plan, traffic))
    assert said[0] == "slow took 50% of a core while others had their turn"
    assert len(said) == 1 + 6  # "fast" claims fp32 and differs in each of six decode cells
    assert all(text.startswith("fast differs in fp32 by 5.0e-01") for text in said[1:])
    found.loading["fast"]["precision"] = "int8"  # which may differ
    assert len(doubts(figures(found, plan, traffic))) == 1
    found.idle.clear()
    for rates in found.read_rates.values():
        rates.update({name: [1e6, 1e6] for name in rates})
    result = figures(found, plan, traffic)
    most = max(row["roofline_share"] for row in result["decode"])
    assert doubts(result) == [
        f"fast reached {most:.0%} of the roofline: this machine reads faster than was found, or the looped block stays "
        "in a cache"
    ]


def test_memory_is_read_whenever_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_buffer_bytes", lambda: 1 << 24)
    with machine.reading(1) as rate:
        assert all(1e8 < rate() < 1e12 for _ in range(2))


def test_what_is_read_is_what_each_thread_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_parts", [])
    monkeypatch.setattr(machine.signal, "signal", lambda *_: None)
    machine._fill(2, 1 << 20)
    assert [part.nbytes for part in machine._parts] == [1 << 19] * 2
    dots: list[int] = []
    monkeypatch.setattr(machine.np, "dot", lambda one, other: dots.append(one.nbytes))
    monkeypatch.setattr(machine, "_SECONDS", 0.0)
    assert machine._read() > 0 and dots == [1 << 19] * 2


@pytest.mark.skipif(own_memory() is None, reason="no /proc")
def test_what_was_freed_is_no_longer_counted() -> None:
    arrays = [np.ones(8192) for _ in range(1000)]  # each too small to be mapped by itself
    last, before = arrays[-1], own_memory()
    del arrays
    return_freed()
    after = own_memory()
    assert before is not None
    assert after is not None
    assert last.sum() == 8192
    assert before.anonymous - after.anonymous > 50e6


def test_agreement_is_a_share_of_the_range() -> None:
    reference = np.array([[0.0, 4.0, 1.0], [3.0, 0.0, 2.0]], np.float32)
    other = np.array([[0.0, 4.0, 2.0], [1.5, 0.0, 2.0]], np.float32)
    assert agreement(other, reference) == (1.5 / 4, 0.5)
    assert math.isnan(agreement(other * np.nan, reference).error_over_range)


def test_a_batch_has_all_depths_in_turn() -> None:
    assert mixed_depths([2, 4, 8], 8) == [2, 4, 8, 2, 4, 8, 2, 4]


def _made_up() -> tuple[Measurements, Plan]:
    """Two contestants: 10 ms + 1 a loop, and 2 more at 20 past tokens; the slow one takes three times that."""
    plan = Plan([10, 20], [2, 4, 8], [16], rounds=2, steps=1, batch=4, vocab_size=2)
    logits = {"slow": np.array([[0.0, 1.0]], np.float32), "fast": np.array([[0.5, 1.0]], np.float32)}
    found = Measurements()

    def turns(name: str, milliseconds: float) -> list[Turn]:
        factor = 3.0 if name == "slow" else 1.0
        return [Turn([1e-3 * factor * milliseconds], [1e-3], logits[name]) for _ in range(plan.rounds)]

    for loops in plan.loops:
        for past in plan.past:
            took = 10 + loops + (2 if past == 20 else 0)
            cell = Cell("decode", past, loops)
            found.turns[cell] = {name: turns(name, took) for name in logits}
            found.read_rates[cell] = {name: [1e9, 1e9] for name in logits}
        found.turns[Cell("prefill", 16, loops)] = {name: turns(name, 100) for name in logits}
        found.turns[Cell("alone", 10, loops)] = {"fast": turns("fast", 10 + loops)}
    found.turns[Cell("batch", 10, 8)] = {"fast": turns("fast", 28)}
    stored = pytorch_stored()
    for name in logits:
        found.loading[name] = {
            "seconds": 1.0,
            "before": Memory(100, 60, 40, 100),
            "after": Memory(200, 130, 70, 200),
            "runtime": "made up",
            "precision": "fp32",
        }
        found.memory[name] = {
            Cell("decode", 10, 2): (7, Memory(100 + stored, 60, 40, 0)),
            Cell("decode", 20, 8): (7, Memory(100 + 2 * stored, 61 + stored, 39 + stored, 0)),
        }
        found.peak[name] = Memory(0, 0, 0, 100 + 3 * stored)
        found.checked.setdefault(2, {})[name] = logits[name]
    return found, plan


def pytorch_stored() -> int:
    from conftest import TINY

    return pytorch_traffic(TINY, key_per_head=False).stored


# the same work for everyone


@pytest.mark.parametrize("attn", ["mla", "gqa"])
def test_a_given_past_is_the_same_for_all(
    attn: str, tiny_bundle: Path, tiny_gqa_bundle: Path, mla_config: MythosConfig, gqa_config: MythosConfig
) -> None:
    config, path = (mla_config, tiny_bundle) if attn == "mla" else (gqa_config, tiny_gqa_bundle)
    spec = Spec("any", "any", 1, asdict(config), None, 0, path)
    gains = latent_gains(config, SeededWeights(config, 0))
    contestants = [BundleContestant(spec), OpenMythos(spec), _uncompiled(spec, config)]
    logits = []
    for contestant in contestants:
        if not isinstance(contestant, CompiledReference):
            contestant.import_runtime()
            contestant.load([5])
        running = contestant.resume(make_context(config, gains, 9, 5), [5], room=12)
        first = [running.step(np.array([token])).copy() for token in (3, 50, 7)]
        running.rewind()
        again = [running.step(np.array([token])).copy() for token in (3, 50, 7)]
        np.testing.assert_array_equal(first, again)  # a rewound sequence has forgotten everything
        logits.append(np.concatenate(first))
    assert agreement(logits[0], logits[1]).error_over_range < 1e-5
    assert agreement(logits[2], logits[1]).error_over_range < 1e-5
    other = contestants[1].resume(make_context(config, gains, 9, 5, seed=1), [5], room=12)
    assert agreement(other.step(np.array([3])), logits[1][:1]).error_over_range > 1e-3  # the past matters


def test_a_batch_computes_what_each_sequence_would_alone(tiny_bundle: Path, mla_config: MythosConfig) -> None:
    contestant = BundleContestant(Spec("tiny", "bundle", 1, asdict(mla_config), None, 0, tiny_bundle))
    contestant.import_runtime()
    contestant.load([2, 5])
    gains = latent_gains(mla_config, SeededWeights(mla_config, 0))
    context = make_context(mla_config, gains, 6, 5)
    together = contestant.resume(context, [5, 2], room=7).step(np.array([3, 8]))
    for index, (loops, token) in enumerate([(5, 3), (2, 8)]):
        alone = contestant.resume(make_context(mla_config, gains, 6, loops), [loops], room=7).step(np.array([token]))
        np.testing.assert_allclose(together[index], alone[0], atol=1e-5)


def _uncompiled(spec: Spec, config: MythosConfig) -> CompiledReference:
    """The compiled contestant but for the compiler, which takes a minute."""
    contestant = CompiledReference(spec)
    contestant._model = load_model(SeededWeights(config, 0), config)
    return contestant


# options and files


def test_bundles_must_be_of_one_model(
    tiny_bundle: Path, tiny_gqa_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main(["--bundles", str(tiny_bundle), str(tiny_gqa_bundle)]) == 2
    assert "has another config than" in capsys.readouterr().err
    other = tmp_path / "other"
    other.mkdir()
    for file in tiny_bundle.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["source"]["seed"] = 1
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert benchmark.main(["--bundles", str(tiny_bundle), str(other)]) == 2
    assert "has other weights than" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--past", "255"], "would grow to 260 tokens, more than max_seq_len 256"),
        (["--scale", "1b"], "not of the model that --scale or --config names"),
        (["--bundles", "nowhere"], "nowhere: not a bundle"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    options: list[str], said: str, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main(["--bundles", str(tiny_bundle), *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--loops", "0,4"],
        ["--loops", "four"],
        ["--contestants", "somebody"],
        ["--plot", "speed.png"],
        ["--json", "no/such/folder/speed.json"],
        ["--latency", "no/such/folder"],
        ["--rounds", "0"],
    ],
)
def test_options_are_refused_before_hours_of_measuring(options: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(options)
    assert stopped.value.code == 2


def test_a_plot_without_matplotlib_is_refused_before_hours_of_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        benchmark.main(["--plot", str(tmp_path / "speed.svg")])
    assert 'pip install "mythos-export[test]"' in capsys.readouterr().err


def test_what_was_measured_before_a_failure_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(groups: object, gains: object, plan: Plan, read_rate: object, found: Measurements) -> None:
        raise BenchmarkError("the second one died")

    monkeypatch.setattr(benchmark, "measure", fail)
    found, plan = _made_up()
    assert benchmark._measure_what_goes([], {}, plan, float, found) == "stopped early: the second one died"
    with pytest.raises(BenchmarkError):
        benchmark._measure_what_goes([], {}, plan, float, Measurements())


def test_a_worker_that_dies_is_one_line(tiny_bundle: Path, mla_config: MythosConfig) -> None:
    worker = Worker(Spec("tiny", "bundle", 1, asdict(mla_config), None, 0, tiny_bundle))
    try:
        with pytest.raises(RuntimeError, match="no_such_request"):  # a defect comes with its traceback
            worker.ask("no_such_request")
        worker._process.kill()
        with pytest.raises(BenchmarkError, match="tiny: its process ended during 'memory'"):
            worker.ask("memory")
    finally:
        worker.close()


def test_what_others_take_of_the_processor_is_what_this_run_did_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat, now = tmp_path / "stat", {"own": 0.0, "wall": 0.0}
    monkeypatch.setattr(machine, "_STAT", stat)
    monkeypatch.setattr(machine, "_own_seconds", lambda: now["own"])
    monkeypatch.setattr(machine.time, "perf_counter", lambda: now["wall"])
    monkeypatch.setattr(machine, "_cores", lambda: 2)
    tick = os.sysconf("SC_CLK_TCK")
    stat.write_text("cpu  0 0 0 500 0 0 0 0 0 0\ncpu0 1 2 3\n")
    others = machine.Others()
    now.update(own=9.0, wall=10.0)  # of 20 core seconds 14 were busy, 9 of them ours; waiting for a disk is idle
    stat.write_text(f"cpu  {6 * tick} {tick} {5 * tick} 900 77 0 0 {2 * tick} 0 0\n")
    assert others.share() == pytest.approx(0.25)
    assert "25%" in str(machine.disturbed(0.25))
    assert machine.disturbed(0.01) is None
    stat.unlink()
    assert machine.Others().share() is None


# a profile


def test_a_loop_has_its_own_time_only() -> None:
    def event(name: str, op: str, start: int, duration: int) -> dict[str, object]:
        arguments = {"op_name": op, "input_type_shape": [{"float": [1, 8]}, {"int64": []}]}
        return {"name": f"{name}_kernel_time", "ts": start, "dur": duration, "args": arguments}

    events = [
        event("before", "Add", 0, 10),
        event("body", "MatMul", 22, 30),
        event("branch", "If", 60, 20),
        event("inner", "Mul", 61, 15),
        event("recurrent", "Loop", 20, 80),  # ends, and so is written, after its body
        event("after", "Add", 100, 5),
    ]
    found = {node.name: (node.place, node.own_us) for node in own_times(events)}
    assert found == {
        "before": ("", 10),
        "recurrent": ("", 80 - 30 - 20),
        "body": ("Loop", 30),
        "branch": ("Loop", 20 - 15),
        "inner": ("Loop/If", 15),
        "after": ("", 5),
    }
    assert own_times(events)[0].shapes == "1x8 scalar"


# all of it


@pytest.fixture
def known_roofline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring it takes seconds."""

    @contextlib.contextmanager
    def reading(threads: int) -> Iterator[Callable[[], float]]:
        assert threads == 1
        yield lambda: 1.5e9

    monkeypatch.setattr(benchmark.machine, "reading", reading)


def test_a_run_of_bundles(
    tiny_bundle: Path,
    mla_config: MythosConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    known_roofline: None,
) -> None:
    files = {name: tmp_path / name for name in ("speed.json", "speed.svg", "profile.json")}
    shape = "--contestants bundles --past 4,8 --loops 1,2,3 --prefill 5 --batch 4 --threads 1 --rounds 2 --steps 1"
    options = [*shape.split(), "--json", files["speed.json"], "--plot", files["speed.svg"]]
    options += ["--profile", files["profile.json"], "--latency", tmp_path, "--bundles", tiny_bundle]
    code = benchmark.main([str(option) for option in options])
    assert code == 0
    result = json.loads(files["speed.json"].read_text())
    assert {(row["past"], row["loops"]) for row in result["decode"]} == {(p, n) for p in (4, 8) for n in (1, 2, 3)}
    assert all(0 < row["outside_ms"] < row["ms_per_token"] for row in result["decode"])
    assert [row["depths"] for row in result["batch"]] == [[1, 2, 3, 1]] * 2
    assert len(result["against_loops"]) == 3
    assert result["roofline"] == {"read_bytes_per_s": 1.5e9, "during_bytes_per_s": 1.5e9}
    assert result["model"]["source"]["seed"] == 0
    assert files["speed.svg"].read_text() == draw(result["decode"]), "the same rows, the same bytes"
    ET.fromstring(files["speed.svg"].read_text())
    assert "tiny" in capsys.readouterr().out

    (profile,) = json.loads(files["profile.json"].read_text())
    counts = {(row["place"], row["op"]): row["count"] for row in profile["ops"]}
    assert counts["", "Loop"] == 1  # of one step
    looped = next(row for row in profile["nodes"] if row["place"] == "Loop" and row["op"] == "Softmax")
    assert looped["count"] == profile["loops"] == 3
    assert sum(row["us"] for row in profile["ops"]) <= profile["step_us"]
    assert sum(row["share"] for row in profile["ops"]) == pytest.approx(1)

    latency = json.loads((tmp_path / "tiny.latency.json").read_text())
    assert latency["precision"] == "fp32"
    assert {row["runtime"] for row in latency["measurements"]} == {f"onnxruntime {onnxruntime.__version__}"}
    assert len(latency["measurements"]) == 6


def test_a_bundle_that_computes_something_else_is_not_timed(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], known_roofline: None
) -> None:
    """A bundle whose manifest says seed 0, with other weights."""
    other = tmp_path / "other"
    other.mkdir()
    for file in tiny_bundle.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    numbers = np.frombuffer((other / "model.onnx.data").read_bytes(), np.float32)
    (other / "model.onnx.data").write_bytes((numbers * 1.01).astype(np.float32).tobytes())
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["files"]["model.onnx.data"] = file_entry(other / "model.onnx.data").model_dump()
    manifest["name"] = "other"
    (other / "manifest.json").write_text(json.dumps(manifest))
    options = "--contestants bundles --past 4 --loops 2 --prefill 4 --batch 0 --threads 1 --rounds 1 --steps 1"
    assert benchmark.main(["--bundles", str(tiny_bundle), str(other), *options.split()]) == 2
    assert "other differs from tiny at 2 loops" in capsys.readouterr().err


@pytest.mark.dear
def test_a_run_of_everybody(tiny_bundle: Path, tmp_path: Path, known_roofline: None) -> None:
    options = "--past 4 --loops 1,2,3 --prefill 5 --batch 2 --threads 1 --rounds 2 --steps 1 --residence apart"
    path = tmp_path / "speed.json"
    assert benchmark.main(["--bundles", str(tiny_bundle), *options.split(), "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert [row["name"] for row in result["contestants"]] == ["open-mythos", "compiled", "tiny"]
    assert all(row["error_over_range"] < 1e-5 for row in result["agreement"])
    assert all(row["error_over_range"] < 1e-5 for row in result["decode"])
    assert all(
        set(row["speedup_over"]) == {"open-mythos", "compiled", "tiny"} - {row["contestant"]}
        for row in result["decode"]
    )
    assert "one contestant in memory at a time" in tables(result)
