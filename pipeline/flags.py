"""The flags of the command: ours first, what follows ``--`` goes to Beam."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import get_args

from pipeline import desk_flags
from pipeline.arguments import Parser, Subparsers, folder, natural, positive, refuse_unknown, sha256, subparser
from pipeline.errors import UsageError, did_you_mean
from pipeline.film import suffixes
from pipeline.runner import RUNNERS
from students.export import FORMATS
from students.presets import PRESETS
from students.preview import Effect
from teachers.zoo import ZOO

COMMANDS = (
    "run",
    "demo",
    "audit",
    "evaluate",
    "export",
    "next-round",
    "preview",
    "search",
    "teach",
    "teacher",
    "train",
    *desk_flags.COMMANDS,
)
TEACHER_COMMANDS = ("convert", "evaluate", "fetch")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kKmM]?)")
_UNITS = {"": 1, "k": 1_000, "m": 1_000_000}
_EPILOG = """\
exit codes: 0 done, 1 failed (what was committed is kept), 2 wrong usage
what follows -- goes to Apache Beam, for example: -- --project=P --region=R --temp_location=gs://B/tmp
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command and its values; ``command`` is its name, ``beam`` holds what followed ``--``.

    Raises:
        UsageError: a flag or command is unknown, or a value is impossible.
    """
    ours, beam = list(argv), []
    if "--" in ours:
        at = ours.index("--")
        ours, beam = ours[:at], ours[at + 1 :]
    if ours and ours[0] not in COMMANDS and not ours[0].startswith("-"):
        raise UsageError(f"unknown command '{ours[0]}'{did_you_mean(ours[0], COMMANDS)}")
    if ours and ours[0].startswith("-") and ours[0] not in ("-h", "--help", "--version"):
        ours.insert(0, "run")
    parser, commands = _parsers()
    if not ours:
        raise UsageError("nothing to do; try 'curate demo --output demo', or 'curate --help'")
    name = " ".join(ours[: 2 if ours[0] == "teacher" else 1])
    if name in commands:
        rest = ours[len(name.split()) :]
        refuse_unknown(commands[name], rest)
        values = commands[name].parse_args(rest)
        values.command = name
    elif ours[0] == "teacher" and not set(ours) & {"-h", "--help"}:
        wrong = did_you_mean(ours[1], TEACHER_COMMANDS) if len(ours) > 1 else ""
        raise UsageError(f"'curate teacher' is followed by one of {', '.join(TEACHER_COMMANDS)}{wrong}")
    else:
        values = parser.parse_args(ours)
    if beam and values.command != "run":
        raise UsageError(f"'curate {values.command}' runs no Beam flags; remove what follows --")
    values.beam = tuple(beam)
    return values


def size(text: str) -> int:
    """A number of frames: 200, 50k, 1M, 1.5M."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise argparse.ArgumentTypeError(f"'{text}' is no size; write 200, 50k or 1M")
    value = Fraction(match[1]) * _UNITS[match[2].lower()]
    if value < 1 or value != int(value):
        raise argparse.ArgumentTypeError(f"'{text}' must be a whole number of frames, at least 1")
    return int(value)


def _parsers() -> tuple[Parser, dict[str, Parser]]:
    parser = Parser(
        prog="curate",
        allow_abbrev=False,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Chooses, labels and checks frames for person segmentation: from unlabelled video and a small "
        "labelled set to a balanced, pseudo-labelled, bias-filtered data set.",
    )
    parser.add_argument("--version", action="version", version=f"curate {importlib.metadata.version('curate')}")
    table = parser.add_subparsers(title="commands", dest="command", parser_class=Parser, metavar="COMMAND")
    return parser, {
        "run": _run(table),
        "demo": _demo(table),
        "audit": _audit(table),
        "evaluate": _evaluate(table),
        "export": _export(table),
        "next-round": _next_round(table),
        "preview": _preview(table),
        "search": _search(table),
        "teach": _teach(table),
        **_teacher(table),
        "train": _train(table),
        **desk_flags.parsers(table),
    }


