"""Every token of a data set reaches the ranges, no padding does, and a file that is no good is one clear line."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

import calibration.data
from calibration.data import Samples, default_samples, read_samples
from calibration.errors import CalibrationError
from mythos_export.bundle import TextRecord
from reference_model.nano import TOKENIZER, task

VOCAB, MAX_SEQ_LEN = 97, 16
WORDS = ("<pad>", "<unk>", "the", "loop", "runs", "again", "and", "<s>")

Write = Callable[..., Path]


def read(path: Path, tokenizer: Path | None = None, limit: int = 10_000) -> Samples:
    return read_samples(path, vocab_size=VOCAB, max_seq_len=MAX_SEQ_LEN, tokenizer=tokenizer, limit=limit)


def refusal(path: Path, tokenizer: Path | None = None) -> str:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(CalibrationError) as refused:
            read(path, tokenizer)
    assert not warned  # it would be a second line
    message = str(refused.value)
    assert message.isprintable()
    assert len(message) < 600
    return message.replace(f"{path.parent}{os.sep}", "")


def rows(samples: Samples) -> list[list[int]]:
    for sequence in samples.sequences:
        assert sequence.dtype == np.int64 and sequence.ndim == 1
        assert 1 <= len(sequence) <= MAX_SEQ_LEN
    return [sequence.tolist() for sequence in samples.sequences]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A data file: `write("a.jsonl", [1, 2], {"text": "x"})`, `write("a.npy", array)`, `write("a.txt", "text")`."""

    def file(name: str, *content: Any) -> Path:
        path = tmp_path / name
        if isinstance(content[0], bytes):
            path.write_bytes(b"".join(content))
        elif isinstance(content[0], str):
            path.write_text("".join(content), encoding="utf-8", newline="")
        elif name.endswith(".npy"):
            np.save(path, content[0])
        else:
            path.write_text("".join(json.dumps(line) + "\n" for line in content), encoding="utf-8")
        return path

    return file


@pytest.fixture
def tokenizer(tmp_path: Path) -> Callable[..., Path]:
    """A tokenizer of `WORDS`: `tokenizer(pad="<pad>", begin="<s>", max_length=4)`."""

    def file(
        pad: str | None = None, begin: str | None = None, max_length: int | None = None, words: tuple[str, ...] = WORDS
    ) -> Path:
        made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        if begin is not None:
            special = [(begin, words.index(begin))]
            made.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=special)
        if pad is not None:
            made.enable_padding(pad_id=words.index(pad), pad_token=pad, length=10)
        if max_length is not None:
            made.enable_truncation(max_length)
        path = tmp_path / "tokenizer.json"
        made.save(str(path))
        return path

    return file


class TestArrays:
    def test_rows_are_sequences_and_minus_one_is_padding(self, write: Write) -> None:
        array = np.array([[5, 6, 7, -1], [-1, -1, 8, 9], [-1, 3, 4, -1], [-1, -1, -1, -1]])
        assert rows(read(write("a.npy", array))) == [[5, 6, 7], [8, 9], [3, 4]]

    def test_a_flat_array_is_one_sequence(self, write: Write) -> None:
        samples = read(write("a.npy", np.array([5, 6, 7, -1])))
        assert rows(samples) == [[5, 6, 7]]
        assert samples.tokens == 3

    @pytest.mark.parametrize("dtype", ["i1", "u1", "<i2", ">i4", "u4", ">i8", "u8"])
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_any_integer_type_and_order(self, write: Write, dtype: str, order: Any) -> None:
        array = np.array([[96, 0, 7], [1, 2, 3]]).astype(dtype, order=order)
        assert rows(read(write("a.npy", array))) == [[96, 0, 7], [1, 2, 3]]

    @pytest.mark.parametrize(
        ("array", "said"),
        [
            (np.array([[0.5, 1.0]]), "holds float64, not integers; give token ids"),
            (np.array([[True, False]]), "holds bool, not integers; give token ids"),
            (np.array(["a"]), "not integers; give token ids"),
            (np.array([1], "m8[s]"), "not integers; give token ids"),
            (np.array([(1, 2)], [("a", "i4"), ("b", "i4")]), "not integers; give token ids"),
            (np.zeros((2, 2, 2), int), "has 3 dimensions; expected [seq] or [sequences, seq]"),
            (np.array(3), "has 0 dimensions; expected [seq] or [sequences, seq]"),
            (np.zeros((0,), int), "holds no tokens; give at least one sequence"),
            (np.zeros((0, 5), int), "holds no tokens; give at least one sequence"),
            (np.zeros((5, 0), int), "holds no tokens; give at least one sequence"),
        ],
    )
    def test_not_token_ids(self, write: Write, array: Any, said: str) -> None:
        message = refusal(write("a.npy", array))
        assert message.startswith("a.npy: ") and message.endswith(said)

    @pytest.mark.parametrize(
        ("array", "where", "token"),
        [
            ([[1, 2], [3, 97]], "row 1: token id 97 at position 1", 97),
            ([[1, 2], [-1, -5]], "row 1: token id -5 at position 1", -5),
            ([1, 2, 3, 200], "token id 200 at position 3", 200),
        ],
    )
    def test_outside_the_vocabulary(self, write: Write, array: Any, where: str, token: int) -> None:
        said = f"a.npy: {where} is not in 0..96 (the vocabulary); was it made with another tokenizer?"
        assert refusal(write("a.npy", np.array(array))) == said

    def test_an_unsigned_minus_one_is_no_padding(self, write: Write) -> None:
        array = np.array([1, 2**64 - 1], np.uint64)
        assert "token id 18446744073709551615 at position 1 is not in 0..96" in refusal(write("a.npy", array))

    def test_padding_inside(self, write: Write) -> None:
        said = "a.npy: row 1: padding between real tokens, at position 2; pad at the beginning or the end only"
        assert refusal(write("a.npy", np.array([[1, 2, 3, -1], [-1, 2, -1, 4]]))) == said

    def test_what_is_far_into_a_long_row_is_seen(self, write: Write) -> None:
        """Past the first block, in which everything is padding or fine."""
        array = np.full(3 << 20, -1)
        array[(1 << 20) + 5 : (2 << 20) + 9] = np.arange((1 << 20) + 4) % VOCAB
        assert sum(map(len, rows(read(write("a.npy", array), limit=1 << 20)))) == (1 << 20) + 4
        array[(2 << 20) + 3] = 97
        assert f"token id 97 at position {(2 << 20) + 3} " in refusal(write("a.npy", array))


