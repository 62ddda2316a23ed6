"""The figure of `laboratory.py`: errors of the rules, the correction by what a cell knows, one draw of each rule."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

INK, PALE, GRID = (40, 44, 52), (120, 126, 136), (224, 227, 232)
SPREAD, MEAN = (52, 101, 164), (242, 153, 74)
LINES = [(52, 101, 164), (39, 134, 94), (203, 67, 53), (142, 99, 175), (120, 120, 120)]
SCALE = 2  # everything is drawn twice as large and kept so: the picture is for screens of any kind


def draw(out: Path, report: dict, grids: dict[str, Tensor]) -> None:
    sheet = Image.new("RGB", (1180 * SCALE, 830 * SCALE), "white")
    pen = Pen(sheet)
    bars(pen, 20, 20, report["rules"])
    curves(pen, 690, 20, report["correction"])
    samples(pen, 20, 410, grids)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, optimize=True)


class Pen:
    """Draws in points on a sheet `SCALE` times as large."""

    def __init__(self, sheet: Image.Image):
        self.sheet, self.draw = sheet, ImageDraw.Draw(sheet)

    def text(self, x: float, y: float, text: str, size: float = 12, fill=INK, anchor: str = "lm") -> None:
        font = ImageFont.load_default(size * SCALE)
        self.draw.text((x * SCALE, y * SCALE), text, fill, font, anchor)

    def box(self, left: float, top: float, right: float, bottom: float, fill) -> None:
        self.draw.rectangle([left * SCALE, top * SCALE, right * SCALE, bottom * SCALE], fill)

    def line(self, points: list[tuple[float, float]], fill, width: float = 1) -> None:
        self.draw.line([(x * SCALE, y * SCALE) for x, y in points], fill, round(width * SCALE), "curve")

    def dot(self, x: float, y: float, fill) -> None:
        self.draw.circle((x * SCALE, y * SCALE), 3 * SCALE, fill)


def bars(pen: Pen, left: float, top: float, rules: dict) -> None:
    pen.text(left, top + 8, "Error of whole trajectories, as a share of the field's variance", 15)
    pen.box(left, top + 26, left + 11, top + 37, SPREAD)
    pen.text(left + 17, top + 32, "spread: squared Wasserstein distance of the covariances", 11, PALE)
    pen.box(left + 350, top + 26, left + 361, top + 37, MEAN)
    pen.text(left + 367, top + 32, "mean, over what may be given", 11, PALE)
    start, unit, height = left + 235, 350, 22
    longest = max(rule["error"] for rule in rules.values())
    for index, (name, rule) in enumerate(rules.items()):
        y = top + 50 + index * height
        pen.text(start - 8, y + 8, name, 12, anchor="rm")
        split = start + unit * rule["spread_error"] / longest
        end = start + unit * rule["error"] / longest
        pen.box(start, y, split, y + 15, SPREAD)
        if end - split > 1:
            pen.box(split, y, end, y + 15, MEAN)
        pen.text(end + 6, y + 8, f"{rule['error']:.3f}", 11, PALE)


def curves(pen: Pen, left: float, top: float, correction: dict) -> None:
    pen.text(left, top + 8, "Correction D = (1+g)·D_blend - g·D_cell", 15)
    pen.text(left, top + 30, "error against g, by what the prior of a cell knows of the given pictures", 11, PALE)
    x0, y0, width, height, highest = left + 34, top + 325, 330, 270, 1.2
    for tick in range(7):
        level = y0 - height * tick / 6
        pen.line([(x0, level), (x0 + width, level)], GRID)
        pen.text(x0 - 6, level, f"{highest * tick / 6:.1f}", 11, PALE, "rm")
    for gamma in (0, 0.25, 0.5, 0.75, 1):
        pen.text(x0 + width * gamma, y0 + 12, str(gamma), 11, PALE, "mm")
    pen.text(x0 + width / 2, y0 + 30, "g", 12, PALE, "mm")
    for colour, (name, sweep) in zip(LINES, correction.items(), strict=True):
        points = [(x0 + width * float(g), y0 - height * v["error"] / highest) for g, v in sweep.items()]
        inside = [point for point in points if point[1] >= y0 - height - 4]
        pen.line(inside, colour, 2)
        for point in inside:
            pen.dot(*point, colour)
        (x, y), whole = inside[-1], len(inside) == len(points)
        pen.text(x + (8 if whole else -9), y, name, 12, colour, "lm" if whole else "rm")


def samples(pen: Pen, left: float, top: float, grids: dict[str, Tensor]) -> None:
    pen.text(left, top + 8, "One draw of every rule: the same given first row and column, the same noise", 15)
    pen.text(left, top + 28, "down: views around the object; across: time", 11, PALE)
    across, wide, tall = 8, 145, 178
    for index, (name, grid) in enumerate(grids.items()):
        x, y = left + index % across * wide, top + 45 + index // across * tall
        views, frames = grid.shape
        heat = (grid / 2.5).clamp(-1, 1)
        picture = Image.new("RGB", (frames, views))
        picture.putdata([colour_of(value) for value in heat.flatten().tolist()])
        size = (130 * SCALE, 109 * SCALE)
        pen.sheet.paste(picture.resize(size, Image.Resampling.NEAREST), (round(x * SCALE), round(y * SCALE)))
        words, row = name.split(), ""
        lines = []
        for word in words:
            if len(row) + len(word) > 21:
                lines.append(row)
                row = ""
            row = f"{row} {word}".strip()
        for place, line in enumerate([*lines, row]):
            pen.text(x, y + 120 + 14 * place, line, 11)


def colour_of(value: float) -> tuple[int, int, int]:
    """Blue below 0, white at 0, red above: −1..1."""
    end = (178, 34, 52) if value > 0 else (33, 82, 158)
    part = abs(value) ** 0.8
    return tuple(round(255 + part * (channel - 255)) for channel in end)
