"""Gaussian fields over views × frames whose every prior is known exactly: composition rules can be judged without data.

The covariance of a field is separable, Cov[(v, f), (v', f')] = C_v[v, v'] · C_f[f, f'], its mean 0. Its first view and
its first frame are given, as in Diffusion², and the grid is the rest. What is given leaves the rest separable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from loom4d.diffusion.composition import columns, per_cell, rows
from loom4d.diffusion.denoiser import Denoiser, Latents, Sigma
from loom4d.diffusion.samplers import RENOISING, Noise, euler
from loom4d.diffusion.schedules import Sigmas

# What a cell (v, f) may know, as factors of its place: the first picture of its row, of its column, of both.
KNOWN = {"row": (1, 0), "column": (0, 1), "corner": (0, 0)}
Covariance = Float[Tensor, "place place"]


def around_orbit(places: int, length: float) -> Covariance:
    """exp(−d/length) on a closed orbit, d the shorter way round: a circulant covariance of unit variance."""
    index = torch.arange(places, dtype=torch.float64)
    apart = (index[:, None] - index).abs()
    return torch.exp(-torch.minimum(apart, places - apart) / length)


def along_time(places: int, length: float) -> Covariance:
    """exp(−d/length) on a line: a Markov chain of unit variance."""
    index = torch.arange(places, dtype=torch.float64)
    return torch.exp(-(index[:, None] - index).abs() / length)


def given_first(covariance: Covariance) -> tuple[Float[Tensor, " rest"], Float[Tensor, "rest rest"]]:
    """What knowing the first place leaves: the gain of the conditional mean, and the conditional covariance."""
    gain = covariance[1:, 0] / covariance[0, 0]
    return gain, covariance[1:, 1:] - gain[:, None] * covariance[0, 1:]


def exact_clips(covariance: Covariance, mean: Latents) -> Denoiser:
    """D = μ + C (C + σ²)⁻¹ (x − μ) of clips (clip, picture, …) whose pictures have covariance C."""
    values, vectors = torch.linalg.eigh(covariance)

    def denoise(x: Latents, sigma: Sigma) -> Latents:
        kernel = (vectors * (values / (values + sigma**2))) @ vectors.mT
        return mean + einsum(kernel, x - mean, "p q, clip q ... -> clip p ...")

    return denoise


def exact_cells(variance: Float[Tensor, "view frame"], mean: Latents) -> Denoiser:
    """D = μ + s²/(s² + σ²) (x − μ) of a grid's cells, each for itself."""

    def denoise(x: Latents, sigma: Sigma) -> Latents:
        return mean + per_cell(variance / (variance + sigma**2), x) * (x - mean)

    return denoise


