"""The built-in networks: what they must not depend on, what they must, and how strictly their files are read."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from loom4d.denoisers.autoencoder import Autoencoder, AutoencoderConfig
from loom4d.denoisers.built_in import SmallPriors
from loom4d.denoisers.family import CrossingClip, Guidance, Rows
from loom4d.denoisers.layers import attend, sinusoids
from loom4d.denoisers.small import ClipCondition, Crossing, SmallConfig, SmallPrior, bound, guided_prior, place_features
from loom4d.denoisers.weights import AUTOENCODER, load_autoencoder, load_prior, write_weights
from loom4d.diffusion.denoiser import from_velocity
from loom4d.diffusion.guidance import guided
from loom4d.runs import InputError, load_tensors, save_tensors


@pytest.fixture
def prior() -> SmallPrior:
    torch.manual_seed(0)
    network = SmallPrior(SmallConfig(channels=3, cells=2, width=32, depth=4, heads=2, crossings=True)).eval()
    for weight in network.parameters():  # nothing stays at its zero start: every path must matter
        weight.data.add_(0.1 * torch.randn_like(weight))
    return network


def some_condition(clips: int = 2, pictures: int = 3) -> ClipCondition:
    generator = torch.Generator().manual_seed(1)
    return ClipCondition(
        torch.randn(clips, 1, 3, 2, 2, generator=generator),
        360 * torch.rand(clips, pictures, generator=generator),
        30 * torch.rand(clips, pictures, generator=generator),
        torch.rand(clips, pictures, generator=generator),
    )


def run(prior: SmallPrior, x: torch.Tensor, condition: ClipCondition, kept: bool = True) -> torch.Tensor:
    with torch.inference_mode():
        return prior(x, torch.full((len(x),), -0.1), condition, torch.full((len(x),), kept))


def test_clips_of_a_batch_do_not_see_each_other(prior):
    x, condition = torch.randn(2, 3, 3, 2, 2), some_condition()
    both = run(prior, x, condition)
    assert_close(both[:1], run(prior, x[:1], condition[:1]), atol=1e-5, rtol=1e-5)


def test_the_order_of_a_clips_pictures_does_not_matter_only_their_places(prior):
    x, condition, order = torch.randn(2, 3, 3, 2, 2), some_condition(), torch.tensor([2, 0, 1])
    shuffled = ClipCondition(
        condition.picture,
        condition.azimuths_deg[:, order],
        condition.elevations_deg[:, order],
        condition.times[:, order],
    )
    assert_close(run(prior, x[:, order], shuffled), run(prior, x, condition)[:, order], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("field", ["picture", "azimuths_deg", "elevations_deg", "times"])
def test_every_condition_matters(prior, field):
    x, condition = torch.randn(2, 3, 3, 2, 2), some_condition()
    fields = {name: getattr(condition, name) for name in ("picture", "azimuths_deg", "elevations_deg", "times")}
    fields[field] = fields[field] + 0.5
    assert (run(prior, x, ClipCondition(**fields)) - run(prior, x, condition)).abs().max() > 1e-4


def test_a_dropped_picture_is_not_seen_but_places_are(prior):
    x, condition = torch.randn(2, 3, 3, 2, 2), some_condition()
    other = ClipCondition(condition.picture + 1, condition.azimuths_deg, condition.elevations_deg, condition.times)
    assert_close(run(prior, x, condition, False), run(prior, x, other, False))
    assert (run(prior, x, condition, False) - run(prior, x, condition, True)).abs().max() > 1e-4


def crossed(condition: ClipCondition, **changes) -> ClipCondition:
    clips, pictures = condition.times.shape
    generator = torch.Generator().manual_seed(2)
    across = Crossing(
        torch.randn(clips, pictures, 3, 2, 2, generator=generator),
        360 * torch.rand(clips, pictures, generator=generator),
        torch.ones(clips, dtype=torch.bool),
    )
    return replace(condition, crossing=replace(across, **changes))


def test_a_crossing_clip_matters_where_it_is_known_and_kept(prior):
    x, condition = torch.randn(2, 3, 3, 2, 2), some_condition()
    alone, told = run(prior, x, condition), run(prior, x, crossed(condition))
    assert ((told - alone).abs().amax((1, 2, 3, 4)) > 1e-4).all()
    assert (run(prior, x, crossed(condition, azimuths_deg=torch.zeros(2, 3))) - told).abs().max() > 1e-4
    assert_close(run(prior, x, crossed(condition, known=torch.zeros(2, dtype=torch.bool))), alone)
    assert_close(run(prior, x, crossed(condition), kept=False), run(prior, x, condition, kept=False))
    half = run(prior, x, crossed(condition, known=torch.tensor([True, False])))
    assert_close(half, torch.cat([told[:1], alone[1:]]), atol=1e-5, rtol=1e-5)


def test_a_crossing_clip_meets_each_picture_at_its_own_place(prior):
    x, condition, order = torch.randn(2, 3, 3, 2, 2), some_condition(), torch.tensor([2, 0, 1])
    told = crossed(condition)
    places = {name: getattr(condition, name)[:, order] for name in ("azimuths_deg", "elevations_deg", "times")}
    turned = {name: getattr(told.crossing, name)[:, order] for name in ("pictures", "azimuths_deg")}
    across = replace(told.crossing, **turned)
    shuffled = ClipCondition(condition.picture, **places, crossing=across)
    assert_close(run(prior, x[:, order], shuffled), run(prior, x, told)[:, order], atol=1e-5, rtol=1e-5)


def test_one_picture_for_all_is_that_picture_for_each(prior):
    x, condition = torch.randn(2, 3, 3, 2, 2), some_condition()
    each = replace(condition, picture=condition.picture.expand(-1, 3, -1, -1, -1).clone())
    assert_close(run(prior, x, each), run(prior, x, condition), atol=0, rtol=0)
    each.picture[:, 2] += 1
    assert (run(prior, x, each) - run(prior, x, condition)).abs().max() > 1e-4


def test_a_prior_grows_crossings_from_nothing():
    torch.manual_seed(0)
    config = SmallConfig(channels=3, cells=2, width=32, depth=4, heads=2)
    small, grown = SmallPrior(config), SmallPrior(replace(config, crossings=True))
    torch.nn.init.normal_(small.out.weight)
    grown.load_state_dict(grown.state_dict() | small.state_dict())
    x, condition = torch.randn(2, 3, 3, 2, 2), some_condition()
    assert_close(run(grown, x, crossed(condition)), run(small, x, condition), atol=0, rtol=0)


def test_weights_that_know_no_crossings_refuse_them():
    network = Autoencoder(AutoencoderConfig(channels=3, width=16, deep_width=16, encoder_blocks=1, decoder_blocks=1))
    priors = SmallPriors(network, SmallPrior(SmallConfig(channels=3, cells=2, width=32, depth=1, heads=2)))
    pictures, angle = torch.rand(1, 4, 16, 16), torch.zeros(1)
    across = CrossingClip(torch.rand(1, 3, 4, 16, 16), angle, angle)
    with pytest.raises(ValueError, match="no crossing"):
        priors.video(Rows(pictures, angle, torch.linspace(0, 1, 3), 0, Guidance(), across))


def test_every_picture_sees_every_other(prior):
    x, condition = torch.randn(2, 3, 3, 2, 2), some_condition()
    changed = x.clone()
    changed[:, 2] += 1
    assert ((run(prior, changed, condition) - run(prior, x, condition))[:, 0].abs().amax((1, 2, 3)) > 1e-5).all()


def test_azimuth_is_periodic_and_a_quarter_turn_is_not_the_identity():
    condition = some_condition()
    turned = ClipCondition(condition.picture, condition.azimuths_deg + 360, condition.elevations_deg, condition.times)
    assert_close(place_features(turned), place_features(condition), atol=1e-4, rtol=0)
    quarter = ClipCondition(condition.picture, condition.azimuths_deg + 90, condition.elevations_deg, condition.times)
    assert (place_features(quarter) - place_features(condition)).abs().max() > 0.5


def test_guidance_in_one_call_equals_guidance_in_two(prior):
    condition, x = some_condition(), torch.randn(2, 3, 3, 2, 2)
    one = guided_prior(prior, condition, Guidance(1.5, 3.0))
    halves = [from_velocity(bound(prior, condition, kept)) for kept in (True, False)]
    two = guided(*halves, torch.linspace(1.5, 3.0, 3))
    with torch.inference_mode():
        assert_close(one(x, 0.7), two(x, 0.7), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(3, 2, 40, 16), (5, 1, 8, 4), (5, 4, 512, 16)])
def test_attention_in_pieces_is_attention(shape):
    """In bfloat16, forth and back, as near to float64 as torch's own fused kernel is, give or take a tenth."""
    q, k, v, weight = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0)).bfloat16()

    def both(attention, dtype):
        leaves = [part.to(dtype).requires_grad_() for part in (q, k, v)]
        mixed = attention(*leaves)
        return mixed, *torch.autograd.grad(mixed, leaves, weight.to(dtype))

    fused = torch.nn.functional.scaled_dot_product_attention
    for truth, theirs, ours in zip(
        both(fused, torch.float64), both(fused, torch.bfloat16), both(attend, torch.bfloat16), strict=True
    ):
        limit = 1.1 * (theirs - truth).norm() + 0.004 * truth.norm()  # half a unit in bfloat16's last place
        assert (ours - truth).norm() < limit


