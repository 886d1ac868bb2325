"""What a repository says in words: `model.py`, `requirements.txt` and the README."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from engines.triton.repository.record import Entry, Record
from mythos_export import __version__
from mythos_export.bundle import Bundle

__all__ = ["model_py", "readme", "requirements"]

_MODEL = '''"""Written by mythos-export {version}. What runs is engines/triton/backend/{module}.py of that package."""

from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements.txt"
NEEDED = "{version}"

try:
    from mythos_export import __version__ as found
    from mythos_export.installation import check_installation
except ImportError as error:
    raise ImportError(f"needs mythos-export {{NEEDED}}; run: pip install -r {{REQUIREMENTS}}") from error
if found != NEEDED:
    raise ImportError(f"needs mythos-export {{NEEDED}}, and this is {{found}}; run: pip install -r {{REQUIREMENTS}}")

check_installation(["engines"])
from engines.triton.backend.{module} import TritonPythonModel  # noqa: E402

__all__ = ["TritonPythonModel"]
'''

_README = """# A model repository for Triton Inference Server

Written by {tool}. Looped language models: `n_loops` of a request is how often the recurrent block runs.

| model | is | backend |
|---|---|---|
{models}

A generator takes `text_input` (if its bundle has a tokenizer) or `input_ids`, and streams tokens; requests of any
depth and length share its batch. A tensor-level model is the graph itself, the cache going in and out explicitly.
{notes}
## What it needs

The models on the Python backend run in the server's own Python (3.10 or later), which needs what `requirements.txt`
beside their `config.pbtxt` lists. An image that has it:

```dockerfile
FROM nvcr.io/nvidia/tritonserver:<release>-py3
{copies}
RUN pip install {lists}
```

## Starting it

```sh
docker run --rm -p 8000:8000 -p 8001:8001 -p 8002:8002 --shm-size=1g -v "$PWD:/models:ro" <image> \\
    tritonserver --model-repository=/models
```
{serve}
## Asking it

```sh
curl -s localhost:8000/v2/models/{first}/generate -d '{{{prompt}, "n_loops": 8, "max_tokens": 16}}'
```

`{record}` says which folders are mythos-export's; `mythos-export triton` replaces no others. A file that both
models have is there once, under two names.
"""

_SERVE = """
Without a container, `mythos-export serve --repository .` starts the server that comes with
`pip install "mythos-export[cpu,triton]"`; it has the Python backend only.
"""


def model_py(module: Literal["generator", "tensors"]) -> str:
    """`1/model.py` of a model on the Python backend."""
    return _MODEL.format(version=__version__, module=module)


def requirements(bundle: Bundle) -> str:
    """`requirements.txt` of a model on the Python backend."""
    lines = [f"mythos-export[cpu]=={__version__}", "numpy<2  # what the Python backend of older servers takes"]
    if bundle.manifest.minimum_runtime is not None:
        lines.append(f"onnxruntime>={bundle.manifest.minimum_runtime}")
    return "\n".join(lines) + "\n"


def readme(record: Record, record_name: str) -> str:
    """`README.md` of a repository."""
    first = record.entries[0]
    return _README.format(
        tool=record.tool,
        models="\n".join(line for entry in record.entries for line in _rows(entry)),
        notes=_notes(record.entries),
        first=first.generator,
        prompt='"text_input": "..."' if first.text else '"input_ids": [1, 2, 3]',
        copies="\n".join(
            f"COPY {each.generator}/requirements.txt /tmp/{each.generator}.txt" for each in record.entries
        ),
        lists=" ".join(f"-r /tmp/{each.generator}.txt" for each in record.entries),
        serve=_SERVE if all(entry.tensors is None or entry.backend == "python" for entry in record.entries) else "",
        record=record_name,
    )


def _rows(entry: Entry) -> list[str]:
    bundle = f"`{_plain(entry.bundle)}` ({_plain(entry.precision)})"
    rows = [f"| `{entry.generator}` | generates from {bundle} | python, on the CPU |"]
    if entry.tensors is not None:
        rows.append(f"| `{entry.tensors}` | the graph of {bundle} | {entry.backend}, on the {entry.device.upper()} |")
    return rows


def _plain(text: str) -> str:
    """Names come from hostile files: they must not break the table."""
    return "".join(letter if letter.isprintable() and letter not in "`|<>[]\\" else "?" for letter in text[:100])


def _notes(entries: Sequence[Entry]) -> str:
    lines = [f"- `{entry.tensors}`: {note}" for entry in entries for note in entry.notes]
    return "\n" + "\n".join(lines) + "\n" if lines else ""
