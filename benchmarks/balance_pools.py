"""The pools of the balance benchmark: where they come from, what is asked of them, what others measured on them.

Every pool becomes a folder as ``gen_mixture.py`` of the shared benchmark folder writes it, so that each method can read
its own copy in a process of its own.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from benchmarks.shared import SHARED

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]
DIGIT_DRAWS = 10
BUDGETS = {"digits": 60, "video50k": 500, "tiny": 100, "plain50k": 1000, "plain200k": 2000, "plain500k": 5000}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """N vectors to draw from, and what is hidden from the methods.

    Attributes:
        vectors: (N, D) float32.
        components: (N,) int64 hidden component.
        numbers: (N,) int64 by which a row is known, wherever it stands.
        clip: (N,) int64, or None for a pool without a time.
        frame: (N,) int64 number of the row in its clip, 30 in a second; None likewise.
        attributes: (N, A) int8 class, -1 = unknown; None likewise.
        names: of the A attributes.
    """

    vectors: Vectors
    components: Rows
    numbers: Rows
    clip: Rows | None = None
    frame: Rows | None = None
    attributes: NDArray[np.int8] | None = None
    names: tuple[str, ...] = ()

    def take(self, rows: Rows) -> Pool:
        """The given rows, in their order."""

        def part(column: Any) -> Any:
            return None if column is None else column[rows]

        return Pool(
            vectors=self.vectors[rows],
            components=self.components[rows],
            numbers=self.numbers[rows],
            clip=part(self.clip),
            frame=part(self.frame),
            attributes=part(self.attributes),
            names=self.names,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A bound on one measured figure of ours.

    Attributes:
        figure: its key in the JSON line.
        bound: the value to reach; None = the share of unknown attributes in the pool.
        least: the figure must be at least the bound, else at most.
    """

    figure: str
    bound: float | None
    least: bool = False

    def met(self, value: float, unknown: float) -> bool:
        """Whether a measured value is good enough."""
        bound = unknown if self.bound is None else self.bound
        return value >= bound if self.least else value <= bound

    def text(self, unknown: float) -> str:
        """The goal in words."""
        return f"{self.figure} {'>=' if self.least else '<='} {unknown if self.bound is None else self.bound:.4g}"


GOALS = {
    "plain50k": [Goal(figure="eff", bound=190, least=True), Goal(figure="cpu_s", bound=12)],
    "plain200k": [Goal(figure="eff", bound=240, least=True), Goal(figure="cpu_s", bound=45)],
    "plain500k": [Goal(figure="eff", bound=200, least=True)],
    "digits": [Goal(figure="eff", bound=9.2, least=True)],
    "video50k": [
        Goal(figure="eff", bound=98, least=True),
        Goal(figure="pair_coverage", bound=0.85, least=True),
        Goal(figure="attr_kl", bound=0.094),
        Goal(figure="unknown", bound=None),
        Goal(figure="redundant", bound=0),
        Goal(figure="cpu_s", bound=2),
    ],
}
_PLAIN = ("eff", "coverage", "tail_share", "kl", "cpu_s")
_VIDEO = ("eff", "coverage", "attr_kl", "worst", "pair_coverage", "unknown", "redundant", "cpu_s")
_QUOTED: dict[str, list[tuple[str, tuple[float | None, ...]]]] = {
    "plain50k": [
        ("ssl-data-curation, r", (155.6, 0.924, 0.322, 0.474, 579)),
        ("ssl-data-curation, c", (158.3, 0.944, 0.326, 0.457, 579)),
        ("LightlyStudio (mundig) diversity", (68.9, 0.708, 0.364, 1.29, 1.7)),
        ("flat faiss k-means, K=500", (58.1, 0.756, 0.134, 1.46, 7.2)),
        ("MiniBatchKMeans, K=500", (107.3, 0.868, 0.183, 0.85, 35.0)),
    ],
    "plain200k": [
        ("LightlyStudio (mundig) diversity", (25.9, 0.43, None, None, 15.5)),
        ("flat faiss k-means, K=1000", (52.6, 0.61, None, None, 26.8)),
        ("MiniBatchKMeans, K=1000", (140.9, 0.82, None, None, 85.1)),
    ],
    "plain500k": [
        ("flat faiss k-means, K=1000", (65.3, None, None, None, 42.9)),
        ("ssl-data-curation, level 1, extrapolated", (None, None, None, None, 5800)),
    ],
    "digits": [("ssl-data-curation", (8.5,)), ("k-centre", (9.2,)), ("Ward on centroids, best", (8.6,))],
    "video50k": [
        ("LightlyStudio (mundig) diversity + 8 balances", (85.9, 0.668, 0.094, 0.39, 0.696, 0.27, 0.178, 6.5)),
        ("thinning + groups", (94.3, 0.704, 0.344, 0.10, 0.614, 0.11, 0, 1.5)),
        ("raking, no thinning", (57.3, 0.344, 0.014, 0.68, 0.92, 0.20, 0.79, 4.6)),
        ("thinning + raking", (54.8, 0.524, 0.075, 0.38, 0.867, 0.13, 0, 1.2)),
    ],
}


