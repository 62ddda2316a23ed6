"""Diffusion² woven by priors that know the truth: every wrong row, column, condition or order would show."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from loom4d.cameras import turntable
from loom4d.denoisers.family import Family, Guidance
from loom4d.diffusion.composition import Curve
from loom4d.diffusion.samplers import Sampling
from loom4d.grid import ImageGrid
from loom4d.methods.diffusion_squared import (
    PRESETS,
    BandsConfig,
    DiffusionSquaredConfig,
    Shortcuts,
    Weaver,
    default,
    imagine,
    released,
)
from loom4d.runs import InputError, Run, load_tensors, result_of

VIEWS, FRAMES, SIDE = 4, 3, 8


def truth() -> ImageGrid:
    """Opaque pictures, each of its own plain colour."""
    colours = torch.rand(VIEWS, FRAMES, 3, generator=torch.Generator().manual_seed(5)) * 0.8 + 0.1
    rgba = torch.ones(VIEWS, FRAMES, 4, SIDE, SIDE)
    rgba[:, :, :3] = colours[..., None, None]
    return ImageGrid(rgba, turntable(VIEWS, FRAMES, 5.0), torch.linspace(0, 1, FRAMES))


class Oracle:
    """A family whose latents are the pictures' mean colours and whose priors know the whole grid.

    A prior finds the picture it is given in the grid and answers with that row or column; it refuses pictures that
    are not where it is told they are.
    """

    def __init__(self, grid: ImageGrid):
        self.latents = grid.premultiplied.mean((-1, -2), keepdim=True)
        self.calls: list[str] = []

    def encode(self, pictures):
        return pictures.mean((-1, -2), keepdim=True)

    def decode(self, latents):
        return latents.expand(*latents.shape[:3], SIDE, SIDE)

    def find(self, picture):
        distance = (self.latents - picture.mean((-1, -2), keepdim=True)).abs().amax((2, 3, 4))
        assert distance.min() < 1e-4, "a prior is given a picture that is not in the grid"
        return divmod(int(distance.argmin()), FRAMES)

    def video(self, pictures, elevations_deg, times, given_frame, guidance, crossing=None):
        self.calls.append("video")
        assert len(elevations_deg) == len(pictures) and len(times) == FRAMES
        rows = []
        for picture in pictures:
            view, frame = self.find(picture)
            assert frame == given_frame
            rows.append(self.latents[view])
        return lambda x, sigma: torch.stack(rows)

    def multiview(self, pictures, azimuths_deg, elevations_deg, guidance, crossing=None):
        self.calls.append("multiview")
        assert_close(azimuths_deg, torch.arange(VIEWS) * 90.0, atol=1e-4, rtol=0)
        found = [self.find(picture) for picture in pictures]
        assert all(view == 0 for view, _ in found)
        columns = torch.stack([self.latents[:, frame] for _, frame in found])
        return lambda x, sigma: columns

    def image(self, pictures, azimuths_deg, elevations_deg, times, guidance, crossing=None):
        """Cells around the reference: the turn says which view, the wait since the reference which frame."""
        _, reference = self.find(pictures[0])
        views = (azimuths_deg / (360 / VIEWS)).round().long()
        frames = (times * (FRAMES - 1)).round().long() + reference
        return lambda x, sigma: self.latents[views, frames][:, None]

    def family(self) -> Family:
        return Family(
            name="oracle",
            resolution=SIDE,
            latent_shape=(4, 1, 1),
            views=VIEWS,
            frames=FRAMES,
            sigma_min=0.02,
            sigma_max=80.0,
            encode=self.encode,
            decode=self.decode,
            video=self.video,
            multiview=self.multiview,
            image=self.image,
        )


def config(preset: str = "default", **changes) -> DiffusionSquaredConfig:
    return replace(PRESETS[preset](), views=VIEWS, frames=FRAMES, steps=5, **changes)


GIVEN = {
    "picture": (slice(0, 1), slice(0, 1)),
    "clip": (slice(0, 1), slice(None)),
    "orbit": (slice(None), slice(0, 1)),
}


@pytest.mark.parametrize("kind", GIVEN)
@pytest.mark.parametrize("preset", ["default", "paper"])
def test_priors_that_know_the_truth_weave_it(kind, preset):
    grid, oracle = truth(), Oracle(truth())
    made = result_of(imagine(grid[GIVEN[kind]], oracle.family(), config(preset)))
    assert_close(made.rgba, grid.rgba, atol=2e-3, rtol=0)
    assert_close(made.times, grid.times)
    assert_close(made.cameras.camera_from_world, grid.cameras.camera_from_world, atol=1e-5, rtol=0)
    expected = {"picture": ["multiview", "video"], "clip": ["multiview"], "orbit": ["video"]}[kind]
    assert oracle.calls[: len(expected)] == expected
    assert sorted(oracle.calls[len(expected) :]) == ["multiview", "video"]


def test_the_released_preset_takes_a_clips_last_frame_for_the_first():
    grid, told = truth(), []

    class Released(Oracle):
        def video(self, pictures, elevations_deg, times, given_frame, guidance, crossing=None):
            told.append(given_frame)
            assert all(self.find(picture)[1] == FRAMES - 1 for picture in pictures)
            return lambda x, sigma: self.latents

    made = result_of(imagine(grid[:1, :], Released(grid).family(), config("released")))
    assert told == [0]
    assert_close(made.rgba, grid.rgba, atol=2e-3, rtol=0)


def test_the_share_is_the_multi_view_priors():
    """Priors that answer 1 and 0 everywhere leave exactly the last step's share in each cell."""

    class Constant(Oracle):
        def video(self, *_):
            return lambda x, sigma: torch.zeros_like(x)

        def multiview(self, *_):
            return lambda x, sigma: torch.ones_like(x)

    free = {"clamp_conditions": False, "keep_given": False, "trust_by_azimuth": False, "correction": 0.0}
    weave = config(share=Curve("constant", high=0.3), **free)
    made = result_of(imagine(truth()[:1, :1], Constant(truth()).family(), weave))
    assert_close(made.rgba[:, :, 3], torch.full((VIEWS, FRAMES, SIDE, SIDE), 0.3), atol=1e-5, rtol=0)
    side = result_of(imagine(truth()[:1, :1], Constant(truth()).family(), replace(weave, trust_by_azimuth=True)))
    expected = torch.tensor([0.3, 1 - 0.25 * 0.7, 0.3, 1 - 0.25 * 0.7])  # u = 1, ¼, 1, ¼
    assert_close(side.rgba[:, 0, 3, 0, 0], expected, atol=1e-5, rtol=0)


