"""Laws of the recipe: every value is checked by name, and what changes the result identifies a run."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from students.data import bucket_sizes
from students.model import StudentConfig
from students.presets import PRESETS
from students.recipe import TrainConfig
from students.views import ViewConfig


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"batch": 0},
        {"held_out_one_in": 1},
        {"held_out_most": 0},
        {"validate_every": 0},
        {"report_every": 0},
        {"devices": 0},
        {"side": 32},
        {"warm_up": -1},
        {"boundary": -0.1},
        {"dice": float("inf")},
        {"save_seconds": float("nan")},
        {"weight_decay": -1.0},
        {"learning_rate": 0.0},
        {"clip": float("inf")},
        {"labelled_first": 1.1},
        {"labelled_last": -0.1},
        {"labelled_ramp": float("nan")},
        {"ema": 1.0},
        {"preset": "huge"},
        {"fit": "stretch"},
        {"padding": "wrap"},
        {"accelerator": "tpu"},
        {"precision": "8-true"},
    ],
)
def test_an_impossible_value_is_refused_by_name(change: Any) -> None:
    with pytest.raises(ValueError, match=rf"train\.{next(iter(change))} must be"):
        TrainConfig(**change)


def test_a_square_must_be_a_size_of_the_network() -> None:
    with pytest.raises(ValueError, match=r"side must be a multiple of 32 and >= 64 with fit = square, got 100"):
        TrainConfig(fit="square", side=100)
    assert TrainConfig(fit="square", side=96).sizes() == ((96, 96),)
    assert TrainConfig(side=100).sizes() == bucket_sizes(100)


def test_a_model_of_ones_own_needs_the_preset_custom() -> None:
    with pytest.raises(ValueError, match=r"train\.model is read with preset = custom alone"):
        TrainConfig(model=StudentConfig(width=0.5))
    assert TrainConfig(preset="custom", model=StudentConfig(width=0.5)).network().width == 0.5


@pytest.mark.parametrize("preset", [*PRESETS, "custom"])
@pytest.mark.parametrize("mask_channel", [True, False])
def test_the_network_is_that_of_the_preset_with_the_channels_asked_for(preset: Any, mask_channel: bool) -> None:
    network = TrainConfig(preset=preset, mask_channel=mask_channel).network()
    assert network == replace(PRESETS.get(preset, StudentConfig()), in_channels=4 if mask_channel else 3)


def test_padding_is_that_of_the_recipe_but_of_a_custom_network() -> None:
    assert TrainConfig(preset="nano", padding="zeros").network().padding == "zeros"
    own = StudentConfig(padding="reflect")
    assert TrainConfig(preset="custom", model=own).network().padding == "reflect"


CHANGED: dict[str, Any] = {
    "preset": "nano", "mask_channel": False, "padding": "zeros", "init": "other.pt", "side": 96, "fit": "square",
    "steps": 7, "batch": 3, "learning_rate": 0.5, "weight_decay": 0.0, "warm_up": 3, "ema": 0.5, "clip": 1.0,
    "boundary": 0.5, "two_sided": False, "dice": 0.5, "labelled_first": 0.5, "labelled_last": 0.5,
    "labelled_ramp": 0.5, "strong": False, "view": ViewConfig(flip=0.0), "held_out_one_in": 3, "held_out_most": 3,
    "validate_every": 3, "report_every": 3, "save_seconds": 3.0, "accelerator": "auto", "devices": 2,
    "precision": "bf16-mixed",
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_what_changes_the_result_identifies_a_run_and_nothing_else_does(name: str) -> None:
    identity = TrainConfig().identity()
    changed = replace(TrainConfig(), **{name: CHANGED[name]}).identity()
    apart = [key for key in {*identity, *changed} if identity.get(key) != changed.get(key)]
    expected = {"init": [], "report_every": [], "save_seconds": [], "view": ["view.flip"]}
    assert apart == expected.get(name, [name])


def test_every_value_is_tried_above() -> None:
    assert {field.name for field in fields(TrainConfig)} - set(CHANGED) == {"model", "prior"}


def test_an_identity_is_flat_and_survives_json() -> None:
    identity = TrainConfig().identity()
    assert json.loads(json.dumps(identity)) == identity
    assert not any(isinstance(value, dict) for value in identity.values())
    assert identity["prior.empty"] == TrainConfig().prior.empty
    assert identity["model.channels"] == list(StudentConfig().channels)


def test_the_devices_are_those_of_the_recipe() -> None:
    on = TrainConfig(accelerator="auto", devices=3, precision="bf16-mixed").on()
    assert (on.accelerator, on.devices, on.precision, on.section) == ("auto", 3, "bf16-mixed", "train")


def test_sizes_too_small_to_be_reflected_are_refused_before_the_first_step() -> None:
    with pytest.raises(ValueError, match=r"train\.side 64 gives sides of .* padded by reflection; raise train\.side"):
        TrainConfig(preset="nano", padding="reflect", side=64)
    assert TrainConfig(preset="nano", padding="reflect", side=160).network().padding == "reflect"


def test_the_padding_of_a_custom_network_is_its_own() -> None:
    with pytest.raises(ValueError, match=r"custom network's is train\.model\.padding"):
        TrainConfig(preset="custom", padding="zeros")


def test_a_side_that_no_runtime_takes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.side must be <= 4096"):
        TrainConfig(side=8192)
