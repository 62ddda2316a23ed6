"""Dynamic Gaussians as compact bytes that the page unpacks.

Three layouts. Two keep the motion itself, which the page evaluates at any time: `spacetime` the conditional slice of a
space-time Gaussian, which has a fixed shape, a constant velocity and a temporal weight; `controlled` the control
points' key poses and the skinning weights. `baked` keeps any other motion at evenly spaced instants, as many as it
takes for the interpolated positions to stay within a stated error.

Every field is quantised to the fewest bits that keep it within its tolerance, columns apart and bytes of a number
apart, then compressed.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from loom4d.gaussians.gaussians import Ellipsoids, sh_degree
from loom4d.gaussians.motion import DynamicGaussians
from loom4d.gaussians.motion.controlled import Controlled
from loom4d.gaussians.motion.spacetime import DROPPED, Spacetime

# Largest error of each field after quantisation. Lengths are in world units: an orbit at 2 units sees 1.2 of them, so
# 1e-4 is a tenth of a pixel in a picture of 1000. Opacity and colour: half a step of an 8-bit picture.
TOLERANCES = {
    "position": 1e-4,
    "drift": 1e-4,
    "moment": 1e-4,
    "log_duration": 2e-4,
    "opacity": 2e-3,
    "quaternion": 2e-4,
    "log_scale": 4e-3,
    "colour": 4e-3,
    "bone": 0.3,  # a whole number, which the page rounds to
    "weight": 1e-3,
    "joint": 1e-6,  # the few numbers that move all others
    "shift": 1e-6,
    "turn": 1e-6,
}
JOINTS = ("joint", "shift", "turn")  # fields with a row per control point instead of one per Gaussian
BAKED_ERROR = 1e-3  # world units: where the interpolated position of the worst percent of Gaussians may be
MOST_INSTANTS = 129
THINNEST = -12.0  # logarithm of a scale that no picture can tell from zero


@dataclass(frozen=True)
class Packed:
    """What the page needs besides pictures and words: `header` holds JSON values, `data` is gzip."""

    header: dict[str, Any]
    data: bytes
    error: float  # world units between the motion and its packed positions, 99th percentile; without quantisation

    @property
    def bytes_per_gaussian(self) -> float:
        return len(self.data) / max(self.header["count"], 1)


def pack(
    asset: DynamicGaussians, times: tuple[float, float], alpha_min: float, values: dict[str, Tensor] | None = None
) -> Packed:
    """The asset between two times, in seconds. `values` are scalars per Gaussian that the page can show by colour.

    Gaussians that never reach `alpha_min` between these times are left out, as no pixel shows them.
    """
    if isinstance(asset, Spacetime):
        fields, header = spacetime_fields(asset, times)
        error = 0.0
    elif isinstance(asset, Controlled):
        fields, header = controlled_fields(asset)
        error = 0.0
    else:
        fields, header, error = baked_fields(asset, times)
    for name, value in (values or {}).items():
        fields[name] = rearrange(value.detach().float().cpu(), "n -> 1 n 1")
    keep = _peak_opacity(asset, fields, times) >= alpha_min
    order = _spatial_order(fields["position"][0][keep])
    chunks: list[bytes] = []
    described: list[dict[str, Any]] = []
    for name, value in fields.items():
        rows = value if name in JOINTS else value[:, keep][:, order]
        entry, chunk = quantise(rows.double().numpy(), _tolerance(name, value, times))
        described.append({"name": name, "rows": rows.shape[1], "offset": sum(map(len, chunks)), **entry})
        chunks.append(chunk)
    header |= {"times": list(times), "count": int(keep.sum()), "values": list(values or {}), "fields": described}
    return Packed(header, gzip.compress(b"".join(chunks), 9, mtime=0), error)


def spacetime_fields(asset: Spacetime, times: tuple[float, float]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Fields (1, N, width) of the exact layout: μ + drift·δ/d, weight exp(−½(δ/d)²), δ = t − moment, d the duration.

    The drift is the path covered in one duration: unlike the velocity it stays small where the duration does.
    """
    exact = Spacetime.from_tensors(
        {name: value.detach().double().cpu() for name, value in asset.tensors().items()}, asset.config()
    )
    covariances = exact.covariances()
    across, duration = covariances[:, :3, 3], covariances[:, 3:, 3].sqrt()
    drift = across / duration
    shapes = covariances[:, :3, :3] - drift[:, :, None] * drift[:, None, :]
    opacity = torch.sigmoid(exact.opacity_logits)
    slices = Ellipsoids(exact.means, shapes, opacity, exact.colours[:, 0]).gaussians()
    fields = {
        "position": exact.means,
        "drift": drift,
        "moment": (asset.start + exact.times * asset.unit)[:, None],
        "log_duration": (duration * asset.unit).log(),
        "opacity": opacity[:, None],
        "quaternion": slices.quaternions,
        "log_scale": slices.log_scales.clamp_min(THINNEST),
        "colour": rearrange(exact.colours, "n harmonic basis rgb -> n (harmonic basis rgb)"),
    }
    header = {
        "motion": "spacetime",
        "degree": sh_degree(exact.colours.shape[2]),
        "harmonics": exact.colours.shape[1],
        "period": max(asset.end - asset.start, 1e-6 * asset.unit),
        "weight_cut": DROPPED,
    }
    return {name: value[None] for name, value in fields.items()}, header


