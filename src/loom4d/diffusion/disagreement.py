"""How much two priors disagree about a grid while it is drawn, kept as a map."""

from __future__ import annotations

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from loom4d.diffusion.denoiser import Latents, Sigma

WINDOW = (0.05, 10.0)  # σ where a disagreement says something: above, nothing is known; below, all is decided


class Disagreement:
    """An observer of `composition.composed`: the mean of (D_mv − D_vid)² over channels and over the evaluations whose
    σ lies in the window, in each latent cell of each picture.

    `last` is the root mean square of the whole grid at the latest evaluation, at any σ.
    """

    def __init__(self, window: tuple[float, float] = WINDOW):
        self.window = window
        self.squares: Float[Tensor, "view frame h w"] | None = None
        self.evaluations = 0
        self.last = 0.0

    def __call__(self, sigma: Sigma, difference: Latents) -> None:
        squares = reduce(difference.float() ** 2, "view frame c h w -> view frame h w", "mean")
        self.last = float(squares.mean().sqrt())
        if self.window[0] <= float(sigma) <= self.window[1]:
            self.squares = squares if self.squares is None else self.squares + squares
            self.evaluations += 1

    def map(self) -> Float[Tensor, "view frame h w"] | None:
        """d²/(1 + d²) in 0..1, d² being the mean square in units of the latents' variance (1); None if never told."""
        if self.squares is None:
            return None
        mean = self.squares / self.evaluations
        return mean / (1 + mean)

    def tensors(self) -> dict[str, Tensor]:
        """All that is remembered, for a run that is stopped; `restore` takes it back."""
        if self.squares is None:
            return {}
        return {"squares": self.squares, "evaluations": torch.tensor(self.evaluations)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        if "squares" in tensors:
            self.squares, self.evaluations = tensors["squares"], int(tensors["evaluations"])
