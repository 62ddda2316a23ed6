"""The rules and shortcuts that benchmarks/composition.py compares, each a configuration of the method."""

from __future__ import annotations

from dataclasses import replace

from loom4d.denoisers.family import Guidance
from loom4d.diffusion.composition import Curve
from loom4d.diffusion.samplers import Sampling
from loom4d.methods.diffusion_squared import (
    PRESETS,
    BandsConfig,
    DiffusionSquaredConfig,
    Shortcuts,
    default,
    paper,
)


def constant(share: float) -> Curve:
    return Curve("constant", high=share)


def guidance(scale: float, low: float = 0.0, high: float = float("inf")) -> dict[str, Guidance]:
    both = Guidance(scale, scale, low, high)
    return {"video_guidance": both, "multiview_guidance": both}


# Rules are compared at eight steps, which cost half, and to a plain blend under guidance.
DRAWN = replace(default(), leap=0.0, share=constant(0.4), row_guidance=None, **guidance(2.0))
CHOOSING = replace(DRAWN, steps=8)


def ours(**changes) -> DiffusionSquaredConfig:
    return replace(CHOOSING, **changes)


RULES: dict[str, DiffusionSquaredConfig] = {
    "start": CHOOSING,
    "learned steps": ours(schedule="learned_small"),
    "leap to 4, guidance 1": ours(leap=4.0, **guidance(1.0)),
    "leap to 2, guidance 1": ours(leap=2.0, **guidance(1.0)),
    "leap to 1, guidance 1": ours(leap=1.0, **guidance(1.0)),
    "leap to 0.5, guidance 1": ours(leap=0.5, **guidance(1.0)),
    "leap to 1": ours(leap=1.0),
    "leap to 1, guidance 1, share 0.6": ours(leap=1.0, share=constant(0.6), **guidance(1.0)),
    "leap to 1, guidance 1, share 0.8": ours(leap=1.0, share=constant(0.8), **guidance(1.0)),
    "leap to 1, guidance 1, share 1": ours(leap=1.0, share=constant(1.0), **guidance(1.0)),
    "guided after, video background": ours(shared_background="video"),
    "guidance 1": ours(**guidance(1.0)),
    "guidance 1.5": ours(**guidance(1.5)),
    "guidance 3": ours(**guidance(3.0)),
    "share 0.2": ours(share=constant(0.2)),
    "share 0.6": ours(share=constant(0.6)),
    "share 0.8": ours(share=constant(0.8)),
    "share 0.6, guidance 1.5": ours(share=constant(0.6), **guidance(1.5)),
    "share 0.8, guidance 1.5": ours(share=constant(0.8), **guidance(1.5)),
    "motion from multi-view": ours(share=constant(0.2), bands=BandsConfig("time", 0.35, constant(0.6))),
    "motion from multi-view alone": ours(share=constant(0.2), bands=BandsConfig("time", 0.35, constant(1.0))),
    "guidance 1 to 80": ours(**guidance(2.0, 1.0, 80.0)),
    "correction 0.25": ours(correction=0.25),
    "correction 0.5": ours(correction=0.5),
    "correction 0.5 below 2": ours(correction=0.5, correction_below=2.0),
    "fine details from video": ours(share=constant(0.6), bands=BandsConfig("space", 1.0, constant(0.2))),
    "fine details from multi-view": ours(share=constant(0.2), bands=BandsConfig("space", 1.0, constant(0.6))),
    "share falls over log sigma": ours(share=Curve("log_sigma", 0.7, 0.2, 2.0, 2.0)),
    "share rises over log sigma": ours(share=Curve("log_sigma", 0.2, 0.7, 2.0, 2.0)),
    "turns above 5": ours(alternate_above=5.0),
    "guidance 0.3 to 10": ours(**guidance(2.0, 0.3, 10.0)),
    "exact re-noising where they differ": ours(sampling=Sampling("dpmpp_2m", "exact", renoised_above=0.3)),
    "aligned steps": ours(schedule="align_your_steps_svd"),
    "multi-view every 2nd step": ours(shortcuts=Shortcuts(multiview_every=2)),
    "columns by turns of 2": ours(shortcuts=Shortcuts(column_turns=2)),
    "deep layers every 2nd step": ours(shortcuts=Shortcuts(deep_every=2)),
}

FINALISTS: dict[str, DiffusionSquaredConfig] = {
    "balanced": default(),
    "preview": PRESETS["preview"](),
    "no leap, guidance 2": DRAWN,
    "paper": paper(),
    "full": PRESETS["full"](),
    "released": PRESETS["released"](),
}

FIGURE_5: dict[str, Curve] = {
    "video only": constant(0.0),
    "s0 0.25": Curve(midpoint=0.25),
    "s0 0.5 (paper)": Curve(),
    "s0 0.75": Curve(midpoint=0.75),
    "k 5": Curve(steepness=5.0),
    "k 50": Curve(steepness=50.0),
    "linear": Curve("linear"),
    "constant 0.5": constant(0.5),
    "multi-view only": constant(1.0),
}
ABLATION = {
    name: replace(paper(), steps=16, sampling=Sampling("dpmpp_2m"), share=share) for name, share in FIGURE_5.items()
}
