"""k-hop pointer chasing: the task that nano is trained on, and that needs depth.

A prompt gives a mapping f over eight symbols as pairs in random order, then a number of hops k and a
start symbol x; the answer is f applied k times to x:

    d>a h>c a>h f>g c>e g>b b>d e>f 3 a    ->  e        (a -> h -> c -> e)

f is one ring through all eight symbols, drawn uniformly. In a general function trajectories merge, and
in a general permutation short cycles return: either way a large k is often answered by fewer hops, or by
the start itself. On a ring the first seven hops visit seven different symbols, so for k <= 7 an answer
that is a hop short is always wrong, each symbol is equally likely, and what a model scores is what it
chased. (From 8 hops on the ring comes round: f applied 8 times is x.)

A ring belongs to one split for good, by a hash of the mapping: whatever the seeds, no mapping of a test
prompt was ever seen in training, in no order of its pairs.

Shape letter: b prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MAX_HOPS",
    "PROMPT_TOKENS",
    "SPLITS",
    "SYMBOLS",
    "TRAINED_HOPS",
    "VOCABULARY",
    "Prompts",
    "encode",
    "generate",
    "split_of",
]

Ints = NDArray[np.int64]

SYMBOLS = "abcdefgh"
TRAINED_HOPS = 6  # training draws k from 1..6
MAX_HOPS = 12  # the vocabulary has a word for k up to here, to measure depth beyond training
SPLITS = ("train", "validation", "test")
_SHARES = (8, 1, 1)  # tenths of all rings

_N = len(SYMBOLS)
_SPECIAL = ("<pad>", "<unk>")
_SYMBOL_0 = len(_SPECIAL)
_HOPS_0 = _SYMBOL_0 + _N - 1  # plus k, which starts at 1
_PAIR_0 = _HOPS_0 + 1 + MAX_HOPS

VOCABULARY: tuple[str, ...] = (
    *_SPECIAL,
    *SYMBOLS,
    *(str(hops) for hops in range(1, MAX_HOPS + 1)),
    *(f"{source}>{target}" for source in SYMBOLS for target in SYMBOLS),
)
_IDS = {word: index for index, word in enumerate(VOCABULARY)}
PROMPT_TOKENS = _N + 2  # the pairs, k, the start symbol


@dataclass(frozen=True)
class Prompts:
    """A batch of b prompts, all of one length, so that no padding is needed."""

    ids: Ints  # [b, PROMPT_TOKENS]
    hops: Ints  # [b], k
    path: Ints  # [b, MAX_HOPS + 1], token ids of the symbols visited: the start, then one per hop, past k too
    mapping: Ints  # [b, 8], f as symbol indices 0..7

    def __len__(self) -> int:
        """Number of prompts, b."""
        return len(self.ids)

    @property
    def answer(self) -> Ints:
        """Token id of f applied k times to the start, [b]."""
        return self.path[np.arange(len(self)), self.hops]

    def texts(self) -> Iterator[str]:
        """Each prompt as words, e.g. `a>c b>a ... 3 a`."""
        for row in self.ids:
            yield " ".join(VOCABULARY[index] for index in row)


def encode(text: str) -> Ints:
    """Token ids of a prompt's words, [tokens]; an unknown word becomes `<unk>`, as in tokenizer.json."""
    return np.array([_IDS.get(word, _IDS["<unk>"]) for word in text.split()], dtype=np.int64)


def split_of(mapping: Ints) -> Ints:
    """Index into `SPLITS` of each mapping: [b, 8] -> [b].

    A function of the mapping alone (splitmix64 of its digits), so splits cannot overlap.
    """
    code = (mapping * _N ** np.arange(_N, dtype=np.int64)).sum(-1).astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        code = (code ^ (code >> np.uint64(shift))) * np.uint64(factor)
    tenth = ((code ^ (code >> np.uint64(31))) % np.uint64(sum(_SHARES))).astype(np.int64)
    return np.searchsorted(np.cumsum(_SHARES), tenth, side="right").astype(np.int64)


def generate(split: str, count: int, seed: int, hops: tuple[int, int] = (1, TRAINED_HOPS)) -> Prompts:
    """Draw prompts: ring, order of pairs, k and start are all uniform.

    Args:
        split: one of `SPLITS`.
        count: number of prompts.
        seed: the same seed gives the same prompts.
        hops: least and largest k, both included.

    Raises:
        ValueError: no such split, a negative count, or hops outside 1..`MAX_HOPS`.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    if count < 0:
        raise ValueError(f"count is {count}; it must not be negative")
    low, high = hops
    if not 1 <= low <= high <= MAX_HOPS:
        raise ValueError(f"hops are {low}..{high}; they must lie in 1..{MAX_HOPS}")
    rng = np.random.default_rng((SPLITS.index(split), seed))
    mapping = _rings(rng, split, count)
    chosen = rng.integers(low, high + 1, size=count)
    start = rng.integers(0, _N, size=count)
    path = [start]
    for _ in range(MAX_HOPS):
        path.append(mapping[np.arange(count), path[-1]])
    order = _shuffles(rng, count)
    pairs = _PAIR_0 + order * _N + np.take_along_axis(mapping, order, axis=1)
    ids = np.concatenate((pairs, _HOPS_0 + chosen[:, None], _SYMBOL_0 + start[:, None]), axis=1)
    return Prompts(ids, chosen, _SYMBOL_0 + np.stack(path, axis=1), mapping)


def _rings(rng: np.random.Generator, split: str, count: int) -> Ints:
    """Uniform rings of one split, [count, 8], by rejection."""
    kept = np.empty((0, _N), dtype=np.int64)
    draw = count * sum(_SHARES) // _SHARES[SPLITS.index(split)] + 64
    while len(kept) < count:
        visit = _shuffles(rng, draw)
        mapping = np.empty_like(visit)
        np.put_along_axis(mapping, visit, np.roll(visit, -1, axis=1), axis=1)
        kept = np.concatenate((kept, mapping[split_of(mapping) == SPLITS.index(split)]))
    return kept[:count]


def _shuffles(rng: np.random.Generator, count: int) -> Ints:
    """Uniform orders of the eight symbols, [count, 8]."""
    return rng.random((count, _N)).argsort(axis=1)
