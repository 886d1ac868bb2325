"""PyTorch to bundle: the export pipeline of looped (recurrent-depth) language models."""

__version__ = "0.1.0"
