"""What identifies a training, and what is written of it: state to go on from, and the result that marks its end."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifests.labelled import held_out
from teachers.recipe import TeachConfig, TeachError
from training import state as training_state
from training.files import sha256_file
from training.state import StateError, check_identity


@dataclass(frozen=True, kw_only=True, slots=True)
class TeachResult:
    """What a finished training gave; scores are of the best weights on the held-out images at their own size.

    Attributes:
        checkpoint: The file of weights, `teacher.safetensors`.
        sha256: Its digest.
        held_out_iou: Mean IoU.
        held_out_boundary_iou: Mean Boundary IoU.
        temperature: Fitted on the held-out images; `teachers.backend.load_teacher` applies it.
        ece_before: Expected calibration error of a person's probability at temperature 1.
        ece_after: The same at `temperature`, a little flattered, as it was fitted on the same images.
        best_step: The step the weights are from.
        steps: Steps taken.
        trained_on: Names of the images trained on.
        held_out: Names of the images held out.
    """

    checkpoint: Path
    sha256: str
    held_out_iou: float
    held_out_boundary_iou: float
    temperature: float
    ece_before: float
    ece_after: float
    best_step: int
    steps: int
    trained_on: tuple[str, ...]
    held_out: tuple[str, ...]


#: Numbers of a result that `result.json` holds under their own names.
NUMBERS = (
    "held_out_iou", "held_out_boundary_iou", "temperature", "ece_before", "ece_after", "best_step", "steps",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What identifies a run.

    Attributes:
        config: How.
        seed: Of everything drawn.
        digests: What the run reads, by name: "labelled", "init", "backgrounds"; "" where there is none.
        output: The folder written.
        trained_on: Names of the images to train on.
        held_out: Names of those held out.
    """

    config: TeachConfig
    seed: int
    digests: Mapping[str, str]
    output: Path
    trained_on: tuple[str, ...]
    held_out: tuple[str, ...]

    @property
    def state_path(self) -> Path:
        """What a continued run needs."""
        return self.output / "state.pt"

    @property
    def teacher_path(self) -> Path:
        """The best weights."""
        return self.output / "teacher.safetensors"

    @property
    def result_path(self) -> Path:
        """Written last."""
        return self.output / "result.json"

    def identity(self) -> dict[str, Any]:
        """Every value that a continued run must share, flat, as JSON has it; files count by content, not by path."""
        flat = {**self.config.identity(), "seed": self.seed, **self.digests}
        parsed: dict[str, Any] = json.loads(json.dumps(flat))
        return parsed

    def check(self, stored: object, path: Path) -> None:
        """Refuse what another run wrote, naming what differs."""
        try:
            check_identity(self.identity(), stored, path)
        except StateError as error:
            raise TeachError(str(error)) from error


def split(names: Sequence[str], one_in: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names to train on and names held out, see `manifests.labelled.held_out`.

    Raises:
        TeachError: Fewer than two names.
    """
    if len(names) < 2:
        raise TeachError(f"a teacher needs at least two labelled images, one to hold out, got {len(names)}: add some")
    held = held_out(names, one_in)
    return tuple(n for n in names if n not in held), tuple(n for n in names if n in held)


def read_state(plan: Plan) -> dict[str, Any]:
    """The state of an unfinished run, on the CPU.

    Raises:
        TeachError: It is broken or of another run.
    """
    try:
        state = training_state.read_state(plan.state_path, plan.identity())
    except StateError as error:
        raise TeachError(str(error)) from error
    assert state is not None
    return state


def read_result(plan: Plan) -> TeachResult | None:
    """The result of a finished folder, None where it is not finished.

    Raises:
        TeachError: It is broken or of another run, or the weights are not those that were finished.
    """
    if not plan.result_path.exists():
        return None
    try:
        record = json.loads(plan.result_path.read_bytes())
        plan.check(record["identity"], plan.result_path)
        result = TeachResult(
            checkpoint=plan.teacher_path,
            sha256=record["sha256"],
            trained_on=plan.trained_on,
            held_out=plan.held_out,
            **{name: record[name] for name in NUMBERS},
        )
    except (ValueError, KeyError, TypeError) as error:
        raise TeachError(f"{plan.result_path} cannot be read ({error!r}): remove {plan.output}") from error
    if not plan.teacher_path.is_file() or sha256_file(plan.teacher_path) != result.sha256:
        raise TeachError(f"{plan.teacher_path} is not the file that was finished here: remove {plan.output}")
    return result