def test_the_correction_takes_the_cells_prior_back_below_its_noise_level():
    """(1 + γ) · blend − γ · cell, with a blend that answers 1 and cells that answer 0.5."""
    asked = []

    class Constant(Oracle):
        def video(self, *_):
            return lambda x, sigma: torch.ones_like(x)

        multiview = video

        def image(self, pictures, azimuths_deg, elevations_deg, times, guidance, crossing=None):
            asked.append((azimuths_deg.reshape(VIEWS, FRAMES), times.reshape(VIEWS, FRAMES)))
            assert all(self.find(picture) == (0, 0) for picture in pictures)
            return lambda x, sigma: torch.full_like(x, 0.5) if sigma <= 1.0 else 1 / 0

    free = {"clamp_conditions": False, "keep_given": False, "correction": 0.6, "correction_below": 1.0}
    oracle = Constant(truth())
    family = replace(oracle.family(), image=oracle.image)
    made = result_of(imagine(truth()[:1, :1], replace(family, decode=lambda z: 0.5 * oracle.decode(z)), config(**free)))
    assert_close(made.rgba[:, :, 3], torch.full((VIEWS, FRAMES, SIDE, SIDE), 0.5 * 1.3), atol=1e-5, rtol=0)
    assert_close(asked[0][0][:, 0], torch.arange(VIEWS) * 90.0, atol=1e-4, rtol=0)
    assert_close(asked[0][1][0], torch.linspace(0, 1, FRAMES))
    with pytest.raises(InputError, match="no prior of single pictures"):
        result_of(imagine(truth()[:1, :1], replace(family, image=None), config(**free)))


