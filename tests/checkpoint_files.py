"""Tiny checkpoints of SVD and SV3D on disk: as their makers lay them out, and in diffusers' layout."""

import json
from dataclasses import replace

import torch
from safetensors.torch import save_file

import originals
from loom4d.denoisers import clip, unet, vae
from loom4d.denoisers.stable import Sizes, read_sizes

VECTORS = {"svd": 768, "sv3d": 1280}
FILES = {"svd": "svd_xt", "sv3d": "sv3d_p"}
TINY = {
    "unet": {"width": 32, "head_width": 16, "token_width": 24},
    "vae": {"width": 32},
    "tower": {"width": 32, "depth": 2, "head_width": 16, "patch": 7, "resolution": 28, "token_width": 24},
    "resolution": 64,
    "views": 2,
    "frames": 2,
}


def twin_of(kind, seed=0):
    """A random network of the original layout; SVD's two encoders are one, so that both layouts hold the same."""
    torch.manual_seed(seed)
    twin = originals.original(kind).eval().requires_grad_(False)
    if kind == "svd":
        known = twin.conditioner.embedders[3].encoder
        known.quant_conv.weight.copy_(torch.eye(8)[:, :, None, None])
        known.quant_conv.bias.zero_()
        twin.first_stage_model.encoder.load_state_dict(known.encoder.state_dict())
    return twin


def write_sizes(folder, sizes=None):
    """The `architecture.json` of these sizes; returns what the package reads out of it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "architecture.json").write_text(json.dumps(sizes or TINY))
    return read_sizes(folder)


def write_original(twin, kind, folder):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(twin.state_dict(), folder / f"{FILES[kind]}.safetensors")


def write_diffusers(twin, kind, folder, sizes: Sizes):
    """The same weights in diffusers' layout, as its own conversion writes them."""
    svd = kind == "svd"
    given = f"conditioner.embedders.{3 if svd else 1}.encoder.encoder."
    networks = {
        "unet": (unet.stock_unet(replace(sizes.unet, vector_width=VECTORS[kind])), unet.original_names(sizes.unet)),
        "vae": (
            vae.video_vae(sizes.vae) if svd else vae.image_vae(sizes.vae),
            vae.original_names(sizes.vae, given, "first_stage_model.decoder."),
        ),
    }
    state = twin.state_dict()
    for part, (network, origins) in networks.items():
        tensors = {}
        for name in network.state_dict():
            origin = origins(name)
            tensors[name] = origin.make(*(state[one] for one in origin.names)).contiguous()
        (folder / part).mkdir(parents=True)
        save_file(tensors, folder / part / "diffusion_pytorch_model.safetensors")
    tower, tensors = twin.conditioner.embedders[0].open_clip.model.visual.state_dict(), {}
    for name, value in tower.items():
        for one in clip.from_transformers(name).names:
            piece = value.T if name == "proj" else value
            if "self_attn." in one and "in_proj" in name:  # theirs are three, open_clip's is queries, keys, values
                piece = value.chunk(3)["qkv".index(one.split("self_attn.")[1][0])]
            tensors[one] = piece.contiguous()
    (folder / "image_encoder").mkdir()
    save_file(tensors, folder / "image_encoder" / "model.safetensors")
