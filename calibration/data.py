"""The token sequences that ranges are measured on: the user's file, or data of ours where there is none.

A range can only be as good as the tokens it saw, so this reader is strict: it takes every id or says which
one it cannot take, it removes padding wherever it can be told apart, and it refuses what is nothing else.
Files are read as streams, or mapped, so that a large one costs time and not memory.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
import stat
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from calibration.errors import CalibrationError
from engines.errors import one_line
from mythos_export.bundle import TextRecord
from reference_model.nano import task

if TYPE_CHECKING:
    import tokenizers

__all__ = ["Samples", "default_samples", "read_samples"]

_LIMIT = 128  # sequences
_PADDING = -1
_FEW = 8  # from this many tokens on, all the same is padding and not a very short text
_MOST_BYTES = 16 << 20  # of a line or a paragraph
_HEADER_BYTES = 1 << 16  # what numpy's own first format had room for; it takes 10 kB
_NPY_MAGIC = b"\x93NUMPY"
_BLOCK = 1 << 20  # elements looked at in one step
_HASH_BLOCK = 1 << 18
_EXPECTED = "each line is a list of token ids, or an object with input_ids or text"
_TOO_LONG = f"longer than {_MOST_BYTES >> 20} MiB"

_TEXT_FILE = Path(__file__).with_name("default.txt")
_NANO_PROMPTS = 96
_RANDOM_SEQUENCES, _RANDOM_TOKENS = 16, 32


@dataclass(frozen=True)
class Samples:
    """Token sequences without padding."""

    sequences: tuple[NDArray[np.int64], ...]  # each [seq], 1 <= seq <= max_seq_len
    origin: str  # where they come from, for the record

    @property
    def tokens(self) -> int:
        """Tokens of all sequences together."""
        return sum(len(sequence) for sequence in self.sequences)


def read_samples(
    path: Path,
    *,
    vocab_size: int,
    max_seq_len: int,
    tokenizer: Path | None,
    text: TextRecord | None = None,
    limit: int = _LIMIT,
) -> Samples:
    """Read a `.npy`, `.jsonl`, `.txt` or `.text` file of token ids or text.

    A sequence longer than `max_seq_len` is cut into pieces. Every token of the file is checked; of its
    sequences at most `limit` are kept, evenly spread over the file.

    Args:
        tokenizer: a `tokenizer.json`, needed for text; its padding token is removed from ids too.
        text: which special tokens stand around a text, as around the prompts of the bundle; those that the tokenizer
            adds itself if None.
        limit: how many sequences to keep.

    Raises:
        CalibrationError: the file cannot be read, its ids do not fit the model, or there is only padding in it.
    """
    if limit < 1:
        raise CalibrationError(f"limit is {limit}; it must be at least 1")
    _check_file(path)
    encoder = _Encoder(tokenizer, text)
    collector = _Collector(str(path), vocab_size, max_seq_len, limit)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        _collect_array(path, collector, encoder)
    elif suffix == ".jsonl":
        _collect_json_lines(path, collector, encoder)
    elif suffix in (".txt", ".text"):
        _collect_text(path, collector, encoder)
    else:
        raise CalibrationError(
            f"{path}: cannot tell what is in it; give token ids as .npy or .jsonl, or text as .jsonl or .txt"
        )
    return collector.samples(f"{path.name} (sha256 {_sha256(path)})")


def default_samples(
    *, vocab_size: int, max_seq_len: int, tokenizer: Path | None, text: TextRecord | None = None
) -> Samples:
    """Data for a model that came without: nano's task for nano, a text of ours, or random tokens.

    Args:
        text: as for `read_samples`.

    Raises:
        CalibrationError: the tokenizer cannot be read.
    """
    if tokenizer is None:
        return _random_tokens(vocab_size, max_seq_len)
    encoder = _Encoder(tokenizer, text)
    if vocab_size == len(task.VOCABULARY) and encoder.is_nanos:
        return _nano_prompts(max_seq_len)
    try:
        return _own_text(vocab_size, max_seq_len, encoder)
    except CalibrationError as error:  # the tokenizer is another model's, or knows none of our words
        return _random_tokens(vocab_size, max_seq_len, because=str(error))


def _own_text(vocab_size: int, max_seq_len: int, encoder: _Encoder) -> Samples:
    """The text beside this file.

    Raises:
        CalibrationError: its tokens do not fit the model, or most are one and the same, like `<unk>`.
    """
    collector = _Collector(_TEXT_FILE.name, vocab_size, max_seq_len, _LIMIT)
    _collect_text(_TEXT_FILE, collector, encoder)
    samples = collector.samples(f"{_TEXT_FILE.parent.name}/{_TEXT_FILE.name} (sha256 {_sha256(_TEXT_FILE)})")
    ids, counts = np.unique(np.concatenate(samples.sequences), return_counts=True)
    if 2 * counts.max() > samples.tokens:
        raise CalibrationError(f"{_TEXT_FILE.name}: most of its tokens are id {ids[counts.argmax()]}")
    return samples


def _nano_prompts(max_seq_len: int) -> Samples:
    """Prompts with their answers, of the train split: what a test asks must not shape what it tests."""
    prompts = task.generate("train", _NANO_PROMPTS, seed=0)
    rows = np.concatenate((prompts.ids, prompts.answer[:, None]), axis=1)  # [b, PROMPT_TOKENS + 1]
    collector = _Collector("nano's task", len(task.VOCABULARY), max_seq_len, _LIMIT)
    for index, row in enumerate(rows):
        collector.add(row, f"prompt {index}", None)
    return collector.samples("nano's task, train split, seed 0")


def _random_tokens(vocab_size: int, max_seq_len: int, because: str = "") -> Samples:
    shape = (_RANDOM_SEQUENCES, min(_RANDOM_TOKENS, max_seq_len))
    ids = np.random.default_rng(0).integers(0, vocab_size, shape, np.int64)
    return Samples(tuple(ids), "random tokens, seed 0" + (f" ({because})" if because else ""))


class _Collector:
    """Takes rows one by one: trims them, checks every token, keeps an even spread of their pieces."""

    def __init__(self, source: str, vocab_size: int, max_seq_len: int, limit: int) -> None:
        self.source = source
        self._vocab_size = vocab_size
        self._max_seq_len = max_seq_len
        self._spread = _Spread(limit)
        self._rows = self._tokens = 0
        self._lowest, self._highest = vocab_size, _PADDING  # ids seen so far

    def add(self, row: NDArray[Any], where: str, pad: int | None) -> None:
        """Take a row of ids [seq]; -1, and `pad` too, is padding at either end.

        Raises:
            CalibrationError: padding between real tokens, or an id outside the vocabulary.
        """
        self._rows += 1
        begin = _padding_ahead(row, pad)
        end = len(row) - _padding_ahead(row[::-1], pad)
        if begin >= end:
            return
        for start in range(begin, end, _BLOCK):
            self._check(row[start : min(start + _BLOCK, end)], start, where)
        self._tokens += end - begin
        self._spread.add(row[begin:end], self._max_seq_len)

    def _check(self, block: NDArray[Any], start: int, where: str) -> None:
        low, high = int(block.min()), int(block.max())
        self._lowest, self._highest = min(low, self._lowest), max(high, self._highest)
        if low >= 0 and high < self._vocab_size:
            return
        at = int(np.flatnonzero((block < 0) | (block >= self._vocab_size))[0])
        value, where = reprlib.repr(int(block[at])), f"{self.source}: {where}"
        if block[at] == _PADDING:
            raise CalibrationError(
                f"{where}padding between real tokens, at position {start + at}; pad at the beginning or the end only"
            )
        raise CalibrationError(
            f"{where}token id {value} at position {start + at} is not in 0..{self._vocab_size - 1} (the vocabulary); "
            "was it made with another tokenizer?"
        )

    def samples(self, origin: str) -> Samples:
        """What was kept.

        Raises:
            CalibrationError: there was nothing, or nothing but padding.
        """
        if not self._rows:
            raise CalibrationError(f"{self.source}: holds no sequences; give at least one")
        if not self._tokens:
            raise CalibrationError(f"{self.source}: it is all padding; give sequences with real tokens")
        if self._tokens >= _FEW and self._lowest == self._highest:
            raise CalibrationError(
                f"{self.source}: every token is id {self._lowest}: that is padding, not data; "
                "give sequences with real tokens"
            )
        return Samples(self._spread.kept(), origin)


def _padding_ahead(row: NDArray[Any], pad: int | None) -> int:
    """Elements of padding before the first real token of a row [seq]."""
    for start in range(0, len(row), _BLOCK):
        block = row[start : start + _BLOCK]
        real = block != _PADDING
        if pad is not None:
            real &= block != pad
        if real.any():
            return start + int(real.argmax())
    return len(row)


class _Spread:
    """At most `limit` pieces of a stream of unknown length, evenly spread over it.

    It holds every stride-th piece, and doubles the stride whenever there are more than four times the limit.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._stride = 1
        self._seen = 0
        self._pieces: list[NDArray[np.int64]] = []

    def add(self, row: NDArray[Any], width: int) -> None:
        """Take a row [seq] as pieces of `width` tokens, the last as short as it comes."""
        count = -(-len(row) // width)
        index = -self._seen % self._stride
        while index < count:
            self._pieces.append(np.array(row[index * width : (index + 1) * width], np.int64))
            if len(self._pieces) > 4 * self._limit:
                self._pieces = self._pieces[::2]
                self._stride *= 2
            index += 1
            index += -(self._seen + index) % self._stride
        self._seen += count

    def kept(self) -> tuple[NDArray[np.int64], ...]:
        """The pieces, in their order."""
        if len(self._pieces) <= self._limit:
            return tuple(self._pieces)
        chosen = np.linspace(0, len(self._pieces) - 1, self._limit).round().astype(int)
        return tuple(self._pieces[index] for index in chosen)


class _Encoder:
    """A `tokenizer.json` and the token it pads with; or none, and then there is no text."""

    def __init__(self, path: Path | None, text: TextRecord | None) -> None:
        self._text = text
        self._tokenizer: tokenizers.Tokenizer | None = None
        self.pad: int | None = None  # in token ids
        self.text_pad: int | None = None  # in what `encode` returns
        if path is not None:
            self._open(path)

    def _open(self, path: Path) -> None:
        from tokenizers import Tokenizer  # not needed by callers that give token ids

        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise CalibrationError(
                f"{path}: not a tokenizer ({one_line(error)}); give the model's tokenizer.json"
            ) from error
        self.pad = _pad_token(self._tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()  # a long text is cut into pieces, not cut off
        # A tokenizer may pad with the token that it begins or ends every text with: there it is no padding.
        self.text_pad = None if self.pad in self.encode("", f"{path}: an empty text") else self.pad

    def encode(self, text: str, where: str) -> NDArray[np.int64]:
        """Token ids of a text, [seq], with the special tokens that stand around a prompt.

        Raises:
            CalibrationError: it cannot be encoded, or there is no tokenizer.
        """
        if self._tokenizer is None:
            raise CalibrationError(f"{where}: text needs a tokenizer, and there is none; give token ids instead")
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=self._text is None).ids
        except Exception as error:
            raise CalibrationError(f"{where}: cannot be encoded ({one_line(error)}); correct or remove it") from error
        if self._text is not None:
            ids = [*self._text.prefix, *ids, *self._text.suffix]
        return np.array(ids, np.int64)

    @property
    def is_nanos(self) -> bool:
        """Whether its vocabulary is that of nano's task."""
        vocabulary = {word: index for index, word in enumerate(task.VOCABULARY)}
        return self._tokenizer is not None and self._tokenizer.get_vocab() == vocabulary


def _pad_token(tokenizer: tokenizers.Tokenizer) -> int | None:
    if tokenizer.padding is not None:
        return int(tokenizer.padding["pad_id"])
    named = (tokenizer.token_to_id(name) for name in ("<pad>", "[PAD]"))
    return next((index for index in named if index is not None), None)


def _collect_array(path: Path, collector: _Collector, encoder: _Encoder) -> None:
    array = _open_array(path)
    if array.dtype.kind not in "iu":
        raise CalibrationError(f"{path}: holds {array.dtype.name[:40]}, not integers; give token ids")
    if array.ndim not in (1, 2):
        raise CalibrationError(f"{path}: has {array.ndim} dimensions; expected [seq] or [sequences, seq]")
    if not array.size:  # the header may say any length then: there is no byte behind it
        raise CalibrationError(f"{path}: holds no tokens; give at least one sequence")
    if array.ndim == 1:
        collector.add(array, "", encoder.pad)
        return
    for index in range(len(array)):
        collector.add(array[index], f"row {index}: ", encoder.pad)


def _open_array(path: Path) -> NDArray[Any]:
    """Map a `.npy` file.

    Raises:
        CalibrationError: it is none, or its header does not describe it.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(12)
        if not start.startswith(_NPY_MAGIC):
            raise ValueError("it does not begin like one")
        if start[6:7] != b"\x01" and int.from_bytes(start[8:12], "little") > _HEADER_BYTES:
            raise ValueError("its header is too long")  # numpy would read all of it first
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the header; what is wrong with it is said here
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise _unreadable(path, error) from error
    except Exception as error:  # a header that lies ends in anything from SyntaxError to MemoryError
        raise CalibrationError(
            f"{path}: not an array that can be read ({one_line(error)}); save integers with numpy.save"
        ) from error
    return np.asarray(array)  # rows of a plain array are cheaper than rows of a memmap


def _collect_json_lines(path: Path, collector: _Collector, encoder: _Encoder) -> None:
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{collector.source}: line {number}"
        entry = _parse(line, where)
        if isinstance(entry, dict) and "text" in entry and "input_ids" not in entry:
            row, pad = _text_of(entry, encoder, where), encoder.text_pad
        else:
            row, pad = _ids_of(entry, where), encoder.pad
        collector.add(row, f"line {number}: ", pad)


def _parse(line: str, where: str) -> Any:
    try:
        return json.loads(line, object_pairs_hook=_distinct, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at column {error.colno}"
    except ValueError as error:
        reason = one_line(error)
    except RecursionError:
        reason = "nested too deeply"
    raise CalibrationError(f"{where}: not valid JSON ({reason}); {_EXPECTED}")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers may take either of two values under one name, so there must not be two."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name is given twice")
    return values


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _text_of(entry: dict[str, Any], encoder: _Encoder, where: str) -> NDArray[np.int64]:
    text = entry["text"]
    if not isinstance(text, str):
        raise CalibrationError(f"{where}: text is {reprlib.repr(text)}; it must be a string")
    return encoder.encode(text, where)


def _ids_of(entry: Any, where: str) -> NDArray[Any]:
    """Ids [seq] of a line, -1 where its mask is 0."""
    ids = entry.get("input_ids") if isinstance(entry, dict) else entry
    if not isinstance(ids, list):
        raise CalibrationError(f"{where}: no list of token ids; {_EXPECTED}")
    row = _integers(ids, "token", where)
    if isinstance(entry, dict) and "attention_mask" in entry:
        row[_mask_of(entry["attention_mask"], len(ids), where) == 0] = _PADDING
    return row


def _mask_of(mask: Any, length: int, where: str) -> NDArray[Any]:
    if not isinstance(mask, list) or len(mask) != length:
        raise CalibrationError(f"{where}: attention_mask must be a list as long as input_ids, which has {length}")
    flags = _integers(mask, "attention_mask", where)
    for position in np.flatnonzero((flags != 0) & (flags != 1))[:1]:
        raise CalibrationError(
            f"{where}: attention_mask is {reprlib.repr(int(flags[position]))} at position {position}; it must be 0 or 1"
        )
    return flags


def _integers(values: list[Any], name: str, where: str) -> NDArray[Any]:
    for position, value in enumerate(values):
        if type(value) is not int:  # True is an int to Python
            raise CalibrationError(
                f"{where}: {name} {reprlib.repr(value)} at position {position} is not an integer; give a flat list"
            )
    try:
        return np.array(values, np.int64)
    except OverflowError:
        return np.array(values, object)  # what checks the range also says which one is too large


def _collect_text(path: Path, collector: _Collector, encoder: _Encoder) -> None:
    for number, text in _paragraphs(path):
        row = encoder.encode(text, f"{collector.source}: line {number}")
        collector.add(row, f"line {number}: ", encoder.text_pad)


def _paragraphs(path: Path) -> Iterator[tuple[int, str]]:
    """Texts between blank lines, each with the number of its first line."""
    lines: list[str] = []
    size = first = 0
    for number, line in _lines(path):
        if not line.strip():
            if lines:
                yield first, "\n".join(lines)
            lines, size = [], 0
            continue
        first = first if lines else number
        lines.append(line)
        size += len(line)
        if size > _MOST_BYTES:
            raise CalibrationError(f"{path}: line {first}: {_TOO_LONG}; put a blank line between two texts")
    if lines:
        yield first, "\n".join(lines)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 file without their ends, numbered from 1."""
    number = 0
    try:
        with path.open("rb") as stream:
            while line := stream.readline(_MOST_BYTES + 1):
                number += 1
                if len(line) > _MOST_BYTES:
                    raise CalibrationError(f"{path}: line {number}: {_TOO_LONG}; give several shorter ones")
                text = line.decode("utf-8").rstrip("\r\n")
                yield number, text.removeprefix("\ufeff") if number == 1 else text  # some editors begin with a mark
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path}: line {number}: not valid UTF-8; save the file as UTF-8") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _check_file(path: Path) -> None:
    """A regular file, or a link to one.

    Raises:
        CalibrationError: it is not.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise CalibrationError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(mode):
        raise CalibrationError(f"{path}: not a regular file; give a .npy, .jsonl or .txt file")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(_HASH_BLOCK):
                digest.update(block)
    except OSError as error:
        raise _unreadable(path, error) from error
    return digest.hexdigest()


def _unreadable(path: Path, error: Exception) -> CalibrationError:
    return CalibrationError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or one_line(error)})")
