"""Laws of the settings of an evaluation: read strictly from TOML; what changes no measured number names no stage."""

import math
import tomllib
from dataclasses import replace
from typing import Any

import pytest

from pipeline.config import build
from pipeline.errors import UsageError
from pipeline.evaluate_config import EvaluateConfig
from pipeline.stage import identity

TOML = """
seed = 3
[clips]
persons = "all"
[meter]
ratio = 0.01
border = false
[meter.warp]
absolute = 1.0
[flow]
above = "fast"
"""


def test_every_part_is_read_from_toml() -> None:
    config = build(EvaluateConfig, tomllib.loads(TOML), "curate.toml [evaluate]")
    assert (config.seed, config.clips.persons, config.flow.above) == (3, "all", "fast")
    assert (config.meter.ratio, config.meter.border, config.meter.warp.absolute) == (0.01, False, 1.0)
    assert (config.settings.seed, config.settings.missing) == (3, "exclude")


def test_an_unknown_key_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown key 'resample'; did you mean 'resamples'"):
        build(EvaluateConfig, {"resample": 2000}, "curate.toml [evaluate]")


@pytest.mark.parametrize(
    "wrong",
    [
        {"resamples": 100}, {"seed": -1}, {"margin": 0.0}, {"confidence": 1.0}, {"picture_side": 8}, {"flow_bytes": -1},
        {"cut_histogram": math.nan}, {"cut_thumbnail": 2.0},
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=name.replace("resamples", "replicates")):
        EvaluateConfig(**wrong)


def test_only_what_changes_measured_numbers_names_the_stage() -> None:
    config = EvaluateConfig()
    same = replace(config, resamples=5000, seed=9, margin=0.05, confidence=0.9, flow_bytes=0)
    assert identity(same) == identity(config)
    for other in ({"cut_histogram": 0.5}, {"meter": replace(config.meter, ratio=0.01)}, {"picture_side": 64}):
        assert identity(replace(config, **other)) != identity(config)
