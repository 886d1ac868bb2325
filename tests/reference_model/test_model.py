"""The reference against open-mythos itself, on weights that make things happen."""

from __future__ import annotations

from dataclasses import asdict, replace
from types import ModuleType

import pytest
import torch
from eventful import configs, eventful_
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reference_model.config import SCALES, MythosConfig
from reference_model.open_mythos.cache import Cache
from reference_model.open_mythos.model import MythosModel, generate_greedy

RELATIVE = 1e-5  # of the largest logit


def pair(upstream: ModuleType, config: MythosConfig, seed: int) -> tuple[torch.nn.Module, MythosModel]:
    """Upstream's model and ours with the same eventful weights."""
    theirs = upstream.OpenMythos(upstream.MythosConfig(**asdict(config))).eval()
    eventful_(theirs, seed)
    ours = MythosModel(config).eval()
    kept = {name: value for name, value in theirs.state_dict().items() if not name.startswith(("freqs", "head."))}
    ours.load_state_dict(kept)
    return theirs, ours


def assert_close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() <= RELATIVE * wanted.abs().max()


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=configs(), loops=st.integers(1, 7), seed=st.integers(0, 10_000))
def test_logits_are_upstreams(upstream: ModuleType, config: MythosConfig, loops: int, seed: int) -> None:
    theirs, ours = pair(upstream, config, seed)
    ids = torch.randint(0, config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        assert_close(ours(ids, loops).logits, theirs(ids, n_loops=loops))
        cache: dict[str, object] = {}
        first, rows = theirs(ids[:, :6], n_loops=loops, kv_cache=cache), ours(ids[:, :6], loops)
        assert_close(rows.logits, first)
        past = rows.rows
        for position in range(6, 9):
            token = ids[:, position : position + 1]
            wanted = theirs(token, n_loops=loops, kv_cache=cache, start_pos=position)
            out = ours(token, loops, cache=past)
            assert_close(out.logits, wanted)
            past = past.append(out.rows)


@pytest.mark.parametrize("attn", ["mla", "gqa"])
def test_the_weights_are_eventful(upstream: ModuleType, mla_config: MythosConfig, attn: str) -> None:
    """Guards the tests above: without events they would prove little."""
    _, ours = pair(upstream, replace(mla_config, attn_type=attn), 3)
    ids = torch.randint(0, 97, (4, 32), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        out = ours(ids, 12)
    depths = out.halting_depth.unique()
    assert len(depths) >= 5, depths
    scores = torch.stack([step.routing.scores for step in out.trace]).sort(-1, descending=True).values
    margins = scores[..., 1] - scores[..., 2]  # top-2 of 6
    assert margins.max() > 1
    assert margins.min() < 1e-2
    unbiased = torch.stack([step.routing.scores - ours.recurrent.block.ffn.router_bias for step in out.trace])
    chosen = torch.stack([step.routing.experts for step in out.trace]).sort(-1).values
    assert (unbiased.topk(2).indices.sort(-1).values != chosen).any(), "the bias changes no choice"


def test_generation_is_upstreams(upstream: ModuleType, mla_config: MythosConfig) -> None:
    theirs, ours = pair(upstream, mla_config, 5)
    ids = torch.randint(0, 97, (2, 7), generator=torch.Generator().manual_seed(1))
    wanted = theirs.generate(ids, max_new_tokens=12, n_loops=4, temperature=1.0, top_k=1)  # top-1: greedy
    assert torch.equal(torch.stack(list(generate_greedy(ours, ids, 4, 12)), dim=1), wanted[:, 7:])


@pytest.mark.parametrize("attn", ["mla", "gqa"])
class TestBeyondUpstream:
    """What upstream lacks; each must equal the plain run of the sequence alone."""

    def test_left_padding_and_depth_per_sequence(
        self, upstream: ModuleType, mla_config: MythosConfig, attn: str
    ) -> None:
        theirs, ours = pair(upstream, replace(mla_config, attn_type=attn), 7)
        lengths, depths = [9, 4, 6], [3, 8, 1]
        ids = torch.randint(0, 97, (3, 9), generator=torch.Generator().manual_seed(2))
        mask = torch.stack([(torch.arange(9) >= 9 - length).long() for length in lengths])
        with torch.inference_mode():
            out = ours(ids, torch.tensor(depths), attention_mask=mask)
            for row, (length, depth) in enumerate(zip(lengths, depths)):
                alone = theirs(ids[row : row + 1, 9 - length :], n_loops=depth)
                assert_close(out.logits[row : row + 1, 9 - length :], alone)
                assert torch.equal(
                    out.halting_depth[row, 9 - length :], ours(ids[row : row + 1, 9 - length :], depth).halting_depth[0]
                )

    def test_decoding_a_padded_batch(self, upstream: ModuleType, mla_config: MythosConfig, attn: str) -> None:
        _, ours = pair(upstream, replace(mla_config, attn_type=attn), 8)
        ids = torch.randint(0, 97, (2, 6), generator=torch.Generator().manual_seed(3))
        mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
        batch = torch.stack(list(generate_greedy(ours, ids, torch.tensor([2, 5]), 8, mask)), dim=1)
        assert torch.equal(batch[0], torch.cat(list(generate_greedy(ours, ids[:1], 2, 8))))
        assert torch.equal(batch[1], torch.cat(list(generate_greedy(ours, ids[1:, 2:], 5, 8))))

    @pytest.mark.parametrize("chunks", [(9,), (5, 4), (1, 7, 1), (3, 3, 3)])
    def test_chunked_prefill(
        self, upstream: ModuleType, mla_config: MythosConfig, attn: str, chunks: tuple[int, ...]
    ) -> None:
        theirs, ours = pair(upstream, replace(mla_config, attn_type=attn), 9)
        ids = torch.randint(0, 97, (2, 9), generator=torch.Generator().manual_seed(4))
        cache: Cache | None = None
        logits = []
        with torch.inference_mode():
            for part in ids.split(list(chunks), dim=1):
                out = ours(part, 5, cache=cache)
                cache = cache.append(out.rows) if cache else out.rows
                logits.append(out.logits)
            assert_close(torch.cat(logits, dim=1), theirs(ids, n_loops=5))


def test_logits_to_keep(mla_config: MythosConfig) -> None:
    model = MythosModel(mla_config)
    eventful_(model, 0)
    ids = torch.arange(8)[None]
    with torch.inference_mode():
        whole = model(ids, 2).logits
        assert_close(model(ids, 2, logits_to_keep=3).logits, whole[:, -3:])


def test_a_sequence_keeps_its_depth(mla_config: MythosConfig) -> None:
    model = MythosModel(mla_config)
    ids = torch.arange(4)[None]
    with torch.inference_mode():
        rows = model(ids, 2).rows
        with pytest.raises(ValueError, match="n_loops 3 exceeds the 2 depths in the cache"):
            model(ids, 3, cache=rows)
        with pytest.raises(ValueError, match="at least 1"):
            model(ids, 0)


def test_the_injection_is_stable(mla_config: MythosConfig) -> None:
    model = MythosModel(mla_config)
    eventful_(model, 0)
    assert 0 < model.spectral_radius() < 1


def test_scales_are_upstreams(upstream: ModuleType) -> None:
    from open_mythos import variants

    assert list(SCALES) == ["1b", "3b", "10b", "50b", "100b", "500b", "1t"]
    for name, config in SCALES.items():
        assert asdict(config) == asdict(getattr(variants, f"mythos_{name}")())
