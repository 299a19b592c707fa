"""What a search remembers: ``search.csv`` after each measurement, so that a killed one goes on, and what it says."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from manifests.release import canonical_json
from pipeline.errors import InputError
from students.model import config_from_json, config_to_json
from students.search import Candidate
from training.files import write_atomically

ScoredBy = Literal["held-out IoU", "compute × pixels"]


@dataclass(slots=True, kw_only=True, eq=False)
class Trial:
    """A candidate that was measured.

    Attributes:
        candidate: what.
        ratio: its CPU time as a multiple of the reference's.
        reference_ms: least CPU milliseconds of the reference in that batch.
        scores: training steps -> IoU on the held-out images; empty if it was not trained.
    """

    candidate: Candidate
    ratio: float
    reference_ms: float
    scores: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a search says of a candidate.

    Attributes:
        candidate: what.
        name: of the preset it is, or its key.
        parameters: trained numbers.
        mmac: million multiply-accumulates of an image.
        latency_ms: of an image on one thread.
        steps: training steps behind the score; 0 without data.
        score: see ``SearchResult.scored_by``; None where it was over the budget and so not trained.
        on_front: whether no other one of as many steps within the budget is better in both.
    """

    candidate: Candidate
    name: str
    parameters: int
    mmac: float
    latency_ms: float
    steps: int
    score: float | None
    on_front: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """What a search found.

    Attributes:
        folder: of its files.
        rows: all that was measured, by latency.
        front: those of them on the front, by latency; the last has the best score.
        scored_by: what the scores are.
        reference_ms: least CPU milliseconds of the reference.
    """

    folder: Path
    rows: tuple[Row, ...]
    front: tuple[Row, ...]
    scored_by: ScoredBy
    reference_ms: float


_COLUMNS = (
    "key", "name", "side", "parameters", "mmac", "latency_ms", "score", "steps", "on_front", "ratio", "reference_ms",
    "scores", "config",
)  # fmt: skip


class Ledger:
    """What was measured, in the order it was, as it stands in ``search.csv``; a result that was there is removed.

    Raises:
        InputError: the folder holds another search, or files that are damaged.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.identity = json.loads(canonical_json(dict(identity)))
        self.trials: dict[str, Trial] = {}
        self._restore()
        self._forget_result()

    @property
    def reference_ms(self) -> float:
        """Least CPU milliseconds of the reference."""
        return min((trial.reference_ms for trial in self.trials.values()), default=math.nan)

    def latency(self, trial: Trial) -> float:
        """Milliseconds, as on a machine that is as quiet as it ever was."""
        return trial.ratio * self.reference_ms

    def fitting(self, budget: float) -> list[Trial]:
        """Those within a budget, in the order they were measured."""
        return [trial for trial in self.trials.values() if self.latency(trial) <= budget]

    def _restore(self) -> None:
        path = self.folder / "search.json"
        if not path.exists():
            return
        try:
            found = json.loads(path.read_bytes())["search"]
            table = (self.folder / "search.csv").read_text("utf-8") if (self.folder / "search.csv").exists() else ""
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is no search of this command; choose another --output") from error
        if found != self.identity:
            differing = sorted(key for key in self.identity if found.get(key) != self.identity[key])
            remedy = "choose another --output, or delete the folder"
            raise InputError(f"{path} belongs to another search ({', '.join(differing)} differ); {remedy}")
        try:
            for row in csv.DictReader(io.StringIO(table)):
                self._add(_trial(row))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.folder / 'search.csv'} is damaged ({error}); delete the folder") from error

    def _forget_result(self) -> None:
        """Until this search is done, nothing may be taken for its result, such as that for another budget."""
        self.save_json({})
        if self.trials:
            self.save_csv(())
        (self.folder / "search.png").unlink(missing_ok=True)

    def _add(self, trial: Trial) -> None:
        self.trials[trial.candidate.key] = trial

    def add(self, trials: Sequence[Trial]) -> None:
        """Remember what was measured."""
        for trial in trials:
            self._add(trial)
        self.save_csv(())

    def save_csv(self, rows: Sequence[Row]) -> None:
        """Write the table, atomically; ``rows`` say what is derived once the search is done."""
        derived = {row.candidate.key: row for row in rows}
        text = io.StringIO()
        writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        for key, trial in self.trials.items():
            writer.writerow({**_state(trial), **(_derived(derived[key]) if key in derived else {})})
        write_atomically(self.folder / "search.csv", text.getvalue().encode())

    def save_json(self, result: Mapping[str, Any]) -> None:
        """Write which search this is, and its result."""
        text = json.dumps({"search": self.identity, **result}, indent=2, ensure_ascii=False)
        write_atomically(self.folder / "search.json", f"{text}\n".encode())


def _state(trial: Trial) -> dict[str, Any]:
    return {
        "key": trial.candidate.key,
        "side": trial.candidate.side,
        "ratio": repr(trial.ratio),
        "reference_ms": repr(trial.reference_ms),
        "scores": ";".join(f"{steps}={score!r}" for steps, score in trial.scores.items()),
        "config": config_to_json(trial.candidate.config),
    }


def _derived(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "parameters": row.parameters,
        "mmac": f"{row.mmac:.2f}",
        "latency_ms": f"{row.latency_ms:.3f}",
        "score": "" if row.score is None else f"{row.score:.6g}",
        "steps": row.steps or "",
        "on_front": "yes" if row.on_front else "no",
    }


def _trial(row: Mapping[str, str]) -> Trial:
    candidate = Candidate(config=config_from_json(row["config"]), side=int(row["side"]))
    if candidate.key != row["key"]:
        raise ValueError(f"the row of {row['key']} holds the shape of {candidate.key}")
    scores = (entry.split("=") for entry in row["scores"].split(";") if entry)
    ratio, reference = float(row["ratio"]), float(row["reference_ms"])
    if not (0 < ratio < math.inf and 0 < reference < math.inf):
        raise ValueError(f"the row of {row['key']} must hold times above 0, got {ratio} and {reference}")
    found = {int(steps): float(score) for steps, score in scores}
    return Trial(candidate=candidate, ratio=ratio, reference_ms=reference, scores=found)
