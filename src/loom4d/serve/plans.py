"""What a choice means before it runs: whether it can be had, and how long it will take on this machine.

A run's time has three parts. "imagine" depends on method, preset, priors and kind of input, "fit" on the quality and
the priors, "rest" (reading, film, page) on the priors alone. Each part is known from earlier jobs, else from a trial of
a few steps that the worker runs while nobody waits. `offered` is the form that the worker has sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from loom4d.serve.records import Timing

PARTS = {"sources": "rest", "fit": "fit", "orbit": "rest", "viewer": "rest"}  # of a stage; any other is the method's
ORDER = {"sources": 0, "fit": 2, "orbit": 3, "viewer": 4}  # the method's stages lie between
RECENT = 5  # jobs that count
NAMES = {"method": "methods", "quality": "qualities", "priors": "priors", "kind": "kinds", "matting": "matting"}


def checked(choices: dict[str, Any], offered: dict[str, Any]) -> str:
    """What is wrong with the names in `choices`, or an empty string."""
    for name, plural in NAMES.items():
        if choices[name] not in offered[plural]:
            return f"unknown {name} {choices[name]!r}; choose one of {', '.join(offered[plural])}"
    presets = offered["methods"][choices["method"]]["presets"]
    if choices["preset"] not in presets:
        return f"unknown preset {choices['preset']!r}; {choices['method']} has {', '.join(presets)}"
    return str(offered["priors"][choices["priors"]].get("missing", ""))


def meant(choices: dict[str, Any], offered: dict[str, Any]) -> str:
    """The preset that runs: "default" is the priors' own, or that of the quality."""
    if choices["preset"] != "default":
        return str(choices["preset"])
    return str(offered["methods"][choices["method"]]["meant"][choices["priors"]][choices["quality"]])


def keys(choices: dict[str, Any], input_kind: str, offered: dict[str, Any]) -> dict[str, str]:
    """Under which key each part of a run is timed; `input_kind` is "picture", "clip" or "model"."""
    kind = "orbit" if choices["kind"] == "orbit" else input_kind
    return {
        "imagine": "|".join([choices["method"], meant(choices, offered), choices["priors"], kind]),
        "fit": f"{choices['quality']}|{choices['priors']}",
        "rest": choices["priors"],
    }


def estimate(
    choices: dict[str, Any], input_kind: str, timings: Sequence[Timing], offered: dict[str, Any]
) -> dict[str, Any]:
    """Seconds per stage and in all, and how they are known; `seconds` is None where a part was never measured.

    A part's earlier jobs count, the median of the last `RECENT`; without one the trial. An input of a kind that was
    never run borrows from the kind that was: it says "like".
    """
    stages: dict[str, float] = {}
    how: dict[str, str] = {}
    for part, key in keys(choices, input_kind, offered).items():
        measured = [one for one in timings if one.part == part and one.key == key]
        jobs = [one for one in measured if one.source == "job"][:RECENT]
        trials = [one for one in measured if one.source == "trial"][:1]
        alike = [one for one in timings if one.part == part and one.key.rpartition("|")[0] == key.rpartition("|")[0]]
        borrowed = alike[:1] if part == "imagine" else []
        chosen = jobs or trials or borrowed
        if not chosen:
            how[part] = "unknown"
            continue
        for stage in dict.fromkeys(stage for one in reversed(chosen) for stage in one.seconds):
            stages[stage] = round(median(one.seconds.get(stage, 0.0) for one in chosen), 3)
        how[part] = f"{len(jobs)} jobs" if jobs else "trial" if trials else "like"
    stages = dict(sorted(stages.items(), key=lambda item: ORDER.get(item[0], 1)))
    known = "unknown" not in how.values()
    return {
        "seconds": round(sum(stages.values()), 1) if known else None,
        "stages": stages,
        "how": how,
        "line": line(how),
    }


def line(how: dict[str, str]) -> str:
    """How an estimate was made, for people."""
    counts = [int(one.split()[0]) for one in how.values() if one.endswith("jobs")]
    if "unknown" in how.values():
        return "not measured on this machine yet"
    if len(counts) == len(how):
        runs = min(counts)
        return "from your last run of this kind" if runs == 1 else f"from your last {runs} runs of this kind"
    if not counts:
        return "from a trial of a few steps on this machine"
    return "from earlier runs and a trial of a few steps on this machine"
