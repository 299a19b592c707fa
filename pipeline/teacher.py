"""The commands around a teacher: open it as the config says, measure it, fetch one, convert one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from manifests.labelled import LabelledError, read_labelled
from pipeline.config import Config
from pipeline.errors import InputError, UsageError
from pipeline.step import digest_of
from teachers import detectron2, zoo
from teachers.backend import TeacherConfig, adapted, load_model, load_teacher
from teachers.checkpoint import CheckpointError, read_metadata, save_checkpoint
from teachers.evaluate import Evaluation, EvaluationError, evaluate, read_attributes
from teachers.teacher import Teacher, TeacherError

BATCH = 8


def open_teacher(path: Path, config: Config) -> Teacher:
    """The teacher of ``--teacher``, run as the config says.

    Raises:
        InputError: there is no such file, it is no good, or it cannot be run here.
    """
    if not path.is_file():
        raise InputError(f"--teacher {path} is no file; give a checkpoint, or leave it out to train one")
    try:
        return load_teacher(path, config.teacher)
    except (CheckpointError, TeacherError, ValueError) as error:
        raise InputError(f"--teacher {path}: {str(error).removeprefix(f'{path}: ')}") from error


def taught_with(path: Path) -> str:
    """The digest of the labelled set that a checkpoint of ``curate teach`` was taught with; "" of any other.

    Raises:
        InputError: the checkpoint is no good.
    """
    try:
        stored = (read_metadata(path) if path.suffix == ".safetensors" else None) or {}
    except CheckpointError as error:
        raise InputError(f"--teacher {path}: {str(error).removeprefix(f'{path}: ')}") from error
    digest = stored.get("labelled_sha256")
    return digest if isinstance(digest, str) else ""


def settings_digest(config: Config) -> str:
    """Digest of what the config only names: the YAML file of the Detectron2 backend; empty where there is none.

    Raises:
        InputError: it cannot be read.
    """
    if config.teacher.backend != "detectron2" or not config.teacher.detectron2.config:
        return ""
    try:
        return digest_of(detectron2.settings(config.teacher.detectron2))
    except TeacherError as error:
        raise InputError(f"[teacher.detectron2] config: {error}") from error


def measure_teacher(
    path: Path, labelled: Path, attributes: Path | None, output: Path, config: Config, report: Callable[[str], None]
) -> Evaluation:
    """Measures a teacher on a labelled set (``curate teacher evaluate``).

    Raises:
        InputError: teacher, labelled set or table of attributes cannot be used.
    """
    teacher = open_teacher(path, config)
    try:
        samples = read_labelled(labelled)
        given = {} if attributes is None else read_attributes(attributes, [sample.name for sample in samples])
        return evaluate(teacher, samples, given, output, batch=BATCH, report=report)
    except LabelledError as error:
        raise InputError(f"--labelled: {error}") from error
    except (EvaluationError, TeacherError) as error:
        raise InputError(str(error)) from error


def fetch_teacher(name: str, sha256: str | None, cache: Path | None, report: Callable[[str], None]) -> Path:
    """Downloads a zoo model, or finds it in the cache (``curate teacher fetch``).

    Raises:
        UsageError: there is no model of this name.
        InputError: it cannot be had, or is not what it should be.
    """
    try:
        zoo.find(name)
    except zoo.ZooError as error:
        raise UsageError(str(error)) from error
    try:
        return zoo.fetch(name, cache=cache, sha256=sha256, report=report)
    except zoo.ZooError as error:
        raise InputError(str(error)) from error


def convert_teacher(source: Path, target: Path, persons: Sequence[int] = ()) -> str:
    """Reads a checkpoint safely and writes it as safetensors (``curate teacher convert``); returns its sha256.

    Raises:
        UsageError: the target is no ``.safetensors``, or its folder is missing.
        InputError: the checkpoint cannot be read, fits no PointRend, or does not say which classes are persons.
    """
    if target.suffix != ".safetensors" or not target.parent.is_dir():
        raise UsageError(f"TARGET must be a .safetensors in a folder that exists, got {target}")
    try:
        model, temperature = load_model(source)
        model.config = adapted(source, model.config, TeacherConfig(person_classes=tuple(persons)))
    except CheckpointError as error:
        raise InputError(str(error)) from error
    except ValueError as error:
        raise InputError(f"{source}: {error}, here --person-classes") from error
    return save_checkpoint(target, model, model.config, {"temperature": temperature})