def _run(table: Subparsers) -> Parser:
    run = subparser(table, "run", "run the main job (the default command)", _EPILOG)
    add = run.add_argument
    add(
        "--input",
        action="extend",
        nargs="+",
        required=True,
        metavar="PATH",
        help="videos, images, Parquet with image bytes: files, folders, globs, Beam patterns; may be repeated",
    )
    add(
        "--labelled",
        type=Path,
        required=True,
        metavar="DIR",
        help="labelled set: images/ and masks/ with equal names, ignore/ if there is one",
    )
    add(
        "--gold",
        type=Path,
        metavar="DIR",
        help="human masks like --labelled that never teach the teacher, to anchor the judge's students",
    )
    add(
        "--audit",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="human masks of this pool, drawn with 'curate audit': they calibrate the judge; may be repeated",
    )
    add("--target-size", type=size, required=True, metavar="N", help="frames to choose: 200, 50k, 1M")
    add(
        "--teacher",
        type=Path,
        metavar="FILE",
        help="PointRend (.safetensors, Detectron2's .pkl or .pth) or .onnx model (default: train one on --labelled)",
    )
    add("--attributes", metavar="FILE", help="CSV or Parquet with a column 'source' and one column per attribute")
    add("--plan", action="store_true", help="measure a sample, print what the run would cost, and stop")
    add(
        "--max-bad-fraction",
        type=_fraction,
        default=0.05,
        metavar="X",
        help="largest share of broken sources (default 0.05)",
    )
    _common(run)
    add("--runner", choices=sorted(RUNNERS), default="direct", help="where Beam runs (default direct: this machine)")
    return run


def _demo(table: Subparsers) -> Parser:
    demo = subparser(table, "demo", "run the main job on a drawn world of video calls; needs no data")
    demo.add_argument("--target-size", type=size, default=120, metavar="N", help="frames to choose (default 120)")
    _common(demo)
    return demo


def _audit(table: Subparsers) -> Parser:
    audit = subparser(table, "audit", "draw frames for people to label, or read what they have drawn")
    add = audit.add_argument
    add(
        "path",
        type=Path,
        metavar="PATH",
        help="to draw from: a release, a finished label stage, or the --output of a run; to check: an audit folder",
    )
    add("--size", type=size, metavar="N", help="frames to draw (default 200, of a --list all)")
    add("--list", type=Path, metavar="FILE", help="draw no sample but these frames: label_first.csv of next-round")
    add("--output", type=folder, metavar="DIR", help="where they go: a new or empty folder")
    add("--seed", type=natural, metavar="S", help="of the draw (default 0)")
    add("--coco", action="store_true", help="also write annotations.json, with the images and no person, for tools")
    add(
        "--without",
        type=Path,
        action="append",
        metavar="DIR",
        help="leave out the frames of an earlier audit; may be repeated",
    )
    add("--config", type=Path, metavar="FILE", help="for a label stage: TOML file of the run, [probe] and [publish]")
    add("--import-coco", type=Path, metavar="FILE", help="into an audit folder: masks from a tool's COCO file")
    add("--empty", action="store_true", help="with --import-coco: images without an annotation show nobody")
    return audit


def _evaluate(table: Subparsers) -> Parser:
    evaluate = subparser(table, "evaluate", "measure any model on videos: masks, boundaries, flicker, whom it fails")
    add = evaluate.add_argument
    add(
        "--model",
        type=Path,
        metavar="MODEL",
        help="student, teacher, .onnx, or a folder of predicted masks named as the clips and frames are",
    )
    add(
        "--videos",
        type=Path,
        metavar="DIR",
        help="clips: DAVIS, frames/ + masks/, videos + mask videos, COCO, a release; without masks: steadiness alone",
    )
    add("--attributes", type=Path, metavar="FILE", help="CSV or Parquet: video, subject_id, a column per attribute")
    add(
        "--compare",
        type=Path,
        nargs=2,
        metavar=("A", "B"),
        help="instead: compare two finished evaluations of the same videos, each video with itself",
    )
    add("--no-flow", action="store_true", help="leave out what is measured along optical flow, which takes the longest")
    add("--flow-cache", type=Path, metavar="DIR", help="where optical flow is kept (default OUTPUT/flow)")
    add("--trained-on", type=Path, metavar="RELEASE", help="show its coverage beside that of the videos")
    _common(evaluate, seed=False)
    return evaluate