def test_priors_are_told_the_clips_across_theirs():
    """Row v: the condition row, seen from −v views away. Column f: the condition column, f − 1 frames earlier."""
    told = {}

    class Told(Oracle):
        def video(self, pictures, elevations_deg, times, given_frame, guidance, crossing=None):
            told["row"] = None if crossing is None else ([self.find(picture)[0] for picture in pictures], crossing)
            return super().video(pictures, elevations_deg, times, given_frame, guidance)

        def multiview(self, pictures, azimuths_deg, elevations_deg, guidance, crossing=None):
            told["column"] = None if crossing is None else ([self.find(picture)[1] for picture in pictures], crossing)
            return super().multiview(pictures, azimuths_deg, elevations_deg, guidance)

        def image(self, pictures, azimuths_deg, elevations_deg, times, guidance, crossing=None):
            own, other = ([self.find(picture) for picture in some] for some in (pictures, crossing.pictures[:, 0]))
            assert {frame for _, frame in own} == {1} and {view for view, _ in other} == {0}
            views, frames = torch.tensor([view for view, _ in own]), torch.tensor([frame for _, frame in other])
            assert_close(crossing.azimuths_deg, views * -90.0, atol=1e-4, rtol=0)
            assert_close(times, (frames - 1) / (FRAMES - 1.0))
            assert (azimuths_deg == 0).all() and (crossing.times == 0).all()
            return lambda x, sigma: self.latents[views, frames][:, None]

    grid, oracle = truth(), Told(truth())
    family = replace(oracle.family(), image=oracle.image, crossings=True)
    made = result_of(imagine(grid[:1, :], family, config(reference_frame=1)))
    assert_close(made.rgba, grid.rgba, atol=2e-3, rtol=0)
    views, row = told["row"]
    seen = [[oracle.find(picture) for picture in clip] for clip in row.pictures]
    assert seen == [[(0, frame) for frame in range(FRAMES)]] * len(views)
    assert_close(row.azimuths_deg, torch.tensor(views) * -90.0, atol=1e-4, rtol=0)
    frames, column = told["column"]
    seen = [[oracle.find(picture) for picture in clip] for clip in column.pictures]
    assert seen == [[(view, 1) for view in range(VIEWS)]] * len(frames)
    assert_close(column.times, (1 - torch.tensor(frames)) / (FRAMES - 1.0))
    assert (row.times == 0).all() and (column.azimuths_deg == 0).all()
    told.clear()
    result_of(imagine(grid[:1, :], family, config(crossings=False, correction=0.0)))
    assert told == {"row": None, "column": None}


def test_given_pictures_stand_in_the_grid_bit_for_bit():
    grid = truth()
    noisy = replace(grid, rgba=(grid.rgba + 0.003 * torch.rand_like(grid.rgba)).clamp(0, 1))

    class Approximate(Oracle):
        def find(self, picture):
            return divmod(
                int((self.latents - picture.mean((-1, -2), keepdim=True)).abs().amax((2, 3, 4)).argmin()), FRAMES
            )

    clip = result_of(imagine(noisy[:1, :], Approximate(grid).family(), config()))
    assert torch.equal(clip.rgba[0], noisy.rgba[0])
    orbit = result_of(imagine(noisy[:, :1], Approximate(grid).family(), config()))
    assert torch.equal(orbit.rgba[:, 0], noisy.rgba[:, 0])


class Timid(Oracle):
    """Priors that answer with what they are asked, so that the noise stays visible in the result."""

    def video(self, *_):
        return lambda x, sigma: 0.9 * x

    def multiview(self, *_):
        return lambda x, sigma: 0.7 * x