def controlled_fields(asset: Controlled) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Fields of the exact layout: Gaussians at rest (1, N, width) with their control points and weights, strongest
    first, and the control points' rest (1, K, 3), shifts and turns at each key (key, K, width)."""
    weight, rank = asset.near_weights().detach().sort(dim=1, descending=True)
    unit = torch.nn.functional.normalize(asset.quaternions.detach(), dim=-1)
    fields = {
        "position": asset.means[None],
        "opacity": torch.sigmoid(asset.opacity_logits)[None, :, None],
        "quaternion": unit[None],
        "log_scale": asset.log_scales[None],
        "colour": rearrange(asset.colours, "n c rgb -> 1 n (c rgb)"),
        "bone": asset.bones.gather(1, rank)[None].float(),
        "weight": weight[None],
        "joint": asset.points[None],
        "shift": asset.shifts,
        "turn": asset.turns,
    }
    header = {
        "motion": "controlled",
        "degree": sh_degree(asset.colours.shape[1]),
        "harmonics": 1,
        "period": 1.0,
        "weight_cut": 0.0,
        "keys": [float(key) for key in asset.keys],
    }
    return {name: value.detach().float().cpu() for name, value in fields.items()}, header


def baked_fields(
    asset: DynamicGaussians, times: tuple[float, float]
) -> tuple[dict[str, Tensor], dict[str, Any], float]:
    """Fields (K, N, width) at K even instants, K doubled until the interpolated positions are close; and their error.

    A field that does not change keeps one instant.
    """
    start, end = times
    count = 9 if end > start else 1
    instants = [asset.at(time) for time in np.linspace(start, end, count).tolist()]
    error = 0.0
    while count > 1:
        middles = [asset.at(time) for time in np.linspace(start, end, 2 * count - 1)[1::2].tolist()]
        known = torch.stack([gaussians.means for gaussians in instants])
        guess = torch.stack([interpolated(known, part) for part in np.linspace(0, 1, 2 * count - 1)[1::2].tolist()])
        away = (guess - torch.stack([gaussians.means for gaussians in middles])).norm(dim=-1).amax(0)
        error = float(torch.quantile(away[:: max(1, len(away) // 1_000_000)].float(), 0.99))
        if error <= BAKED_ERROR or 2 * count - 1 > MOST_INSTANTS:
            break
        instants = [one for pair in zip(instants, [*middles, None], strict=True) for one in pair if one is not None]
        count = len(instants)
    fields = {
        "position": torch.stack([gaussians.means for gaussians in instants]),
        "opacity": torch.stack([gaussians.opacities for gaussians in instants])[..., None],
        "quaternion": continuous(torch.stack([gaussians.quaternions for gaussians in instants])),
        "log_scale": torch.stack([gaussians.log_scales for gaussians in instants]),
        "colour": torch.stack([rearrange(gaussians.colours, "n c rgb -> n (c rgb)") for gaussians in instants]),
    }
    bands = instants[0].colours.shape[1]
    header = {"motion": "baked", "degree": sh_degree(bands), "harmonics": 1, "period": 1.0, "weight_cut": 0.0}
    return {name: _still(value.detach().float().cpu()) for name, value in fields.items()}, header, error


def interpolated(known: Float[Tensor, "instant n c"], part: float) -> Float[Tensor, "n c"]:
    """Cubic Hermite through evenly spaced instants at `part` of the way from first to last: what the page does.

    Slopes are central differences, one-sided at the two ends.
    """
    last = len(known) - 1
    before = min(int(part * last), last - 1)
    u = part * last - before
    p, q = known[before], known[before + 1]
    slope_p = (q - known[before - 1]) / 2 if before > 0 else q - p
    slope_q = (known[before + 2] - p) / 2 if before + 2 <= last else q - p
    return p + (3 * u**2 - 2 * u**3) * (q - p) + (u**3 - 2 * u**2 + u) * slope_p + (u**3 - u**2) * slope_q


def continuous(quaternions: Float[Tensor, "instant n 4"]) -> Float[Tensor, "instant n 4"]:
    """The same rotations as unit quaternions, each on the side of the sphere that its predecessor is on."""
    unit = torch.nn.functional.normalize(quaternions, dim=-1)
    step = (unit[1:] * unit[:-1]).sum(-1, keepdim=True)
    sign = torch.cat([torch.ones_like(unit[:1, :, :1]), torch.where(step < 0, -1.0, 1.0)]).cumprod(0)
    return unit * sign


def quantise(values: np.ndarray, tolerance: float) -> tuple[dict[str, Any], bytes]:
    """Values (instant, n, width) as the fewest bytes that keep each within `tolerance`; floats where 16 bits do not."""
    instants, _, width = values.shape
    if not np.isfinite(values).all():
        raise ValueError("an asset with infinite or undefined numbers cannot be shown; fit it again")
    columns = rearrange(values, "k n c -> c (k n)")
    low = columns.min(1) if columns.size else np.zeros(width)
    span = columns.max(1) - low if columns.size else np.zeros(width)
    entry: dict[str, Any] = {"width": width, "instants": instants}
    for kind, levels in (("u8", 255), ("u16", 65535)):
        if span.max(initial=0.0) / levels / 2 <= tolerance:
            step = span / levels
            codes = np.rint((columns - low[:, None]) / np.where(step > 0, step, 1)[:, None])
            raw = codes.astype("<u1" if kind == "u8" else "<u2")
            return {"kind": kind, **entry, "low": low.tolist(), "step": step.tolist()}, _planes(raw)
    return {"kind": "f32", **entry, "low": [0.0] * width, "step": [1.0] * width}, _planes(columns.astype("<f4"))


def unquantise(entry: dict[str, Any], data: bytes, count: int) -> np.ndarray:
    """The inverse of `quantise`, as the page does it: values (instant, n, width)."""
    width, instants = entry["width"], entry["instants"]
    dtype = np.dtype({"u8": "<u1", "u16": "<u2", "f32": "<f4"}[entry["kind"]])
    size = width * instants * count * dtype.itemsize
    raw = np.frombuffer(data, np.uint8, size, entry.get("offset", 0))
    columns = rearrange(raw, "(c byte kn) -> c kn byte", c=width, byte=dtype.itemsize)
    codes = np.ascontiguousarray(columns).view(dtype)[..., 0]
    values = np.array(entry["low"])[:, None] + np.array(entry["step"])[:, None] * codes.astype(np.float64)
    return rearrange(values, "c (k n) -> k n c", k=instants)


def _planes(columns: np.ndarray) -> bytes:
    """Per column all low bytes, then all next ones: neighbours resemble each other more, which helps gzip."""
    as_bytes = columns[..., None].view(np.uint8)  # (c, kn, byte)
    return rearrange(as_bytes, "c kn byte -> (c byte kn)").tobytes()


def _still(values: Float[Tensor, "instant n c"]) -> Float[Tensor, "instant_or_1 n c"]:
    return values[:1] if bool((values == values[:1]).all()) else values


def _tolerance(name: str, value: Tensor, times: tuple[float, float]) -> float:
    if name == "moment":
        return TOLERANCES[name] * max(times[1] - times[0], 1e-6)
    return TOLERANCES.get(name, float(value.max() - value.min()) / 255 if value.numel() else 0.0)


def _peak_opacity(asset: DynamicGaussians, fields: dict[str, Tensor], times: tuple[float, float]) -> Tensor:
    """The largest opacity that each Gaussian has between the two times."""
    if not isinstance(asset, Spacetime):
        return fields["opacity"].amax((0, 2))
    nearest = fields["moment"].clamp(*times)
    weight = torch.exp(-0.5 * ((nearest - fields["moment"]) / fields["log_duration"].exp()) ** 2)
    return (fields["opacity"] * weight * (weight > DROPPED))[0, :, 0]


def _spatial_order(points: Float[Tensor, "n 3"]) -> Tensor:
    """Order along a Z-shaped curve through a 1024³ lattice: neighbours in the file are neighbours in space."""
    if not len(points):
        return torch.zeros(0, dtype=torch.long)
    low, high = points.amin(0), points.amax(0)
    cells = ((points - low) / (high - low).clamp_min(1e-9) * 1023).long()
    code = torch.zeros(len(points), dtype=torch.long)
    for bit in range(10):
        for axis in range(3):
            code |= ((cells[:, axis] >> bit) & 1) << (3 * bit + axis)
    return code.argsort(stable=True)