def test_sinusoids_are_cosines_then_sines_of_falling_frequencies():
    row = sinusoids(torch.tensor([3.0]), 4)[0]
    expected = torch.tensor([3.0, 3.0 / 100, 3.0, 3.0 / 100])
    assert_close(row, torch.cat([expected[:2].cos(), expected[2:].sin()]))


def test_the_autoencoder_normalises_what_it_decodes_back():
    torch.manual_seed(0)
    network = Autoencoder(AutoencoderConfig(channels=4, width=16, deep_width=16, encoder_blocks=1, decoder_blocks=1))
    pictures = torch.rand(2, 4, 16, 24)
    plain = network.encode(pictures)
    assert plain.shape == (2, 4, 2, 3)
    decoded = network.decode(plain)
    assert decoded.shape == pictures.shape
    network.latent_mean += 0.3
    network.latent_std *= 2.0
    assert_close(network.encode(pictures), (plain - 0.3) / 2)
    assert_close(network.decode(network.encode(pictures)), decoded)


def test_weight_files_are_read_strictly(tmp_path):
    config = {"channels": 4, "width": 16, "deep_width": 16, "encoder_blocks": 1, "decoder_blocks": 1}
    network = Autoencoder(AutoencoderConfig(**config))
    path = write_weights(tmp_path / AUTOENCODER, network, {"config": config, "step": 3})
    again, facts = load_autoencoder(tmp_path)
    assert facts["step"] == 3 and facts["licence"] == "Apache-2.0"
    for name, value in again.state_dict().items():
        assert_close(value, network.state_dict()[name].half().float())
    tensors, described = load_tensors(path)
    for change, message in [
        ({"extra": torch.zeros(1)}, "extra"),
        ({"latent_mean": torch.zeros(2, 1, 1)}, "latent_mean"),
    ]:
        save_tensors(path, {**tensors, **change}, described)
        with pytest.raises(InputError, match=message):
            load_autoencoder(tmp_path)
    save_tensors(path, {name: value for name, value in tensors.items() if name != "latent_std"}, described)
    with pytest.raises(InputError, match="latent_std"):
        load_autoencoder(tmp_path)
    save_tensors(path, tensors, {})
    with pytest.raises(InputError, match="no description"):
        load_autoencoder(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        load_prior(tmp_path)
