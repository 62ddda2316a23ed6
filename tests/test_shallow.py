"""Feature caching: fresh steps are the network itself, others ask the outer layers only, copies leave it untouched."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from loom4d.denoisers.autoencoder import Autoencoder, AutoencoderConfig
from loom4d.denoisers.built_in import SmallPriors, family_of
from loom4d.denoisers.family import Guidance
from loom4d.denoisers.shallow import Slots, in_steps, shallow_prior, shallow_unet
from loom4d.denoisers.small import ClipCondition, SmallConfig, SmallPrior
from loom4d.denoisers.unet import ClipUNet, UNetConfig, stock_unet


@pytest.fixture(scope="module", autouse=True)
def gradless():
    with torch.no_grad():
        yield


def randomised(network):
    generator = torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network.eval()


def transformer():
    torch.manual_seed(0)
    prior = randomised(SmallPrior(SmallConfig(channels=4, cells=2, width=16, depth=4, heads=2)))
    condition = ClipCondition(torch.randn(2, 1, 4, 2, 2), torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3))
    kept = torch.ones(2, dtype=torch.bool)
    return prior, lambda network, x: network(x, torch.full((2,), 0.1), condition, kept), torch.randn(2, 3, 4, 2, 2)


def unet():
    torch.manual_seed(0)
    config = UNetConfig(32, (1, 2, 2), (True, True, False), 1, 16, 8, 24)
    network = randomised(ClipUNet(stock_unet(config).to_empty(device="cpu"), config))
    condition = network.condition(torch.randn(2, 4, 8, 8), torch.randn(2, 8), torch.randn(2, 3, 24))
    return network, lambda network, x: network(x, torch.full((2,), 0.1), condition), torch.randn(2, 3, 4, 8, 8)


CASES = {"transformer": (transformer, shallow_prior), "unet": (unet, shallow_unet)}


@pytest.mark.parametrize("case", CASES)
def test_fresh_steps_are_the_network_and_others_keep_what_its_deep_layers_made(case):
    make, copied = CASES[case]
    network, call, x = make()
    slots = Slots()
    shallow = copied(network, slots)
    before, other = call(network, x), call(network, x.flip(0))
    slots.begin(True)
    assert_close(call(shallow, x), before)
    assert_close(call(shallow, x.flip(0)), other)  # the step's second call has a memory of its own
    slots.begin(False)
    assert_close(call(shallow, x), before, atol=1e-5, rtol=1e-4)  # nothing changed since: nothing is lost
    assert_close(call(shallow, x.flip(0)), other, atol=1e-5, rtol=1e-4)
    slots.begin(False)
    changed = call(shallow, x + 0.5)
    assert not torch.allclose(changed, before) and not torch.allclose(changed, call(network, x + 0.5))
    assert_close(call(network, x), before)  # the original is as it was


@pytest.mark.parametrize("case", CASES)
def test_deep_layers_are_not_asked_between_fresh_steps(case):
    make, copied = CASES[case]
    network, call, x = make()
    asked = []
    deep = network.blocks[1:-1] if case == "transformer" else [*network.stock.down_blocks[1:], network.stock.mid_block]
    for number, block in enumerate(deep):
        block.register_forward_hook(lambda *_, number=number: asked.append(number))
    slots = Slots()
    shallow = copied(network, slots)
    denoise = in_steps(lambda x, sigma: call(shallow, x), slots, lambda sigma: sigma > 1)
    for sigma in (9.0, 0.5, 3.0, 0.2, 0.1):
        denoise(x, sigma)
    assert asked == 2 * list(range(len(deep)))


def test_the_built_in_family_asks_deep_blocks_at_fresh_steps_only():
    prior = randomised(SmallPrior(SmallConfig(channels=4, cells=2, width=16, depth=4, heads=2)))
    family = family_of(SmallPriors(Autoencoder(AutoencoderConfig(4, 16, 16, 1, 1)), prior))
    asked = []
    prior.blocks[1].register_forward_hook(lambda *_: asked.append(1))
    assert family.shallow is not None
    told = (torch.rand(2, 4, 16, 16), torch.zeros(2), torch.linspace(0, 1, 3), 0, Guidance(2.0, 2.0))
    whole, shallow = (one.video(*told) for one in (family, family.shallow(lambda sigma: sigma > 1)))
    x = torch.randn(2, 3, 4, 2, 2)
    assert_close(shallow(x, 3.0), whole(x, 3.0))
    assert len(asked) == 2
    later = shallow(x, 0.5)
    assert len(asked) == 2 and not torch.allclose(later, whole(x, 0.5))


def test_a_network_too_small_to_have_deep_layers_is_itself():
    prior = SmallPrior(SmallConfig(4, 2, 16, 2, 2))
    assert shallow_prior(prior, Slots()) is prior
    assert isinstance(shallow_prior(SmallPrior(SmallConfig(4, 2, 16, 3, 2)), Slots()).blocks[1], nn.Module)
