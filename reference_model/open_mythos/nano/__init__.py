"""The trained model that ships with this package, and the task it was trained on.

This file names the shipped files and imports nothing heavy; `task` needs numpy only.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["CHECKPOINT", "CONFIG", "MODEL_CARD", "TOKENIZER"]

_FOLDER = Path(__file__).parent
CHECKPOINT = _FOLDER / "model.safetensors"  # fp32, upstream's parameter names
CONFIG = _FOLDER / "config.json"  # open-mythos' own field names
TOKENIZER = _FOLDER / "tokenizer.json"  # Hugging Face `tokenizers` format, one word per token
MODEL_CARD = _FOLDER / "MODEL_CARD.md"
