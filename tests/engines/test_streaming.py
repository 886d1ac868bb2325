"""What is streamed is what `decode(prompt + answer)` has behind the prompt, for every kind of tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Library

from engines.text import AnswerText, Tokenizer

SPECIAL = [AddedToken(name, special=True) for name in ("<s>", "</s>", "<pad>")]


def byte_level() -> Library:
    """One token a byte, and a few words."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(alphabet)}
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Library(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def sentencepiece() -> Library:
    """As Llama's: a space before the text, bytes for what the vocabulary lacks."""
    vocabulary = {"<unk>": 0}
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    for piece in ("▁", "a", "b", "c", "▁a", "▁b", "▁▁", "ab", "世", "."):
        vocabulary[piece] = len(vocabulary)
    merges = [("▁", "a"), ("▁", "b"), ("▁", "▁"), ("a", "b")]
    tokenizer = Library(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def metaspace() -> Library:
    """As T5's."""
    pieces = ["<unk>", "▁", "a", "b", "▁a", "▁b", "▁▁", "ab", "."]
    tokenizer = Library(models.Unigram([(piece, -float(at)) for at, piece in enumerate(pieces)], 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def words() -> Library:
    """Words, joined by spaces; it has no decoder."""
    tokenizer = Library(models.WordLevel({"<unk>": 0, "loop": 1, "the": 2, "model": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def word_pieces() -> Library:
    """As BERT's."""
    pieces = ["[UNK]", "loop", "##ed", "the", ".", "don", "'", "t", "##s"]
    tokenizer = Library(models.WordPiece({piece: at for at, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def suffixed() -> Library:
    """As CLIP's and GPT's first: the end of a word is marked."""
    pieces = ["a", "b", "a</w>", "b</w>", "ab</w>"]
    tokenizer = Library(models.BPE({piece: at for at, piece in enumerate(pieces)}, [], end_of_word_suffix="</w>"))
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


KINDS: dict[str, Library] = {
    make.__name__: make() for make in (byte_level, sentencepiece, metaspace, words, word_pieces, suffixed)
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def streamed(tokenizer: Tokenizer, prompt: Sequence[int], answer: Sequence[int]) -> list[str]:
    stream = tokenizer.stream(prompt)
    return [*map(stream.push, answer), stream.finish()]


@every_kind
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_any_ids(kind: str, data: st.DataObject) -> None:
    library = KINDS[kind]
    tokenizer = Tokenizer(library)
    # Letters, bytes of characters and special tokens are drawn as often as the many other bytes.
    telling = [
        library.token_to_id(token) for token in ("<s>", "</s>", "<0xE4>", "<0xB8>", "<0x96>", "▁", "▁a", "ä", "Ġ")
    ]
    ids = st.sampled_from([token for token in telling if token is not None]) | st.integers(
        0, library.get_vocab_size() - 1
    )
    prompt, answer = data.draw(st.lists(ids, max_size=8)), data.draw(st.lists(ids, max_size=16))
    before, whole = tokenizer.decode(prompt), tokenizer.decode(prompt + answer)
    text = "".join(streamed(tokenizer, prompt, answer))
    shared = next((at for at, (old, new) in enumerate(zip(before, whole)) if old != new), len(before))
    assert text == whole[shared:]
    if whole.startswith(before):
        assert before + text == whole


@every_kind
def test_a_prompt_and_its_continuation(kind: str) -> None:
    tokenizer = Tokenizer(KINDS[kind])
    prompt = {"words": [1, 2], "word_pieces": [1, 2]}.get(kind, KINDS[kind].encode("a b").ids)
    answer = prompt[::-1]
    assert tokenizer.decode(prompt) + "".join(streamed(tokenizer, prompt, answer)) == tokenizer.decode(prompt + answer)


def test_the_space_before_the_first_word() -> None:
    tokenizer = Tokenizer(KINDS["sentencepiece"])
    prompt = tokenizer.encode("a")
    assert "".join(streamed(tokenizer, prompt, [tokenizer.encode("b")[0]])) == " b"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "suffixed"])  # there the word before says so
def test_an_answer_to_an_unknown_prompt_keeps_its_first_space(kind: str) -> None:
    library = KINDS[kind]
    words = [library.token_to_id(token) for token in ("▁a", "loop", "Ġthe")]
    word = next(token for token in words if token is not None)
    stream = Tokenizer(library).stream()
    text = stream.push(word) + stream.finish()
    assert text == " " + text.strip()


def test_the_space_behind_a_special_token() -> None:
    library = KINDS["sentencepiece"]
    prompt, answer = library.encode("a").ids, [library.token_to_id("</s>"), library.token_to_id("▁b")]
    assert "".join(streamed(Tokenizer(library), prompt, answer)) == " b"


def test_bytes_are_held_until_no_other_can_spoil_them() -> None:
    """A run of bytes is one text or, if one of them fits no character, none at all."""
    library = KINDS["sentencepiece"]
    run = [library.token_to_id(f"<0x{byte:02X}>") for byte in "世".encode()]
    a, bad = library.token_to_id("a"), library.token_to_id("<0xFF>")
    assert streamed(Tokenizer(library), [a], [*run, a]) == ["", "", "", "世a", ""]
    assert streamed(Tokenizer(library), [a], [*run, bad, a])[-2] == 4 * "\N{REPLACEMENT CHARACTER}" + "a"


def test_a_long_answer_is_decoded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(KINDS["byte_level"])
    decoded: list[int] = []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids: decoded.append(len(ids)) or decode(ids))
    streamed(tokenizer, list(range(60, 90)) * 50, list(range(60, 90)) * 50)
    assert max(decoded) <= 16


class TestStops:
    @pytest.fixture
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(KINDS["byte_level"])

    def answer(self, tokenizer: Tokenizer, ids: Sequence[int], words: Sequence[str], ends: Sequence[int]) -> str:
        text = AnswerText(tokenizer.stream([]), words, ends)
        return "".join([*map(text.push, ids), text.finish()])

    def test_special_tokens_are_looked_for_as_tokens(self, tokenizer: Tokenizer) -> None:
        special = KINDS["byte_level"].token_to_id
        texts, rows = tokenizer.stops(["the", "</s>", "<s>x"])
        assert texts == ["the"]
        assert rows == [[special("</s>")], [special("<s>"), special("x")]]

    def test_a_stop_word_over_several_tokens_is_left_out(self, tokenizer: Tokenizer) -> None:
        assert self.answer(tokenizer, tokenizer.encode("abc xyz def"), ["xyz"], []) == "abc "

    def test_an_end_token_is_left_out_be_it_special_or_not(self, tokenizer: Tokenizer) -> None:
        end = KINDS["byte_level"].token_to_id("z")
        assert self.answer(tokenizer, [*tokenizer.encode("ab"), end], [], [end]) == "ab"