def quoted(preset: str) -> dict[str, dict[str, float]]:
    """What others measured on a preset, seed 0: figures by method; most of them cannot be run here."""
    keys = _VIDEO if preset.startswith("video") else _PLAIN
    rows = _QUOTED.get(preset, [])
    return {
        name: {key: value for key, value in zip(keys, values, strict=False) if value is not None}
        for name, values in rows
    }


def shared(name: str) -> ModuleType:
    """A module of the shared benchmark folder."""
    path = SHARED / "bench" / "curation" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.exists():
        raise SystemExit(f"{path} is missing; set CURATE_SHARED to the shared folder")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def long_tailed_digits(seed: int) -> tuple[Vectors, Rows]:
    """The digits of scikit-learn with 180 / rank per class; which class has which rank follows from the seed."""
    rng = np.random.default_rng(seed)
    pictures, labels = load_digits(return_X_y=True)
    rows = [
        rng.choice(np.flatnonzero(labels == c), min(180 // (rank + 1), int((labels == c).sum())), replace=False)
        for rank, c in enumerate(rng.permutation(10))
    ]
    order = rng.permutation(np.concatenate(rows))
    return pictures[order].astype(np.float32), labels[order].astype(np.int64)


def folders(data: str, seed: int, scratch: Path) -> tuple[str, list[Path]]:
    """The preset of a pool ("" if it has none), and the folders of its draws; generated ones are written to scratch.

    Args:
        data: a folder as ``gen_mixture.py`` writes it, the name of one of its presets, or "digits".
        seed: of the pools that are generated.
        scratch: where these go.
    """
    if (Path(data) / "embeddings.npy").is_file():
        meta = Path(data) / "meta.json"
        return (json.loads(meta.read_text())["preset"] if meta.is_file() else ""), [Path(data)]
    if data == "digits":
        draws = [scratch / f"digits-{number}" for number in range(DIGIT_DRAWS)]
        for number, folder in enumerate(draws):
            vectors, labels = long_tailed_digits(DIGIT_DRAWS * seed + number)
            _write(folder, {"embeddings": vectors, "component": labels}, {"preset": data, "seed": seed})
        return data, draws
    generator = shared("gen_mixture")
    if data not in generator.PRESETS:
        known = ", ".join([*generator.PRESETS, "digits"])
        raise SystemExit(f"'{data}' is neither a folder with embeddings.npy nor one of {known}")
    vectors, components, _, extra, meta = generator.generate(data, seed)
    _write(scratch / data, {"embeddings": vectors, "component": components, **extra}, meta)
    return data, [scratch / data]


def _write(folder: Path, arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> None:
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    (folder / "meta.json").write_text(json.dumps(meta))


def read_pool(folder: Path) -> Pool:
    """The pool of a folder."""

    def column(name: str, kind: type[np.signedinteger[Any]]) -> NDArray[Any] | None:
        path = folder / f"{name}.npy"
        return np.load(path).astype(kind) if path.is_file() else None

    vectors = np.load(folder / "embeddings.npy")
    meta = folder / "meta.json"
    attributes = column("attrs", np.int8)
    names = (json.loads(meta.read_text()).get("attrs") if meta.is_file() else None) or ()
    if attributes is not None and not names:
        names = [f"attribute {number}" for number in range(attributes.shape[1])]
    return Pool(
        vectors=np.ascontiguousarray(vectors, np.float32),
        components=np.load(folder / "component.npy").astype(np.int64),
        numbers=np.arange(len(vectors)),
        clip=column("clip", np.int64),
        frame=column("frame", np.int64),
        attributes=attributes,
        names=tuple(names),
    )
