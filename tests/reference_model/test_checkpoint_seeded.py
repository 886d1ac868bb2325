"""Random weights from a seed: the same every time, one at a time, and such that things happen."""

from __future__ import annotations

import pytest
import torch

from reference_model.checkpoint import CheckpointError, SeededWeights, load_model
from reference_model.config import SCALES, MythosConfig
from reference_model.open_mythos.model import MythosModel, Trajectory, generate_greedy

TOKENS, MAX_LOOPS = 64, 32
PINNED = [0.5420166, -0.3879602, 1.1176548]  # first values of embed.weight at seed 0, dim 64


@pytest.fixture(scope="module", params=["mla", "gqa"])
def config(request: pytest.FixtureRequest) -> MythosConfig:
    return MythosConfig(
        vocab_size=512,
        dim=64,
        n_heads=4,
        n_kv_heads=2,
        max_seq_len=256,
        attn_type=request.param,
        kv_lora_rank=16,
        q_lora_rank=32,
        qk_rope_head_dim=16,
        qk_nope_head_dim=16,
        v_head_dim=16,
        n_experts=8,
        n_shared_experts=1,
        n_experts_per_tok=2,
        expert_dim=32,
        lora_rank=4,
    )


@pytest.fixture(scope="module", params=[0, 1, 2])
def model(request: pytest.FixtureRequest, config: MythosConfig) -> MythosModel:
    return load_model(SeededWeights(config, request.param), config)


@pytest.fixture(scope="module")
def ids(config: MythosConfig) -> torch.Tensor:
    return torch.randint(0, config.vocab_size, (1, TOKENS), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def deep(model: MythosModel, ids: torch.Tensor) -> Trajectory:
    with torch.inference_mode():
        return model(ids, MAX_LOOPS)


class TestSeed:
    def test_each_tensor_depends_on_the_seed_and_its_name_only(self, config: MythosConfig) -> None:
        one, again, other = SeededWeights(config, 7), SeededWeights(config, 7), SeededWeights(config, 8)
        for name in sorted(again.names(), reverse=True):
            assert torch.equal(one.read(name), again.read(name))
            assert not torch.equal(one.read(name), other.read(name))
        first, second = (f"recurrent.block.ffn.routed_experts.{expert}.up.weight" for expert in (0, 1))
        assert not torch.equal(one.read(first), one.read(second))

    def test_values_are_pinned(self, config: MythosConfig) -> None:
        """A bundle's seed means these weights; a change here is a change of every seeded bundle."""
        values = SeededWeights(config, 0).read("embed.weight")[0, :3]
        assert torch.allclose(values, torch.tensor(PINNED), rtol=0, atol=1e-6)

    def test_one_tensor_of_a_trillion(self) -> None:
        assert SeededWeights(SCALES["1t"], 0).read("recurrent.block.ffn.router_bias").shape == (512,)

    def test_names_the_unknown(self, config: MythosConfig) -> None:
        with pytest.raises(CheckpointError, match=r"no tensor 'head\.weight'"):
            SeededWeights(config, 0).read("head.weight")


class TestEventful:
    """What a comparison needs, so that an error somewhere shows in the logits."""

    def test_hidden_states_stay_of_order_one(self, deep: Trajectory) -> None:
        for step in deep.trace:
            assert 0.5 < step.hidden.square().mean().sqrt() < 10

    def test_tokens_halt_at_many_depths_and_some_never(self, deep: Trajectory, config: MythosConfig) -> None:
        depths = deep.halting_depth.clamp(max=16)
        assert len(depths.unique()) >= 5
        spent = sum(step.act_weight for step in deep.trace[:16])
        assert 0 < (spent < config.act_threshold).sum() < TOKENS - 5  # and most do

    def test_logits_have_range(self, deep: Trajectory) -> None:
        assert deep.logits.isfinite().all()
        assert 1 < deep.logits.max() - deep.logits.min() < 100

    def test_every_loop_counts(self, model: MythosModel, ids: torch.Tensor) -> None:
        with torch.inference_mode():
            eight, nine = model(ids, 8).logits, model(ids, 9).logits
        assert (nine - eight).abs().max() > 1e-3 * (eight.max() - eight.min())

    def test_every_token_before_counts(self, model: MythosModel, ids: torch.Tensor, config: MythosConfig) -> None:
        with torch.inference_mode():
            before = model(ids, 8, logits_to_keep=1).logits
            for place in (0, TOKENS // 2):
                changed = ids.clone()
                changed[0, place] = (changed[0, place] + 7) % config.vocab_size
                difference = (model(changed, 8, logits_to_keep=1).logits - before).abs().max()
                assert difference > 1e-3 * (before.max() - before.min())

    def test_the_router_decides(self, deep: Trajectory, config: MythosConfig) -> None:
        chosen = torch.cat([step.routing.experts for step in deep.trace])
        assert len(chosen.unique()) == config.n_experts
        ranked = deep.trace[4].routing.scores.sort(-1, descending=True).values
        margins = ranked[:, config.n_experts_per_tok - 1] - ranked[:, config.n_experts_per_tok]
        assert margins.min() < 0.1 < margins.median()  # near-ties, and clear choices

    def test_depth_lora_matters_but_does_not_rule(self, model: MythosModel) -> None:
        x = torch.randn(100, model.config.dim, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            updates = torch.stack([model.recurrent.lora(x, torch.tensor(loop)) for loop in range(16)])
        assert 0.05 < updates.square().mean().sqrt() / x.square().mean().sqrt() < 0.5

    def test_the_injection_is_stable(self, model: MythosModel) -> None:
        assert 0.3 < model.spectral_radius() < 1

    def test_generation_does_not_repeat_one_token(self, model: MythosModel, ids: torch.Tensor) -> None:
        tokens = [int(token) for token in generate_greedy(model, ids[:, :8], 4, 24)]
        assert len(set(tokens)) > 5
