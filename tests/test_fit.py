"""A fit finds a moving scene again, to the same bytes each time, and survives inputs that are wrong."""

import math
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from loom4d.cameras import FOV_DEG, seen_region, turntable
from loom4d.gaussians.asset import render
from loom4d.gaussians.between import filled, middles, shown_between
from loom4d.gaussians.fit import batch_cells, fit, initial_state, score, with_previews
from loom4d.gaussians.fit_config import PRESETS, FitConfig, Stage, forgiving, thrifty
from loom4d.gaussians.gaussians import sh_of
from loom4d.gaussians.initial import ball_cloud, carved, covered, hull_cloud, still_cloud, voxel_centres
from loom4d.gaussians.motion import MOTIONS
from loom4d.gaussians.motion.spacetime import Spacetime
from loom4d.gaussians.objective import LossWeights, regularisation
from loom4d.gaussians.state import LATELY, FitState, adam, asset_of, averaged, state_of
from loom4d.grid import ImageGrid
from loom4d.runs import Event, InputError, result_of

QUICK = FitConfig(count=300, iterations=30, batch=6, hull_resolution=20, preview_every=0, state_every=10)


def moving_scene() -> Spacetime:
    """Three coloured balls on straight lines."""
    count = 3
    left = torch.tensor([1.0, 0, 0, 0]).expand(count, 4)
    return Spacetime(
        means=torch.tensor([[-0.2, 0.0, 0.0], [0.2, 0.1, 0.1], [0.0, -0.2, -0.1]]),
        times=torch.full((count,), 0.5),
        log_scales=torch.full((count, 3), math.log(0.07)),
        log_durations=torch.full((count,), math.log(3.0)),
        left=left,
        right=torch.tensor([[1.0, 0.03, 0, 0], [1.0, 0, 0.03, 0], [1.0, 0, 0, -0.03]]),
        opacity_logits=torch.full((count,), 3.0),
        colours=sh_of(torch.tensor([[0.9, 0.2, 0.1], [0.1, 0.3, 0.9], [0.2, 0.8, 0.2]]))[:, None],
        start=0.0,
        end=1.0,
        unit=0.5,
    )


def picture_grid(views: int = 5, frames: int = 3, size: int = 32) -> ImageGrid:
    times = torch.linspace(0, 1, frames) if frames > 1 else torch.zeros(1)
    return render(moving_scene(), turntable(views, frames), times, size, size)


def bytes_of(asset) -> bytes:
    return b"".join(tensor.numpy().tobytes() for tensor in asset.tensors().values())


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_fit_approaches_the_scene_from_views_it_was_not_given(motion):
    held_out = render(moving_scene(), turntable(10, 3)[1::2], torch.linspace(0, 1, 3), 32, 32)
    events: list[Event] = []
    config = replace(QUICK, motion=motion, iterations=90, preview_every=45)
    asset = result_of(fit(picture_grid(), config, held_out=held_out), events.append)
    assert score(asset, held_out) > 27
    assert [event.kind for event in events if event.kind != "progress"] == ["start", "preview", "done"]
    assert events[-1].data["held_out_psnr"] == score(asset, held_out) and events[-1].step == 90
    losses = [event.data["loss"] for event in events if event.kind == "progress"]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_an_asset_is_the_average_of_the_last_steps():
    start = state_of(moving_scene())
    there = start.tensors["asset.means"] + 1.0
    state = replace(start, step=10_000, tensors=start.tensors | {"asset.means": there})
    for _ in range(3):
        state = averaged(state)
    behind = there - asset_of(state, "spacetime").means
    assert_close(behind, torch.full_like(there, LATELY**3))
    early = averaged(replace(start, step=10, tensors=start.tensors | {"asset.means": there}))
    assert_close(there - asset_of(early, "spacetime").means, torch.full_like(there, 0.5))
    assert torch.equal(asset_of(early, "spacetime").times, moving_scene().times)


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_killed_fit_goes_on_to_the_same_bytes(motion):
    grid, config = picture_grid(), replace(QUICK, motion=motion, state_every=12)  # where a leader hands over
    states: list[FitState] = []
    whole = result_of(fit(grid, config, on_state=states.append))
    assert [state.step for state in states] == [12, 24]
    resumed = result_of(fit(grid, config, resume=states[0]))
    assert bytes_of(resumed) == bytes_of(whole)
    assert bytes_of(result_of(fit(grid, config, resume=states[1]))) == bytes_of(whole)
    assert bytes_of(result_of(fit(grid, replace(config, seed=1)))) != bytes_of(whole)


