"""Reading other people's weights: strictly, tensor by tensor, and only from safetensors.

A network is built without memory, and every one of its tensors is looked up in the file's header under the name its
makers gave it. No tensor of the file may be left that nobody asked for, except those that are listed as knowingly
unused. Only then is anything read: one tensor at a time, converted and put in place.
"""

from __future__ import annotations

import json
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
    """A safetensors file: what its header says, tensors on demand, and which of them were asked for.

    Tensors are read with plain reads, not through a memory map: what a load takes beyond the result is one tensor.
    """

    def __init__(self, path: Path):
        self.path = path
        if path.suffix in PICKLES:
            raise InputError(f"{path}: pickled weights can run code and are never read; give a .safetensors file")
        try:
            with safe_open(path, framework="pt"):  # refuses what is damaged, by the header alone
                pass
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file; `loom4d weights list` says where to get it") from error
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{path}: not a whole safetensors file ({error}); was the download cut short? Fetch it again"
            ) from error
        header.pop("__metadata__", None)
        self.shapes = {name: tuple(one["shape"]) for name, one in header.items()}
        self.kinds = {name: one["dtype"] for name, one in header.items()}
        self.places = {name: tuple(8 + length + end for end in one["data_offsets"]) for name, one in header.items()}
        self.used: set[str] = set()

    def claim(self, origin: Origin, name: str, shape: tuple[int, ...]) -> None:
        """Says that a network wants a tensor, which it calls `name`; one that is missing or misshapen is an error.

        The error names the file's own tensors. Nothing is read.
        """
        for wanted in origin.names:
            if wanted not in self.shapes:
                raise InputError(f"{self.path}: tensor {wanted} is missing; is this the right model, and whole?")
            if self.kinds[wanted] not in KINDS:
                raise InputError(f"{self.path}: tensor {wanted} is stored as {self.kinds[wanted]}, expected floats")
        if self._shape(origin) != shape:
            stored = ", ".join(f"{wanted} {list(self.shapes[wanted])}" for wanted in origin.names)
            raise InputError(f"{self.path}: tensor {stored} does not fit {name}, which needs shape {list(shape)}")
        self.used.update(origin.names)

    def read(self, origin: Origin, dtype: torch.dtype) -> Tensor:
        """A claimed tensor, converted."""
        return origin.make(*(self._stored(name) for name in origin.names)).to(dtype).contiguous()

    def _stored(self, name: str) -> Tensor:
        first, last = self.places[name]
        content = bytearray(last - first)
        with open(self.path, "rb") as file:
            file.seek(first)
            if file.readinto(content) != len(content):
                raise InputError(f"{self.path}: ends before tensor {name} does; did it change while it was read?")
        kind = KINDS[self.kinds[name]]
        flat = torch.frombuffer(content, dtype=kind) if content else torch.empty(0, dtype=kind)
        return flat.reshape(self.shapes[name])

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


@dataclass(frozen=True)
class Part:
    """A network that a file holds: built on the meta device, where its tensors are found, what they are kept in."""

    network: nn.Module
    file: TensorFile
    origins: Origins
    dtype: Callable[[str], torch.dtype]  # by the network's own name of the tensor

    def claim(self) -> None:
        """Checks every tensor of the network against the file's header."""
        for name, value in self.network.state_dict().items():
            self.file.claim(self.origins(name), name, tuple(value.shape))

    def fill(self) -> None:
        """Puts the claimed tensors in place; beyond the network, one of them at a time is in memory."""
        tensors = {name: self.file.read(self.origins(name), self.dtype(name)) for name in self.network.state_dict()}
        self.network.load_state_dict(tensors, strict=True, assign=True)
        self.network.eval().requires_grad_(False)
