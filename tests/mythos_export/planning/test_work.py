"""Bytes and products of a call, against numbers worked out by hand, and calls against their sum."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mythos_export.planning.devices import find_device
from mythos_export.planning.models import model_of, stored_from_config
from mythos_export.planning.plan import Question, plan
from mythos_export.planning.work import Call, Model, weight_reads, work_of
from mythos_export.weights.tensors import total_bytes
from reference_model.open_mythos.config import SCALES, MythosConfig
from reference_model.open_mythos.description import architecture

STEP = Call(batch=1, seq=1, past=0, loops=1)


def model(config: MythosConfig, target: str = "portable", precision: str = "fp32", cache: int = 0) -> Model:
    return replace(model_of(stored_from_config("any", architecture(config), target, precision)), last_level_cache=cache)


def reads(found: Model, **sizes: int) -> float:
    return weight_reads(found, replace(STEP, **sizes))[0]


class TestWeights:
    def test_a_loop_of_1b_reads_the_chosen_experts_the_shared_ones_and_attention(self) -> None:
        found = model(SCALES["1b"])
        loop = (reads(found, loops=2) - reads(found, loops=1)) / 4
        routed, shared = 4 * 3 * 2048 * 2048, 2 * 3 * 2048 * 8192
        attention = 512 * 2048 + 1024 * 512 + 512 * 512 + 288 * 2048 + 2048 * 256 + 2048 * 1024
        small = 64 * 2048 + 64  # router
        small += 2048 + 1  # halting
        small += 2 * 8 * 2048 + 16 * 8  # depth LoRA
        small += 2 * 2048 + 1  # injection
        small += 3 * 2048 + 512 + 256  # norms
        assert loop == routed + shared + attention + small

    def test_every_expert_where_the_target_is_dense(self, mla_config: MythosConfig) -> None:
        experts = 3 * 64 * 32 * 4
        sparse = reads(model(mla_config), loops=2) - reads(model(mla_config), loops=1)
        dense = model(mla_config, "tensorrt")
        assert dense.dense
        assert reads(dense, loops=2) - reads(dense, loops=1) == sparse + (6 - 2) * experts

    def test_every_expert_where_its_weights_are_converted_at_every_loop(self, mla_config: MythosConfig) -> None:
        stored, experts = stored_from_config("any", architecture(mla_config), "portable", "fp16"), 3 * 64 * 32 * 2
        sparse, converted = model_of(stored), model_of(stored, find_device("raspberry-pi-5-8gb"))
        converted = replace(converted, last_level_cache=0)
        loops = [reads(each, loops=2) - reads(each, loops=1) for each in (sparse, converted)]
        assert loops[1] - loops[0] == (6 - 2) * experts

    def test_more_tokens_need_more_experts_and_in_the_end_all(self, mla_config: MythosConfig) -> None:
        found, experts = model(mla_config), 3 * 64 * 32 * 4
        two = reads(found, batch=2) - reads(found, batch=1)
        assert two == pytest.approx((6 * (1 - (4 / 6) ** 2) - 2) * experts)
        assert reads(found, seq=500) == pytest.approx(total_bytes(found.tensors))

    def test_a_looped_block_that_fits_the_cache_is_read_once(self, mla_config: MythosConfig) -> None:
        block = sum(tensor.nbytes for tensor in model(mla_config).tensors if tensor.place.stage == "loop")
        none, half, whole = (model(mla_config, cache=size) for size in (0, block // 2, block))
        deep = replace(STEP, loops=50)
        assert weight_reads(whole, deep) == (pytest.approx(total_bytes(whole.tensors)), True)
        assert weight_reads(none, deep)[0] == pytest.approx(reads(none) + 49 * (reads(none, loops=2) - reads(none)))
        assert weight_reads(half, deep) == (pytest.approx(weight_reads(none, deep)[0] - 49 * (block // 2)), False)

    @pytest.mark.parametrize(
        ("target", "precision", "table"),
        [
            ("portable", "fp32", 97 * 64 * 4),  # it is the head's weight
            ("portable", "int8", 97 * (64 + 4)),  # it is too
            ("portable", "fp8", 64 + 4),  # one row of it; the head has a copy of its own
            ("onnxruntime", "int4", 64 + 4),
            ("onnxruntime", "int8", 64 + 4),
            ("tensorrt", "int8", 64 * 4),
        ],
    )
    def test_the_embedding_is_read_whole_only_for_the_head(
        self, mla_config: MythosConfig, target: str, precision: str, table: int
    ) -> None:
        found = model(mla_config, target, precision)
        others = replace(found, tensors=[tensor for tensor in found.tensors if tensor.place.stage != "embedding"])
        assert reads(found) - reads(others) == pytest.approx(table)


class TestProducts:
    def test_a_token_multiplies_with_every_weight_it_reads(self, mla_config: MythosConfig) -> None:
        found, call = model(mla_config), replace(STEP, past=9, loops=3)
        small = ("norms", "injection")
        matrices = [
            tensor
            for tensor in found.tensors
            if len(tensor.shape) > 1 and tensor.place.part not in small and "lora.scale" not in tensor.name
        ]
        once = sum(tensor.nbytes // 4 for tensor in matrices if tensor.place.stage != "loop")
        looped = [tensor for tensor in matrices if tensor.place.stage == "loop"]
        every = sum(tensor.nbytes // 4 * (2 / 6 if tensor.place.part == "routed experts" else 1) for tensor in looped)
        attention = 10 * (3 + 3) * 4 * (2 * 16 + 8)
        assert work_of(found, call).products == {"fp32": pytest.approx(once + 3 * every + attention)}

    def test_grouped_query_attention_counts_query_heads(self, gqa_config: MythosConfig) -> None:
        found = model(gqa_config)
        longer = work_of(found, replace(STEP, past=11)).products["fp32"] - work_of(found, STEP).products["fp32"]
        assert longer == 11 * (1 + 2 + 1) * 4 * (2 * 16)

    @pytest.mark.parametrize(
        ("target", "precision", "kinds"),
        [
            ("portable", "fp16", {"fp16", "fp32"}),
            ("portable", "bf16", {"fp32"}),  # only stored in bf16
            ("tensorrt", "bf16", {"bf16", "fp32"}),
            ("portable", "int8", {"int8", "fp32"}),
            ("tensorrt", "fp8", {"fp8", "fp32"}),
            ("tensorrt", "int4", {"fp32"}),  # weights alone
            ("onnxruntime", "int8", {"int8", "fp32"}),
            ("onnxruntime", "int4", {"int8", "fp32"}),  # rounds activations as they come
        ],
    )
    def test_arithmetic(self, mla_config: MythosConfig, target: str, precision: str, kinds: set[str]) -> None:
        assert work_of(model(mla_config, target, precision), STEP).products.keys() == kinds

    def test_without_kernels_it_is_float(self, mla_config: MythosConfig) -> None:
        stored = stored_from_config("any", architecture(mla_config), "portable", "int8")
        cpu, gpu = find_device("cpu-ddr5-5600"), find_device("h200-sxm")
        fast, slow = (work_of(replace(model_of(stored, each), last_level_cache=0), STEP) for each in (cpu, gpu))
        assert slow.products == {"fp32": pytest.approx(sum(fast.products.values()))}
        assert slow.weights == fast.weights


class TestPrompt:
    @pytest.mark.parametrize(("context", "chunk"), [(7, 16), (16, 16), (64, 16), (69, 16), (5, 1)])
    def test_chunks_add_up(self, mla_config: MythosConfig, context: int, chunk: int) -> None:
        found, loops, batch = model(mla_config), 3, 2
        calls = [
            work_of(found, Call(batch, min(chunk, context - past), past, loops)) for past in range(0, context, chunk)
        ]
        bound = plan(
            stored_from_config("any", architecture(mla_config), "portable", "fp32"),
            Question(context, loops, batch, chunk),
        )
        assert bound.prefill.calls == len(calls)
        assert bound.prefill.tokens == batch * context
        assert bound.prefill.weight_bytes == pytest.approx(sum(call.weights for call in calls), abs=1)
        assert bound.prefill.cache_read_bytes == sum(call.cache_read for call in calls)
        assert bound.prefill.cache_written_bytes == sum(call.cache_written for call in calls)
        assert bound.prefill.operations["fp32"] == pytest.approx(2 * sum(call.products["fp32"] for call in calls))
