"""Configurations: what is refused, and how."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reference_model.open_mythos.config import ConfigError, MythosConfig, config_for_scale


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"dim": 60, "n_heads": 4}, "head dim 15"),
        ({"qk_rope_head_dim": 7}, "qk_rope_head_dim 7 is odd"),
        ({"dim": 100, "n_heads": 16}, "not a multiple"),
        ({"n_experts": 4, "n_experts_per_tok": 5}, "exceeds n_experts 4"),
        ({"attn_type": "gqa", "n_heads": 16, "n_kv_heads": 3}, "n_kv_heads 3"),
        ({"attn_type": "flash"}, "'mla' or 'gqa'"),
        ({"dim": 0}, "dim is 0"),
        ({"dim": 2048.0}, "must be an integer"),
        ({"dim": True}, "must be an integer"),
        ({"n_experts": 10**9}, "must lie in"),
        ({"act_threshold": 0}, "act_threshold"),
        ({"act_threshold": float("nan")}, "act_threshold"),
        ({"rope_theta": "big"}, "must be a number"),
        ({"hidden_size": 64}, "unknown config field 'hidden_size'"),
    ],
)
def test_impossible_configs_are_named(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        MythosConfig.from_dict(fields)


def test_round_trip(tmp_path: Path, mla_config: MythosConfig) -> None:
    file = tmp_path / "config.json"
    file.write_text(mla_config.to_json())
    assert MythosConfig.from_file(file) == mla_config


def test_unknown_scale() -> None:
    with pytest.raises(ConfigError, match="unknown scale '2b'; known: nano, 1b, 3b"):
        config_for_scale("2b")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"x"', "[" * 100_000, "\xff\xfe"])
def test_files_that_are_no_config(tmp_path: Path, content: str) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"config\.json"):
        MythosConfig.from_file(file)


@settings(suppress_health_check=[HealthCheck.too_slow])  # the first text of a fresh checkout takes a second
@given(
    st.dictionaries(
        st.sampled_from(["dim", "n_heads", "dropout", "attn_type", "x"]),
        st.none() | st.integers() | st.text() | st.lists(st.none()),
    )
)
def test_hostile_values_raise_one_kind_of_error(values: dict[str, object]) -> None:
    try:
        MythosConfig.from_dict(json.loads(json.dumps(values)))
    except ConfigError as error:
        assert "\n" not in str(error)
