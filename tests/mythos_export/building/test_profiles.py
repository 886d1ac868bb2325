"""Sizes of an engine, from options to shapes."""

from __future__ import annotations

import pytest

from engines.receipts import Axis
from mythos_export.building.profiles import ProfileError, make_profile, shapes_of
from mythos_export.bundle import Limits, TensorSpec

LIMITS = Limits(vocab_size=97, max_seq_len=4096, max_loop_iters=16)


def test_what_is_given() -> None:
    profile = make_profile(LIMITS, batch="1:1:4", seq="1:128:2048", past="0:1024:4096", loops="8")
    assert profile.seq == Axis(min=1, opt=128, max=2048)
    assert profile.loops == Axis(min=8, opt=8, max=8)
    spec = TensorSpec(name="past.recurrent.latent", dtype="float16", shape=["loops", "batch", "past", 512])
    assert shapes_of(spec, profile) == ((8, 1, 0, 512), (8, 1, 1024, 512), (8, 4, 4096, 512))
    mask = TensorSpec(name="attention_mask", dtype="int64", shape=["batch", "past_plus_seq"])
    assert shapes_of(mask, profile) == ((1, 1), (1, 1152), (4, 6144))


@pytest.mark.parametrize("longest", [1, 64, 128, 4096])
def test_what_suits_the_model_is_valid(longest: int) -> None:
    profile = make_profile(Limits(vocab_size=9, max_seq_len=longest, max_loop_iters=1))
    for _, axis in profile:
        assert axis.min <= axis.opt <= axis.max
    assert profile.seq.max == profile.past.max == longest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": "1:2"}, "give MIN:OPT:MAX"),
        ({"seq": "one"}, "give MIN:OPT:MAX"),
        ({"seq": "-1:1:2"}, "give MIN:OPT:MAX"),
        ({"seq": "9999999999"}, "give MIN:OPT:MAX"),
        ({"batch": "2:1:4"}, "MIN <= OPT <= MAX"),
        ({"past": "0:9:8"}, "MIN <= OPT <= MAX"),
        ({"batch": "0:1:4"}, "the least there can be is 1"),
        ({"loops": "0:1:4"}, "the least there can be is 1"),
        ({"seq": "1:128:5000"}, "max_seq_len is 4096"),
        ({"past": "0:128:5000"}, "max_seq_len is 4096"),
        ({"seq": "3000", "past": "3000"}, "--seq and --past are 6000 tokens at least"),
    ],
)
def test_what_cannot_be(options: dict[str, str], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        make_profile(LIMITS, **options)


def test_a_dimension_nobody_knows() -> None:
    with pytest.raises(ProfileError, match="'heads', which this release does not know"):
        shapes_of(TensorSpec(name="x", dtype="int64", shape=["heads"]), make_profile(LIMITS))