def _teach(table: Subparsers) -> Parser:
    teach = subparser(table, "teach", "train a PointRend teacher on a labelled set")
    teach.add_argument(
        "--labelled", type=Path, required=True, metavar="DIR", help="images/ and masks/ with equal names"
    )
    _common(teach, workers=False)
    return teach


def _teacher(table: Subparsers) -> dict[str, Parser]:
    teacher = subparser(table, "teacher", "measure, fetch or convert a teacher")
    below = teacher.add_subparsers(title="commands", dest="below", parser_class=Parser, metavar="COMMAND")
    evaluate = subparser(below, "evaluate", "measure a teacher on a labelled set, per attribute, with its calibration")
    evaluate.add_argument("--teacher", type=Path, required=True, metavar="FILE", help="as the main job takes it")
    evaluate.add_argument(
        "--labelled", type=Path, required=True, metavar="DIR", help="images/ and masks/ with equal names"
    )
    evaluate.add_argument(
        "--attributes", type=Path, metavar="FILE", help="CSV with a column 'name' and one column per attribute"
    )
    evaluate.add_argument("--output", type=folder, required=True, metavar="DIR", help="where tables and pictures go")
    evaluate.add_argument("--config", type=Path, metavar="FILE", help="TOML file; its section [teacher] is read")
    fetch = subparser(below, "fetch", "download a PointRend of Detectron2's Model Zoo, check it and cache it")
    fetch.add_argument("name", metavar="NAME", help=f"one of {', '.join(ZOO)}")
    fetch.add_argument("--sha256", type=sha256, metavar="HEX", help="refuse a file with another digest")
    fetch.add_argument("--cache", type=Path, metavar="DIR", help="where to (default ~/.cache/curate)")
    convert = subparser(below, "convert", "read a .pkl or .pth safely, once, and write it as safetensors")
    convert.add_argument(
        "source", type=Path, metavar="FILE", help="a PointRend of Detectron2 (.pkl, .pth, .safetensors)"
    )
    convert.add_argument("target", type=Path, metavar="TARGET", help="the .safetensors to write")
    convert.add_argument(
        "--person-classes",
        type=natural,
        nargs="+",
        default=(),
        metavar="N",
        help="classes that are persons, where neither the file nor its number of classes says it",
    )
    return {"teacher evaluate": evaluate, "teacher fetch": fetch, "teacher convert": convert}


def _train(table: Subparsers) -> Parser:
    train = subparser(table, "train", "train the shipping student on a release, a labelled set or both")
    add = train.add_argument
    add("release", type=Path, nargs="?", metavar="RELEASE", help="a release, or the --output of a run")
    add("--labelled", type=Path, metavar="DIR", help="images/ and masks/ with equal names")
    add("--preset", choices=sorted(PRESETS), help="the network (default: the config's, which is small by default)")
    add("--require-signoff", action="store_true", help="refuse a release that no person has signed off")
    add("--allowed-signers", type=Path, metavar="FILE", help="and one whose sign-off bears no good signature of these")
    _common(train, workers=False)
    return train


def _export(table: Subparsers) -> Parser:
    export = subparser(table, "export", "export a student for devices, each file compared with the student")
    add = export.add_argument
    add("model", type=Path, metavar="STUDENT", help="student.safetensors of curate train")
    add("--output", type=Path, required=True, metavar="DIR", help="where the files and export.json go")
    add(
        "--format",
        nargs="+",
        choices=sorted(FORMATS),
        default=["onnx"],
        metavar="F",
        help=f"{', '.join(FORMATS)} (default onnx)",
    )
    add("--frames", type=Path, metavar="PATH", help="folder of images, or a video, to compare on; int8 needs it")
    add("--config", type=Path, metavar="FILE", help="TOML file; its section [export] is read")
    return export


