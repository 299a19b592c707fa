"""The flags of the commands about a finished release; they load no torch and no Beam."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pipeline.arguments import (
    Parser,
    Subparsers,
    folder,
    natural,
    positive,
    refuse_unknown,
    sample_id,
    sha256,
    subparser,
)
from pipeline.errors import UsageError

COMMANDS = (
    "apply-reviews",
    "croissant",
    "datacard",
    "diff",
    "export-labels",
    "forget",
    "import-labels",
    "report",
    "review",
    "verify",
)
REVIEW_COMMANDS = ("sign", "verify")
_RELEASE = "a release, or the --output of a run (its newest release)"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command, one of COMMANDS or "review sign" or "review verify", and its values.

    Raises:
        UsageError: a flag is unknown, or a value is impossible.
    """
    table = Parser(prog="curate", allow_abbrev=False).add_subparsers(parser_class=Parser)
    known = parsers(table)
    words = 2 if len(argv) > 1 and argv[0] == "review" and argv[1] in REVIEW_COMMANDS else 1
    name, rest = " ".join(argv[:words]), list(argv[words:])
    if "--" in rest:
        raise UsageError(f"'curate {name}' runs no Beam flags; remove what follows --")
    refuse_unknown(known[name], rest)
    values = known[name].parse_args(rest)
    values.command = name
    return values


def parsers(table: Subparsers) -> dict[str, Parser]:
    """The parsers of COMMANDS by name, added to a table of commands."""
    return {
        "apply-reviews": _apply(table),
        "croissant": _croissant(table),
        "datacard": _datacard(table),
        "diff": _diff(table),
        "export-labels": _export_labels(table),
        "forget": _forget(table),
        "import-labels": _import_labels(table),
        "report": _report(table),
        **_review(table),
        "verify": _verify(table),
    }


def _on_release(table: Subparsers, name: str, text: str) -> Parser:
    parser = subparser(table, name, text)
    parser.add_argument("release", type=Path, metavar="RELEASE", help=_RELEASE)
    return parser


