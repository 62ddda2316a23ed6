"""One training loop for every recipe: it shows itself, and a killed run goes on to the same curve."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from loom4d.runs import Event, InputError, Work, load_tensors, save_tensors, write_atomically


@dataclass(frozen=True)
class LoopConfig:
    steps: int
    learning_rate: float = 1e-3
    warmup: int = 100
    decay: int = 0  # over this many last steps the rate falls linearly to zero
    average: float = 0.999  # decay of the exponential moving average of the weights
    clip: float = 1.0  # largest gradient norm
    seed: int = 0
    checkpoint_seconds: float = 240.0
    preview_steps: int = 500
    compiled: bool = False  # pays from a few hundred steps on; needs a C++ compiler (or a GPU)
    bf16: bool = True


@runtime_checkable
class Task(Protocol):
    """What is trained. `call` is the network, compiled and under autocast where asked."""

    network: nn.Module

    @property
    def pictures(self) -> int:
        """How many a step sees."""

    def loss(self, call: Callable, generator: torch.Generator) -> Tensor: ...

    def preview(self) -> Image.Image: ...

    def scores(self) -> dict[str, float]: ...


def learning_rate(config: LoopConfig, step: int) -> float:
    """Linear warm-up, constant, linear decay to zero over the last `decay` steps (cut the run short, lose nothing)."""
    falling = min(1.0, (config.steps - step) / config.decay) if config.decay else 1.0
    return config.learning_rate * min(1.0, (step + 1) / config.warmup) * falling


def optimizers(network: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon on the matrices and convolution kernels inside a network's blocks, AdamW on all else.

    Each group's `pace` multiplies the schedule's rate: orthogonalised steps bear a larger one than Adam's.
    """
    named = [(name, weight) for name, weight in network.named_parameters() if weight.requires_grad]
    hidden = [weight for name, weight in named if weight.ndim == 2 and ".attention." in name]
    hidden += [weight for name, weight in named if name.endswith((".expand.weight", ".contract.weight"))]
    kernels = [weight for name, weight in named if name.endswith((".conv1.weight", ".conv2.weight"))]
    chosen = {id(weight) for weight in hidden + kernels}
    groups = [{"params": [weight for _, weight in named if id(weight) not in chosen], "pace": 1.0}]
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, rate, (0.9, 0.98), weight_decay=0.01, fused=True)]
    if hidden:
        groups = [{"params": hidden, "pace": MUON_PACE}]
        found.append(torch.optim.Muon(groups, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    if kernels:
        found.append(KernelMuon(kernels, rate))
    return found


MUON_PACE = 3.0


class KernelMuon(torch.optim.Muon):
    """Muon on convolution kernels, each taken for the matrix (out, in · height · width); they share its memory."""

    def __init__(self, kernels: list[nn.Parameter], rate: float):
        self.kernels = kernels
        matrices = [nn.Parameter(kernel.detach().view(len(kernel), -1)) for kernel in kernels]  # views, never copies
        groups = [{"params": matrices, "pace": MUON_PACE}]
        super().__init__(groups, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")

    def step(self, closure: Any = None) -> Any:
        for kernel, matrix in zip(self.kernels, self.param_groups[0]["params"], strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        return super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for kernel in self.kernels:
            kernel.grad = None
        super().zero_grad(set_to_none)


class Trainer:
    """The state of one training: weights, their average, optimiser moments and the step."""

    def __init__(self, task: Task, config: LoopConfig, folder: Path, facts: dict[str, Any] | None = None):
        self.task, self.config, self.folder, self.step = task, config, folder, 0
        self.facts = facts or {}  # what else the checkpoint says of itself
        self.device = next(task.network.parameters()).device
        self.optimizers = optimizers(task.network, config.learning_rate)
        self.average = {name: value.detach().clone() for name, value in task.network.state_dict().items()}

    def save(self) -> None:
        tensors = {f"network.{name}": value for name, value in self.task.network.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        for index, optimizer in enumerate(self.optimizers):
            for weight, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{index}.{weight}.{key}": torch.as_tensor(value) for key, value in state.items()}
        facts = {**self.facts, "step": self.step, "loop": asdict(self.config), "torch": torch.__version__}
        save_tensors(self.folder / "checkpoint.safetensors", tensors, facts)

    def restore(self) -> None:
        """Continues from the folder's checkpoint if it has one; log lines beyond it are dropped."""
        file = self.folder / "checkpoint.safetensors"
        if not file.exists():
            return
        tensors, facts = load_tensors(file)
        for key in ("seed", "average"):
            if facts["loop"][key] != asdict(self.config)[key]:
                raise InputError(f"{file} was trained with {key} {facts['loop'][key]}; give another folder")
        self.task.network.load_state_dict(_under(tensors, "network"), strict=True)
        self.average = {name: value.to(self.device) for name, value in _under(tensors, "average").items()}
        for index, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in _under(tensors, f"optimizer.{index}").items():
                weight, key = name.split(".", 1)
                state.setdefault(int(weight), {})[key] = value
            shapes = [weight.shape for group in optimizer.param_groups for weight in group["params"]]
            for place, moments in state.items():
                if any(moment.ndim and moment.shape not in shapes[place : place + 1] for moment in moments.values()):
                    raise InputError(f"{file} was written with other optimisers; give another folder")
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        self.step = facts["step"]
        lines = [line for line in read_log(self.folder) if line["step"] <= self.step]
        write_atomically(self.folder / "log.jsonl", "".join(json.dumps(line) + "\n" for line in lines))

    def update(self, call: Callable) -> float:
        """One optimiser step; randomness depends on (seed, step) alone."""
        generator = torch.Generator(self.device).manual_seed(self.config.seed * 1_000_003 + self.step)
        loss = self.task.loss(call, generator)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {loss.item()} at step {self.step}; the last checkpoint is intact")
        loss.backward()
        nn.utils.clip_grad_norm_(self.task.network.parameters(), self.config.clip)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["pace"] * learning_rate(self.config, self.step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        keep = min(self.config.average, (1 + self.step) / (10 + self.step))
        for name, value in self.task.network.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - keep)
            else:
                self.average[name].copy_(value)
        return loss.item()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The network carries its averaged weights inside."""
        raw = {name: value.clone() for name, value in self.task.network.state_dict().items()}
        self.task.network.load_state_dict(self.average)
        self.task.network.eval()
        try:
            yield
        finally:
            self.task.network.load_state_dict(raw)
            self.task.network.train()


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(prefix + ".")}


def train(
    task: Task, config: LoopConfig, folder: Path, minutes: float = math.inf, facts: dict[str, Any] | None = None
) -> Work[Trainer]:
    """Trains to `config.steps` or for `minutes`, whichever ends first; returns the trainer, averaged weights inside.

    The folder holds `checkpoint.safetensors`, `log.jsonl`, `curve.png` and `samples_*.png`; calling again goes on.
    The log counts pictures and the network's arithmetic a second, this as a share of what a matrix product reaches on
    the same device. `facts` are kept in the checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(task, config, folder, facts)
    trainer.restore()
    if trainer.step:
        yield Event("train", "note", f"going on from step {trainer.step}", trainer.step, config.steps)
    task.network.train()
    call = caller(task.network, trainer.device, config)
    per_step, peak = arithmetic(task, caller(task.network, trainer.device, replace(config, compiled=False))), 0.0
    begun = saved = since = time.monotonic()
    recent: list[float] = []  # losses since then
    while trainer.step < config.steps and time.monotonic() - begun < 60 * minutes:
        recent.append(trainer.update(call))
        if trainer.step % 20 == 0 or trainer.step == config.steps:
            peak = peak or peak_arithmetic(trainer.device, config.bf16)
            rate = len(recent) / max(time.monotonic() - since, 1e-9)  # steps a second
            line = {
                "step": trainer.step,
                "loss": sum(recent) / len(recent),
                "seconds": round(time.monotonic() - begun, 1),
                "pictures_per_second": round(rate * task.pictures, 1),
                "peak_share": round(rate * per_step / peak, 4),
            }
            _append(folder, line)
            recent, since = [], time.monotonic()
            yield Event(
                "train", "progress", f"loss {line['loss']:.4f}", trainer.step, config.steps, {"loss": line["loss"]}
            )
        if trainer.step % config.preview_steps == 0 or trainer.step == config.steps:
            before = time.monotonic()
            with trainer.averaged():
                scores = task.scores()
                task.preview().save(folder / f"samples_{trainer.step:06}.png")
            _append(folder, {"step": trainer.step, "scores": scores})
            curve(read_log(folder)).save(folder / "curve.png")
            yield Event("train", "preview", f"samples_{trainer.step:06}.png", trainer.step, config.steps, scores)
            since += time.monotonic() - before
        if time.monotonic() - saved > config.checkpoint_seconds:
            before = time.monotonic()
            trainer.save()
            saved = time.monotonic()
            since += saved - before
    trainer.save()
    return trainer


def caller(network: nn.Module, device: torch.device, config: LoopConfig) -> Callable:
    """The network as a step calls it: compiled and under autocast where asked."""
    chosen: Callable = torch.compile(network) if config.compiled else network

    def call(*arguments):
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
            return chosen(*arguments)

    return call


def arithmetic(task: Task, call: Callable) -> int:
    """Floating-point operations of one step, forth and back, as torch counts matrix products and convolutions."""
    generator = torch.Generator(next(task.network.parameters()).device).manual_seed(0)
    with FlopCounterMode(display=False) as counter:
        task.loss(call, generator).backward()
    task.network.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def peak_arithmetic(device: torch.device, bf16: bool, seconds: float = 0.2) -> float:
    """Floating-point operations a second of large square matrix products on this device."""
    side = 8192 if device.type == "cuda" else 1024
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    float((a @ a)[0, 0])  # warm, and waits for the device
    begun, count = time.monotonic(), 0
    while time.monotonic() - begun < seconds:
        float((a @ a)[0, 0])
        count += 1
    return 2 * side**3 * count / (time.monotonic() - begun)


def _append(folder: Path, line: dict) -> None:
    with open(folder / "log.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")


def read_log(folder: Path) -> list[dict]:
    file = folder / "log.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


FROM_NOISE = " from noise"  # ends the names of scores at pure noise
LEGEND_COLUMNS = 4
COLOURS = [(200, 60, 40), (30, 140, 60), (150, 60, 190), (220, 150, 20), (20, 150, 170), (120, 80, 40)]


def curve(lines: list[dict], size: tuple[int, int] = (800, 440)) -> Image.Image:
    """Loss and held-out scores over steps as a picture: the loss in blue with its axis on the left, the scores of each
    task in colours of their own with one axis on the right; both axes are logarithmic. What is scored from pure noise
    has its task's colour and a thin line."""
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    scores: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in line.get("scores", {}).items():
            scores.setdefault(name, []).append((line["step"], value))
    picture = Image.new("RGB", size, "white")
    if len(losses) < 2:
        return picture
    draw, (width, height) = ImageDraw.Draw(picture), size
    last = lines[-1]["step"]
    shown = {name: points for name, points in scores.items() if len(points) > 1 and min(y for _, y in points) > 0}
    tasks = [name.removesuffix(FROM_NOISE) for name in shown]
    colours = [COLOURS[list(dict.fromkeys(tasks)).index(task) % len(COLOURS)] for task in tasks]
    thickness = [1 if name.endswith(FROM_NOISE) else 3 for name in shown]
    top = 10 + 14 * math.ceil(len(shown) / LEGEND_COLUMNS)
    _draw_lines(draw, [(losses, (30, 90, 200), 1)], last, size, top, 2)
    _draw_lines(draw, list(zip(shown.values(), colours, thickness, strict=True)), last, size, top, width - 45)
    for index, (name, points) in enumerate(shown.items()):
        row, column = divmod(index, LEGEND_COLUMNS)
        place = (50 + (width - 100) * column // LEGEND_COLUMNS, 4 + 14 * row)
        draw.text(place, f"{name}: {points[-1][1]:.3g}", fill=colours[index])
    draw.text((width - 140, height - 20), f"step {last}", fill="black")
    return picture


Series = tuple[list[tuple[int, float]], tuple[int, int, int], int]  # (step, value) pairs, colour, line width


def _draw_lines(
    draw: ImageDraw.ImageDraw, series: list[Series], last: int, size: tuple[int, int], top: int, labels: int
) -> None:
    """Lines on one logarithmic axis below `top`, whose labels stand at `labels` from the left."""
    if not series:
        return
    width, height = size[0] - 100, size[1] - 30 - top
    heights = [math.log10(value) for points, _, _ in series for _, value in points]
    low, span = min(heights), max(max(heights) - min(heights), 1e-9)
    for points, colour, thickness in series:
        place = [(50 + width * x / last, top + height * (1 - (math.log10(y) - low) / span)) for x, y in points]
        draw.line(place, fill=colour, width=thickness)
    for share in (0.0, 0.5, 1.0):
        draw.text((labels, top - 6 + height * (1 - share)), f"{10 ** (low + share * span):.3g}", fill="black")