def test_previews_become_files_that_their_events_name(tmp_path):
    config = replace(QUICK, iterations=3, preview_every=2)
    events: list[Event] = []
    grid = picture_grid(2, 2)
    result_of(with_previews(fit(grid, config, held_out=grid), tmp_path / "previews"), events.append)
    (shown,) = [event for event in events if event.kind == "preview"]
    assert shown.data["file"] == "previews/fit_000002.png" and "png" not in shown.data
    assert shown.data["held_out_psnr"] > 5
    with Image.open(tmp_path / shown.data["file"]) as picture:
        assert picture.size == (384, 384)


def test_a_step_that_leaves_the_numbers_stops_the_fit(monkeypatch):
    def overflowing(state: FitState, gradients: dict, rates: dict) -> FitState:
        following = adam(state, gradients, rates)
        if following.step == 3:
            following.tensors["asset.means"][0, 0] = math.inf
        return following

    monkeypatch.setattr("loom4d.gaussians.fit.adam", overflowing)
    events: list[Event] = []
    states: list[FitState] = []
    asset = result_of(fit(picture_grid(2, 2), QUICK, on_state=states.append), events.append)
    assert any(event.kind == "note" and "iteration 3" in event.message for event in events)
    assert states[-1].step == 2 and states[-1].finite()
    assert all(tensor.isfinite().all() for tensor in asset.tensors().values())


def test_points_of_ones_own_are_where_it_starts():
    points = torch.tensor([[0.1, 0.2, 0.3], [-0.1, 0.0, 0.1], [0.0, -0.2, 0.0], [0.2, 0.0, -0.1]])
    cloud = still_cloud(points, torch.full((4, 3), 0.25), torch.linspace(0, 1, 3))
    for motion in MOTIONS:
        state = initial_state(picture_grid(), replace(QUICK, motion=motion, count=12, lead=0.0), points=cloud)
        means = state.tensors["asset.means"]
        assert torch.cdist(means, points).amin(1).max() < 1e-6
        result_of(fit(picture_grid(), replace(QUICK, motion=motion, iterations=2, lead=0.0), resume=state))


@pytest.mark.parametrize("views,frames", [(1, 1), (1, 4), (6, 1), (2, 2)])
def test_small_grids_fit_and_stay_finite(views, frames):
    grid = picture_grid(views, frames)
    asset = result_of(fit(grid, QUICK))
    assert all(tensor.isfinite().all() for tensor in asset.tensors().values())
    assert score(asset, grid) > 18
    assert render(asset, turntable(7, frames), grid.times, 32, 32).rgba.isfinite().all()


