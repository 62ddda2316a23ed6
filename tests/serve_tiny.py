"""An extension for the web app's tests: a preset and a quality that take a moment. Untrained priors do for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from loom4d.denoisers.autoencoder import Autoencoder, AutoencoderConfig
from loom4d.denoisers.small import SmallConfig, SmallPrior
from loom4d.denoisers.weights import AUTOENCODER, PRIOR, write_weights
from loom4d.export.video import OrbitOptions
from loom4d.gaussians.fit import PRESETS, FitConfig
from loom4d.methods import METHODS, Method
from loom4d.methods.diffusion_squared import default
from loom4d.serve import choices

choices.FILM = OrbitOptions(seconds=0.2, size=32)
METHODS["tiny"] = Method(
    METHODS["diffusion-squared"].imagine,
    {
        "quick": lambda seed: replace(default(), steps=2, views=2, frames=2, correction=0.0, seed=seed),
        "slow": lambda seed: replace(default(), steps=60, views=3, frames=3, correction=0.0, seed=seed),
    },
)
PRESETS["tiny"] = lambda: FitConfig(iterations=10, count=60)
PRESETS["long"] = lambda: FitConfig(iterations=100000, count=60, state_every=50)


def write_checkpoints(folder: Path) -> Path:
    """Weights of the small family at its smallest."""
    torch.manual_seed(0)
    config = AutoencoderConfig(channels=4, width=16, deep_width=16, encoder_blocks=1, decoder_blocks=1)
    write_weights(folder / AUTOENCODER, Autoencoder(config), {"config": vars(config), "step": 0, "scores": {}})
    small = SmallConfig(4, 2, 32, 2, 2)
    write_weights(folder / PRIOR, SmallPrior(small), {"config": vars(small), "step": 0, "scores": {}})
    return folder
