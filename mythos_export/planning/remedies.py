"""What would fit where something does not: options, each of which alone would do."""

from __future__ import annotations

from mythos_export.planning.devices import kernels, known_devices
from mythos_export.planning.models import Stored, stored_from_config
from mythos_export.planning.plan import Question, fits, largest, memory_of
from mythos_export.targets import TARGETS

__all__ = ["remedies"]

_SIZES = ("chunk", "batch", "context", "loops")  # from what costs least to what costs most


def remedies(stored: Stored, question: Question) -> list[str]:
    """The options, the smallest change first; none where it fits, or no device is named."""
    memory, device = memory_of(stored, question), question.device
    if device is None or fits(memory):
        return []
    asked = {field: getattr(question, field) for field in _SIZES}
    found = [f"--{field} {value}" for field, value in largest(stored, question, asked).items() if value]
    found += _smaller(stored, question)
    needed = memory.total - memory.reserved
    runs = kernels(device, stored.target, stored.precision)
    roomier = (
        (other.memory_bytes, name)
        for name, other in known_devices().items()
        if other.kind == device.kind
        and kernels(other, stored.target, stored.precision) >= runs
        and needed + other.reserved_bytes <= other.memory_bytes
    )
    smallest = min(roomier, default=None)
    return found if smallest is None else [*found, f"--device {smallest[1]}"]


def _smaller(stored: Stored, question: Question) -> list[str]:
    """Precisions that fit and run there; those of other targets where none of this one does."""
    here = [f"--precision {each}" for each in _fitting(stored, stored.target, question)]
    if here:
        return here
    others = [target for target in TARGETS if target != stored.target]
    return [f"--target {target} --precision {each}" for target in others for each in _fitting(stored, target, question)]


def _fitting(stored: Stored, target: str, question: Question) -> list[str]:
    device = question.device
    assert device is not None
    return [
        each
        for each in TARGETS[target].precisions
        if kernels(device, target, each)
        and fits(memory_of(stored_from_config(stored.name, stored.architecture, target, each), question))
    ]
