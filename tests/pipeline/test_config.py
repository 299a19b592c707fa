"""Laws of the config: every default can be written down, every mistake is named, nothing is guessed."""

import dataclasses
import json
import math
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config, build, read_config
from pipeline.errors import UsageError, did_you_mean
from pipeline.stage import fingerprint, identity


def toml(value: Any, path: tuple[str, ...] = ()) -> str:
    """A config object as TOML, written without the code under test; what is None is left out."""
    fields = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    plain = [(name, item) for name, item in fields if not dataclasses.is_dataclass(item) and item is not None]
    lines = [f"[{'.'.join(path)}]"] if path else []
    lines += [f"{name} = {_literal(item)}" for name, item in plain]
    lines += [toml(item, (*path, name)) for name, item in fields if dataclasses.is_dataclass(item)]
    return "\n".join(lines)


def _literal(item: Any) -> str:
    return json.dumps(list(item) if isinstance(item, tuple) else item)


def leaves(kind: type[Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every field below a config class that is no section: its path and its type."""
    hints = typing.get_type_hints(kind)
    for name, hint in ((f.name, hints[f.name]) for f in dataclasses.fields(kind)):
        if dataclasses.is_dataclass(hint):
            yield from leaves(typing.cast("type[Any]", hint), (*path, name))
        else:
            yield (*path, name), hint


def nested(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for name in reversed(path):
        value = {name: value}
    return typing.cast("dict[str, Any]", value)


LEAVES = dict(leaves(Config))


def read(tmp_path: Path, text: str | bytes) -> Config:
    path = tmp_path / "curate.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_config(path)


# Good -----------------------------------------------------------------------------------------------------------------


def test_all_defaults_can_be_written_down_and_read_back(tmp_path: Path) -> None:
    written = toml(Config())
    assert written.count("\n") > 80
    assert read(tmp_path, written) == Config()


def test_no_file_and_an_empty_file_give_the_defaults(tmp_path: Path) -> None:
    assert read_config(None) == read(tmp_path, "") == read(tmp_path, "[probe]\n[cluster.fit]\n") == Config()


def test_a_nested_value_arrives_and_nothing_else_changes(tmp_path: Path) -> None:
    config = read(tmp_path, "[probe.scan]\nrate_hz = 2\n[select]\nattributes = ['resolution', 'sharpness']")
    assert config.probe.scan.rate_hz == 2.0
    assert isinstance(config.probe.scan.rate_hz, float)
    assert config.select.attributes == ("resolution", "sharpness")
    assert dataclasses.replace(config, probe=Config().probe, select=Config().select) == Config()


def test_every_setting_enters_the_identity_unless_it_changes_no_byte() -> None:
    before = identity(Config())

    def names(value: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        for name, item in value.items():
            yield from names(item, (*path, name)) if isinstance(item, dict) and item else [(*path, name)]

    apart = ("price", "evaluate", "train", "export", "preview")
    absent = {leaf for leaf in set(LEAVES) - set(names(before)) if leaf[0] not in apart}
    progress = {("teach", name) for name in ("report_every", "checkpoint_seconds", "cache_bytes")}
    paths = {("teach", name) for name in ("init", "backgrounds")}
    assert absent == {("embed", "checkpoint"), ("judge", "student", "save_seconds"), *progress, *paths}
    assert len(fingerprint("s", 1, Config(), [], [])) == 20


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[probbe]", "unknown key 'probbe'; did you mean 'probe'?"),
        ("[select]\ntargt_weight = 1.0", "[select]: unknown key 'targt_weight'; did you mean"),
        ("[select]\ngroup_wieght = 1.0", "[select]: unknown key 'group_wieght'; did you mean 'group_weight'?"),
        ("[probe.scan]\nratehz = 5", "[probe] [scan]: unknown key 'ratehz'; did you mean 'rate_hz'?"),
        (
            "[cluster.fit.zzz]\nx = 1",
            "[cluster] [fit]: unknown key 'zzz'; known are accelerator, batch, ",
        ),
        ("[price]\nzzz = 1", "[price]: unknown key 'zzz'; known are cpu_hour, currency, gpu_hour, gpu_speed"),
        ("__class__ = 1", "unknown key '__class__'"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    assert str(tmp_path / "curate.toml") in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("probe = 3", "probe must be a section, got 3"),
        ("[probe]\nscan = [1]", "[probe]: scan must be a section, got [1]"),
        ("[probe]\nshards = 3.0", "[probe]: shards must be a whole number, got 3.0"),
        ("[probe]\nshards = true", "[probe]: shards must be a whole number, got True"),
        ("[probe]\nshards = '3'", "[probe]: shards must be a whole number, got '3'"),
        ("[probe.scan]\nrate_hz = '5'", "[probe] [scan]: rate_hz must be a finite number, got '5'"),
        ("[probe.scan]\nrate_hz = true", "rate_hz must be a finite number, got True"),
        ("[embed]\nmodel = 1", "[embed]: model must be a text in quotes, got 1"),
        ("[embed]\ncheckpoint = 1", "[embed]: checkpoint must be a text in quotes, got 1"),
        ("[select]\nattributes = 'resolution'", "[select]: attributes must be a list, got 'resolution'"),
        ("[select]\nattributes = [1]", "[select]: attributes must be a text in quotes, got 1"),
        ("[judge]\npolicy = 'keep'", "[judge]: policy must be one of auto, correct, drop, weight; got 'keep'"),
        ("[teach.model]\npixel_std = [1.0]", "pixel_std must be a list of 3 values, got 1"),
        ("[embed]\nmodel = {a = 1}", "must be a text in quotes"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[probe]\nshards = 0", "[probe]: probe.shards must be >= 1, got 0"),
        ("[probe.scan]\nrate_hz = 0", "rate_hz must be in (0, 1000], got 0.0"),
        ("[probe.scan.limits]\nmin_side = 0", "limits.min_side must be >= 1, got 0"),
        ("[embed]\nside = 31", "embed.side must be >= 32, got 31"),
        ("[embed]\nmodel = 'resnet50'", "embed.model 'resnet50' needs embed.checkpoint"),
        (
            "[embed]\nmodel = 'resnot50'\ncheckpoint = 'x'",
            "embed.model must be 'descriptor' or a timm model, got 'resnot50'",
        ),
        ("[cluster]\nsample = 0", "cluster.sample must be >= 1, got 0"),
        ("[cluster.fit]\nbatch = 1", "cluster.fit.batch must be >= 2, got 1"),
        ("[cluster.fit]\nlr = -0.1", "cluster.fit.lr must be > 0, got -0.1"),
        ("[cluster.fit]\nnetwork = 'nosuch'", "cluster.fit.network 'nosuch' is no timm model"),
        ("[cluster.duplicates]\ndistance = 4", "duplicates.distance must be in 0..3, got 4"),
        ("[select]\ngroup_weight = -1.0", "select.group_weight must be finite and >= 0, got -1.0"),
        ("[driver]\nthreads = 0", "driver.threads must be >= 1, got 0"),
        ("[price]\ncpu_hour = -1", "price.cpu_hour must be >= 0, got -1.0"),
        ("[label]\nrows = 0", "label.rows must be >= 1, got 0"),
        ("[judge]\nfolds = 1", "folds >= 2"),
        ("[publish]\nval = 0.6\ntest = 0.4", "leave a train split"),
    ],
)
def test_an_impossible_value_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    assert message in str(caught.value)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("path", [path for path, hint in LEAVES.items() if hint is float], ids=".".join)
def test_no_number_is_infinite(path: tuple[str, ...], value: float) -> None:
    with pytest.raises(UsageError, match=rf"{path[-1]} must be a finite number, got"):
        build(Config, nested(path, value), "curate.toml")


@pytest.mark.parametrize("path", [path for path, hint in LEAVES.items() if hint in (int, float)], ids=".".join)
@pytest.mark.parametrize("value", [-(1 << 70), 1 << 70])
def test_an_extreme_number_is_refused_or_kept_but_never_a_crash(path: tuple[str, ...], value: int) -> None:
    try:
        config = build(Config, nested(path, value), "curate.toml")
    except UsageError as error:
        assert str(error).startswith("curate.toml")  # noqa: PT017
    else:
        assert len(fingerprint("s", 1, config, [], [])) == 20


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"[probe", b"a = ", b"\xff\xfe", b"a = 1\na = 2", b"{}", b"a = " + b"[" * 50_000, b"a = " + b"9" * 9_999, b"\0"],
    ids=range(8),
)
def test_what_is_no_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UsageError, match=re.escape(f"--config {tmp_path / 'curate.toml'} is not valid TOML")):
        read(tmp_path, content)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    assert read(tmp_path, b"#" * (1 << 20)) == Config()
    with pytest.raises(UsageError, match="has 1048577 bytes; a config file has at most 1048576"):
        read(tmp_path, b"#" * ((1 << 20) + 1))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--config .*absent.toml: No such file or directory"):
        read_config(tmp_path / "absent.toml")
    with pytest.raises(UsageError, match="Is a directory"):
        read_config(tmp_path)


def test_a_near_word_is_offered_and_else_all_known() -> None:
    assert did_you_mean("prob", ["probe", "price"]) == "; did you mean 'probe'?"
    assert did_you_mean("xyz", ["probe", "price"]) == "; known are price, probe"