QUICKER = Shortcuts(video_every=3, row_turns=2, column_turns=2)


@pytest.mark.parametrize(("stop_after", "shortcuts"), [(0, Shortcuts()), (3, QUICKER), (8, QUICKER), (13, Shortcuts())])
def test_a_killed_run_weaves_the_same_grid(tmp_path, stop_after, shortcuts):
    given = truth()[:1, :1]
    weave = config("released", sampling=replace(released().sampling, sampler="dpmpp_2m"), shortcuts=shortcuts)
    whole = result_of(imagine(given, Timid(truth()).family(), weave))
    run = Run(tmp_path / "run", {})
    work = imagine(given, Timid(truth()).family(), weave, run)
    for _ in range(stop_after):
        next(work)
    work.close()
    again = result_of(imagine(given, Timid(truth()).family(), weave, run))
    run.close()
    maps, _ = load_tensors(tmp_path / "run" / "disagreement.safetensors")
    assert torch.equal(again.rgba, whole.rgba)
    assert maps["disagreement"].shape == (VIEWS, FRAMES, 1, 1)
    assert maps["disagreement"].min() > 0 and maps["disagreement"].max() < 1
    other = result_of(imagine(given, Timid(truth()).family(), replace(weave, seed=1)))
    assert not torch.equal(other.rgba, whole.rgba)


def test_known_rows_and_columns_are_not_asked():
    asked = []

    class Counting(Oracle):
        def video(self, pictures, *_):
            asked.append(("video", len(pictures)))
            return lambda x, sigma: self.latents[-len(x) :]

        def multiview(self, pictures, *_):
            asked.append(("multiview", len(pictures)))
            return lambda x, sigma: self.latents.transpose(0, 1)[-len(x) :]

        def image(self, pictures, *_):
            asked.append(("cells", len(pictures)))
            return lambda x, sigma: self.latents[1:, 1:].flatten(0, 1)[:, None]

    family = replace(Counting(truth()).family(), image=Counting(truth()).image)
    weaver = Weaver(truth()[:1, :1], family, config(correction=0.5), None)
    made = result_of(weaver.grid(truth().premultiplied[:, 0], truth().premultiplied[0]))
    assert_close(made.rgba, truth().rgba, atol=2e-3, rtol=0)
    known = {"cells": (VIEWS - 1) * (FRAMES - 1), "video": VIEWS - 1, "multiview": FRAMES - 1}
    assert dict(asked) == known


def test_the_background_that_both_share_is_that_of_the_named_prior():
    """D = D_u + g · (W · D_mv + (1 − W) · D_vid − D_u), the background being what the prior says at guidance 0."""

    class Constant(Oracle):
        def video(self, pictures, elevations_deg, times, given_frame, guidance):
            return lambda x, sigma: torch.full_like(x, 0.4 if guidance.first else 0.1)

        def multiview(self, pictures, azimuths_deg, elevations_deg, guidance):
            return lambda x, sigma: torch.full_like(x, 0.6 if guidance.first else 0.2)

    free = {"clamp_conditions": False, "keep_given": False, "correction": 0.0, "share": Curve("constant", high=0.5)}
    for prior, nothing in (("video", 0.1), ("multiview", 0.2)):
        weave = config(shared_background=prior, video_guidance=Guidance(2.0, 2.0), **free)
        made = result_of(imagine(truth()[:1, :1], Constant(truth()).family(), weave))
        assert_close(made.rgba[:, :, 3], torch.full((VIEWS, FRAMES, SIDE, SIDE), 1.0 - nothing), atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="shared-background"):
        result_of(imagine(truth()[:1, :1], Constant(truth()).family(), config(shared_background="both")))