@dataclass(frozen=True)
class GivenField:
    """A separable field, given its first view and first frame; the grid is (view − 1, frame − 1, c, h, w).

    Every number of a picture is an independent draw of the same field.
    """

    over_views: Float[Tensor, "view view"]
    over_time: Float[Tensor, "frame frame"]
    first_view: Float[Tensor, "frame c h w"]  # its picture at every time
    first_frame: Float[Tensor, "view c h w"]  # its picture from every view; the first of both is the same

    @property
    def given(self) -> int:
        """Number of given pictures."""
        return len(self.over_views) + len(self.over_time) - 1

    @property
    def covariance_of_given(self) -> Float[Tensor, "given given"]:
        """Of the given pictures: the first view at every time, then the first frame from every other view."""
        views, frames = len(self.over_views), len(self.over_time)
        view = torch.cat([torch.zeros(frames, dtype=torch.long), torch.arange(1, views)])
        frame = torch.cat([torch.arange(frames), torch.zeros(views - 1, dtype=torch.long)])
        return self.over_views[view[:, None], view] * self.over_time[frame[:, None], frame]

    @property
    def by_views(self) -> Covariance:
        """Over the grid's views, given the first one."""
        return given_first(self.over_views)[1]

    @property
    def by_time(self) -> Covariance:
        """Over the grid's frames, given the first one."""
        return given_first(self.over_time)[1]

    @property
    def mean_of_rows(self) -> Float[Tensor, "view frame c h w"]:
        """Of each row given its own first picture."""
        return einsum(given_first(self.over_time)[0], self.first_frame[1:], "frame, view c h w -> view frame c h w")

    @property
    def mean_of_columns(self) -> Float[Tensor, "view frame c h w"]:
        """Of each column given its own first picture."""
        return einsum(given_first(self.over_views)[0], self.first_view[1:], "view, frame c h w -> view frame c h w")

    @property
    def mean(self) -> Float[Tensor, "view frame c h w"]:
        """Of the grid given all that is given."""
        gains = given_first(self.over_views)[0][:, None] * given_first(self.over_time)[0]
        corner = einsum(gains, self.first_view[0], "view frame, c h w -> view frame c h w")
        return self.mean_of_rows + self.mean_of_columns - corner

    @property
    def covariance(self) -> Float[Tensor, "cell cell"]:
        """Of the grid's cells, (view frame) in this order."""
        return torch.kron(self.by_views, self.by_time)

    def video(self) -> Denoiser:
        """The exact prior of rows: each given its own first picture."""
        return rows(exact_clips(self.by_time, self.mean_of_rows))

    def multiview(self) -> Denoiser:
        """The exact prior of columns: each given its own first picture."""
        mean = self.mean_of_columns.transpose(0, 1)
        return columns(exact_clips(self.by_views, mean))

    def cell(self, *knows: str) -> Denoiser:
        """The exact prior of single cells that know some of the given pictures (of KNOWN), or nothing."""
        if not set(knows) <= set(KNOWN):
            raise ValueError(f"a cell can know {', '.join(KNOWN)}, got {', '.join(knows)}")
        view = torch.arange(1, len(self.over_views))[:, None, None]  # of the cell; (V, 1, 1)
        frame = torch.arange(1, len(self.over_time))[None, :, None]  # (1, F, 1)
        keeps = torch.tensor([KNOWN[name] for name in knows], dtype=torch.long).reshape(-1, 2)
        v, f = torch.broadcast_tensors(view * keeps[:, 0], frame * keeps[:, 1])  # of the known pictures; (V, F, K)

        shared = self.over_views[view, v] * self.over_time[frame, f]
        among = self.over_views[v[..., None], v[..., None, :]] * self.over_time[f[..., None], f[..., None, :]]
        gain = torch.linalg.solve(among, shared[..., None])[..., 0]  # (V, F, K)
        pictures = torch.where((f == 0)[..., None, None, None], self.first_frame[v], self.first_view[f])
        variance = self.over_views.diagonal()[1:, None] * self.over_time.diagonal()[1:] - (gain * shared).sum(-1)
        return exact_cells(variance, einsum(gain, pictures, "view frame k, view frame k c h w -> view frame c h w"))

    def joint(self) -> Denoiser:
        """The exact prior of the whole grid, which no composition of rows and columns has."""
        a, views = torch.linalg.eigh(self.by_views)
        b, times = torch.linalg.eigh(self.by_time)
        variance, mean = a[:, None] * b, self.mean

        def denoise(x: Latents, sigma: Sigma) -> Latents:
            modes = einsum(views, times, x - mean, "view a, frame b, view frame ... -> a b ...")
            modes = per_cell(variance / (variance + sigma**2), x) * modes
            return mean + einsum(views, times, modes, "view a, frame b, a b ... -> view frame ...")

        return denoise


