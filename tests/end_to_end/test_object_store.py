"""The main job from and to an object store: the same code paths as on ``gs://``, against one in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from manifests.verify import verify_release
from pipeline.cli import main
from tests.end_to_end import memory
from tests.end_to_end.conftest import TARGET


def test_inputs_and_output_may_be_objects(
    world: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "FILES", {})
    for path in sorted((world / "unlabelled").iterdir()):
        memory.FILES[f"mem://in/{path.name}"] = path.read_bytes()
    flags = ["--input", "mem://in/", "--labelled", str(world / "labelled"), "--output", "mem://out/run"]
    flags += ["--attributes", str(world / "attributes.csv"), "--config", str(config), "--target-size", str(TARGET)]
    assert main(flags) == 0
    before = dict(memory.FILES)
    assert main(flags) == 0
    assert {k: v for k, v in memory.FILES.items() if "quarantine" not in k} == {
        k: v for k, v in before.items() if "quarantine" not in k
    }
    for uri, data in memory.FILES.items():
        if uri.startswith("mem://out/run/releases/"):
            path = tmp_path / uri.removeprefix("mem://out/run/releases/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    (release,) = tmp_path.iterdir()
    assert verify_release(release) == []