def test_bands_over_time_take_motion_from_one_prior_and_looks_from_the_other():
    """With a tiny cutoff the low frequencies of a clip are its mean: that is the video prior's, what moves is not."""

    class Split(Oracle):
        def video(self, *_):
            return lambda x, sigma: torch.full_like(x, 0.5)

        def multiview(self, pictures, *_):
            moving = 0.9 + 0.2 * torch.linspace(-1, 1, FRAMES)[: len(pictures), None, None, None, None]
            return lambda x, sigma: moving.expand_as(x)

    bands = BandsConfig("time", 0.01, Curve("constant", high=1.0))
    free = {"clamp_conditions": False, "keep_given": False, "correction": 0.0}
    weave = config(share=Curve("constant", high=0.0), bands=bands, **free)
    made = result_of(imagine(truth()[:1, :1], Split(truth()).family(), weave))
    expected = (0.5 + 0.2 * torch.linspace(-1, 1, FRAMES)).expand(VIEWS, FRAMES)
    assert_close(made.rgba[:, :, 3, 0, 0], expected, atol=1e-4, rtol=0)
    with pytest.raises(InputError, match="bands"):
        result_of(imagine(truth()[:1, :1], Split(truth()).family(), replace(weave, bands=BandsConfig("colour"))))


def test_the_condition_column_may_be_sampled_its_own_way():
    given = truth()[:1, :1]

    def column_and_row(**changes):
        weaver = Weaver(given, Timid(truth()).family(), config(**changes), None)
        return result_of(weaver.column()), result_of(weaver.row())

    own = column_and_row(sampling=Sampling("dpmpp_2m"), column_sampling=Sampling("euler"))
    second = column_and_row(sampling=Sampling("dpmpp_2m"), column_sampling=None)
    first = column_and_row(sampling=Sampling("euler"), column_sampling=None)
    assert torch.equal(own[0], first[0]) and not torch.equal(own[0], second[0])
    assert torch.equal(own[1], second[1]) and not torch.equal(own[1], first[1])


def test_only_the_grid_leaps():
    """The condition column is drawn by the whole schedule."""
    grid, asked = truth(), []
    family, multiview = Oracle(grid).family(), Oracle(grid).multiview

    def watched(*arguments, **named):
        denoise = multiview(*arguments, **named)
        return lambda x, sigma: (asked.append(float(sigma)), denoise(x, sigma))[1]

    weaver = Weaver(
        grid[:1, :], replace(family, multiview=watched), config(leap=1.0, share=Curve("constant", 0.5)), None
    )
    column = result_of(weaver.column())
    assert len(asked) == 5 and 1 < asked[1] < asked[0] == 80
    asked.clear()
    result_of(weaver.grid(column, grid.premultiplied[0]))
    assert asked[:2] == [80, 1] and len(asked) == 5


@pytest.mark.parametrize("changes", [{"leap": 80.0}, {"leap": 0.01}, {"leap": 1.0, "steps": 1}])
def test_a_leap_that_is_none_is_refused(changes):
    grid = truth()
    with pytest.raises(InputError, match="leap"):
        Weaver(grid[:1, :], Oracle(grid).family(), replace(config(), **changes), None)


def test_what_cannot_be_woven_is_refused():
    with pytest.raises(InputError, match="nothing to imagine"):
        result_of(imagine(truth(), Oracle(truth()).family(), config()))
    with pytest.raises(ValueError, match="see 8² pictures"):
        result_of(imagine(truth().resized(16, 16)[:1, :1], Oracle(truth()).family(), config()))


def test_presets_are_what_the_paper_and_the_code_say():
    paper, code = PRESETS["paper"](), PRESETS["released"]()
    assert paper.steps == code.steps == 50
    assert (paper.share.shape, paper.share.midpoint, paper.share.steepness) == ("logistic", 0.5, 20.0)
    assert code.share(0.0) == code.share(1.0) == 0.6 and code.trust_by_azimuth
    assert (code.sampling.renoising, code.sampling.renoised_share) == ("released", 0.2)
    assert (code.reference_frame, code.told_frame, code.clamp_conditions) == (-1, 0, False)
    assert paper.clamp_conditions and default().keep_given
