"""``curate train``: the shipping student, from a release and a labelled set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from manifests.labelled import LabelledError
from manifests.release import ReleaseError
from manifests.shard import ShardError
from manifests.signature import SignatureError
from manifests.signoff import UnsignedError
from pipeline import storage
from pipeline.config import Config
from pipeline.errors import InputError, StageError, UsageError
from pipeline.released import one_release
from pipeline.threads import torch_threads
from students.model import StudentConfig
from students.recipe import Preset, TrainError
from students.trainer import TrainResult, train
from students.views import SampleError


def train_student(
    release: Path | None,
    labelled: Path | None,
    output: str,
    config: Config,
    *,
    seed: int,
    preset: Preset | None = None,
    require_signoff: bool = False,
    allowed_signers: Path | None = None,
    console: Console,
) -> TrainResult:
    """Trains a student, or goes on with one that was interrupted.

    Args:
        release: a release, the ``--output`` of a run with one release, or None.
        labelled: a labelled set, or None.
        output: a folder of this machine.
        config: its section [train] is the recipe.
        seed: of every random choice.
        preset: instead of the recipe's.
        require_signoff: whether an unsigned release is refused.
        allowed_signers: who may sign as whom (ssh-keygen(1)); where it is given, a release is refused that none of them
            has signed off with their key.
        console: where progress goes.

    Raises:
        UsageError: there is neither a release nor a labelled set, or an output elsewhere.
        InputError: either cannot be used, or the release is not signed where it should be.
        StageError: the training cannot go on.
    """
    if release is None and labelled is None:
        raise UsageError("there is nothing to train on: give a RELEASE, --labelled DIR or both")
    if not storage.is_local(output):
        raise UsageError(f"--output {output} must be a folder of this machine; copy it from there afterwards")
    if release is None and (require_signoff or allowed_signers is not None):
        flag = "--require-signoff" if require_signoff else "--allowed-signers"
        raise UsageError(f"{flag} is about a RELEASE; give one, or leave the flag out")
    recipe = config.train if preset is None else replace(config.train, preset=preset, model=StudentConfig())
    found = None if release is None else one_release(release)
    storage.check_writable(output)

    def report(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    try:
        with storage.lock(output), torch_threads(config.driver.threads):
            return train(
                found,
                labelled,
                Path(output),
                recipe,
                seed=seed,
                require_signoff=require_signoff,
                allowed_signers=allowed_signers,
                report=report,
            )
    except LabelledError as error:
        raise InputError(f"--labelled: {error}") from error
    except (ReleaseError, ShardError, UnsignedError, SignatureError, SampleError) as error:
        raise InputError(str(error)) from error
    except TrainError as error:
        raise StageError(f"train: {error}") from error
