"""Every choice that Diffusion² leaves open here, and its presets: ours at three qualities, the paper's, its code's."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from loom4d.denoisers.family import Guidance
from loom4d.diffusion.composition import NEGLIGIBLE, Curve
from loom4d.diffusion.samplers import Sampling


@dataclass(frozen=True)
class BandsConfig:
    """A share of its own for the frequencies above a cutoff; below it, the share of the whole blend holds."""

    over: str = "off"  # off, space (within each picture) or time (along the frames)
    cutoff: float = 1.0  # turns over the picture or clip
    share: Curve = field(default_factory=lambda: Curve("constant", high=0.4))


@dataclass(frozen=True)
class Shortcuts:
    """What is left out to be quicker, at the price that docs/composition.md states; these numbers leave nothing out."""

    negligible: float = NEGLIGIBLE  # a prior that weighs no more than this in every cell is not asked
    video_every: int = 1  # steps between the video prior's estimates; in between, its last one stands
    multiview_every: int = 1
    cells_every: int = 1
    row_turns: int = 1  # at every step only every so-manieth row is asked, the others' last estimates stand
    column_turns: int = 1
    deep_every: int = 1  # steps between evaluations of the networks' deep layers, where the family can tell them apart


@dataclass(frozen=True)
class DiffusionSquaredConfig:
    """Every choice of the method; `paper`, `released` and `default` below are the presets."""

    seed: int = 0
    views: int | None = None  # None is the family's own number
    frames: int | None = None  # likewise
    seconds: float = 1.0  # length of the clip that a single picture becomes
    steps: int = 24
    schedule: str = "karras"  # of SCHEDULES
    leap: float = 0.0  # σ to which the grid's first step goes at once; what is decided above stays a mean. 0: no leap
    sampling: Sampling = field(default_factory=Sampling)
    column_sampling: Sampling | None = None  # of the condition column; None: as all else
    share: Curve = field(default_factory=Curve)  # the multi-view prior's share over the trajectory
    trust_by_azimuth: bool = False  # side views lean on the multi-view prior: u = 1 − ¾ sin² azimuth
    correction: float = 0.0  # γ of (1 + γ) · D_blend − γ · D_cell: what both priors count twice, the cell, taken back
    correction_below: float = 1e9  # σ from which on down the correction holds
    bands: BandsConfig = field(default_factory=BandsConfig)
    alternate_above: float = 1e9  # σ above which the priors take turns, step by step, instead of being blended
    video_guidance: Guidance = field(default_factory=Guidance)
    row_guidance: Guidance | None = None  # of the condition row alone; None: as all rows. Less of it, more motion
    multiview_guidance: Guidance = field(default_factory=Guidance)
    column_guidance: Guidance | None = None  # of the condition column alone; None: as all columns
    shared_background: str = "off"  # off, video or multiview: guide the composition, away from this prior's background
    reference_frame: int = 0  # the instant whose views are drawn first; −1 is the last
    told_frame: int | None = None  # the frame that the video prior takes its picture for; None: the reference frame
    crossings: bool = False  # rows are told the condition row besides, columns the condition column, if priors can be
    clamp_conditions: bool = True  # the condition row and column stand in the grid; else they are only conditions
    keep_given: bool = True  # the given pictures stand in the finished grid as given
    shortcuts: Shortcuts = field(default_factory=Shortcuts)
    preview_every: int = 0  # steps after which an event shows the clean estimate, decoded; 0 for never


def default() -> DiffusionSquaredConfig:
    """Ours, for the built-in priors: a constant blend without guidance in 16 second-order steps, the first of which
    leaps; chosen by completion on held-out objects, and by looking (docs/composition.md)."""
    return DiffusionSquaredConfig(
        steps=16,
        leap=1.0,
        sampling=Sampling("dpmpp_2m"),
        column_sampling=Sampling("euler"),
        share=Curve("constant", high=0.8),
        video_guidance=Guidance(1.0, 1.0),
        row_guidance=Guidance(2.0, 2.0),
        multiview_guidance=Guidance(1.0, 1.0),
        column_guidance=Guidance(3.0, 3.0),
        crossings=True,
    )


def preview() -> DiffusionSquaredConfig:
    """The default's rule in six steps, for a look: more than eight times less work than `full`."""
    return replace(default(), steps=6, schedule="learned_small")


def full() -> DiffusionSquaredConfig:
    """The default's rule in fifty steps with nothing left out: what shortcuts are measured against."""
    return replace(default(), steps=50, shortcuts=Shortcuts())


def paper() -> DiffusionSquaredConfig:
    """As the paper has it: 50 Euler steps, a falling logistic share (s₀ = 0.5, k = 20), first row and column given."""
    return DiffusionSquaredConfig(
        steps=50,
        share=Curve("logistic", midpoint=0.5, steepness=20.0),
        video_guidance=Guidance(1.5, 3.0),
        multiview_guidance=Guidance(2.5, 2.5),
    )


def released() -> DiffusionSquaredConfig:
    """As the released code runs: constant share 0.6, trust by azimuth, ten of fifty steps repeated with too little
    noise, nothing clamped, and a clip's last frame as reference that the video prior takes for its first."""
    return replace(
        paper(),
        sampling=Sampling(renoising="released", renoised_share=0.2),
        share=Curve("constant", high=0.6),
        trust_by_azimuth=True,
        reference_frame=-1,
        told_frame=0,
        clamp_conditions=False,
        keep_given=False,
    )


PRESETS = {"default": default, "preview": preview, "full": full, "paper": paper, "released": released}
