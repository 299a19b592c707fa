"""The Croissant description of a release: JSON-LD that data catalogues and loaders of other houses read.

Croissant 1.1 with the vocabulary for responsible AI 1.0 (RAI). It is written and never read: the check of a release is
`curate verify`. (The reference reader compares no hash of a file that it finds through a FileSet, and follows paths
out of the folder, so a stranger's Croissant is nothing to trust.)

What only a person knows is left out, unless the answers to the data card's questions say it.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from manifests.datacard import check_answers
from manifests.erasures import replacements
from manifests.paper import paper_path, write_paper
from manifests.release import (
    RELEASE_FILE,
    FileEntry,
    Release,
    ReleaseError,
    fingerprint,
    parse_release,
    read_release_bytes,
)
from manifests.schema import SPLITS
from manifests.tally import Tally, tally

FILE = "croissant.json"
CONFORMS_TO = ("http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0")

_PLAIN = """
annotation arrayShape citeAs column containedIn equivalentProperty excludes extract field fileObject fileProperty
fileSet format includes isArray isLiveDataset jsonPath key md5 parentField path readLines recordSet references regex
repeated replace samplingRate sdVersion separator source subField transform unArchive value
"""
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "prov": "http://www.w3.org/ns/prov#",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{name: f"cr:{name}" for name in _PLAIN.split()},
}
_MASK = ("cr:SegmentationMask", "sc:ImageObject")
_FIELDS: Mapping[str, tuple[str | tuple[str, ...], str]] = {
    "sample_id": ("sc:Text", "32 hex digits that name the sample"),
    "image": ("sc:ImageObject", "the upright frame, JPEG"),
    "mask": (_MASK, "1-bit PNG: 0 background, 1 person"),
    "ignore": (_MASK, "1-bit PNG of the pixels that no loss may use; null: none"),
    "teacher_mask": (_MASK, "1-bit PNG of what the teacher had said; null: the same as the mask"),
    "width": ("sc:Integer", "pixels"),
    "height": ("sc:Integer", "pixels"),
    "aspect_bucket": ("sc:Text", "nearest ratio of width to height"),
    "weight": ("sc:Float", "of the sample in the loss, >= 0"),
    "label_source": ("sc:Text", "pseudo, human, human_corrected or none"),
    "label_confidence": ("sc:Float", "of the teacher, 0 to 1; null: not known"),
    "content_sha256": ("sc:Text", "32 bytes: what the frame is, whatever file it is in"),
    "mask_sha256": ("sc:Text", "32 bytes: what the mask is, whatever file it is in"),
}
"""Field of a shard -> its type or types, and what it is."""
_SINCE = {"teacher_mask": 2}
_ANSWERED = {
    "uses": "rai:dataUseCases",
    "impact": "rai:dataSocialImpact",
    "maintenance": "rai:dataReleaseMaintenancePlan",
    "annotators": "rai:annotatorDemographics",
    "sensitive": "rai:personalSensitiveInformation",
}
"""Key of a question of the data card -> the field that its answer fills."""


def croissant(folder: Path, *, answers: Mapping[str, Any] | None = None) -> bytes:
    """The Croissant description of the release in `folder`, as JSON; equal input gives equal bytes.

    Paths in it are relative to the release folder. It describes the splits train, val and test; what is held or
    kept for review is no part of the data set.

    Args:
        folder: of the release.
        answers: to the questions of the data card; None for none.

    Raises:
        DataCardError: see `manifests.datacard.check_answers`.
        ReleaseError: no release, or one that breaks a rule.
        ShardError: a table cannot be read, or is not the one that was committed.
        ErasureError: the record of an erasure, which tells of parents that are gone, is malformed.
    """
    checked = check_answers(answers or {})
    data = read_release_bytes(folder)
    release, rows = parse_release(data), tally(folder)
    described: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": release.name,
        "description": _description(release, rows),
        "conformsTo": list(CONFORMS_TO),
        **_version(folder, release),
        **_licence(rows),
        "identifier": f"urn:sha256:{fingerprint(data)}",
        **_responsible(release, rows),
        **{field: checked[key] for key, field in _ANSWERED.items() if key in checked},
        **_provenance(release),
        "distribution": [*(_file(entry) for entry in _shards(release)), _file_set()],
        "recordSet": [_records(release)],
    }
    return (json.dumps(described, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_croissant(folder: Path, output: Path | None = None, *, answers: Mapping[str, Any] | None = None) -> Path:
    """Write the description of the release in `folder` and return where.

    Readers look for the shards from where the file lies: put it, or a link to it, beside `release.json` of the copy
    that they read. It is no part of the release, whose fingerprint stays the same.

    Args:
        folder: of the release.
        output: the file; None for `<root>/reports/<name of the release folder>/croissant.json`.
        answers: to the questions of the data card; None for none.

    Raises:
        PlaceError: `output` is a folder, or would be another file of this or another release.
        PaperError: it cannot be written.
    """
    path = paper_path(folder, output, FILE)
    write_paper(path, croissant(folder, answers=answers))
    return path


def _description(release: Release, rows: Tally) -> str:
    shown = ", ".join(f"{release.splits.get(split, 0)} {split}" for split in SPLITS)
    return (
        f"Frames of people with masks, curated by curate {release.tool['version']}: {rows.kept} of {rows.all} labelled "
        f"frames are kept ({shown}). Paths are relative to the folder of release.json, which has every file's sha256."
    )


def _version(folder: Path, release: Release) -> dict[str, str]:
    """MAJOR rises with every successor, for each changes, moves or removes records; not known without its parents."""
    known = _parents_of(folder) if release.parents else {}
    major, above = 1, set(release.parents)
    while above:
        if not above <= set(known) or major > len(known):
            return {}
        major, above = major + 1, {parent for name in above for parent in known[name]}
    return {"version": f"{major}.0.0"}


def _parents_of(folder: Path) -> dict[str, tuple[str, ...]]:
    """The parents of each release beside this one that can be read, and of those that were there until an erasure."""
    home = folder.resolve().parent
    known = {name: gone.parents for name, gone in replacements(home.parent).items()}
    for path in sorted(home.glob(f"*/{RELEASE_FILE}")):
        with contextlib.suppress(ReleaseError):  # whose child it is, a damaged one cannot say
            data = read_release_bytes(path.parent)
            known[fingerprint(data)] = parse_release(data).parents
    return known


def _licence(rows: Tally) -> dict[str, list[str]]:
    known = sorted(licence for licence in rows.licences if licence != "unknown")
    return {"license": known} if known else {}


def _responsible(release: Release, rows: Tally) -> dict[str, Any]:
    """The RAI fields that the release itself can fill."""
    counts = release.counts
    human = sum(rows.label_sources[source] for source in ("human", "human_corrected"))
    unknown = {name: rows.values(name, "keep")[None] for name in rows.attributes}
    consents = ", ".join(f"{status} {number}" for status, number in sorted(rows.consents.items()))
    fields: dict[str, Any] = {
        "rai:dataCollection": f"{rows.sources} sources gave these frames. Of {counts.read} that were read, "
        f"{counts.undecodable} could not be decoded, {counts.duplicate} were duplicates, {counts.not_sampled} were not "
        f"chosen, {counts.dropped} dropped, {counts.held} held and {counts.kept} kept.",
        "rai:dataCollectionMissingData": "; ".join(
            f"{name}: not known of {number} of {rows.kept} kept frames" for name, number in unknown.items() if number
        ),
        "rai:dataAnnotationProtocol": "A teacher draws the masks; students trained on the labels of other folds judge "
        "them, so that doubtful ones are dropped, held for people or corrected.",
        "rai:machineAnnotationTools": [
            f"{m.role} {m.id} sha256:{m.sha256}" for m in release.models if m.role in ("teacher", "student")
        ],
        "rai:annotationsPerItem": f"one mask each: {human} drawn or corrected by people, {rows.kept - human} by models",
        "rai:dataBiases": [
            f"{cell}: {rows_of['actual']} of a target of {rows_of['target']} rows"
            for cell, rows_of in sorted(release.cells.items())
            if rows_of["actual"] < rows_of["target"]
        ],
        "rai:dataLimitations": [str(note) for note in rows.judge.get("notes") or ()],
        "rai:personalSensitiveInformation": [
            "Images show people.",
            f"Stated of frames and people: {', '.join(rows.attributes)}.",
            f"Consent as stated: {consents}.",
        ],
    }
    return {name: value for name, value in fields.items() if value}


def _provenance(release: Release) -> dict[str, Any]:
    """PROV-O: the releases it was made from, and the run."""
    parents = [{"@id": f"urn:sha256:{parent}"} for parent in release.parents]
    run = {"@type": "prov:Activity", "prov:label": f"curate {release.tool['version']} run {release.run_id}"}
    return {**({"prov:wasDerivedFrom": parents} if parents else {}), "prov:wasGeneratedBy": run}


def _shards(release: Release) -> Iterator[FileEntry]:
    for split in SPLITS:
        yield from (entry for entry in release.files if entry.path.startswith(f"shards/{split}/"))


def _file(entry: FileEntry) -> dict[str, str]:
    return {
        "@type": "cr:FileObject",
        "@id": entry.path,
        "name": entry.path,
        "contentUrl": entry.path,
        "contentSize": f"{entry.bytes} B",
        "encodingFormat": "application/x-parquet",
        "sha256": entry.sha256,
    }


def _file_set() -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": "shards",
        "name": "shards",
        "description": "All shards; without containedIn the folder of this file is searched.",
        "encodingFormat": "application/x-parquet",
        "includes": [f"shards/{split}/*.parquet" for split in SPLITS],
    }


def _records(release: Release) -> dict[str, Any]:
    minor = int(release.schemas.get("shard", "1.0").split(".")[1])
    fields = [_field(name, *said) for name, said in _FIELDS.items() if _SINCE.get(name, 0) <= minor]
    split = {
        "@type": "cr:Field",
        "@id": "samples/split",
        "name": "split",
        "description": "train, val or test",
        "dataType": ["sc:Text", "cr:Split"],
        "source": {
            "fileSet": {"@id": "shards"},
            "extract": {"fileProperty": "fullpath"},
            "transform": {"regex": f".*shards/({'|'.join(SPLITS)})/.*"},
        },
    }
    return {
        "@type": "cr:RecordSet",
        "@id": "samples",
        "name": "samples",
        "description": "One record per frame.",
        "key": {"@id": "samples/sample_id"},
        "field": [*fields, split],
    }


def _field(name: str, kind: str | tuple[str, ...], told: str) -> dict[str, Any]:
    source: dict[str, Any] = {"fileSet": {"@id": "shards"}, "extract": {"column": name}}
    if kind in ("sc:ImageObject", _MASK):
        source["transform"] = {"jsonPath": "bytes"}
    return {
        "@type": "cr:Field",
        "@id": f"samples/{name}",
        "name": name,
        "description": told,
        "dataType": list(kind) if isinstance(kind, tuple) else kind,
        "source": source,
    }
