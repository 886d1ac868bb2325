"""Text prompts through the bundle's own tokenizer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as HfTokenizer

import engines
from engines import EngineError
from engines.text import Tokenizer
from mythos_export.bundle import Bundle, TextRecord

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
def test_a_stream_is_the_whole_text_and_never_half_a_character(text: str) -> None:
    tokenizer = Tokenizer(HfTokenizer.from_str(utf8_bytes()))
    stream = tokenizer.stream([])
    pieces = [stream.push(token) for token in tokenizer.encode(text)] + [stream.finish()]
    assert "".join(pieces) == text
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)
    assert len([piece for piece in pieces if piece]) == len(text)


def test_a_stream_keeps_the_spaces_between_words(toy: MakeToy) -> None:
    tokenizer = Tokenizer.open(toy(files={"tokenizer.json": words()}))
    stream = tokenizer.stream([])
    assert "".join([*map(stream.push, [1, 2, 3, 1]), stream.finish()]) == "loop the model loop"


def test_what_never_becomes_a_character_comes_out_at_the_end() -> None:
    tokenizer = Tokenizer(HfTokenizer.from_str(utf8_bytes()))
    stream = tokenizer.stream([])
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


class TestPrompts:
    def open(self, toy: MakeToy, tokenizer: HfTokenizer, **record: Any) -> Tokenizer:
        bundle = toy(files={"tokenizer.json": tokenizer.to_str()})
        text = TextRecord(**{"special_tokens": "config", "prefix": [], "suffix": [], "end": [], **record})
        return Tokenizer.open(Bundle(bundle.path, bundle.manifest.model_copy(update={"text": text})))

    @pytest.fixture
    def tokenizer(self) -> HfTokenizer:
        """One that puts its own token before every text, as Llama's do."""
        tokenizer = HfTokenizer.from_str(words())
        tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 4), ("</s>", 5)]
        )
        return tokenizer

    def test_the_manifest_says_what_a_prompt_gets_not_the_post_processor(
        self, toy: MakeToy, tokenizer: HfTokenizer
    ) -> None:
        assert self.open(toy, tokenizer).encode("loop the") == [1, 2]
        assert self.open(toy, tokenizer, prefix=[4]).encode("loop the") == [4, 1, 2]
        assert self.open(toy, tokenizer, prefix=[4], suffix=[5]).encode("loop the") == [4, 1, 2, 5]

    def test_a_prompt_that_begins_with_it_gets_no_second_one(self, toy: MakeToy, tokenizer: HfTokenizer) -> None:
        assert self.open(toy, tokenizer, prefix=[4]).encode("<s>loop") == [4, 1]
        assert self.open(toy, tokenizer, suffix=[5]).encode("loop</s>") == [1, 5]

    def test_a_bundle_that_does_not_say_is_read_as_before(self, toy: MakeToy, tokenizer: HfTokenizer) -> None:
        assert Tokenizer.open(toy(files={"tokenizer.json": tokenizer.to_str()})).encode("loop") == [4, 1, 5]

    def test_truncation_and_padding_of_its_last_use_are_forgotten(self, toy: MakeToy, tokenizer: HfTokenizer) -> None:
        tokenizer.enable_truncation(2)
        assert len(self.open(toy, tokenizer).encode("loop " * 9)) == 9
        tokenizer.no_truncation()
        tokenizer.enable_padding(length=12)
        assert self.open(toy, tokenizer).encode("loop") == [1]

    def test_a_token_that_the_model_lacks_is_named(self, toy: MakeToy, tokenizer: HfTokenizer) -> None:
        tokenizer.add_tokens([f"tok{index}" for index in range(20)])
        with pytest.raises(EngineError, match=r"token 'tok15' \(id 21\), but the model's ids end at 15"):
            self.open(toy, tokenizer).encode("loop tok15")


class TestEnds:
    def engine(self, toy: MakeToy, end: list[int]) -> engines.Engine:
        engine = engines.load(toy(files={"tokenizer.json": words()}).path)
        text = TextRecord(special_tokens="none", prefix=[], suffix=[], end=end)
        engine.manifest = engine.manifest.model_copy(update={"text": text})
        return engine

    def test_an_answer_ends_at_any_of_the_models_end_ids(self, toy: MakeToy) -> None:
        free = list(self.engine(toy, []).generate([1, 2], max_new_tokens=8))
        for end in ([free[3]], [free[3], free[5]]):
            first = min(free.index(token) for token in end)
            engine = self.engine(toy, end)
            assert list(engine.generate([1, 2], max_new_tokens=8)) == free[: first + 1]
            assert list(engine.generate([1, 2], max_new_tokens=8, ignore_eos=True)) == free
