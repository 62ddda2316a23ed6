"""Feature caching: at some steps a network asks its outer layers only, and what its deep ones added last stands.

Neighbouring steps of a trajectory differ little in what the deep layers make of them (DeepCache, 2312.00858). The
network is not touched: a shallow copy shares its weights and holds, in place of the deep layers, one that remembers.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from loom4d.denoisers.small import SmallPrior
from loom4d.denoisers.unet import ClipUNet
from loom4d.diffusion.denoiser import Denoiser, Latents, Sigma

Fresh = Callable[[Sigma], bool]  # whether the deep layers are asked at this sigma
Copied = TypeVar("Copied", bound=nn.Module)


class Slots:
    """What deep layers made, in the order of the calls within one step, for each shape by itself.

    `device` is where it is kept; None is where it was made.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.fresh, self.device = True, device
        self.kept: dict[tuple[tuple[int, ...], int], Tensor] = {}
        self.calls: Counter[tuple[int, ...]] = Counter()

    def begin(self, fresh: bool) -> None:
        """A new step."""
        self.fresh = fresh
        self.calls.clear()

    def keep(self, place: tuple[tuple[int, ...], int], made: Tensor) -> Tensor:
        self.kept[place] = made if self.device is None else made.to(self.device)
        return made

    def asked(self, shape: torch.Size) -> tuple[tuple[int, ...], int]:
        """The place of the step's next call with this shape."""
        self.calls[tuple(shape)] += 1
        return tuple(shape), self.calls[tuple(shape)]


class Remembering(nn.Module):
    """A run of blocks x -> x + …, of which only the sum of what they add is remembered."""

    def __init__(self, blocks: Sequence[nn.Module], slots: Slots):
        super().__init__()
        self.blocks, self.slots = nn.ModuleList(blocks), slots

    def forward(self, x: Tensor, *told: Tensor) -> Tensor:
        place = self.slots.asked(x.shape)
        if self.slots.fresh or place not in self.slots.kept:
            y = x
            for block in self.blocks:
                y = block(y, *told)
            self.slots.keep(place, y - x)
            return y
        return x + self.slots.kept[place].to(x)


def shallow_prior(prior: SmallPrior, slots: Slots, outer: int = 1) -> SmallPrior:
    """The transformer with all blocks but the `outer` first and last ones remembering."""
    blocks = list(prior.blocks)
    if len(blocks) <= 2 * outer:
        return prior
    deep = Remembering(blocks[outer:-outer], slots)
    return with_parts(prior, blocks=nn.ModuleList([*blocks[:outer], deep, *blocks[-outer:]]))


class Descent(nn.Module):
    """A deep block on the way down, or the middle: passed by where the way up remembers what would come of it."""

    def __init__(self, block: Any, slots: Slots, down: bool):
        super().__init__()
        self.block, self.slots, self.down, self.outputs = block, slots, down, 0
        if hasattr(block, "attentions"):
            self.attentions = block.attentions

    def forward(self, hidden: Tensor, **told: Any) -> Any:
        if self.slots.fresh:
            out = self.block(hidden, **told)
            self.outputs = len(out[1]) if self.down else 0
            return out
        return (hidden, (hidden,) * self.outputs) if self.down else hidden


class Ascent(nn.Module):
    """A deep block on the way up; the last of them remembers."""

    def __init__(self, block: Any, slots: Slots, last: bool):
        super().__init__()
        self.block, self.slots, self.last, self.resnets = block, slots, last, block.resnets
        if hasattr(block, "attentions"):
            self.attentions = block.attentions

    def forward(self, hidden: Tensor, res_hidden_states_tuple: tuple[Tensor, ...], **told: Any) -> Tensor:
        if not self.last:
            return (
                self.block(hidden, res_hidden_states_tuple=res_hidden_states_tuple, **told)
                if self.slots.fresh
                else hidden
            )
        place = self.slots.asked(told["temb"].shape)
        if self.slots.fresh:
            return self.slots.keep(place, self.block(hidden, res_hidden_states_tuple=res_hidden_states_tuple, **told))
        return self.slots.kept[place].to(hidden)


def shallow_unet(unet: ClipUNet, slots: Slots) -> ClipUNet:
    """The UNet with all levels but the outermost remembering: what reaches the last block on the way up is kept."""
    stock = unet.stock
    down = [stock.down_blocks[0], *(Descent(block, slots, True) for block in stock.down_blocks[1:])]
    ups = list(stock.up_blocks)
    up = [Ascent(block, slots, block is ups[-2]) for block in ups[:-1]] + ups[-1:]
    middle = Descent(stock.mid_block, slots, False)
    parts = {"down_blocks": nn.ModuleList(down), "mid_block": middle, "up_blocks": nn.ModuleList(up)}
    return with_parts(unet, stock=with_parts(stock, **parts))


def with_parts(module: Copied, **parts: nn.Module) -> Copied:
    """A copy that shares everything with the module but the named parts."""
    other = copy.copy(module)
    object.__setattr__(other, "_modules", {**module._modules, **parts})
    return other


def in_steps(denoise: Denoiser, slots: Slots, fresh: Fresh) -> Denoiser:
    """Tells the slots at each sigma that a step begins, and whether it is a fresh one."""

    def stepping(x: Latents, sigma: Sigma) -> Latents:
        slots.begin(fresh(sigma))
        return denoise(x, sigma)

    return stepping
