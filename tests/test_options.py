"""Options as a form: every field of a record is there with its type, range, default and line, and nothing else fits."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loom4d.export import FORMATS
from loom4d.options import Between, Choice, choice_of, choices_of, unfit, with_chosen, wrong


@dataclass(frozen=True)
class Lens:
    fov_deg: Annotated[float, Between(1, 170)] = 30.0  # from side to side
    shift: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Film:
    frames: Annotated[int | None, Between(1, 9)] = None  # None follows the clip
    way: Literal["there", "back"] = "there"
    joints: Literal[4, 8] = 4
    loud: bool = False  # a comment # with a mark
    title: str = "x"
    lens: Lens = field(default_factory=Lens)


FORM = {choice.name: choice for choice in choices_of(Film())}


def test_a_record_is_read_field_by_field():
    expected = {
        "frames": Choice("frames", "whole", None, True, low=1, high=9, about="None follows the clip"),
        "way": Choice("way", "one of", "there", values=("there", "back")),
        "joints": Choice("joints", "one of", 4, values=(4, 8)),
        "loud": Choice("loud", "switch", False, about="a comment # with a mark"),
        "title": Choice("title", "text", "x"),
        "lens.fov_deg": Choice("lens.fov_deg", "number", 30.0, low=1, high=170, about="from side to side"),
        "lens.shift": Choice("lens.shift", "numbers", (0.0, 0.0), count=2),
    }
    assert expected == FORM
    for choice in FORM.values():
        sent = json.loads(json.dumps(asdict(choice)))
        assert unfit(choice_of(sent), sent["default"]) == "" and choice_of(sent).values == choice.values


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [("frames", 0, "frames is 0; it takes 1 to 9"), ("frames", 10, "1 to 9"), ("frames", 2.0, "a whole number"),
     ("frames", True, "a whole number"), ("frames", "3", "a whole number"), ("frames", 10**400, "1 to 9"),
     ("way", "up", "choose one of there, back"), ("way", ["there"], "choose one of"), ("way", None, "needs a value"),
     ("joints", True, "choose one of 4, 8"), ("joints", 4.0, "choose one of 4, 8"), ("joints", 5, "choose one of"),
     ("loud", 1, "a switch"), ("title", "x" * 201, "at most 200"), ("title", 3, "a text"), ("title", {}, "a text"),
     ("lens.fov_deg", math.nan, "1 to 170"), ("lens.fov_deg", math.inf, "1 to 170"), ("lens.fov_deg", [3], "number"),
     ("lens.shift", [1.0], "takes 2 numbers"), ("lens.shift", 1.0, "takes 2 numbers"),
     ("lens.shift", [1, None], "takes"), ("lens.shift", [0.0, -math.inf], "takes")],
)  # fmt: skip
def test_what_cannot_be_chosen_is_said(name, value, says):
    line = unfit(FORM[name], value)
    assert name in line and says in line and len(line) < 120


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_whatever_fits_can_be_set_and_is_found_again(data):
    values: dict[str, Any] = {
        "frames": st.none() | st.integers(1, 9),
        "way": st.sampled_from(["there", "back"]),
        "joints": st.sampled_from([4, 8]),
        "loud": st.booleans(),
        "title": st.text("aZ09 é≥#<\"'\n", max_size=200),
        "lens.fov_deg": st.floats(1, 170) | st.integers(1, 170),
        "lens.shift": st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=2),
    }
    picked = {name: data.draw(value) for name, value in values.items() if data.draw(st.booleans())}
    assert [unfit(FORM[name], value) for name, value in picked.items()] == [""] * len(picked)
    changed = with_chosen(Film(), picked)
    assert wrong(changed) == ""
    found = {choice.name: choice.default for choice in choices_of(changed)}
    expected = {name: tuple(value) if isinstance(value, list) else value for name, value in picked.items()}
    assert found == {name: choice.default for name, choice in FORM.items()} | expected


def test_a_record_says_its_first_wrong_value():
    assert wrong(Film()) == ""
    assert wrong(replace(Film(), frames=0, lens=Lens(fov_deg=0.0))) == "frames is 0; it takes 1 to 9"
    assert wrong(replace(Film(), lens=Lens(fov_deg=0.0))) == "lens.fov_deg is 0.0; it takes 1 to 170"


def test_an_option_without_a_form_is_named():
    @dataclass(frozen=True)
    class Odd:
        table: dict = field(default_factory=dict)

    with pytest.raises(TypeError, match="table: no form is known"):
        list(choices_of(Odd()))


@pytest.mark.parametrize("name", FORMATS)
def test_every_formats_options_have_a_form_whose_defaults_fit(name):
    options = FORMATS[name].options()
    assert wrong(options) == "" and with_chosen(options, {}) == options
    names = [choice.name for choice in choices_of(options)]
    assert names and len(set(names)) == len(names)
    for choice in choices_of(options):
        assert choice.high > choice.low and choice.about == choice.about.strip()
        bounded = choice.kind in ("whole", "number") and abs(choice.low) < 1e9
        if bounded:
            assert unfit(choice, type(choice.default or 1)(choice.high) + 1) != ""
