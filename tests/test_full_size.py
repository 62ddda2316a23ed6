"""The full-size family around its networks: files in, grid out; memory; alpha; the catalogue."""

import importlib.util
import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from checkpoint_files import TINY, VECTORS, twin_of, write_original, write_sizes
from loom4d.denoisers import catalogue, full_size, memory, stable, sv3d, svd
from loom4d.denoisers.family import Guidance
from loom4d.denoisers.stable import Sizes
from loom4d.denoisers.vae import VAEConfig

WITHOUT = importlib.util.find_spec("diffusers") is None
needs_diffusers = pytest.mark.skipif(WITHOUT, reason="needs the full-size extra (diffusers)")
KINDS = (svd.KIND, sv3d.KIND)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints")
    write_sizes(path)
    for kind in VECTORS:
        write_original(twin_of(kind), kind, path)
    return path


@pytest.fixture(scope="module")
def priors(folder):
    sizes = stable.read_sizes(folder)
    video = svd.load_svd(folder / "svd_xt.safetensors", sizes)
    return video, sv3d.load_sv3d(folder / "sv3d_p.safetensors", sizes), sizes


@pytest.fixture(scope="module")
def family(priors):
    return full_size.family(*priors, memory.Plan())


# --- family --------------------------------------------------------------------------------------------------------


@needs_diffusers
def test_results_do_not_depend_on_how_many_sequences_go_at_a_time(priors):
    x, pictures = torch.randn(3, 2, 4, 8, 8), torch.rand(3, 4, 64, 64)
    angles = torch.tensor([0.0, 180.0]), torch.tensor([5.0, 5.0])
    results = []
    for sequences in (1, 4):
        one = full_size.family(*priors, memory.Plan(sequences=sequences))
        rows = one.video(pictures, torch.zeros(3), torch.arange(2.0), 0, Guidance(1.5, 3.0))(x, 3.0)
        results.append((rows, one.multiview(pictures, *angles, Guidance(2.5, 2.5))(x, 3.0)))
    for ours, first in zip(*results, strict=True):
        torch.testing.assert_close(ours, first, rtol=1e-4, atol=1e-5)


@needs_diffusers
@pytest.mark.parametrize("name", ["video", "multiview", "image"])
def test_a_shallow_family_asks_deep_levels_at_fresh_steps_only(priors, family, name):
    model = priors[1] if name == "multiview" else priors[0]
    x, pictures, zeros = torch.randn(3, 1 if name == "image" else 2, 4, 8, 8), torch.rand(3, 4, 64, 64), torch.zeros(3)
    told = {
        "video": (pictures, zeros, torch.arange(2.0), 0, Guidance(1.5, 3.0)),
        "multiview": (pictures, torch.tensor([0.0, 180.0]), torch.tensor([5.0, 5.0]), Guidance(2.5, 2.5)),
        "image": (pictures, zeros, zeros, zeros, Guidance(1.5, 1.5)),
    }[name]
    whole, shallow = (getattr(one, name)(*told) for one in (family, family.shallow(lambda sigma: sigma > 1)))
    asked = []
    handle = model.unet.stock.mid_block.register_forward_hook(lambda *_: asked.append(1))
    try:
        torch.testing.assert_close(shallow(x, 3.0), whole(x, 3.0), rtol=1e-5, atol=1e-5)
        assert asked
        asked.clear()
        later = shallow(x, 0.5)
        assert not asked
    finally:
        handle.remove()
    assert later.isfinite().all() and not torch.allclose(later, shallow(x, 3.0))


@needs_diffusers
def test_pictures_without_time_are_decoded_by_sv3d_and_clips_by_svd(priors, family):
    video, multiview, _ = priors
    latents = 0.18215 * torch.randn(1, 3, 4, 8, 8)
    alone, clip = family.decode(latents.transpose(0, 1))[:, 0], family.decode(latents)[0]
    torch.testing.assert_close(alone, full_size.cut_out(stable.decode(multiview, latents[0])))
    torch.testing.assert_close(clip, full_size.cut_out(stable.decode(video, latents[0])))


