"""What a bundle learns of text from the files beside a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from mythos_export.errors import RequestError
from mythos_export.text_files import NO_TEXT, TextFiles, read_text_files

VOCAB = 16
Read = Callable[..., TextFiles]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Read a folder with a tokenizer and JSON files: `read("auto", tokenizer_config={...})`."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "loop": 1, "the": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<s>", "</s>", "<|im_end|>")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 3), ("</s>", 4)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))

    def files(special_tokens: str = "auto", vocab_size: int = VOCAB, **contents: Any) -> TextFiles:
        for name, content in contents.items():
            (tmp_path / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return read_text_files(tmp_path / "model.pt", special_tokens, vocab_size)

    return files


class TestSpecialTokens:
    def test_a_post_processor_alone_decides_nothing(self, read: Read) -> None:
        record = read().record
        assert (record.prefix, record.suffix, record.special_tokens) == ([], [], "none")

    def test_tokenizer_config_decides(self, read: Read) -> None:
        config = {"add_bos_token": True, "add_eos_token": False, "bos_token": "<s>"}
        record = read(tokenizer_config=config).record
        assert (record.prefix, record.suffix, record.special_tokens) == ([3], [], "config")

    def test_the_tokens_may_stand_in_the_map_or_be_dictionaries(self, read: Read) -> None:
        record = read(
            tokenizer_config={"add_bos_token": True, "add_eos_token": True, "bos_token": {"content": "<s>"}},
            special_tokens_map={"eos_token": {"content": "</s>", "lstrip": False}},
        ).record
        assert (record.prefix, record.suffix) == ([3], [4])

    def test_the_user_decides_otherwise(self, read: Read) -> None:
        config = {"add_bos_token": True, "bos_token": "<s>"}
        assert read("none", tokenizer_config=config).record.prefix == []
        assert read("bos").record.prefix == [3]
        tokenizers = read("tokenizer").record
        assert (tokenizers.prefix, tokenizers.suffix) == ([3], [4])

    def test_a_token_that_nobody_names(self, read: Read) -> None:
        with pytest.raises(RequestError, match="add_bos_token wants a bos_token"):
            read(tokenizer_config={"add_bos_token": True})

    def test_no_such_choice(self, read: Read) -> None:
        with pytest.raises(RequestError, match="--special-tokens is 'some'; it must be one of auto, none, bos"):
            read("some")


class TestEnds:
    def test_every_file_counts_once(self, read: Read) -> None:
        record = read(
            generation_config={"eos_token_id": [5, 4], "pad_token_id": 0},
            tokenizer_config={"eos_token": "<|im_end|>"},
            config={"eos_token_id": 1},
        ).record
        assert record.end == [5, 4, 1]

    @pytest.mark.parametrize("value", [None, []])
    def test_none_is_none(self, read: Read, value: Any) -> None:
        assert read(generation_config={"eos_token_id": value}, config={}).record.end == []

    @pytest.mark.parametrize(
        ("files", "complaint"),
        [
            ({"generation_config": {"eos_token_id": 99}}, "has id 99, but the model's end at 15"),
            ({"generation_config": {"eos_token_id": -1}}, "has id -1"),
            ({"generation_config": {"eos_token_id": "</s>"}}, "must be an id or a list of ids"),
            ({"generation_config": {"eos_token_id": [True]}}, "must be an id or a list of ids"),
            ({"tokenizer_config": {"eos_token": "<gone>"}}, "eos_token is '<gone>', which tokenizer.json lacks"),
            ({"tokenizer_config": {"eos_token": 7}}, "eos_token is '7'"),
            ({"tokenizer_config": "{"}, "tokenizer_config.json: not valid JSON"),
            ({"generation_config": '{"eos_token_id": 1, "eos_token_id": 2}'}, "generation_config.json: not valid JSON"),
            ({"generation_config": "[" * 100_000}, "generation_config.json: not valid JSON"),
            ({"special_tokens_map": "[]"}, "not a JSON object"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, read: Read, files: dict[str, Any], complaint: str) -> None:
        with pytest.raises(RequestError, match=complaint.replace(".", r"\.").replace("[", r"\[")):
            read(**files)


def test_ids_that_the_model_lacks_are_said_by_number(read: Read) -> None:
    assert read().notes == ()
    (note,) = read(vocab_size=3).notes
    assert "ids up to 5, the model 3 ids: a text with one of 3..5" in note


def test_without_a_checkpoint_there_is_nothing() -> None:
    assert read_text_files(None, "auto", VOCAB).record == NO_TEXT
    with pytest.raises(RequestError, match="needs a tokenizer"):
        read_text_files(None, "bos", VOCAB)
