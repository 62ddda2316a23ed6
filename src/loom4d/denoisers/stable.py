"""What SVD and SV3D have in common: their parts, how a checkpoint becomes them, and guided denoisers of clips.

Both draw clips from one given picture. They see it twice, as CLIP's token and as a latent beside every noisy one, and
are told a vector of sinusoids per picture. Only the vector differs; `svd` and `sv3d` make it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from loom4d.denoisers import unet as unets
from loom4d.denoisers import vae as vaes
from loom4d.denoisers.checkpoints import Part, TensorFile, same_names
from loom4d.denoisers.clip import ImageTower, TowerConfig, from_transformers
from loom4d.denoisers.family import Guidance
from loom4d.denoisers.unet import ClipUNet, Condition, Stock, UNetConfig
from loom4d.denoisers.vae import SCALE, VAEConfig
from loom4d.diffusion.denoiser import Denoiser, Network, cell_noise, chunked_clips, from_velocity
from loom4d.diffusion.guidance import guided, guided_together, linear
from loom4d.runs import InputError

SCALAR_WIDTH = 256  # of the sinusoids of fps, motion and noise
ANGLE_WIDTH = 512  # of those of SV3D's polar angle and azimuth
MODELS = {3 * SCALAR_WIDTH: "SVD", SCALAR_WIDTH + 2 * ANGLE_WIDTH: "SV3D_p", SCALAR_WIDTH: "SV3D_u"}  # by vector width

# In the original files, and of no use to a picture: CLIP's text side and the decoder of the conditioning autoencoder.
TEXT_SIDE = r"conditioner\.embedders\.0\.open_clip\.model\.(?!visual\.).*"
UNUSED_DECODER = r"conditioner\.embedders\.\d+\.encoder\.(decoder|post_quant_conv)\..*"
POSITION_IDS = r"vision_model\.embeddings\.position_ids"  # a counter that older transformers versions stored


@dataclass(frozen=True)
class Sizes:
    """The exact architecture, unless a folder's `architecture.json` says otherwise (tiny ones for tests)."""

    unet: UNetConfig = field(default_factory=UNetConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    tower: TowerConfig = field(default_factory=TowerConfig)
    resolution: int = 576
    views: int = 21
    frames: int = 25


@dataclass(frozen=True)
class Stable:
    """One loaded prior. `encoder` is where diffused latents come from; None where the checkpoint has none."""

    name: str
    unet: ClipUNet
    tower: ImageTower
    vae: Stock  # the conditioning encoder with its quantisation, and the decoder
    encoder: Stock | None = None
    fetch: Callable[[nn.Module], Any] = lambda network: network  # brings a network to the device before it is used


@dataclass(frozen=True)
class Kind:
    """What tells one of the two checkpoints from the other."""

    name: str
    vector_width: int
    embedder: int  # place of the conditioning autoencoder in the original checkpoint's conditioner
    build_vae: Callable[[VAEConfig], Stock]
    own_encoder: bool  # whether the first stage has one


# --- loading -------------------------------------------------------------------------------------------------------


def load(path: Path, kind: Kind, sizes: Sizes | None = None, dtype: torch.dtype = torch.float32) -> Stable:
    """A prior from its original file, or from a folder in diffusers' layout (unet, vae, image_encoder).

    The UNet and the tower are kept in `dtype`, encoders always in float32 (as the originals run them), and the decoder
    in float16 where `dtype` has 16 bits: bfloat16 would show as bands. Anything missing, unknown or misshapen is an
    `InputError` of one line that names it.
    """
    return opened(path, kind, sizes, dtype)()


def opened(
    path: Path, kind: Kind, sizes: Sizes | None = None, dtype: torch.dtype = torch.float32
) -> Callable[[], Stable]:
    """`load` in two steps: all that the headers can say is checked at once, and the result of this does the reading."""
    sizes = sizes or Sizes()
    networks = Networks.of(kind, sizes, lone=kind.own_encoder and not path.is_dir())
    if path.is_dir():
        parts = _diffusers_parts(path, kind, dtype, networks)
    else:
        file = TensorFile(path)
        _expect(file, kind)
        parts = original_parts(file, kind, sizes, dtype, networks)
    for part in parts:
        part.claim()
    for part in parts:
        part.file.refuse_unknown((TEXT_SIDE, UNUSED_DECODER, POSITION_IDS))

    def read() -> Stable:
        for part in parts:
            part.fill()
        unet = ClipUNet(networks.unet, unet_config(sizes, kind))
        return Stable(kind.name, unet, networks.tower, networks.vae, networks.encoder)

    return read


@dataclass(frozen=True)
class Networks:
    """What a checkpoint fills, without memory."""

    unet: Stock
    tower: ImageTower
    vae: Stock
    encoder: Stock | None

    @classmethod
    def of(cls, kind: Kind, sizes: Sizes, lone: bool) -> Networks:
        with torch.device("meta"):
            tower = ImageTower(sizes.tower)
        encoder = vaes.lone_encoder(sizes.vae) if lone else None
        return cls(unets.stock_unet(unet_config(sizes, kind)), tower, kind.build_vae(sizes.vae), encoder)


def unet_config(sizes: Sizes, kind: Kind) -> UNetConfig:
    return replace(sizes.unet, vector_width=kind.vector_width)


def decoder_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the decoder is kept in, beside a UNet in `dtype`."""
    return torch.float32 if dtype == torch.float32 else torch.float16


def original_parts(file: TensorFile, kind: Kind, sizes: Sizes, dtype: torch.dtype, networks: Networks) -> list[Part]:
    """The networks in one file with the originals' names."""
    given = f"conditioner.embedders.{kind.embedder}.encoder.encoder."
    of_vae = vaes.original_names(sizes.vae, given, "first_stage_model.decoder.")
    parts = [
        Part(networks.unet, file, unets.original_names(sizes.unet), _all_in(dtype)),
        Part(networks.tower, file, same_names("conditioner.embedders.0.open_clip.model.visual."), _all_in(dtype)),
        Part(networks.vae, file, of_vae, _vae_dtypes(dtype)),
    ]
    if networks.encoder is not None:
        names = vaes.original_names(sizes.vae, "first_stage_model.encoder.", None)
        parts.append(Part(networks.encoder, file, names, _all_in(torch.float32)))
    return parts


def _diffusers_parts(folder: Path, kind: Kind, dtype: torch.dtype, networks: Networks) -> list[Part]:
    """The networks in three files with diffusers' and transformers' names."""
    of_unet, of_vae, of_tower = (TensorFile(_weights_in(folder / part)) for part in ("unet", "vae", "image_encoder"))
    _expect(of_unet, kind, "add_embedding.linear_1.weight")
    return [
        Part(networks.unet, of_unet, same_names(), _all_in(dtype)),
        Part(networks.vae, of_vae, same_names(), _vae_dtypes(dtype)),
        Part(networks.tower, of_tower, from_transformers, _all_in(dtype)),
    ]


def _all_in(dtype: torch.dtype) -> Callable[[str], torch.dtype]:
    return lambda name: dtype


def _vae_dtypes(dtype: torch.dtype) -> Callable[[str], torch.dtype]:
    return lambda name: decoder_dtype(dtype) if name.startswith(("decoder.", "post_quant_conv.")) else torch.float32


def _weights_in(folder: Path) -> Path:
    """The weight file of one part in diffusers' layout; the full precision one if there are several."""
    found = sorted(folder.glob("*.safetensors"), key=lambda path: (path.name.count("."), path.name))
    if not found:
        pickled = [path.name for suffix in ("*.bin", "*.ckpt") for path in folder.glob(suffix)]
        hint = f"only the pickled {pickled[0]}, which is never read" if pickled else "none"
        raise InputError(f"{folder}: expected a .safetensors file there, found {hint}")
    return found[0]


def _expect(file: TensorFile, kind: Kind, key: str = "model.diffusion_model.label_emb.0.0.weight") -> None:
    """Refuses another model of the same make by its name."""
    shape = file.shapes.get(key)
    if shape is None:
        raise InputError(f"{file.path}: holds no {kind.name} (tensor {key} is missing)")
    if shape[-1] != kind.vector_width and shape[-1] in MODELS:
        raise InputError(f"{file.path}: holds {MODELS[shape[-1]]}, expected {kind.name}")


def read_sizes(folder: Path) -> Sizes:
    """What `architecture.json` in the folder says, the published sizes without it; unknown keys are refused."""
    file = folder / "architecture.json"
    if not file.exists():
        return Sizes()
    try:
        return _filled(Sizes(), json.loads(file.read_text()), str(file))
    except (json.JSONDecodeError, AttributeError, TypeError) as error:
        raise InputError(f"{file}: not a description of sizes ({error})") from error


def _filled(record: Any, values: dict[str, Any], where: str) -> Any:
    known = {one.name for one in fields(record)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise InputError(f"{where}: unknown key {unknown[0]!r}; known ones are {', '.join(sorted(known))}")
    changes = {}
    for name, value in values.items():
        current = getattr(record, name)
        if is_dataclass(current):
            changes[name] = _filled(current, value, f"{where}: {name}")
        else:
            changes[name] = tuple(value) if isinstance(current, tuple) else get_type_hints(type(record))[name](value)
    return replace(record, **changes)


# --- conditions ----------------------------------------------------------------------------------------------------


def sinusoids(values: Float[Tensor, "*b"], width: int) -> Float[Tensor, "*b width"]:
    """[cos(z ωⱼ)]ⱼ ‖ [sin(z ωⱼ)]ⱼ with ωⱼ = 10000^(−j/(width/2)): how every number reaches the networks."""
    steps = torch.arange(width // 2, dtype=torch.float32, device=values.device)
    angles = values.float()[..., None] * torch.exp(-math.log(10000) * steps / (width // 2))  # bit for bit as theirs
    return torch.cat([angles.cos(), angles.sin()], -1)


def on_white(premultiplied: Float[Tensor, "*b 4 height width"]) -> Float[Tensor, "*b 3 height width"]:
    """Premultiplied RGBA over the white background of all training pictures, in −1..1."""
    colour, alpha = premultiplied[..., :3, :, :], premultiplied[..., 3:, :, :]
    return (colour + 1 - alpha) * 2 - 1


def embed(model: Stable, pictures: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b token"]:
    """CLIP's tokens of pictures in −1..1."""
    with torch.no_grad():
        tower = model.fetch(model.tower)
        return tower(pictures.to(tower.proj.device)).float()


def condition_latents(
    model: Stable, pictures: Float[Tensor, "b 3 height width"], spread: float
) -> Float[Tensor, "b c h w"]:
    """The unscaled mode of pictures in −1..1 under noise of deviation `spread`.

    Every picture gets the same noise: conditions must not depend on how a grid's rows are split over calls or machines.
    """
    noise = cell_noise(0, 0, 0, tuple(pictures.shape[1:]), stream=2**32 - 1).to(pictures)
    with torch.no_grad():
        return vaes.encode_mode(model.fetch(model.vae), pictures + spread * noise)


def encode(model: Stable, pictures: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b c h w"]:
    """Diffused latents of pictures in −1..1: the posterior's mode, scaled."""
    network = model.vae if model.encoder is None else model.encoder
    with torch.no_grad():
        return SCALE * vaes.encode_mode(model.fetch(network), pictures)


def decode(
    model: Stable, latents: Float[Tensor, "picture c h w"], window: int | None = None
) -> Float[Tensor, "picture 3 height width"]:
    """Diffused latents of one clip to colours in 0..1; a decoder over time takes `window` frames at once."""
    vae = model.fetch(model.vae)
    with torch.no_grad():
        if hasattr(vae, "post_quant_conv"):
            return vaes.seen(vaes.decode_pictures(vae, latents / SCALE))
        return vaes.seen(vaes.decode_clip(vae, latents / SCALE, window or len(latents)))


def conditions(
    model: Stable,
    pictures: Float[Tensor, "clip 4 height width"],
    vector: Float[Tensor, "clip frame vector"],
    spread: float,
) -> tuple[Condition, Condition]:
    """With the picture, and without: the latter has a zero token and latent but the same vector."""
    shown = on_white(pictures.float())
    latents, tokens = condition_latents(model, shown, spread), embed(model, shown)
    model.fetch(model.unet)
    with torch.no_grad():
        given = model.unet.condition(latents, tokens, vector)
        null = model.unet.condition(torch.zeros_like(latents), torch.zeros_like(tokens), vector)
    return given, null


# --- denoisers -----------------------------------------------------------------------------------------------------


Unet = Callable[..., Tensor]  # (x, ¼ ln σ, condition): a `ClipUNet`, what compiling made of it, or what fetches it


def network(unet: Unet, condition: Condition) -> Network:
    """The velocity network with its condition inside; computes where and as the condition is, returns float32."""

    def velocity(x: Float[Tensor, "clip frame c h w"], noise_level: Tensor) -> Float[Tensor, "clip frame c h w"]:
        home = condition.picture
        levels = torch.as_tensor(noise_level, dtype=torch.float32, device=home.device).expand(len(x))
        with torch.no_grad():
            return unet(x.to(home), levels, condition).float()

    return velocity


def denoiser(unet: Unet, condition: Condition) -> Denoiser:
    """D(x; σ) of a batch of clips, without guidance."""
    return from_velocity(network(unet, condition))


def guided_denoiser(
    unet: Unet, given: Condition, null: Condition, guidance: Guidance, frames: int, sequences: int
) -> Denoiser:
    """Guided denoiser of clips, at most `sequences` network inputs at a time (a guided clip is two, given and null).

    The null condition is not asked where guidance is 1, nor outside its interval of σ.
    """
    scale, interval = linear(guidance.first, guidance.last, frames), (guidance.low, guidance.high)

    def bind(clips: slice) -> Denoiser:
        strong = denoiser(unet, given[clips])
        if sequences < 2:
            return guided(strong, denoiser(unet, null[clips]), scale, interval)
        both = given[clips].followed_by(null[clips])
        return guided_together(strong, denoiser(unet, both), scale, interval)

    return chunked_clips(bind, max(1, sequences // 2))


def in_order(denoise: Denoiser, order: Float[Tensor, " picture"] | Tensor) -> Denoiser:
    """A denoiser of clips whose pictures stand in another order: picture order[i] is the prior's own i-th."""
    back = torch.argsort(order)

    def reordered(x, sigma):
        return denoise(x[:, order.to(x.device)], sigma)[:, back.to(x.device)]

    return reordered


def repeated(vector: Float[Tensor, "frame vector"], clips: int) -> Float[Tensor, "clip frame vector"]:
    """The same vectors for every clip."""
    return rearrange(vector, "frame vector -> 1 frame vector").expand(clips, -1, -1)