def npy(header: str, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    text = header.encode("latin1")
    return b"\x93NUMPY" + bytes(version) + len(text).to_bytes(2 if version == (1, 0) else 4, "little") + text + data


def described(shape: str, descr: str = "'<i8'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n"


class TestHostileArrays:
    def test_the_header_works(self, write: Write) -> None:
        """So that what follows is refused for what it says."""
        data = np.array([4, 5, 6]).tobytes()
        assert rows(read(write("a.npy", npy(described("(3,)"), data)))) == [[4, 5, 6]]

    @pytest.mark.parametrize(
        "header",
        [
            described("(1000000000000,)"),
            described("(4294967296, 4294967296)"),
            described(f"({10**30},)"),
            described("(-1, -3)"),
            described("(-3,)"),
            described("(3.0,)"),
            described("('3',)"),
            described("3"),
            described("(3,)", "'O'"),
            described("(3,)", "'<i9'"),
            described("(3,)", "[('a', 'O')]"),
            described("(3,)", "('<i8', (99999999,))"),
            described("(3,)", "{'a': 1}"),
            "{'descr': '<i8'}\n",
            "{" * 5000,
            "(" * 9000,
            "-" * 9000 + "1",
            "__import__('os').abort()\n",
            "'\\d'\n",
            "\x00" * 50,
            "é\n",
            "",
        ],
    )
    def test_headers_that_lie(self, write: Write, header: str) -> None:
        message = refusal(write("a.npy", npy(header, bytes(24))))
        assert message.startswith("a.npy: not an array that can be read (")
        assert message.endswith("); save integers with numpy.save")

    @pytest.mark.parametrize("shape", [f"({10**18}, 0)", f"(0, {10**18})", "(5, 0, 10)"])
    def test_a_trillion_of_nothing(self, write: Write, shape: str) -> None:
        assert refusal(write("a.npy", npy(described(shape)))).startswith("a.npy: ")

    @pytest.mark.parametrize("length", range(10))
    def test_cut_short(self, write: Write, length: int) -> None:
        whole = npy(described("(3,)"), np.array([4, 5, 6]).tobytes())
        assert "not an array that can be read" in refusal(write("a.npy", whole[: length * len(whole) // 10]))

    def test_pickles_and_archives(self, write: Write, tmp_path: Path) -> None:
        archive = io.BytesIO()
        np.savez(archive, a=np.array([1, 2]))
        assert "it does not begin like one" in refusal(write("a.npy", archive.getvalue()))
        objects = np.array([[1, 2], None], object)
        assert "not an array that can be read" in refusal(write("a.npy", objects))

    def test_a_long_header_is_not_read(self, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("it was left to numpy"))
        path = write("a.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff")
        assert "its header is too long" in refusal(path)

    @pytest.mark.parametrize("shape", ["(8, 4000000)", "(32000000,)"])
    def test_a_large_file_is_not_loaded(self, write: Write, shape: str, peak: Callable[..., float]) -> None:
        path = write("a.npy", npy(described(shape, "'<i2'")))
        size = path.stat().st_size
        os.truncate(path, size + 64_000_000)  # 64 MB of zeros, in a hole
        with path.open("r+b") as stream:
            stream.seek(size + 100)
            stream.write(b"\x05")
        assert peak(lambda: read(path, limit=4)) < 16e6
        with path.open("r+b") as stream:
            stream.seek(-2, os.SEEK_END)
            stream.write(b"\x61\x00")

        def refused() -> None:
            with pytest.raises(CalibrationError, match="token id 97 at position "):
                read(path, limit=4)

        assert peak(refused) < 16e6


@pytest.fixture
def peak() -> Callable[..., float]:
    """Bytes that Python and numpy hold at once in a call, beyond what they held before."""

    def measure(call: Callable[[], object]) -> float:
        tracemalloc.start()
        try:
            call()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return measure


class TestJsonLines:
    def test_lists_and_objects(self, write: Write) -> None:
        path = write(
            "a.jsonl",
            [5, 6, 7],
            {"input_ids": [1, 2]},
            {"input_ids": [0, 0, 8, 9, 0], "attention_mask": [0, 0, 1, 1, 0], "labels": "whatever"},
            [-1, 3, -1],
            {"input_ids": [-100, 4], "attention_mask": [0, 1]},
        )
        assert rows(read(path)) == [[5, 6, 7], [1, 2], [8, 9], [3], [4]]

    def test_blank_lines_other_ends_of_lines_and_a_mark(self, write: Write) -> None:
        assert rows(read(write("a.jsonl", "\ufeff[1, 2]\r\n\n  \n[3]\r\n\r\n[4]"))) == [[1, 2], [3], [4]]

    def test_rows_of_nothing_are_skipped(self, write: Write) -> None:
        path = write("a.jsonl", [], [-1, -1], {"input_ids": [5], "attention_mask": [0]}, {"input_ids": []}, [7, 8])
        assert rows(read(path)) == [[7, 8]]

    def test_ids_come_before_text(self, write: Write) -> None:
        assert rows(read(write("a.jsonl", {"text": "the loop", "input_ids": [5, 6]}))) == [[5, 6]]

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("[1, true]", "token True at position 1 is not an integer; give a flat list"),
            ("[1.0]", "token 1.0 at position 0 is not an integer; give a flat list"),
            ("[1, 1e999]", "token inf at position 1 is not an integer; give a flat list"),
            ("[1, null]", "token None at position 1 is not an integer; give a flat list"),
            ('["1"]', "token '1' at position 0 is not an integer; give a flat list"),
            ("[[1, 2]]", "token [1, 2] at position 0 is not an integer; give a flat list"),
            ('{"input_ids": [[1]]}', "token [1] at position 0 is not an integer; give a flat list"),
            (
                "[1, 97]",
                "token id 97 at position 1 is not in 0..96 (the vocabulary); was it made with another tokenizer?",
            ),
            (
                "[-2, 5]",
                "token id -2 at position 0 is not in 0..96 (the vocabulary); was it made with another tokenizer?",
            ),
            (f"[1, {2**63}]", f"token id {2**63} at position 1 is not in 0..96 (the vocabulary)"),
            (f"[{-(2**70)}, 1]", f"token id {-(2**70)} at position 0 is not in 0..96 (the vocabulary)"),
            ("[" + "9" * 4000 + "]", "at position 0 is not in 0..96 (the vocabulary)"),
            ("[" + "9" * 400_000 + "]", ""),
            ("[1, -1, 2]", "padding between real tokens, at position 1; pad at the beginning or the end only"),
            (
                '{"input_ids": [1, 2, 3], "attention_mask": [1, 0, 1]}',
                "padding between real tokens, at position 1; pad at the beginning or the end only",
            ),
            ('{"input_ids": [1, 2], "attention_mask": [1]}', "attention_mask must be a list as long as input_ids"),
            ('{"input_ids": [1, 2], "attention_mask": null}', "attention_mask must be a list as long as input_ids"),
            ('{"input_ids": [1], "attention_mask": [2]}', "attention_mask is 2 at position 0; it must be 0 or 1"),
            ('{"input_ids": [1], "attention_mask": [-1]}', "attention_mask is -1 at position 0; it must be 0 or 1"),
            ('{"input_ids": [1], "attention_mask": [true]}', "attention_mask True at position 0 is not an integer"),
            (
                f'{{"input_ids": [1], "attention_mask": [{2**80}]}}',
                f"attention_mask is {2**80} at position 0; it must be 0 or 1",
            ),
            ('{"tokens": [1]}', "no list of token ids; each line is a list of token ids, or an object with"),
            ('{"input_ids": null, "text": "a"}', "no list of token ids; each line is"),
            ('{"input_ids": "1 2 3"}', "no list of token ids; each line is"),
            ("5", "no list of token ids; each line is"),
            ('"the loop"', "no list of token ids; each line is"),
            ('{"text": 5}', "text is 5; it must be a string"),
            ('{"text": "the loop"}', "text needs a tokenizer, and there is none; give token ids instead"),
            ("[1, 2", "not valid JSON (Expecting ',' delimiter at column 6); each line is"),
            ("[1] [2]", "not valid JSON (Extra data at column 5); each line is"),
            ("[NaN]", "not valid JSON (NaN is not JSON); each line is"),
            ("[-Infinity]", "not valid JSON (-Infinity is not JSON); each line is"),
            ('{"input_ids": [1], "input_ids": [2]}', "not valid JSON (a name is given twice); each line is"),
            ('{"input_ids": [1], "x": {"y": 1, "y": 2}}', "not valid JSON (a name is given twice); each line is"),
            ("[" * 100_000, "not valid JSON (nested too deeply); each line is"),
            ("[" * 900 + "]" * 900, ""),
            ('{"\\u001b[2J": 1}', "no list of token ids"),
            ('["\\u001b[2J"]', "at position 0 is not an integer"),
        ],
    )
    def test_one_clear_line_that_names_the_line(self, write: Write, line: str, said: str) -> None:
        message = refusal(write("a.jsonl", f"[1, 2]\n\n{line}\n[3]\n"))
        assert message.startswith(f"a.jsonl: line 3: {said}" if not said.startswith("at ") else "a.jsonl: line 3: ")
        assert said in message

    def test_a_long_file_is_not_loaded(self, write: Write, peak: Callable[..., float]) -> None:
        path = write("a.jsonl", "[5, 6, 7, 8]\n" * 10_000)
        assert peak(lambda: read(path, limit=4)) < 1e6

    def test_invalid_utf8(self, write: Write) -> None:
        said = "a.jsonl: line 2: not valid UTF-8; save the file as UTF-8"
        assert refusal(write("a.jsonl", b"[1, 2]\n[3]\xff\n")) == said

    @pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
    def test_a_line_without_end(self, write: Write, name: str, tokenizer: Callable[..., Path]) -> None:
        path = write(name, b"[1, 2]\n")
        os.truncate(path, 3 << 30)  # one line of 3 GB, in a hole
        assert refusal(path, tokenizer()) == f"{name}: line 2: longer than 16 MiB; give several shorter ones"


class TestText:
    def test_paragraphs(self, write: Write, tokenizer: Callable[..., Path]) -> None:
        text = "\ufeffthe loop\nruns\n\n \n\nagain and again\r\n\r\nthe\n\n"
        for name in ("a.txt", "a.text", "A.TXT"):
            assert rows(read(write(name, text), tokenizer())) == [[2, 3, 4], [5, 6, 5], [2]]

    def test_ends_of_lines_are_all_alike(self, write: Write) -> None:
        given = write("tokenizer.json", utf8_bytes())
        one, other = (
            read_samples(write("a.txt", text), vocab_size=256, max_seq_len=99, tokenizer=given).sequences
            for text in ("the\nloop \n\nruns\n", "the\r\nloop \r\n\r\nruns")
        )
        assert [sequence.tolist() for sequence in one] == [sequence.tolist() for sequence in other]
        assert [len(sequence) for sequence in one] == [9, 4]

    def test_in_json_lines(self, write: Write, tokenizer: Callable[..., Path]) -> None:
        path = write("a.jsonl", {"text": "the loop"}, [4, 5], {"text": "again\n\nand again"})
        assert rows(read(path, tokenizer())) == [[2, 3], [4, 5], [5, 6, 5]]

    def test_special_tokens_are_tokens(self, write: Write, tokenizer: Callable[..., Path]) -> None:
        assert rows(read(write("a.txt", "the loop"), tokenizer(begin="<s>"))) == [[7, 2, 3]]

    def test_a_tokenizer_that_cuts_off_and_pads(self, write: Write, tokenizer: Callable[..., Path]) -> None:
        """Its file may ask for both; then tokens would be lost, and padding come in."""
        path = write("a.txt", "the loop runs again and again")
        assert rows(read(path, tokenizer(pad="<pad>", max_length=3))) == [[2, 3, 4, 5, 6, 5]]

    def test_without_a_tokenizer(self, write: Write) -> None:
        said = "a.txt: line 2: text needs a tokenizer, and there is none; give token ids instead"
        assert refusal(write("a.txt", "\nthe loop")) == said

    def test_nothing_in_it(self, write: Write, tokenizer: Callable[..., Path]) -> None:
        assert refusal(write("a.txt", " \n\n"), tokenizer()) == "a.txt: holds no sequences; give at least one"

    def test_half_a_character(self, write: Write, tokenizer: Callable[..., Path]) -> None:
        path = write("a.jsonl", '{"text": "the \\ud800"}\n')
        message = refusal(path, tokenizer())
        assert message.startswith("a.jsonl: line 1: cannot be encoded (")
        assert message.endswith("); correct or remove it")

    def test_invalid_utf8(self, write: Write, tokenizer: Callable[..., Path]) -> None:
        said = "a.txt: line 3: not valid UTF-8; save the file as UTF-8"
        assert refusal(write("a.txt", b"the\n\nlo\xc3\xc3p"), tokenizer()) == said

    def test_a_paragraph_without_end(
        self, write: Write, tokenizer: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(calibration.data, "_MOST_BYTES", 50)
        assert len(read(write("a.txt", "the loop runs\n\n" * 20), tokenizer()).sequences) == 20
        said = "a.txt: line 3: longer than 16 MiB; put a blank line between two texts"
        assert refusal(write("a.txt", "the\n\n" + "the loop runs\n" * 20), tokenizer()) == said

    @pytest.mark.parametrize(
        "content", [b"", b"{}", b"[]", b"\xff\xfe", b'{"version": "1.0", "model": {"type": "No"}}']
    )
    def test_a_tokenizer_that_is_none(self, write: Write, content: bytes) -> None:
        tokenizer = write("tokenizer.json", content)
        for path in (write("a.txt", "the loop"), write("a.npy", np.array([1, 2]))):
            message = refusal(path, tokenizer)
            assert message.startswith("tokenizer.json: not a tokenizer (")
            assert message.endswith("); give the model's tokenizer.json")

    def test_no_tokenizer_file(self, write: Write, tmp_path: Path) -> None:
        assert "tokenizer.json: not a tokenizer" in refusal(write("a.txt", "the"), tmp_path / "tokenizer.json")


class TestPadding:
    LINES = ([0, 0, 5, 0, 6], [5, 6, 0, 0], [-1, 0, 7, 0, -1], [0, 0, 0], [4])
    TRIMMED = ([5, 0, 6], [5, 6], [7], [4])

    @pytest.mark.parametrize("pad", [None, "<pad>"])
    def test_the_tokenizers_padding_is_removed_from_ids(
        self, write: Write, tokenizer: Callable[..., Path], pad: str | None
    ) -> None:
        samples = read(write("a.jsonl", *self.LINES), tokenizer(pad=pad))
        assert rows(samples) == list(self.TRIMMED)
        array = np.array([[*line, *[0] * (5 - len(line))] for line in self.LINES])
        assert rows(read(write("a.npy", array), tokenizer(pad=pad))) == list(self.TRIMMED)

    def test_so_it_is_under_a_mask_of_ones(self, write: Write, tokenizer: Callable[..., Path]) -> None:
        path = write("a.jsonl", {"input_ids": [5, 6, 0, 0], "attention_mask": [1, 1, 1, 1]})
        assert rows(read(path, tokenizer())) == [[5, 6]]

    def test_without_a_tokenizer_zero_is_a_token(self, write: Write) -> None:
        assert rows(read(write("a.jsonl", [0, 5, 0]))) == [[0, 5, 0]]

    def test_other_names(self, write: Write, tokenizer: Callable[..., Path]) -> None:
        named = tokenizer(words=("<unk>", "the", "[PAD]"))
        assert rows(read(write("a.jsonl", [2, 0, 1, 2]), named)) == [[0, 1]]
        configured = tokenizer(pad="end", words=("<unk>", "the", "end"))
        assert rows(read(write("a.jsonl", [2, 0, 1, 2]), configured)) == [[0, 1]]
        without = tokenizer(words=("<unk>", "the", "end"))
        assert rows(read(write("a.jsonl", [2, 0, 1, 2]), without)) == [[2, 0, 1, 2]]

    def test_padding_written_as_text(self, write: Write, tokenizer: Callable[..., Path]) -> None:
        assert rows(read(write("a.txt", "<pad> the loop <pad> <pad>"), tokenizer())) == [[2, 3]]

    def test_the_token_that_begins_every_text_stays(self, write: Write, tokenizer: Callable[..., Path]) -> None:
        """Some tokenizers pad with their `<s>`, which the model sees at the head of every text."""
        assert rows(read(write("a.txt", "the loop"), tokenizer(pad="<s>", begin="<s>"))) == [[7, 2, 3]]

    @pytest.mark.parametrize(
        "lines", [([-1, -1],), ([], []), ({"input_ids": [5, 6], "attention_mask": [0, 0]}, [-1]), ([], [0, 0, 0])]
    )
    def test_nothing_else(self, write: Write, tokenizer: Callable[..., Path], lines: tuple[Any, ...]) -> None:
        said = "a.jsonl: it is all padding; give sequences with real tokens"
        assert refusal(write("a.jsonl", *lines), tokenizer()) == said

    def test_nothing_else_in_an_array(self, write: Write) -> None:
        assert "all padding" in refusal(write("a.npy", np.full((3, 4), -1)))

    @pytest.mark.parametrize("token", [0, 5])
    def test_one_and_the_same_token(self, write: Write, token: int) -> None:
        said = f"every token is id {token}: that is padding, not data; give sequences with real tokens"
        assert refusal(write("a.npy", np.full((2, 4), token))) == f"a.npy: {said}"
        assert refusal(write("a.jsonl", [token] * 7, [-1, token])) == f"a.jsonl: {said}"
        assert rows(read(write("a.jsonl", [token] * 7))) == [[token] * 7]  # too few to tell
        assert rows(read(write("a.jsonl", [token] * 7, [token + 1]))) == [[token] * 7, [token + 1]]

    def test_one_and_the_same_token_but_for_what_was_not_kept(self, write: Write) -> None:
        """What is seen decides, not what happens to be kept."""
        assert rows(read(write("a.jsonl", *[[3] * 9] * 3, [4]), limit=1)) == [[3] * 9]

    def test_all_unknown(self, write: Write, tokenizer: Callable[..., Path]) -> None:
        text = "was it made with another tokenizer, I wonder"
        assert "every token is id 1" in refusal(write("a.txt", text), tokenizer())


class TestFiles:
    @pytest.mark.parametrize("name", ["a", "a.json", "a.pt", "a.npz", "a.jsonl.gz"])
    def test_another_kind(self, write: Write, name: str) -> None:
        said = "cannot tell what is in it; give token ids as .npy or .jsonl, or text as .jsonl or .txt"
        assert refusal(write(name, "[1]")) == f"{name}: {said}"

    @pytest.mark.parametrize("name", ["a.npy", "a.jsonl", "a.txt"])
    def test_missing_folder_pipe_and_circle(self, tmp_path: Path, name: str, tokenizer: Callable[..., Path]) -> None:
        path = tmp_path / name
        assert refusal(path) == f"{name}: no such file"
        path.mkdir()
        assert refusal(path) == f"{name}: not a regular file; give a .npy, .jsonl or .txt file"
        path.rmdir()
        os.mkfifo(path)
        assert refusal(path, tokenizer()) == f"{name}: not a regular file; give a .npy, .jsonl or .txt file"
        path.unlink()
        path.symlink_to(path)
        assert refusal(path).startswith(f"{name}: cannot be read (")
        path.unlink()
        path.symlink_to(tmp_path / "gone")
        assert refusal(path) == f"{name}: no such file"

    @pytest.mark.parametrize("name", ["a\0.npy", "a" * 400 + ".txt", "a\x1b[2J.npy"])
    def test_names(self, tmp_path: Path, name: str) -> None:
        refusal(tmp_path / name)

    @pytest.mark.parametrize("name", ["a.npy", "a.jsonl", "a.txt"])
    def test_unreadable(
        self, write: Write, name: str, tokenizer: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write(name, b"x")
        given = tokenizer()

        def forbidden(*_: Any, **__: Any) -> Any:  # root, who runs many a CI, may read everything
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", forbidden)
        assert refusal(path, given) == f"{name}: cannot be read (Permission denied)"

    @pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
    def test_empty(self, write: Write, name: str, tokenizer: Callable[..., Path]) -> None:
        assert refusal(write(name, b""), tokenizer()) == f"{name}: holds no sequences; give at least one"

    def test_links_are_followed(self, write: Write, tmp_path: Path) -> None:
        (tmp_path / "link.npy").symlink_to(write("a.npy", np.array([4, 5])))
        assert rows(read(tmp_path / "link.npy")) == [[4, 5]]

    def test_origin(self, write: Write) -> None:
        path = write("a.jsonl", [1, 2])
        assert read(path).origin == f"a.jsonl (sha256 {hashlib.sha256(path.read_bytes()).hexdigest()})"

    def test_the_file_can_go_afterwards(self, write: Write) -> None:
        """The sequences are copies, not a map of the file."""
        path = write("a.npy", np.array([4, 5]))
        samples = read(path)
        path.write_bytes(bytes(200))
        assert rows(samples) == [[4, 5]]


class TestLimit:
    @pytest.mark.parametrize("limit", [1, 2, 7, 128])
    @pytest.mark.parametrize("count", [1, 2, 7, 8, 128, 129, 300, 5000])
    def test_evenly_spread(self, write: Write, limit: int, count: int) -> None:
        array = np.stack((np.arange(count) // VOCAB, np.arange(count) % VOCAB), axis=1)
        kept = [row * VOCAB + rest for row, rest in rows(read(write("a.npy", array), limit=limit))]
        assert len(kept) == min(limit, count)
        assert kept == sorted(set(kept))
        assert kept[0] == 0
        if count <= limit:
            assert kept == list(range(count))
        elif limit > 1:
            gaps = np.diff(kept) * (limit - 1) / (count - 1)  # 1 if perfectly even
            assert gaps.max() <= 2 and gaps.min() >= 0.5
            assert count - kept[-1] <= max(1, count / limit)

    def test_pieces_of_long_rows_count(self, write: Write) -> None:
        row = np.arange(16 * MAX_SEQ_LEN) // MAX_SEQ_LEN
        samples = read(write("a.npy", row), limit=4)
        assert rows(samples) == [[piece] * MAX_SEQ_LEN for piece in (0, 5, 10, 15)]

    def test_default(self, write: Write) -> None:
        path = write("a.npy", np.arange(600).reshape(300, 2) % VOCAB)
        assert len(read_samples(path, vocab_size=VOCAB, max_seq_len=8, tokenizer=None).sequences) == 128

    def test_what_is_not_kept_is_checked(self, write: Write) -> None:
        array = np.arange(600).reshape(300, 2) % VOCAB
        for row in range(0, 300, 37):
            wrong = array.copy()
            wrong[row, 1] = VOCAB
            with pytest.raises(CalibrationError, match=f"row {row}: token id {VOCAB} at position 1 "):
                read(write("a.npy", wrong), limit=2)

    @pytest.mark.parametrize("limit", [0, -3])
    def test_too_low(self, write: Write, limit: int) -> None:
        with pytest.raises(CalibrationError, match=f"^limit is {limit}; it must be at least 1$"):
            read(write("a.npy", np.array([1, 2])), limit=limit)


ROWS = st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=5 * MAX_SEQ_LEN), min_size=1, max_size=12)


class TestNoTokenIsLostOrInvented:
    @settings(max_examples=60, deadline=None)
    @example(data=[[1] * (MAX_SEQ_LEN + 1) + [2]], pads=[(1, 2)], kind="npy")
    @given(
        data=ROWS,
        pads=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1),
        kind=st.sampled_from(["npy", "flat", "lists", "objects", "masks"]),
    )
    def test_through_any_format(self, data: list[list[int]], pads: list[tuple[int, int]], kind: str) -> None:
        data = data[:1] if kind == "flat" else data
        pads = [pads[index % len(pads)] for index in range(len(data))]
        with tempfile.TemporaryDirectory() as folder:
            path = self.write(Path(folder), data, pads, kind)
            tokens = Counter(token for row in data for token in row)
            if len(tokens) < 2:  # nothing, or perhaps too little: see above
                return
            kept = rows(read(path))
        wanted = [row[at : at + MAX_SEQ_LEN] for row in data for at in range(0, len(row), MAX_SEQ_LEN)]
        assert kept == wanted

    def write(self, folder: Path, data: list[list[int]], pads: list[tuple[int, int]], kind: str) -> Path:
        padded = [[-1] * left + row + [-1] * right for row, (left, right) in zip(data, pads)]
        if kind in ("npy", "flat"):
            width = max(map(len, padded))
            array = np.array([row + [-1] * (width - len(row)) for row in padded], np.int16)
            np.save(folder / "a.npy", array[0] if kind == "flat" else array)
            return folder / "a.npy"
        lines: list[Any] = padded
        if kind != "lists":
            lines = [{"input_ids": row} for row in padded]
        if kind == "masks":
            lines = [
                {"input_ids": [max(token, 0) for token in row], "attention_mask": [int(token >= 0) for token in row]}
                for row in padded
            ]
        (folder / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
        return folder / "a.jsonl"

    @settings(max_examples=40, deadline=None)
    @given(data=st.lists(st.lists(st.sampled_from(task.VOCABULARY[2:]), min_size=1, max_size=40), min_size=2))
    def test_through_text(self, data: list[list[str]]) -> None:
        if len({word for words in data for word in words}) < 2:
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.txt"
            path.write_text("\n\n".join(" ".join(words) for words in data))
            kept = rows(read(path, TOKENIZER))
        ids = [task.encode(" ".join(words)).tolist() for words in data]
        assert kept == [row[at : at + MAX_SEQ_LEN] for row in ids for at in range(0, len(row), MAX_SEQ_LEN)]


class TestDefaults:
    NANO = len(task.VOCABULARY)

    def test_nano(self) -> None:
        samples = default_samples(vocab_size=self.NANO, max_seq_len=64, tokenizer=TOKENIZER)
        assert samples.origin == "nano's task, train split, seed 0"
        assert len(samples.sequences) == 96
        hops = Counter()
        for sequence in samples.sequences:
            words = [task.VOCABULARY[index] for index in sequence]
            arrows = dict(word.split(">") for word in words[:8])
            at = words[9]
            for _ in range(int(words[8])):
                at = arrows[at]
            assert words[10:] == [at]
            mapping = np.array([[task.SYMBOLS.index(arrows[symbol]) for symbol in task.SYMBOLS]])
            assert task.SPLITS[task.split_of(mapping)[0]] == "train"
            hops[int(words[8])] += 1
        assert set(hops) == set(range(1, task.TRAINED_HOPS + 1)) and min(hops.values()) >= 8

    def test_nano_cut(self) -> None:
        samples = default_samples(vocab_size=self.NANO, max_seq_len=6, tokenizer=TOKENIZER)
        assert {len(sequence) for sequence in samples.sequences} == {5, 6}

    def test_our_text(self, tmp_path: Path) -> None:
        path = tmp_path / "tokenizer.json"
        path.write_text(utf8_bytes())
        samples = default_samples(vocab_size=256, max_seq_len=1 << 20, tokenizer=path)
        file = Path(calibration.data.__file__).with_name("default.txt")
        assert samples.origin == f"calibration/default.txt (sha256 {hashlib.sha256(file.read_bytes()).hexdigest()})"
        text = file.read_text(encoding="utf-8")
        paragraphs = [part.strip("\n") for part in text.split("\n\n")]
        given = Tokenizer.from_file(str(path))
        assert [given.decode(sequence.tolist()) for sequence in samples.sequences] == paragraphs
        assert 40 <= len(paragraphs) <= 50 and 2000 < len(text.split()) < 3000
        assert len(np.unique(np.concatenate(samples.sequences))) > 150  # of 243 bytes that UTF-8 has

    def test_our_text_cut(self, tmp_path: Path) -> None:
        path = tmp_path / "tokenizer.json"
        path.write_text(utf8_bytes())
        samples = default_samples(vocab_size=256, max_seq_len=32, tokenizer=path)
        assert len(samples.sequences) == 128 and max(map(len, samples.sequences)) == 32

    @pytest.mark.parametrize(("max_seq_len", "length"), [(7, 7), (32, 32), (4096, 32)])
    def test_random_tokens(self, max_seq_len: int, length: int) -> None:
        samples = default_samples(vocab_size=1000, max_seq_len=max_seq_len, tokenizer=None)
        again = default_samples(vocab_size=1000, max_seq_len=max_seq_len, tokenizer=None)
        assert samples.origin == "random tokens, seed 0"
        assert [sequence.shape for sequence in samples.sequences] == [(length,)] * 16
        np.testing.assert_array_equal(samples.sequences, again.sequences)
        ids = np.concatenate(samples.sequences)
        assert ids.dtype == np.int64 and 0 <= ids.min() < 100 and 900 < ids.max() < 1000

    def test_a_tokenizer_that_knows_none_of_our_words(self, tokenizer: Callable[..., Path]) -> None:
        samples = default_samples(
            vocab_size=VOCAB, max_seq_len=16, tokenizer=tokenizer(words=("<pad>", "<unk>", "xyz"))
        )
        assert samples.origin == (
            "random tokens, seed 0 (default.txt: every token is id 1: that is padding, not data; "
            "give sequences with real tokens)"
        )
        assert [sequence.shape for sequence in samples.sequences] == [(16,)] * 16

    def test_a_tokenizer_that_knows_few(self) -> None:
        """Nano's, with another model: `a` and `1` are words to it."""
        samples = default_samples(vocab_size=VOCAB, max_seq_len=16, tokenizer=TOKENIZER)
        assert samples.origin == "random tokens, seed 0 (default.txt: most of its tokens are id 1)"

    def test_a_tokenizer_of_a_larger_model(self, tmp_path: Path) -> None:
        path = tmp_path / "tokenizer.json"
        path.write_text(utf8_bytes())
        samples = default_samples(vocab_size=50, max_seq_len=16, tokenizer=path)
        assert samples.origin.startswith("random tokens, seed 0 (default.txt: line 1: token id ")
        assert max(sequence.max() for sequence in samples.sequences) < 50

    def test_a_model_with_as_many_words_as_nano(self, tmp_path: Path) -> None:
        """Not nano, so not its task."""
        path = tmp_path / "tokenizer.json"
        words = [*(f"word-{index}" for index in range(self.NANO - 1)), "<unk>"]
        made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
        made.save(str(path))
        for file in (path, None):
            samples = default_samples(vocab_size=self.NANO, max_seq_len=16, tokenizer=file)
            assert samples.origin.startswith("random tokens, seed 0")

    def test_a_tokenizer_that_is_none(self, write: Write) -> None:
        with pytest.raises(CalibrationError, match=r"not a tokenizer \("):
            default_samples(vocab_size=VOCAB, max_seq_len=16, tokenizer=write("tokenizer.json", "{}"))


def utf8_bytes() -> str:
    """One token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return str(made.to_str())


def test_special_tokens_around_a_text_are_those_of_the_bundle(write: Callable[..., Path]) -> None:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "loop": 1, "the": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
    file, text = write("tokenizer.json", tokenizer.to_str()), write("a.txt", "loop the loop")

    def ids(record: TextRecord | None) -> list[int]:
        samples = read_samples(text, vocab_size=VOCAB, max_seq_len=99, tokenizer=file, text=record)
        return samples.sequences[0].tolist()

    assert ids(None) == [3, 1, 2, 1]
    assert ids(TextRecord(special_tokens="none", prefix=[], suffix=[], end=[])) == [1, 2, 1]
    assert ids(TextRecord(special_tokens="config", prefix=[3], suffix=[4], end=[])) == [3, 1, 2, 1, 4]