def _search(table: Subparsers) -> Parser:
    search = subparser(table, "search", "search for the students that fit a latency on this machine")
    add = search.add_argument
    add("--latency-ms", type=_milliseconds, required=True, metavar="MS", help="CPU ms per image, one thread, ONNX")
    add("--labelled", type=Path, metavar="DIR", help="score by short trainings on these images")
    add("--release", type=Path, metavar="RELEASE", help="score by short trainings on this release")
    add("--aspect", type=_ratio, default=1.0, metavar="W:H", help="of the images, as 16:9 (default 1:1)")
    add("--trials", type=positive, default=20, metavar="N", help="candidates to measure (default 20)")
    add("--steps", type=positive, default=120, metavar="N", help="of the longest trainings (default 120)")
    _common(search, workers=False, config=False)
    return search


def _next_round(table: Subparsers) -> Parser:
    following = subparser(table, "next-round", "say what to select and to label next, from the verdicts of a release")
    add = following.add_argument
    add("release", type=Path, metavar="RELEASE", help="a release, or the --output of a run")
    add("--output", type=folder, required=True, metavar="DIR", help="where next.toml and label_first.csv go")
    add("--labels", type=positive, default=100, metavar="N", help="labels to list for a person (default 100)")
    add(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML file whose targets are multiplied and whose other settings are kept (default: the release's)",
    )
    return following


def _milliseconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"must be a number of milliseconds > 0, got '{text}'")
    return value


def _ratio(text: str) -> float:
    match = re.fullmatch(r"(\d{1,5}):(\d{1,5})", text)
    if not match or not int(match[1]) or not int(match[2]):
        raise argparse.ArgumentTypeError(f"must be width:height as 16:9, got '{text}'")
    return int(match[1]) / int(match[2])


def _preview(table: Subparsers) -> Parser:
    preview = subparser(table, "preview", "render a background effect into a video with a model's masks")
    add = preview.add_argument
    add("video", type=Path, metavar="VIDEO", help="what is rendered; its sound is copied")
    add("--model", type=Path, required=True, metavar="MODEL", help="student, exported student, teacher, .onnx, masks")
    add("--output", type=Path, required=True, metavar="FILE", help=f"a new file, {' or '.join(suffixes())}")
    add("--effect", choices=get_args(Effect), default="blur", help="what becomes of the background (default blur)")
    add(
        "--background",
        default="",
        metavar="WHAT",
        help="for replace and cutout: a picture, a colour (#rrggbb or a name) or checker (a cutout: green)",
    )
    add("--compare", action="store_true", help="put the frame to the left of the effect")
    add("--start", type=_seconds, default=0.0, metavar="S", help="seconds left out at the beginning")
    add("--seconds", type=_seconds, metavar="S", help="length of what is rendered (default: all)")
    add("--config", type=Path, metavar="FILE", help="TOML file; its sections [preview] and [teacher] are read")
    return preview


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"must be a number of seconds >= 0, got '{text}'")
    return value


def _common(parser: Parser, *, workers: bool = True, seed: bool = True, config: bool = True) -> None:
    add = parser.add_argument
    add(
        "--output",
        type=folder,
        required=True,
        metavar="DIR",
        help="where everything goes that the command makes; killed, the same command resumes from it",
    )
    if config:
        add("--config", type=Path, metavar="FILE", help="TOML file with the settings of the stages")
    if seed:
        add("--seed", type=natural, default=0, metavar="S", help="of every random choice (default 0)")
    if workers:
        cores = os.cpu_count() or 1
        add(
            "--workers",
            type=positive,
            default=cores,
            metavar="W",
            help=f"threads on this machine (default {cores}); never changes the result",
        )


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a share from 0 to 1, got '{text}'")
    return value
