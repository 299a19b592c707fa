"""Promises of the whole house: one place for all packages, pages that are up to date, commands that work."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("pipeline", "teachers", "students", "training", "review", "evaluation", "manifests")


def test_all_packages_resolve_below_one_folder() -> None:
    files = [importlib.import_module(name).__file__ for name in PACKAGES]
    assert len({Path(str(file)).parent.parent for file in files}) == 1


def test_packages_hold_no_code_in_their_init() -> None:
    for name in PACKAGES:
        text = (ROOT / name / "__init__.py").read_text()
        assert re.fullmatch(r'"""[^"]+"""\n', text), name


def test_settings_page_says_what_the_code_says() -> None:
    code = "import sys; sys.path.insert(0, 'docs'); import config_page; sys.stdout.write(config_page.page())"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (ROOT / "docs" / "config.md").read_text() == shown.stdout, "run: python docs/config_page.py"


def test_every_flag_of_the_readme_is_known() -> None:
    text = (ROOT / "README.md").read_text()
    shown = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "run", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for flag in set(re.findall(r"`(--[a-z-]+)", text)):
        assert flag in shown.stdout, flag


def test_a_light_look_at_a_release_loads_no_torch() -> None:
    code = "import sys, manifests.verify, evaluation.boundary; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
