"""Run one export in a process of its own and report its wall time and peak memory.

    python tools/measure_export.py -- --scale 1b --no-validate --output /tmp/out

Peak RSS is the operating system's own figure for the whole child process (`wait4`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

__all__ = ["measure"]

_STARTER = "--starter"


def measure(arguments: list[str]) -> dict[str, float | int | list[str]]:
    """Run `mythos-export` with these arguments; seconds, peak RSS in GiB, exit code.

    A process begins with the peak of the one that started it, so a small one starts it: this file.
    """
    reader, writer = os.pipe()
    with open(reader, encoding="utf-8") as result:
        starter = subprocess.Popen([sys.executable, __file__, _STARTER, str(writer), *arguments], pass_fds=[writer])
        os.close(writer)
        found = result.read()
    starter.wait()
    return json.loads(found)


def _start(arguments: list[str]) -> dict[str, float | int | list[str]]:
    started = time.monotonic()
    child = subprocess.Popen([sys.executable, "-m", "mythos_export", *arguments])
    _, status, usage = os.wait4(child.pid, 0)  # this child's figures, not those of all children so far
    child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - started
    peak = usage.ru_maxrss / 2**20  # ru_maxrss is in KiB on Linux
    return {
        "arguments": arguments,
        "seconds": round(seconds, 1),
        "peak_rss_gib": round(peak, 2),
        "exit_code": child.returncode,
    }


def main() -> int:
    """Print one JSON object."""
    arguments = sys.argv[1:]
    if arguments[:1] == [_STARTER]:
        with open(int(arguments[1]), "w", encoding="utf-8") as result:
            json.dump(_start(arguments[2:]), result)
        return 0
    if "--" not in arguments:
        print(__doc__, file=sys.stderr)
        return 2
    result = measure(arguments[arguments.index("--") + 1 :])
    print(json.dumps(result))
    return int(result["exit_code"])  # type: ignore[call-overload]


if __name__ == "__main__":
    sys.exit(main())