def test_what_is_not_finite_stops_the_fit_at_the_last_good_state():
    calls = 0

    def failing(rendered: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return (rendered - target).square().mean((1, 2, 3)) * (math.nan if calls > 9 else 1.0)

    config = replace(QUICK, weights=replace(QUICK.weights, perceptual=1.0))
    events: list[Event] = []
    states: list[FitState] = []
    asset = result_of(fit(picture_grid(), config, perceptual=failing, on_state=states.append), events.append)
    note = next(event for event in events if event.kind == "note")
    assert "iteration 10" in note.message and "nan" in note.message and states[-1].step == 9
    assert all(tensor.isfinite().all() for tensor in asset.tensors().values())


def test_inconsistent_cells_and_a_wrong_mask_do_not_blow_it_up():
    grid = picture_grid(6, 3)
    generator = torch.Generator().manual_seed(0)
    rgba = (grid.rgba + 0.05 * torch.randn(grid.rgba.shape, generator=generator)).clamp(0, 1)
    for view in range(grid.views):
        for frame in range(grid.frames):
            shift = torch.randint(-1, 2, (2,), generator=generator).tolist()
            rgba[view, frame] = rgba[view, frame].roll(shift, (1, 2))
    rgba[2, :, 3] = 1.0
    rgba[4, 1, 3] = 0.0
    asset = result_of(fit(replace(grid, rgba=rgba), replace(QUICK, confidence=True)))
    assert all(tensor.isfinite().all() for tensor in asset.tensors().values())
    assert score(asset, grid) > 13


def test_cells_without_trust_have_no_say():
    grid = picture_grid(4, 2)
    spoilt = grid.rgba.clone()
    spoilt[1] = 1 - spoilt[1]
    trust = torch.ones(4, 2)
    trust[1] = 0
    config = replace(QUICK, iterations=15)
    careful = result_of(fit(replace(grid, rgba=spoilt), config, trust=trust))
    assert bytes_of(careful) == bytes_of(result_of(fit(grid, config, trust=trust)))
    assert bytes_of(careful) != bytes_of(result_of(fit(grid, config)))


def test_pixels_without_confidence_have_no_say():
    grid = picture_grid(4, 2)
    spoilt, sure = grid.rgba.clone(), torch.ones(4, 2, 32, 32)
    spoilt[1, :, :3, 8:20] = 1 - spoilt[1, :, :3, 8:20]
    sure[1, :, 8:20] = 0
    config = replace(
        QUICK, iterations=1, stages=(Stage(),), weights=LossWeights(ssim=0.0, l1=1.0, alpha=0.0, motion=0.0), batch=8
    )
    start = initial_state(grid, config)
    careful = result_of(fit(replace(grid, rgba=spoilt), config, confidence=sure, resume=start))
    assert bytes_of(careful) == bytes_of(result_of(fit(grid, config, confidence=sure, resume=start)))
    assert bytes_of(careful) != bytes_of(result_of(fit(grid, config, resume=start)))
    assert bytes_of(result_of(fit(grid, config, confidence=torch.ones(4, 2, 8, 8), resume=start))) == bytes_of(
        result_of(fit(grid, config, resume=start))
    )


def test_wrong_arguments_say_what_is_wrong():
    grid = picture_grid(2, 1)
    with pytest.raises(InputError, match="empty"):
        result_of(fit(replace(grid, rgba=torch.zeros_like(grid.rgba)), QUICK))
    with pytest.raises(InputError, match="finite"):
        result_of(fit(replace(grid, rgba=grid.rgba * math.nan), QUICK))
    with pytest.raises(ValueError, match="spacetime"):
        result_of(fit(grid, replace(QUICK, motion="teleport")))
    with pytest.raises(ValueError, match="2×1"):
        result_of(fit(grid, QUICK, trust=torch.ones(3, 3)))
    with pytest.raises(ValueError, match=r"0\.\.1"):
        result_of(fit(grid, QUICK, confidence=torch.full((2, 1, 8, 8), 2.0)))
    with pytest.raises(ValueError, match="perceptual"):
        result_of(fit(grid, replace(QUICK, weights=replace(QUICK.weights, perceptual=1.0))))
    with pytest.raises(ValueError, match="rising"):
        result_of(fit(grid, replace(QUICK, stages=(Stage(0.8), Stage(0.5)))))
    assert set(PRESETS) == {"preview", "balanced", "full"}


def test_every_round_visits_every_cell_once():
    for turn in range(3):
        batches = [batch_cells(turn * 6 + step, 5, 7, replace(QUICK, batch=6, instants=2)) for step in range(6)]
        assert sorted(torch.cat(batches).tolist()) == list(range(35))
        assert max(len((batch % 7).unique()) for batch in batches) <= 4 and len(batches[0]) == 6


def test_what_a_leader_shows_lies_between_the_given_moments():
    cameras, times = turntable(2, 4), torch.tensor([0.0, 0.4, 0.4, 1.0])  # two frames share an instant
    grid = render(moving_scene(), cameras, times, 24, 24)
    assert torch.equal(middles(times)[1], torch.tensor([0.2, 0.7]))
    pictures = shown_between(moving_scene(), grid)
    exact = render(moving_scene(), cameras[:, [0, 2]], torch.tensor([0.2, 0.7]), 24, 24)
    assert (pictures / 255 - exact.rgba).abs().max() < 0.002
    trust = torch.tensor([[2.0, 1, 1, 0], [1, 1, 1, 1]])
    sure = torch.rand(2, 4, 6, 6)
    more, weights, maps = filled(grid, pictures, trust, sure)
    assert torch.equal(more.times, torch.tensor([0.0, 0.2, 0.4, 0.4, 0.7, 1.0]))
    given, between = [0, 2, 3, 5], [1, 4]
    assert torch.equal(more.rgba[:, given], grid.rgba) and torch.equal(more.rgba[:, between], pictures / 255)
    assert_close(weights[:, given] / trust.clamp_min(1e-9), (trust > 0) * weights[0, 0] / 2)
    assert_close(weights[:, between], weights[:, [0, 3]])
    assert maps is not None and torch.equal(maps[:, between], sure[:, [0, 2]]) and abs(weights.mean() - 1) < 1e-6


def test_the_price_on_opacity_falls_to_nothing_at_half():
    asset, region = moving_scene(), seen_region(turntable(2, 1))
    mean = torch.sigmoid(asset.opacity_logits).mean()
    free, priced = LossWeights(motion=0.0), LossWeights(motion=0.0, opacity=0.4)
    for done, share in ((0.0, 1.0), (0.25, 0.5), (0.5, 0.0), (0.9, 0.0)):
        costs = [float(regularisation(asset, w, region, 3, done, torch.Generator())) for w in (free, priced)]
        assert abs(costs[1] - costs[0] - 0.4 * share * mean) < 1e-6


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_thrifty_fit_ends_with_no_more_than_it_began_with(motion):
    config = thrifty(replace(QUICK, motion=motion, iterations=60))
    config = replace(config, densify=replace(config.densify, faint=0.3))  # so that some go within few iterations
    start = initial_state(picture_grid(), config)
    states: list[FitState] = []
    result_of(fit(picture_grid(), replace(config, state_every=1), on_state=states.append))
    counts = [len(state.tensors["asset.means"]) for state in states[: config.handover or None]]
    assert max(counts) == len(start.tensors["asset.means"]) and min(counts) < max(counts)


def test_a_forgiving_fit_has_no_price_and_nothing_multiplies():
    config = forgiving(PRESETS["balanced"]())
    assert config.weights == LossWeights() and config.densify.policy == "none" and config.confidence
    assert PRESETS["balanced"]().weights.opacity > 0
    assert forgiving(PRESETS["full"]()).dense == FitConfig().dense < PRESETS["full"]().dense


# --- where it starts ------------------------------------------------------------------------------------------------


def ball_grid(radius: float, views: int = 8) -> ImageGrid:
    """Silhouettes of a ball at the origin, left half red and right half blue of the world."""
    cameras = turntable(views, 1)
    centres, rays = cameras.rays(48, 48)
    along = -(centres[:, :, None, None] * rays).sum(-1)
    closest = (centres[:, :, None, None] + along[..., None] * rays).norm(dim=-1)
    hit = (centres[:, :, None, None] + (along - (radius**2 - closest**2).clamp_min(0).sqrt())[..., None] * rays)[..., 0]
    alpha = (closest < radius).float()
    return ImageGrid(torch.stack([(hit < 0).float(), 0 * hit, (hit >= 0).float(), alpha], 2), cameras, torch.zeros(1))


def test_the_hull_of_a_ball_is_about_the_ball_and_has_its_colours():
    cloud = hull_cloud(ball_grid(0.3), 2000, 40, torch.Generator().manual_seed(0))
    assert cloud is not None
    flat = cloud.means[:, [0, 2]].norm(dim=-1)  # a ring of views at elevation 0 sees the ball's circles, not its poles
    assert (cloud.means.abs() < 0.36).all() and flat.max() > 0.28 and flat.max() < 0.36
    right = cloud.means[:, 0] > 0.1
    assert (cloud.rgb[right, 2] > cloud.rgb[right, 0]).float().mean() > 0.95


def test_one_wrong_mask_does_not_empty_the_hull():
    grid = ball_grid(0.3)
    alphas, cameras = grid.rgba[:, 0, 3:].clone(), grid.cameras[:, 0]
    points = voxel_centres(seen_region(grid.cameras), 24)
    whole = carved(alphas, cameras, points, torch.ones(8))
    alphas[3] = 0
    assert torch.equal(carved(alphas, cameras, points, torch.ones(8)) & whole, whole)


def test_a_trusted_mask_stays_covered_where_the_others_miss_a_part():
    grid = ball_grid(0.3)
    alphas, cameras = grid.rgba[:, 0, 3:].clone(), grid.cameras[:, 0]
    points = voxel_centres(seen_region(grid.cameras), 24)
    alphas[4:6, :, 24:] = 0  # two generated views lost the lower half
    trust = torch.tensor([3.0, 1, 1, 1, 1, 1, 1, 1])
    kept = carved(alphas, cameras, points, trust)
    assert points[kept][:, 1].min() < -0.2
    assert covered(alphas[:1], cameras[:1].project(points[kept].expand(1, -1, 3))[0])[0] > 0.9


def test_a_single_view_starts_as_a_relief_and_not_as_a_cone():
    cloud = hull_cloud(ball_grid(0.3, views=1), 1000, 40, torch.Generator().manual_seed(0))
    assert cloud is not None and cloud.means[:, 2].abs().max() < 0.36


def test_without_masks_it_starts_in_a_ball():
    grid = ball_grid(0.3)
    rgba = grid.rgba.clone()
    rgba[:, :, 3] = 1
    assert hull_cloud(replace(grid, rgba=rgba), 100, 24, torch.Generator()) is None
    cloud = ball_cloud(grid, 500, torch.Generator().manual_seed(0))
    assert cloud.means.norm(dim=-1).max() <= 0.7001 * seen_region(grid.cameras).half


def test_the_seen_region_of_a_turntable_is_known():
    region = seen_region(turntable(6, 2, elevation_deg=12.0))
    assert region.centre.abs().max() < 1e-4
    assert abs(region.half - 2 * math.tan(math.radians(FOV_DEG / 2))) < 1e-4


def test_small_pictures_get_few_gaussians():
    grid = picture_grid()
    covered = (grid.rgba[:, :, 3] > 0.5).sum((-2, -1)).float().mean()
    for dense in (0.5, 1.0):
        state = initial_state(grid, replace(QUICK, count=10_000, dense=dense))
        assert len(state.tensors["asset.means"]) == math.ceil(dense * float(covered))
    assert len(initial_state(grid, replace(QUICK, count=7)).tensors["asset.means"]) == 7
