"""Calls of a bundle's graph repeated in process: `python replay.py BUNDLE CALLS.npz ANSWERS.npz`.

It runs in the server's environment, so that both have the same runtime. Arrays are named `<call>/<tensor>`.
"""

from __future__ import annotations

import sys

import numpy as np

from engines.onnxruntime import OnnxRuntimeEngine
from engines.triton.repository.signature import chosen_graph
from mythos_export.bundle import Bundle


def main(bundle: str, calls: str, answers: str) -> None:
    opened = Bundle.open(bundle)
    graph = OnnxRuntimeEngine(opened, spinning=False).load_graph(chosen_graph(opened))
    names = [spec.name for spec in opened.manifest.outputs]
    given = np.load(calls)
    results = {}
    for call in sorted({key.partition("/")[0] for key in given.files}):
        inputs = {spec.name: given[f"{call}/{spec.name}"] for spec in opened.manifest.inputs}
        results.update({f"{call}/{name}": array for name, array in zip(names, graph.run(inputs, names))})
    np.savez(answers, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