@needs_diffusers
def test_encoding_sees_pictures_on_white(family):
    clear = torch.zeros(1, 4, 64, 64)
    torch.testing.assert_close(family.encode(clear), family.encode(torch.ones(1, 4, 64, 64)))
    assert family.encode(clear).shape == (1, *family.latent_shape)


@needs_diffusers
def test_what_is_missing_is_said_before_anything_is_read(folder, tmp_path):
    with pytest.raises(ValueError, match="--checkpoints DIR"):
        full_size.svd_sv3d(None)
    with pytest.raises(ValueError, match="no such folder"):
        full_size.svd_sv3d(tmp_path / "nowhere")
    (tmp_path / "svd_xt.safetensors").symlink_to(folder / "svd_xt.safetensors")
    (tmp_path / "architecture.json").write_text(json.dumps(TINY))
    with pytest.raises(ValueError, match=r"expected sv3d_p\.safetensors there"):
        full_size.svd_sv3d(tmp_path)
    with pytest.raises(ValueError, match="too little for 64² pictures; the least is"):
        full_size.svd_sv3d(folder, full_size.FullSizeConfig(max_memory_gb=0.1))


def test_sizes_are_read_strictly(tmp_path):
    assert stable.read_sizes(tmp_path) == Sizes()
    file = tmp_path / "architecture.json"
    file.write_text(json.dumps({"vae": {"width": 64}, "frames": 14}))
    assert stable.read_sizes(tmp_path) == Sizes(vae=VAEConfig(width=64), frames=14)
    for wrong, message in (
        ({"vae": {"wide": 1}}, "unknown key 'wide'"),
        ([1], "not a description"),
        ({"vae": 3}, "not a"),
    ):
        file.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=message):
            stable.read_sizes(tmp_path)


def test_the_shelf_keeps_only_what_stays_and_sends_back_without_copying():
    """The "device" is meta, which tells places apart on any machine."""
    networks = [torch.nn.BatchNorm2d(3) for _ in range(3)]
    before = [[tensor.data_ptr() for tensor in network.state_dict().values()] for network in networks]
    shelf = full_size.Shelf(torch.device("meta"), (networks[0],))

    def places():
        return [{tensor.device.type for tensor in network.state_dict().values()} for network in networks]

    for network in networks:
        assert shelf.fetch(network) is network
    assert places() == [{"meta"}, {"cpu"}, {"meta"}]
    shelf.fetch(networks[2])
    shelf.clear()
    assert places() == [{"cpu"}] * 3
    assert before == [[tensor.data_ptr() for tensor in network.state_dict().values()] for network in networks]


@needs_diffusers
def test_only_the_usual_pass_is_compiled(priors, monkeypatch):
    """Compiling for the shapes of a few left-over passes would take longer than they do."""
    asked = []

    def compile_(network, **options):
        assert options == {"dynamic": False}
        return lambda x, level, condition: asked.append(len(x)) or network(x, level, condition)

    monkeypatch.setattr(torch, "compile", compile_)
    one = full_size.family(*priors, memory.Plan(sequences=4), full_size.FullSizeConfig(compiled=True))
    pictures, x = torch.rand(3, 4, 64, 64), torch.randn(3, 2, 4, 8, 8)
    one.video(pictures, torch.zeros(3), torch.arange(2.0), 0, Guidance(1.5, 3.0))(x, 3.0)
    assert asked == [4]  # two guided clips; the third goes alone
    angles = torch.zeros(3)
    one.image(pictures, angles, angles, angles, Guidance())(x[:, :1], 3.0)
    assert asked == [4]


