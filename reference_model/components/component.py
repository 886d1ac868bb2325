"""What every part of a model shares: the operations it calls, and linear layers that call them."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn

from reference_model.ops import Ops, TorchOps

__all__ = ["Component", "Linear", "use_ops"]

Model = TypeVar("Model", bound=nn.Module)
_TORCH = TorchOps()


class Component(nn.Module):
    """A part of a model; it computes by `ops`, which is plain PyTorch unless the model was told otherwise."""

    ops: Ops = _TORCH
    name: str = ""  # path in the model; known once the model was given its operations


class Linear(nn.Linear, Component):
    """`x @ weight.T + bias`, by the model's operations."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return self.ops.linear(self, x)


def use_ops(model: Model, ops: Ops) -> Model:
    """Let every component of a model call these operations, and tell each its name; returns the model."""
    for name, module in model.named_modules():
        if isinstance(module, Component):
            module.ops, module.name = ops, name
    return model