def wasserstein_squared(a: Covariance, b: Covariance) -> float:
    """W₂² of two centred Gaussians: tr(A + B − 2 (A^½ B A^½)^½)."""
    values, vectors = torch.linalg.eigh(a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
    cross = torch.linalg.eigvalsh(root @ b @ root).clamp_min(0).sqrt().sum()
    return float(a.trace() + b.trace() - 2 * cross)


# --- samples as linear maps ----------------------------------------------------------------------------------------
#
# The denoisers above are affine and treat every number of a picture alike. So the numbers may hold coefficients instead
# of draws: one for each given picture, then one for each unit noise at the start. A trajectory run on such a grid ends
# in the map from what is given and drawn to the sample, and its mean and covariance follow without drawing anything.


def symbolic(over_views: Float[Tensor, "view view"], over_time: Float[Tensor, "frame frame"]) -> GivenField:
    """The field whose pictures are coefficient vectors, the given ones being the unit vectors of the first places."""
    views, frames = len(over_views), len(over_time)
    given = views + frames - 1
    unit = torch.eye(given, given + (views - 1) * (frames - 1), dtype=over_views.dtype)[:, :, None, None]
    return GivenField(over_views, over_time, unit[:frames], torch.cat([unit[:1], unit[frames:]]))


def symbolic_noise(field: GivenField) -> Latents:
    """The start of a symbolic trajectory: in every cell the unit vector of its own noise."""
    views, frames = len(field.by_views), len(field.by_time)
    unit = torch.eye(field.given + views * frames, dtype=field.over_views.dtype)[field.given :]
    return unit.reshape(views, frames, -1, 1, 1)


def symbolic_renoising(field: GivenField, mode: str, sigmas: Sigmas) -> Noise:
    """Noise for `renoised` on a symbolic trajectory: what turns the map M into a root of M Mᵀ + s², s the mode's noise.

    Independent noise would need new coefficients; any root of the same covariance describes the same sample.
    """

    def noise(step: int, x: Latents) -> Latents:
        spread = RENOISING[mode](*sigmas[step : step + 2].tolist())
        drawn = _noise_map(field, x)
        root = torch.linalg.cholesky(drawn @ drawn.mT + spread**2 * torch.eye(len(drawn), dtype=x.dtype))
        change = torch.zeros_like(x)
        change[:, :, field.given :, 0, 0] = ((root - drawn) / spread).reshape(*x.shape[:2], -1)
        return change

    return noise


@dataclass(frozen=True)
class Verdict:
    """How far a rule's samples are from the field's, all exact. Errors are shares of the field's total variance."""

    spread_error: float  # W₂² of the covariances
    mean_error: float  # squared error of the mean, averaged over what may be given
    variance_kept: float  # total variance over the field's
    view_correlation: float  # of neighbouring views, averaged
    time_correlation: float  # of neighbouring frames, averaged


def judged(field: GivenField, x: Latents) -> Verdict:
    """The verdict on the end of a symbolic trajectory."""
    drawn, truth = _noise_map(field, x), field.covariance
    covariance, total = drawn @ drawn.mT, float(truth.trace())
    views, times = neighbour_correlations(covariance, len(field.by_views))
    miss = rearrange(x - field.mean, "view frame source 1 1 -> (view frame) source")[:, : field.given]
    return Verdict(
        spread_error=wasserstein_squared(truth, covariance) / total,
        mean_error=float(((miss @ field.covariance_of_given) * miss).sum()) / total,
        variance_kept=float(covariance.trace()) / total,
        view_correlation=views,
        time_correlation=times,
    )


def neighbour_correlations(covariance: Float[Tensor, "cell cell"], views: int) -> tuple[float, float]:
    """Mean correlation of neighbouring views and of neighbouring frames; cells are (view frame)."""
    spread = covariance.diagonal().sqrt()
    correlation = rearrange(covariance / spread / spread[:, None], "(v f) (w g) -> v f w g", v=views, w=views)
    over_views = correlation.diagonal(dim1=1, dim2=3).diagonal(1, 0, 1)
    over_time = correlation.diagonal(dim1=0, dim2=2).diagonal(1, 0, 1)
    return float(over_views.mean()), float(over_time.mean())


def one_sigma_error(field: GivenField, denoise: Denoiser, sigma: float) -> float:
    """Mean squared error of the score (D − x)/σ² on the field's own noisy grids, relative to the exact score's square.

    `denoise` is a rule over a symbolic field; both means are taken to be right.
    """
    noise = symbolic_noise(field)
    ours, exact = (_noise_map(field, rule(noise, sigma)) for rule in (denoise, field.joint()))
    one = torch.eye(len(exact), dtype=exact.dtype)
    noisy = field.covariance + sigma**2 * one
    wrong, score = ours - exact, exact - one
    return float(((wrong @ noisy) * wrong).sum() / ((score @ noisy) * score).sum())


def response(
    field: GivenField, rule: Callable[..., Denoiser], priors: Sequence[Denoiser], wrong: int, sigmas: Sigmas
) -> float:
    """Variance that reaches a cell of Euler's sample per variance of independent errors in one prior's mean.

    `rule(*priors)` is the composed denoiser of a symbolic field, `wrong` the place of the prior whose mean is off.
    """
    error = symbolic_noise(field)

    def shifted(x: Latents, sigma: Sigma) -> Latents:
        return error + priors[wrong](x - error, sigma)

    denoise = rule(*priors[:wrong], shifted, *priors[wrong + 1 :])
    reached = _noise_map(field, euler(denoise, torch.zeros_like(error), sigmas))
    return float((reached**2).sum() / len(reached))


def _noise_map(field: GivenField, x: Latents) -> Float[Tensor, "cell noise"]:
    return rearrange(x[:, :, field.given :], "view frame noise 1 1 -> (view frame) noise")
