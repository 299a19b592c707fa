"""The config of a run: one frozen dataclass per stage, read from one strict TOML file.

Flags hold what changes between runs (inputs, output, size, seed); the file holds the rest. Unknown keys and impossible
values are refused with the nearest right name.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pipeline.cluster import ClusterConfig
from pipeline.embed import EmbedConfig
from pipeline.errors import UsageError, did_you_mean
from pipeline.evaluate_config import EvaluateConfig
from pipeline.export import ExportConfig
from pipeline.judge import JudgeConfig
from pipeline.label import LabelConfig
from pipeline.plan import PriceConfig
from pipeline.probe import ProbeConfig
from pipeline.publish import PublishConfig
from pipeline.quota import SelectConfig
from students.preview import EffectConfig
from students.recipe import TrainConfig
from teachers.backend import TeacherConfig
from teachers.train import TeachConfig

T = TypeVar("T")
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverConfig:
    """Settings of the driver.

    Attributes:
        threads: torch threads for training a teacher; changes its bits, so it is no function of the machine.
    """

    threads: int = 2

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"driver.threads must be >= 1, got {self.threads}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything a run can be told besides its flags; one section of the TOML file per field.

    Attributes:
        probe: decoding and sampling of frames.
        embed: the first embedding.
        cluster: duplicates, ClusterFit and the tree.
        select: the balance.
        teach: training of a teacher, where none is given.
        teacher: how the teacher is run.
        label: pseudo labels.
        judge: students, folds, scores and verdicts.
        publish: the release.
        train: how `curate train` trains a student.
        export: how exported students are compared with the original.
        preview: how `curate preview` refines masks and composes frames.
        driver: what is done once.
        evaluate: how `curate evaluate` measures videos.
        price: what ``--plan`` multiplies hours with.
    """

    probe: ProbeConfig = field(default_factory=ProbeConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    teach: TeachConfig = field(default_factory=TeachConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    label: LabelConfig = field(default_factory=LabelConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)
    driver: DriverConfig = field(default_factory=DriverConfig)
    train: TrainConfig = field(default_factory=TrainConfig, metadata={"identity": False})
    export: ExportConfig = field(default_factory=ExportConfig, metadata={"identity": False})
    preview: EffectConfig = field(default_factory=EffectConfig, metadata={"identity": False})
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig, metadata={"identity": False})
    price: PriceConfig = field(default_factory=PriceConfig, metadata={"identity": False})


def read_config(path: Path | None) -> Config:
    """Reads a TOML file; all defaults without one.

    Raises:
        UsageError: the file is missing or is no TOML; a key is unknown; a value has the wrong type or is impossible.
    """
    if path is None:
        return Config()
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UsageError(
                f"--config {path} has {path.stat().st_size} bytes; a config file has at most {_MOST_BYTES}"
            )
        raw = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--config {path} is not valid TOML: {error}") from error
    return build(Config, raw, str(path))


def build(kind: type[T], raw: Mapping[str, Any], where: str) -> T:
    """A dataclass from a mapping, strictly: every key known, every value of its field's type.

    Args:
        kind: the dataclass.
        raw: its values; nested mappings for nested dataclasses.
        where: named in errors, such as ``curate.toml [probe]``.

    Raises:
        UsageError: see ``read_config``.
    """
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    values = {}
    for key, value in raw.items():
        if key not in names:
            raise UsageError(f"{where}: unknown key '{key}'{did_you_mean(key, names)}")
        values[key] = _convert(
            hints[key], value, f"{where} [{key}]" if isinstance(value, Mapping) else f"{where}: {key}"
        )
    try:
        return kind(**values)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        tables = [option for option in options if typing.get_origin(option) is Mapping]
        return _convert(tables[0] if tables and isinstance(value, Mapping) else options[0], value, where)
    if dataclasses.is_dataclass(hint) or typing.get_origin(hint) is Mapping:
        return _section(hint, value, where)
    if typing.get_origin(hint) is tuple:
        return _tuple(hint, value, where)
    if typing.get_origin(hint) is typing.Literal:
        if value not in typing.get_args(hint):
            raise UsageError(f"{where} must be one of {', '.join(map(str, typing.get_args(hint)))}; got {value!r}")
        return value
    return _scalar(hint, value, where)


def _section(hint: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise UsageError(f"{where} must be a section, got {value!r}")
    if dataclasses.is_dataclass(hint):
        return build(typing.cast("type[Any]", hint), value, where)
    return {key: _convert(typing.get_args(hint)[1], item, f"{where} {key}") for key, item in value.items()}


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint or (hint is float and not math.isfinite(value)):
        raise UsageError(f"{where} must be {_WORDS.get(hint, hint.__name__)}, got {value!r}")
    return value


_WORDS = {int: "a whole number", float: "a finite number", str: "a text in quotes", bool: "true or false"}


def _tuple(hint: Any, value: Any, where: str) -> tuple[Any, ...]:
    arguments = typing.get_args(hint)
    if not isinstance(value, list):
        raise UsageError(f"{where} must be a list, got {value!r}")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_convert(arguments[0], item, where) for item in value)
    if len(value) != len(arguments):
        raise UsageError(f"{where} must be a list of {len(arguments)} values, got {len(value)}")
    return tuple(_convert(kind, item, where) for kind, item in zip(arguments, value, strict=True))