def _text(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("must be a text, got nothing")
    return text


def _port(text: str) -> int:
    if not text.isdecimal() or len(text) > 5 or not (int(text) == 0 or 1024 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"must be 0 for any that is free, or from 1024 to 65535, got '{text}'")
    return int(text)


def _apply(table: Subparsers) -> Parser:
    apply = _on_release(table, "apply-reviews", "make the next release from what reviewers decided")
    apply.add_argument(
        "--disputed",
        choices=("refuse", "hold"),
        default="refuse",
        help="what becomes of samples on which reviewers disagree: refuse to go on (default), or hold them",
    )
    return apply


def _croissant(table: Subparsers) -> Parser:
    croissant = _on_release(table, "croissant", "describe a release as Croissant 1.1 with the RAI vocabulary")
    croissant.add_argument("--answers", type=Path, metavar="TOML", help="answers to the questions of the data card")
    croissant.add_argument("--output", type=Path, metavar="FILE", help="default: OUTPUT/reports/NAME/croissant.json")
    return croissant


def _datacard(table: Subparsers) -> Parser:
    card = _on_release(table, "datacard", "write a data card in Markdown; what only a person knows stays visibly open")
    card.add_argument("--answers", type=Path, metavar="TOML", help="answers to the open questions")
    card.add_argument("--output", type=Path, metavar="FILE", help="default: OUTPUT/reports/NAME/datacard.md")
    return card


def _diff(table: Subparsers) -> Parser:
    diff = subparser(table, "diff", "say what differs between two releases: counts, cells, drift, masks, config")
    for name in ("a", "b"):
        diff.add_argument(name, type=Path, metavar=name.upper(), help="a release")
    diff.add_argument("--json", type=Path, metavar="FILE", help="also write every number there")
    diff.add_argument(
        "--rows", type=natural, default=10, metavar="N", help="samples of each kind to list (default 10, at most 1000)"
    )
    return diff


def _export_labels(table: Subparsers) -> Parser:
    export = _on_release(table, "export-labels", "write images and masks as COCO JSON and PNG for annotation tools")
    add = export.add_argument
    add("--output", type=folder, required=True, metavar="DIR", help="a new or empty folder")
    which = export.add_mutually_exclusive_group(required=True)
    which.add_argument("--redraw", action="store_true", help="the samples that reviewers want drawn again")
    which.add_argument("--id", type=sample_id, nargs="+", metavar="ID", help="these samples")
    which.add_argument("--query", metavar="JSON", help='a filter as the review page has it, e.g. {"decision":["hold"]}')
    return export


def _import_labels(table: Subparsers) -> Parser:
    imported = _on_release(table, "import-labels", "take corrected masks back into the next release, all or none")
    imported.add_argument("source", type=Path, metavar="SOURCE", help="COCO JSON, a tool's JSON, or a folder of PNGs")
    imported.add_argument("--tool", metavar="NAME", help="coco, cvat, label-studio or masks (default: the file tells)")
    imported.add_argument("--empty", action="store_true", help="images without a region show nobody (else refused)")
    return imported


def _forget(table: Subparsers) -> Parser:
    forget = subparser(table, "forget", "remove a person's or a source's bytes from everything below an output")
    add = forget.add_argument
    add("root", type=Path, metavar="OUTPUT", help="the --output of runs: releases/, stages/, reports/ lie there")
    add("--subject", type=_text, nargs="+", default=[], metavar="S", help="pseudonyms in subject_ids")
    add("--consent-ref", type=_text, nargs="+", default=[], metavar="C", help="consents that were withdrawn")
    add("--source-sha256", type=sha256, nargs="+", default=[], metavar="SHA256", help="sha256 of source files")
    add("--source-uri", nargs="+", default=[], metavar="URI", help="sources by name, also without a frame")
    add("--sample-id", type=sample_id, nargs="+", default=[], metavar="ID", help="single samples")
    add(
        "--reason",
        type=_text,
        default="on request",
        metavar="TEXT",
        help="kept in the tombstone; names nobody (default: on request)",
    )
    add("--search", type=Path, nargs="+", default=[], metavar="DIR", help="further folders: audits, trainings, reports")
    add("--dry-run", action="store_true", help="say what would be removed, and change nothing")
    return forget


def _report(table: Subparsers) -> Parser:
    report = _on_release(table, "report", "write one static page about a release that opens offline")
    add = report.add_argument
    add("--output", type=Path, metavar="FILE", help="default: OUTPUT/reports/NAME.html")
    add("--samples", type=positive, default=300, metavar="N", help="samples to show (default 300)")
    add("--no-images", action="store_true", help="numbers alone: no face leaves the house")
    add("--seed", type=natural, default=0, metavar="S", help="of the samples shown (default 0)")
    return report


def _review(table: Subparsers) -> dict[str, Parser]:
    review = subparser(table, "review", "look at a release in a browser, decide, and sign off")
    review.add_argument("release", type=Path, metavar="RELEASE", help=f"{_RELEASE}; or one of sign, verify: see below")
    add = review.add_argument
    add("--port", type=_port, default=0, metavar="P", help="of 127.0.0.1 (default: any that is free)")
    add("--reviewer", metavar="NAME", help="who decides (default: the page asks before the first decision)")
    add("--read-only", action="store_true", help="show everything, change nothing")
    add("--open", action="store_true", help="open the page in this machine's browser")
    review.epilog = (
        "curate review sign RELEASE --key KEY       sign the last sign-off with an SSH key\n"
        "curate review verify RELEASE               check the review log, and say who signed off"
    )
    below = Parser(prog="curate review", allow_abbrev=False).add_subparsers(parser_class=Parser)
    sign = _on_release(below, "sign", "sign the last sign-off with an SSH key (ssh-keygen -Y sign)")
    sign.add_argument("--key", type=Path, required=True, metavar="FILE", help="the private key; or its .pub, by agent")
    verify = _on_release(below, "verify", "check the review log of a release: its chain, its signatures, its sign-off")
    verify.add_argument("--allowed-signers", type=Path, metavar="FILE", help="see ssh-keygen(1), ALLOWED SIGNERS")
    verify.add_argument("--head", type=sha256, metavar="SHA256", help="that the log must contain: kept elsewhere")
    return {"review": review, "review sign": sign, "review verify": verify}


def _verify(table: Subparsers) -> Parser:
    verify = subparser(table, "verify", "check every checksum, schema, count and picture of a release")
    verify.add_argument("release", type=Path, metavar="RELEASE", help="a release, or the --output of a run (all of it)")
    return verify
