"""What one evaluation of SVD and SV3D costs on this machine, and what a whole asset would take.

    python benchmarks/full_size.py --device cuda                       # exact architecture, random weights
    python benchmarks/full_size.py --device cuda --steps 10 --grid-steps 3 --compiled
    python benchmarks/full_size.py --tiny                              # the same code at toy size, in seconds
    python benchmarks/full_size.py --count-only                        # operations and memory, nothing is run

Weights are random: time and memory do not depend on their values. Prints one JSON object; `--out` also writes it. The
measurements stop when `--budget` seconds are over, so that a call always ends.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from loom4d.denoisers import full_size, memory, stable, sv3d, svd
from loom4d.denoisers.clip import ImageTower, TowerConfig
from loom4d.denoisers.family import Guidance
from loom4d.denoisers.memory import Plan
from loom4d.denoisers.stable import Kind, Sizes, Stable
from loom4d.denoisers.unet import ClipUNet, UNetConfig, channels_last, stock_unet
from loom4d.denoisers.vae import VAEConfig
from loom4d.diffusion.composition import Curve, columns, composed, rows, weight_over
from loom4d.diffusion.denoiser import grid_noise
from loom4d.diffusion.samplers import euler
from loom4d.diffusion.schedules import karras

TINY = Sizes(
    UNetConfig(width=32, head_width=16, token_width=24),
    VAEConfig(width=32),
    TowerConfig(32, 2, 16, 7, 28, 24),
    resolution=64,
    views=5,
    frames=6,
)


def random_prior(kind: Kind, sizes: Sizes, dtype: torch.dtype, device: torch.device) -> Stable:
    """The exact architecture with random weights, made where they are used."""
    config = stable.unet_config(sizes, kind)
    with torch.device("meta"):
        tower = ImageTower(sizes.tower)
    stock, vae = stock_unet(config), kind.build_vae(sizes.vae)
    for network, precision in ((stock, dtype), (tower, dtype), (vae, stable.decoder_dtype(dtype))):
        nn.Module.to(network, precision).to_empty(device=device).eval().requires_grad_(False)
        for parameter in network.parameters():
            parameter.normal_(std=0.02)
    return Stable(kind.name, ClipUNet(stock, config), tower, vae)


def parked(model: Stable) -> Stable:
    """In main memory, as a loaded prior starts."""
    for network in (model.unet, model.tower, model.vae):
        nn.Module.to(network, "cpu")
    return model


def timed(run, device: torch.device, deadline: float, repeats: int) -> list[float]:
    """Seconds of each call, the first one (which tunes and compiles) left out; at least one."""
    run()
    seconds: list[float] = []
    while len(seconds) < repeats and (not seconds or time.monotonic() < deadline):
        synchronise(device)
        begin = time.perf_counter()
        run()
        synchronise(device)
        seconds.append(time.perf_counter() - begin)
    return seconds


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ceiling(device: torch.device, dtype: torch.dtype, deadline: float) -> float:
    """FLOP/s of a large matrix product here: what any network is measured against."""
    size = 512 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / median(timed(lambda: a @ b, device, deadline, repeats=20))


def measure_unet(
    model: Stable, sizes: Sizes, pictures: int, plan: Plan, options: argparse.Namespace, deadline: float
) -> dict[str, Any]:
    """One pass over as many sequences as the plan takes at a time."""
    device, side, clips = torch.device(options.device), memory.latent_side(sizes), plan.sequences
    unet, config = model.unet, model.unet.config
    if options.channels_last:
        channels_last(unet)
    run = torch.compile(unet, dynamic=False, mode=options.compile_mode) if options.compiled else unet
    with torch.no_grad():
        condition = unet.condition(
            torch.randn(clips, config.channels, side, side),
            torch.randn(clips, config.token_width),
            torch.randn(clips, pictures, config.vector_width),
        )
        x = torch.randn(clips, pictures, config.channels, side, side, device=device, dtype=unet.dtype)
        level = torch.zeros(clips, device=device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = timed(lambda: run(x, level, condition), device, deadline, options.repeats)
    each = median(seconds) / clips
    flop = memory.unet_cost(config, pictures, side, plan.dtype).flop
    return {
        "sequences": clips,
        "pictures": pictures,
        "seconds_per_evaluation": each,
        "spread": [min(seconds) / clips, max(seconds) / clips],
        "tflop_per_evaluation": flop / 1e12,
        "flop_per_second": flop / each,
        "peak_gb": memory.peak_gb(device),
    }


def measure_decoder(model: Stable, sizes: Sizes, plan: Plan, device: torch.device, deadline: float) -> dict[str, Any]:
    side = memory.latent_side(sizes)
    latents = torch.randn(sizes.frames, sizes.unet.channels, side, side, device=device)
    seconds = timed(lambda: stable.decode(model, latents, plan.window), device, deadline, repeats=2)
    return {
        "window": plan.window,
        "seconds_per_frame": median(seconds) / sizes.frames,
        "peak_gb": memory.peak_gb(device),
    }


def measure_grid(priors: list[Stable], sizes: Sizes, plan: Plan, options: argparse.Namespace) -> dict[str, Any]:
    """A short composed trajectory over the whole grid, through the same family that `generate` uses."""
    family = full_size.family(*priors, sizes, plan, full_size.FullSizeConfig(options.device, compiled=options.compiled))
    sigmas = karras(options.grid_steps)
    pictures = torch.ones(max(options.rows, options.columns), 4, sizes.resolution, sizes.resolution)
    row_prior = family.video(
        pictures[: options.rows], torch.zeros(options.rows), torch.arange(float(options.columns)), 0, Guidance(1.5, 3.0)
    )
    azimuths = torch.arange(options.rows) * 360 / options.rows
    column_prior = family.multiview(
        pictures[: options.columns], azimuths, torch.zeros(options.rows), Guidance(2.5, 2.5)
    )
    denoise = composed(columns(column_prior), rows(row_prior), weight_over(Curve("constant", high=0.6), sigmas))
    noise = grid_noise(0, options.rows, options.columns, family.latent_shape)
    begin = time.perf_counter()
    euler(denoise, noise * math.sqrt(1 + sigmas[0].item() ** 2), sigmas)
    synchronise(torch.device(options.device))
    seconds = time.perf_counter() - begin
    return {"steps": options.grid_steps, "seconds_per_step": seconds / options.grid_steps}


def projected(report: dict[str, Any], steps: int, generated_rows: int, generated_columns: int) -> dict[str, float]:
    """Seconds of a whole asset: an orbit and a clip, then all rows and columns (two evaluations each), and decoding."""
    video, multiview = (report[name]["seconds_per_evaluation"] for name in ("svd", "sv3d"))
    frames, views = report["svd"]["pictures"], report["sv3d"]["pictures"]
    start = 2 * steps * (video + multiview)
    grid = 2 * steps * (generated_rows * video + generated_columns * multiview)
    decoding = report["decoder"]["seconds_per_frame"] * (views * frames + views + frames)
    return {"row_and_column": start, "grid": grid, "decoding": decoding, "total": start + grid + decoding}


def counted(sizes: Sizes, dtype: torch.dtype, options: argparse.Namespace) -> dict[str, Any]:
    """Operations and predicted memory, from shapes alone."""
    costs = {}
    for kind, pictures in ((svd.KIND, sizes.frames), (sv3d.KIND, sizes.views)):
        cost = memory.unet_cost(stable.unet_config(sizes, kind), pictures, memory.latent_side(sizes), dtype)
        costs[kind.name] = {"tflop_per_evaluation": cost.flop / 1e12, "activations_gb": cost.peak_bytes / 1e9}
    decode = memory.decode_cost(sizes.vae, memory.latent_side(sizes), stable.decoder_dtype(dtype))
    rows_, columns_ = sizes.views - 1, sizes.frames - 1
    evaluations = 2 * options.steps * (rows_ + 1), 2 * options.steps * (columns_ + 1)
    total = sum(n * one["tflop_per_evaluation"] for n, one in zip(evaluations, costs.values(), strict=True))
    total += decode.flop / 1e12 * (sizes.views * sizes.frames + sizes.views + sizes.frames)
    return costs | {"decoder_tflop_per_frame": decode.flop / 1e12, "asset_pflop": total / 1e3}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--count-only", action="store_true")
    parser.add_argument("--max-memory", type=float, help="GB; chooses the settings as `generate` does")
    parser.add_argument("--steps", type=int, default=50, help="of the projected asset")
    parser.add_argument("--rows", type=int, help="of the measured grid (default: all views)")
    parser.add_argument("--columns", type=int, help="of the measured grid (default: all frames)")
    parser.add_argument("--grid-steps", type=int, default=0, help="steps of the composed grid to run; 0 for none")
    parser.add_argument("--repeats", type=int, default=5, help="timed passes of each network")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--compile-mode", default="default", help="torch.compile's; max-autotune adds CUDA graphs")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--budget", type=float, default=480, help="seconds after which nothing new is started")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    sizes = TINY if options.tiny else Sizes()
    options.rows, options.columns = options.rows or sizes.views, options.columns or sizes.frames
    device = torch.device(options.device)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    report: dict[str, Any] = {
        "machine": machine(device),
        "commit": commit(),
        "sizes": asdict(sizes),
        "dtype": str(dtype),
    }
    report["counted"] = counted(sizes, dtype, options)
    if not options.count_only:
        report |= measured(sizes, dtype, device, options)
    text = json.dumps(report, indent=2, default=str)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")
    print(text)
    return report


def measured(sizes: Sizes, dtype: torch.dtype, device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    deadline = time.monotonic() + options.budget
    plan = memory.plan(sizes, (svd.KIND, sv3d.KIND), dtype, options.max_memory, device.type == "cpu")
    report: dict[str, Any] = {"plan": asdict(plan)}
    report["ceiling_flop_per_second"] = ceiling(device, dtype, deadline)
    priors = []
    for name, kind, pictures in (("svd", svd.KIND, sizes.frames), ("sv3d", sv3d.KIND, sizes.views)):
        model = random_prior(kind, sizes, dtype, device)
        report[name] = measure_unet(model, sizes, pictures, plan, options, deadline)
        report[name]["share_of_ceiling"] = report[name]["flop_per_second"] / report["ceiling_flop_per_second"]
        priors.append(parked(model))
    nn.Module.to(priors[0].vae, device)
    report["decoder"] = measure_decoder(priors[0], sizes, plan, device, deadline)
    report["projected_seconds"] = projected(report, options.steps, sizes.views - 1, sizes.frames - 1)
    parked(priors[0])
    if options.grid_steps and time.monotonic() < deadline:
        report["grid"] = measure_grid(priors, sizes, plan, options)
    report["peak_gb"] = memory.peak_gb(device)
    return report


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
