"""Reading other people's weights: strictly, tensor by tensor, and only from safetensors.

A network is built without memory, every one of its tensors is looked up in the file under the name its makers gave it,
checked, converted and put in place. Afterwards no tensor of the file may be left that nobody asked for, except those
that are listed as knowingly unused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from loom4d.runs import InputError

KINDS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PICKLES = (".ckpt", ".bin", ".pt", ".pth")


@dataclass(frozen=True)
class Origin:
    """Where one tensor of a network comes from: the file's names, and how their tensors become it."""

    names: tuple[str, ...]
    make: Callable[..., Tensor] = lambda tensor: tensor


Origins = Callable[[str], Origin]  # a network's own name -> where its tensor is found


def same_names(prefix: str = "") -> Origins:
    """Every tensor under its own name, behind a prefix."""
    return lambda name: Origin((prefix + name,))


class TensorFile:
    """An open safetensors file: what its header says, tensors on demand, and which of them were asked for."""

    def __init__(self, path: Path):
        self.path = path
        if path.suffix in PICKLES:
            raise InputError(f"{path}: pickled weights can run code and are never read; give a .safetensors file")
        try:
            self._file = safe_open(path, framework="pt")
            slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file; `loom4d weights list` says where to get it") from error
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{path}: not a whole safetensors file ({error}); was the download cut short? Fetch it again"
            ) from error
        self.shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
        self.kinds = {name: part.get_dtype() for name, part in slices.items()}
        self.used: set[str] = set()

    def read(self, origin: Origin, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The tensor that a network calls `name`; a missing or misshapen one is an error that names the file's own."""
        for wanted in origin.names:
            if wanted not in self.shapes:
                raise InputError(f"{self.path}: tensor {wanted} is missing; is this the right model, and whole?")
            if self.kinds[wanted] not in KINDS:
                raise InputError(f"{self.path}: tensor {wanted} is stored as {self.kinds[wanted]}, expected floats")
        found = self._shape(origin)
        if found != shape:
            stored = ", ".join(f"{wanted} {list(self.shapes[wanted])}" for wanted in origin.names)
            raise InputError(f"{self.path}: tensor {stored} does not fit {name}, which needs shape {list(shape)}")
        self.used.update(origin.names)
        return origin.make(*(self._file.get_tensor(wanted) for wanted in origin.names)).to(dtype).contiguous()

    def _shape(self, origin: Origin) -> tuple[int, ...] | None:
        """The shape that the converted tensor will have, without reading it; None where it cannot be converted."""
        try:
            return tuple(origin.make(*(torch.empty(self.shapes[name], device="meta") for name in origin.names)).shape)
        except RuntimeError:
            return None

    def refuse_unknown(self, unused: Iterable[str] = ()) -> list[str]:
        """The tensors that are knowingly unused (patterns of whole names); any other one left over is an error."""
        pattern = re.compile("|".join(f"(?:{one})" for one in unused) or "(?!)")
        left = sorted(set(self.shapes) - self.used)
        unknown = [name for name in left if not pattern.fullmatch(name)]
        if unknown:
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise InputError(f"{self.path}: unknown tensor {unknown[0]}{more}; is this the right model?")
        return left


def fill(
    network: nn.Module,
    file: TensorFile,
    origins: Origins,
    dtype: torch.dtype | Callable[[str], torch.dtype] = torch.float32,
) -> None:
    """Puts the file's tensors into a network built on the meta device; beyond it, one tensor at a time is in memory.

    `dtype` is one for all, or chosen by the network's own name of the tensor.
    """
    choose = dtype if callable(dtype) else lambda name: dtype
    tensors = {
        name: file.read(origins(name), name, tuple(value.shape), choose(name))
        for name, value in network.state_dict().items()
    }
    network.load_state_dict(tensors, strict=True, assign=True)
    network.eval().requires_grad_(False)