@needs_diffusers
def test_the_page_shows_every_piece_alone(folder, tmp_path, monkeypatch):
    """The example of docs/full_size.md, run as it stands."""
    page = (Path(__file__).parents[1] / "docs" / "full_size.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    (tmp_path / "weights").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    made: dict[str, torch.Tensor] = {}
    exec(code, made)
    assert made["sample"].shape == (2, 2, 4, 8, 8) and made["sample"].isfinite().all()
    assert made["colours"].shape == (1, 3, 64, 64) and made["token"].shape == (1, 24)


# --- alpha ---------------------------------------------------------------------------------------------------------


def test_cutting_out_gives_back_what_stood_on_white():
    """A disc with a soft rim: composed on white again, the picture is the same; its alpha is that of the disc."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    alpha = ((0.6 - (x**2 + y**2).sqrt()) * 16 + 0.5).clamp(0, 1)
    colour = torch.tensor([0.7, 0.3, 0.2])[:, None, None]
    rgba = full_size.cut_out((alpha * colour + 1 - alpha)[None])[0]
    torch.testing.assert_close(rgba[:3] + 1 - rgba[3], alpha * colour + 1 - alpha, rtol=0, atol=full_size.WHITE)
    assert (rgba[3][alpha == 1] == 1).all() and (rgba[3][alpha == 0] == 0).all()
    assert (rgba[:3] <= rgba[3]).all()


def test_enclosed_white_stays():
    picture = torch.ones(1, 3, 16, 16)
    picture[..., 3:13, 3:13] = 0.2
    picture[..., 6:10, 6:10] = 1.0  # a white eye
    alpha = full_size.keyed(picture)[0, 0]
    assert alpha[8, 8] == 1 and alpha[0, 0] == 0 and alpha.sum() == 100


# --- memory --------------------------------------------------------------------------------------------------------


@needs_diffusers
def test_the_published_costs_of_one_evaluation():
    """Counted by others on the original code: 41.160 and 34.579 TFLOP, of which single-token attention saves 3.9 %."""
    for kind, pictures, published in ((svd.KIND, 25, 41.160e12), (sv3d.KIND, 21, 34.579e12)):
        cost = memory.unet_cost(stable.unet_config(Sizes(), kind), pictures, 72, torch.bfloat16)
        assert cost.flop == pytest.approx(published * (1 - 0.0395), rel=0.003)
    assert memory.decode_cost(VAEConfig(), 72, torch.float16).flop == pytest.approx(3.863e12, rel=1e-3)


@needs_diffusers
def test_plans_stay_within_their_budget_and_use_it():
    plans = {budget: memory.plan(Sizes(), KINDS, torch.bfloat16, budget) for budget in (8.0, 12.0, 24.0)}
    for budget, plan in plans.items():
        assert plan.predicted_gb <= budget
    assert plans[12.0].resident and plans[12.0].sequences == 2  # halves together, nothing moved
    assert plans[24.0].sequences == 4 and plans[24.0].window == 25  # a whole clip decoded at once
    assert not plans[8.0].resident
    with pytest.raises(ValueError, match=r"--max-memory 4GB is too little for 576² pictures; the least is \d"):
        memory.plan(Sizes(), KINDS, torch.bfloat16, 4.0)


@needs_diffusers
def test_less_memory_on_a_processor_chooses_smaller_numbers(monkeypatch):
    monkeypatch.setattr(memory, "whole_gb", lambda device: 64.0)
    plans = {gb: full_size.planned(Sizes(), full_size.FullSizeConfig(max_memory_gb=gb)) for gb in (40.0, 22.0)}
    assert [plan.dtype for plan in plans.values()] == [torch.float32, torch.bfloat16]
    assert all(plan.predicted_gb <= gb for gb, plan in plans.items())
    monkeypatch.setattr(memory, "whole_gb", lambda device: 16.0)
    with pytest.raises(ValueError, match="this machine's 16GB is too little"):
        full_size.planned(Sizes(), full_size.FullSizeConfig(max_memory_gb=40.0))


@needs_diffusers
def test_predicted_activations_are_those_of_a_real_run(priors):
    """The same counter over real tensors instead of meta ones, where SDPA is the processor's own kernel."""
    model, _, sizes = priors
    x, level = torch.randn(1, 3, 4, 8, 8), torch.zeros(1)
    condition = model.unet.condition(torch.randn(1, 4, 8, 8), torch.randn(1, 24), torch.randn(1, 3, 768))
    alive = memory.Alive()
    with torch.no_grad(), alive:
        model.unet(x, level, condition)
    predicted = memory.unet_cost(stable.unet_config(sizes, svd.KIND), 3, 8, torch.float32).peak_bytes
    assert alive.peak == pytest.approx(predicted, rel=0.05)


def test_alive_counts_what_lives():
    alive = memory.Alive()
    with alive:
        a = torch.empty(1000)
        b = a + 1
        del a
        c = b[:10]  # a view owns nothing
        del b
        d = torch.empty(500)
    assert (alive.peak, alive.now) == (8000, 6000)
    del c, d


# --- catalogue -----------------------------------------------------------------------------------------------------


def test_the_catalogue_refuses_what_is_not_free_for_commerce(tmp_path):
    assert {"svd_xt", "sv3d_p"} <= {one.name for one in catalogue.listed()}
    assert not catalogue.listed(commercial_only=True)
    with pytest.raises(ValueError, match="svd_xt is under the Stability AI Community License"):
        catalogue.get("svd_xt", tmp_path, commercial_only=True)
    with pytest.raises(ValueError, match="unknown weights 'svd'; choose one of svd_xt"):
        catalogue.get("svd", tmp_path)
    for one in catalogue.listed():
        assert one.file.endswith(".safetensors") and one.page.startswith("https://huggingface.co/")


def test_checking_tells_absent_broken_other_and_whole(tmp_path, monkeypatch):
    path = tmp_path / "sv3d_p.safetensors"
    assert catalogue.check("sv3d_p", tmp_path).state == "absent"
    save_file({"a": torch.zeros(3)}, path)
    assert catalogue.check("sv3d_p", tmp_path).state == "other"  # one tensor instead of 2212
    assert catalogue.check("svd_xt", tmp_path).state == "absent"
    tiny = replace(catalogue.CATALOGUE["sv3d_p"], tensors=1, bytes=path.stat().st_size)
    monkeypatch.setitem(catalogue.CATALOGUE, "sv3d_p", tiny)
    status = catalogue.check("sv3d_p", tmp_path, checksum=True)
    assert status.state == "whole" and status.sha256 == catalogue.sha256(path)
    monkeypatch.setitem(catalogue.CATALOGUE, "sv3d_p", replace(tiny, sha256="0" * 64))
    assert catalogue.check("sv3d_p", tmp_path, checksum=True).state == "broken"
    path.write_bytes(path.read_bytes()[:-4])
    assert catalogue.check("sv3d_p", tmp_path).state == "broken"


@needs_diffusers
def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

    def failing(error):
        def download(*args, **kwargs):
            raise error

        return download

    for error, words in (
        (GatedRepoError.__new__(GatedRepoError), "accept the licence on"),
        (LocalEntryNotFoundError("no\nconnection"), r"could not be fetched .*no connection"),
    ):
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", failing(error))
        with pytest.raises(ValueError, match=words) as caught:
            catalogue.get("sv3d_p", tmp_path)
        assert "\n" not in str(caught.value)


# --- benchmark -----------------------------------------------------------------------------------------------------


@needs_diffusers
def test_the_benchmark_runs_anywhere_and_counts_the_published_asset(capsys):
    path = Path(__file__).parents[1] / "benchmarks" / "full_size.py"
    benchmark = runpy.run_path(str(path))
    short = ["--repeats", "1", "--grid-steps", "1", "--rows", "2", "--columns", "2"]
    report = benchmark["main"](["--tiny", *short])
    assert json.loads(capsys.readouterr().out)["counted"] == report["counted"]
    assert report["projected_seconds"]["total"] > report["grid"]["seconds_per_step"] > 0
    counted = benchmark["main"](["--count-only"])["counted"]
    # Others counted 175 PFLOP with the queries that a single token does not need, and with encoding the conditions.
    assert counted["asset_pflop"] == pytest.approx(0.9605 * (175.0 - 2.2) + 2.0, rel=0.01)


@needs_diffusers
def test_random_checkpoints_are_some_that_the_loader_takes(folder, tmp_path, capsys):
    benchmark = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "random_checkpoints.py"))
    benchmark["main"]([str(tmp_path / "random"), "--sizes", str(folder)])
    sizes = stable.read_sizes(tmp_path / "random")
    for kind, name in zip(KINDS, ("svd_xt", "sv3d_p"), strict=True):
        assert callable(stable.opened(tmp_path / "random" / f"{name}.safetensors", kind, sizes))
