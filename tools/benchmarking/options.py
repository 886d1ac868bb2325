"""The options of `tools/benchmark.py`."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["CONTESTANTS", "at_least", "new_file", "numbers", "read_options"]

CONTESTANTS = ("open-mythos", "compiled", "bundles")


def numbers(text: str) -> list[int]:
    """Positive ones, in order, each once."""
    values = [int(part) for part in text.split(",")]
    if min(values) < 1:
        raise ValueError("every number must be at least 1")
    return sorted(set(values))


numbers.__name__ = "list of positive numbers"  # argparse puts it into its message


def _names(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in CONTESTANTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown contestant {unknown[0]!r}; known: {', '.join(CONTESTANTS)}")
    return list(dict.fromkeys(names))


def at_least(low: int) -> Any:
    """A type of option: one number."""

    def count(text: str) -> int:
        if int(text) < low:
            raise ValueError
        return int(text)

    count.__name__ = f"number of at least {low}"
    return count


def new_file(suffixes: str = "") -> Any:
    """A type of option: a file that can be written at the end, its name ending as given."""

    def path(text: str) -> Path:
        file = Path(text)
        if not file.parent.is_dir():
            raise argparse.ArgumentTypeError(f"{file.parent} is no folder: nothing could be written there at the end")
        if suffixes and file.suffix != suffixes:
            raise argparse.ArgumentTypeError(f"{text} must end in {suffixes}")
        return file

    return path


def read_options(arguments: Sequence[str] | None, help_text: str | None) -> argparse.Namespace:
    """Read them; what could only fail at the end of a long run is refused here."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark", description=help_text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundles", type=Path, nargs="+", default=[], metavar="DIR", help="all of one model")
    parser.add_argument("--contestants", type=_names, default=list(CONTESTANTS), metavar="NAME,...")
    parser.add_argument("--scale", help="the model, where no bundle says it")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the same as a config.json")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="its weights, where they are not in their place"
    )
    parser.add_argument("--seed", type=int, default=0, help="of random weights, where no bundle says it")
    parser.add_argument("--past", type=numbers, default=[128], metavar="N,...", help="tokens in the cache")
    parser.add_argument("--loops", type=numbers, default=[4, 8, 16], metavar="N,...", help="depths")
    parser.add_argument("--prefill", type=numbers, default=[128], metavar="N,...", help="tokens of a prompt")
    parser.add_argument("--batch", type=at_least(0), default=8, metavar="N", help="sequences decoded at once; 0: none")
    parser.add_argument("--threads", type=at_least(1), default=2, metavar="N", help="of each contestant")
    parser.add_argument(
        "--rounds", type=at_least(1), default=7, metavar="N", help="turns of each contestant at each point"
    )
    parser.add_argument("--steps", type=at_least(1), default=4, metavar="N", help="tokens decoded in a turn")
    parser.add_argument("--residence", choices=("together", "apart"), default="together", help="in memory")
    parser.add_argument("--json", type=new_file(), metavar="FILE")
    parser.add_argument("--plot", type=new_file(".svg"), metavar="FILE.svg")
    parser.add_argument(
        "--profile", type=new_file(), metavar="FILE", help="where a decode step of each bundle spends it"
    )
    parser.add_argument("--latency", type=Path, metavar="DIR", help="write NAME.latency.json for a bundle's report")
    given = parser.parse_args(arguments)
    if given.plot is not None and importlib.util.find_spec("matplotlib") is None:
        parser.error('--plot wants matplotlib; run: pip install "mythos-export[test]"')
    if given.latency is not None and not given.latency.is_dir():
        parser.error(f"--latency {given.latency} is no folder")
    return given
