"""Runs exports that are to be killed: traces once, then forks a process for each line on stdin.

Only the trace is spared. What a child runs is the command line itself, with signals, limits and
files of its own; it writes slowly, so that it can be caught doing so.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from mythos_export import cli, pipeline
from mythos_export.graphs import build_graphs
from mythos_export.loops import parse_loops
from reference_model.open_mythos.config import MythosConfig

_SECONDS_A_TENSOR = 0.1


def main(config: Path) -> None:
    """Answer each order with the child's process id, then its exit code."""
    graphs = build_graphs(
        MythosConfig.from_file(config), target="portable", precision="fp32", loops=parse_loops("dynamic"), opset=21
    )
    pipeline.build_graphs = lambda *args, **options: graphs
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(export(json.loads(line)))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def export(order: dict[str, Any]) -> int:
    """Run one export in this process, as if it had been started for it."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(order["folder"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if order["largest_file"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest_file"], order["largest_file"]))
    if order["slowly"]:
        write_slowly()
    sys.argv = ["mythos-export", *order["arguments"]]
    try:
        cli.main()
    except SystemExit as done:
        return int(done.code or 0)
    except BaseException:  # noqa: BLE001 - the fork must not go on as its parent
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def write_slowly() -> None:
    write = pipeline.weights.write

    def slow(models: Any, tensors: Any, folder: Path, progress: Any) -> None:
        write(models, tensors, folder, lambda name, size: (progress(name, size), time.sleep(_SECONDS_A_TENSOR)))

    pipeline.weights.write = slow


if __name__ == "__main__":
    main(Path(sys.argv[1]))
