"""Text prompts through the bundle's own tokenizer."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import decoders, models, pre_tokenizers

import engines
from engines import EngineError
from engines.text import Tokenizer
from mythos_export.bundle import Bundle

MakeToy = Callable[..., Bundle]


def words() -> str:
    tokenizer = HfTokenizer(models.WordLevel({"<unk>": 0, "loop": 1, "the": 2, "model": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer.to_str()


def utf8_bytes() -> str:
    """One token a byte, so that most characters take several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = HfTokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer.to_str()


def test_round_trip_and_generation(toy: MakeToy) -> None:
    engine = engines.load(toy(files={"tokenizer.json": words()}).path)
    ids = engine.tokenizer.encode("loop the model")
    assert ids == [1, 2, 3]
    assert engine.tokenizer.decode(ids) == "loop the model"
    assert len(list(engine.generate(ids, max_new_tokens=3))) == 3


@pytest.mark.parametrize("text", ["plain", "größer — 模型 🙂 end", "🙂🙂"])
def test_a_stream_is_the_whole_text_and_never_half_a_character(toy: MakeToy, text: str) -> None:
    tokenizer = Tokenizer.open(toy(files={"tokenizer.json": utf8_bytes()}))
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in tokenizer.encode(text)] + [stream.finish()]
    assert "".join(pieces) == text
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)
    assert len([piece for piece in pieces if piece]) == len(text)


def test_a_stream_keeps_the_spaces_between_words(toy: MakeToy) -> None:
    tokenizer = Tokenizer.open(toy(files={"tokenizer.json": words()}))
    stream = tokenizer.stream()
    assert "".join([*map(stream.push, [1, 2, 3, 1]), stream.finish()]) == "loop the model loop"


def test_what_never_becomes_a_character_comes_out_at_the_end(toy: MakeToy) -> None:
    tokenizer = Tokenizer.open(toy(files={"tokenizer.json": utf8_bytes()}))
    stream = tokenizer.stream()
    half = tokenizer.encode("🙂")[:2]
    assert [stream.push(token) for token in half] == ["", ""]
    assert stream.finish() == tokenizer.decode(half)
    assert stream.finish() == ""


def test_a_bundle_without_one(toy_engine: engines.Engine) -> None:
    with pytest.raises(EngineError, match=r"no tokenizer.json in this bundle; give token ids instead of text"):
        _ = toy_engine.tokenizer


def test_a_file_that_is_none(toy: MakeToy) -> None:
    with pytest.raises(EngineError, match=r"tokenizer.json: not a tokenizer \(") as raised:
        Tokenizer.open(toy(files={"tokenizer.json": '{"version": "1.0"}'}))
    assert "\n" not in str(raised.value)


def test_an_empty_text(toy: MakeToy) -> None:
    with pytest.raises(EngineError, match="the prompt is empty; give some text"):
        Tokenizer.open(toy(files={"tokenizer.json": words()})).encode("")


def test_tokenizers_missing(toy: MakeToy, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = toy(files={"tokenizer.json": words()})
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(EngineError, match="text needs the tokenizers package: pip install mythos-export"):
        Tokenizer.open(bundle)
