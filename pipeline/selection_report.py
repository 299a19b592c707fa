"""The report of a selection: one static page that opens offline, and the same numbers as JSON.

Equal inputs give equal bytes. Every name that came with the data is escaped where it enters the page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from evaluation.charts import cloud
from evaluation.measures import counted, finite
from evaluation.page import Html, absent, document, items, join, note, section, table, tag
from manifests.release import canonical_json
from pipeline import cluster_page, coverage_page, storage
from pipeline.contact_sheets import TITLE, Sheet, contact_sheets, links, sheets_section
from pipeline.coverage import Coverage, Floats, Margin, Shortfall, Target, bounds, coverage, effective
from pipeline.coverage_page import NUMBERS, number_text, percent, sentence, short
from pipeline.embedding_map import EmbeddingMap, embedding_map
from pipeline.stage import Done, iter_tables

PAGE = "selection.html"
_FORMAT = 1
_SENTENCES, _SOURCES = 8, 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the frames are from.

    Attributes:
        candidates: sources with a candidate frame.
        chosen: sources with a chosen frame.
        effective: effective number of sources of the candidates and of the chosen frames (exp of the entropy).
        top: (uri, chosen frames, candidate frames) of those with the most chosen frames.
    """

    candidates: int
    chosen: int
    effective: tuple[float, float]
    top: tuple[tuple[str, int, int], ...]


def write_selection_report(
    folder: Path,
    *,
    plan: Mapping[str, Any],
    assigned: Done,
    embedded: Done,
    chosen: pa.Table,
    clusterfit: Mapping[str, Any],
    title: str,
    points: int = 1500,
    sheets: int = 24,
) -> list[str]:
    """Writes ``selection.html`` and ``selection.json`` into a folder and returns their names.

    Args:
        folder: exists.
        plan: "attributes", "counts", "quotas"; "targets" and "shortfall" where there are any (see ``coverage``).
        assigned: the assign stage.
        embedded: the embed stage.
        chosen: rows with sample_id and source_uri; first_row where they were chosen in two rounds, and the plan's
            counts are then those of the first choice.
        clusterfit: what the cluster step reports; any keys.
        title: of the page.
        points: frames on the map at most.
        sheets: contact sheets at most, of 12 pictures each.

    Raises:
        ValueError: the plan is not sound (see ``coverage``), or does not choose as many frames as there are rows.
        StageError: a part of a stage is damaged.
    """
    found = coverage(plan, rounds=2 if "first_row" in chosen.column_names else 1)
    if found.chosen != chosen.num_rows:
        raise ValueError(f"the plan chooses {found.chosen} frames, the table has {chosen.num_rows}; plan again")
    parts = _Parts(
        title=title,
        candidates=assigned.rows,
        capped=assigned.counts.get("capped", 0),
        coverage=found,
        sources=_sources(assigned, chosen),
        map=embedding_map(assigned, chosen, points),
        sheets=contact_sheets(assigned, embedded, chosen, sheets=sheets),
        clusterfit=clusterfit,
    )
    storage.write_bytes(str(folder / NUMBERS), canonical_json(_json(parts)))
    storage.write_bytes(str(folder / PAGE), _page(parts).encode())
    return [PAGE, NUMBERS]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Parts:
    """What the page is made of."""

    title: str
    candidates: int
    capped: int
    coverage: Coverage
    sources: Sources
    map: EmbeddingMap
    sheets: tuple[list[Sheet], int]
    clusterfit: Mapping[str, Any]


def _sources(assigned: Done, chosen: pa.Table) -> Sources:
    every: Counter[str] = Counter()
    for part in iter_tables(assigned.uris(), ["source_uri"]):
        every.update(_counts(part))
    taken = _counts(chosen)
    top = sorted(taken, key=lambda uri: (-taken[uri], uri))[:_SOURCES]
    sizes = (np.array(sorted(counts.values()), np.int64) for counts in (every, taken))
    before, after = (effective(each) for each in sizes)
    return Sources(
        candidates=len(every),
        chosen=len(taken),
        effective=(before, after),
        top=tuple((uri, taken[uri], every[uri]) for uri in top),
    )


def _counts(rows: pa.Table) -> dict[str, int]:
    found = rows.column("source_uri").combine_chunks().value_counts()
    return {one["values"]: one["counts"] for one in found.to_pylist()}


def _json(parts: _Parts) -> dict[str, Any]:
    found = parts.sources
    return {
        "format": _FORMAT,
        "title": parts.title,
        **as_json(parts.coverage),
        "pool": {"candidates": parts.candidates, "above_the_limit_per_source": parts.capped},
        "sources": {
            "candidates": found.candidates,
            "chosen": found.chosen,
            "effective": dict(zip(("before", "after"), found.effective, strict=True)),
            "top": [{"source": uri, "chosen": n, "candidates": of} for uri, n, of in found.top],
        },
        "map": {
            "method": parts.map.method,
            "sample_id": list(parts.map.ids),
            "places": np.round(parts.map.places, 4).tolist(),
            "group": parts.map.groups.tolist(),
            "chosen": parts.map.chosen.tolist(),
        },
        "sheets": [
            {
                "group": sheet.group,
                "candidates": sheet.candidates,
                "chosen": sheet.chosen,
                "shown": [{"sample_id": shot.id, "chosen": shot.chosen} for shot in sheet.shots],
            }
            for sheet in parts.sheets[0]
        ],
        "clusterfit": _plain(parts.clusterfit),
    }


def as_json(found: Coverage) -> dict[str, Any]:
    """The numbers as a JSON value; a divergence that is infinite or does not exist is null."""
    return {
        "rounds": found.rounds,
        "frames": {"candidates": found.candidates, "chosen": found.chosen, "dead_vector": found.dead},
        "attributes": list(found.attributes),
        "margins": [_margin_json(margin) for margin in found.margins],
        "shortfalls": [_shortfall_json(one) for one in found.shortfalls],
        "shortfall": dict(found.total),
    }


def _margin_json(margin: Margin) -> dict[str, Any]:
    found, goal = margin.figures, margin.wanted
    low, high = bounds(margin.after, margin.unknown[1])
    return {
        "margin": margin.name,
        "kind": margin.kind,
        "classes": [list(key) if margin.kind == "pair" else key[0] for key in margin.classes],
        "before": margin.before.tolist(),
        "after": margin.after.tolist(),
        "even": margin.even.tolist(),
        "after_share_bounds": np.round(np.stack([low, high], axis=1), 9).tolist(),
        "target": None if goal is None or margin.target is None else _target_json(margin.target, goal),
        "unknown": {"before": margin.unknown[0], "after": margin.unknown[1]},
        "unknown_share": dict(zip(("before", "after"), found.unknown, strict=True)),
        "entropy_nats": dict(zip(("before", "after"), found.entropy, strict=True)),
        "effective_classes": dict(zip(("before", "after", "possible"), found.effective, strict=True)),
        "kl_to_target_nats": dict(zip(("before", "after"), map(finite, found.divergence), strict=True)),
        "covered": {"classes": found.covered, "of": found.existing, "with_at_least": margin.least},
    }


def _target_json(target: Target, goal: Floats) -> dict[str, Any]:
    return {"kind": target.kind, "weight": target.weight, "frames": goal.tolist()}


def _shortfall_json(one: Shortfall) -> dict[str, Any]:
    return {
        "margin": one.margin,
        "class": list(one.classes) if one.kind == "pair" else one.classes[0],
        "wanted": one.wanted,
        "exists": one.exists,
        "chosen": one.chosen,
        "missing": one.missing,
        "reason": one.reason or None,
    }


def _plain(value: object) -> Any:
    """What JSON can hold; a number that is not finite is null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return finite(value)


_TITLES = {
    "headline": "Headline",
    **coverage_page.SECTIONS,
    "map": "Map of the embedding",
    "sheets": TITLE,
    "sources": "Sources",
    "clusterfit": cluster_page.TITLE,
    "definitions": "Definitions",
}


def _page(parts: _Parts) -> Html:
    found = parts.coverage
    where = links(parts.sheets[0])
    navigation = items(tag("a", text, href=f"#{key}") for key, text in _TITLES.items())
    header = tag("header", tag("h1", parts.title), tag("nav", navigation, aria_label="Parts of the page"))
    body = tag(
        "main",
        _headline(parts, where),
        coverage_page.shortfall_section(found, where),
        coverage_page.figures_section(found),
        coverage_page.attributes_section(found),
        coverage_page.pairs_section(found),
        coverage_page.clusters_section(found),
        _map(parts.map),
        sheets_section(*parts.sheets),
        _source_table(parts.sources, found),
        cluster_page.made_section(parts.clusterfit),
        _definitions(),
    )
    return document(parts.title, header, body)


def _headline(parts: _Parts, where: Mapping[str, str]) -> Html:
    found, sources = parts.coverage, parts.sources
    of = [f"of {found.candidates:,} chosen first"] * (found.rounds == 2) + [f"of {parts.candidates:,}"]
    tiles = [
        _tile("Frames chosen", f"{found.chosen:,}", *of),
        _tile("Sources", f"{sources.chosen:,}", f"of {sources.candidates:,}"),
    ]
    for kind, name in (("group", "Effective groups"), ("cluster", "Effective clusters")):
        margin = found.of(kind)[0]  # type: ignore[arg-type]
        before, after, possible = margin.figures.effective
        below = (f"from {number_text(before)}", f"{number_text(possible)} possible")
        tiles.append(_tile(name, number_text(after), *below))
    pairs = [margin.figures for margin in found.of("pair")]
    if sum(f.existing for f in pairs):
        covered, existing = sum(f.covered for f in pairs), sum(f.existing for f in pairs)
        tiles.append(_tile("Pairs of classes covered", percent(covered / existing), f"{covered:,} of {existing:,}"))
    dead = (
        f"{counted(found.dead, 'candidate')} without a usable vector; none of them was chosen." if found.dead else None
    )
    first = found.shortfalls[:_SENTENCES]
    more = len(found.shortfalls) - len(first)
    wanted = any(margin.target for margin in found.margins)
    nothing = "Every target was met." if wanted else "No targets were given: nothing can be missing."
    return section(
        "headline",
        _TITLES["headline"],
        tag("dl", *tiles, class_="tiles"),
        tag("p", _story(parts)),
        tag("p", dead) if dead else None,
        tag("p", tag("strong", "What could not be filled")) if first else tag("p", nothing),
        items(sentence(one, where, found.rounds) for one in first) if first else None,
        tag("p", tag("a", f"{more:,} more in the table", href="#shortfall")) if more > 0 else None,
    )


def _story(parts: _Parts) -> str:
    """From how many frames how many were chosen, and in how many rounds."""
    found = parts.coverage
    cap = f", and {parts.capped:,} more above the limit per source were left out" if parts.capped else ""
    pool = f"{counted(parts.candidates, 'candidate')} were left after thinning in time and removal of duplicates{cap}."
    share = f" ({percent(found.chosen / found.candidates)})" if found.candidates else ""
    last = f"{found.chosen:,} of {found.candidates:,} frames were chosen{share}."
    if found.rounds == 1:
        return f"{pool} {last}"
    return (
        f"{pool} The frames were chosen in two rounds: {found.candidates:,} first, and from these, by what their masks "
        f"tell as well, the selection: {last} Targets, shortfalls and all figures by class are of the second round: "
        "what exists, and what was before, are the frames of the first choice."
    )


def _tile(name: str, value: str, *below: str) -> Html:
    return tag("div", tag("dt", name), tag("dd", value, *(tag("small", line) for line in below)))


def _map(found: EmbeddingMap) -> Html:
    if not len(found.ids):
        return section("map", _TITLES["map"], absent("no frame has a vector, or no points were asked for."))
    groups, sizes = np.unique(found.groups[found.chosen], return_counts=True)
    order = [int(groups[at]) for at in np.lexsort((groups, -sizes))]
    layers = [(str(g), g, found.places[found.chosen & (found.groups == g)]) for g in order]
    label = f"{len(found.ids)} frames by {found.method}: {int(found.chosen.sum())} chosen ones in {len(order)} groups."
    return section(
        "map",
        _TITLES["map"],
        note(
            f"{counted(len(found.ids), 'frame')}, laid out by {found.method} from the vectors of the second network. "
            f"Grey: candidates. Coloured: {counted(int(found.chosen.sum()), 'chosen frame')}, by group, whose number "
            "stands at its middle; there are more of them on the map than their share. Neighbours are alike; distances "
            "between islands, their sizes and the axes mean nothing."
        ),
        cloud(found.places[~found.chosen], layers, label),
    )


def _source_table(found: Sources, of: Coverage) -> Html:
    rows = [
        [short(uri, 90), f"{n:,}", f"{held:,}", percent(n / max(1, of.chosen)), percent(n / max(1, held))]
        for uri, n, held in found.top
    ]
    before, after = map(number_text, found.effective)
    return section(
        "sources",
        _TITLES["sources"],
        tag(
            "p",
            f"{found.chosen:,} of {counted(found.candidates, 'source')} gave a frame. Effective number of sources: "
            f"{before} → {after}.",
        ),
        table(
            ["Source", "Chosen", "Candidates", "Share of the selection", "Share of its frames"],
            rows,
            caption=f"The sources with the most chosen frames, {_SOURCES} at most",
        )
        if rows
        else absent("no frame was chosen."),
    )


_DEFINITIONS = {
    "Candidate": "a frame that was decoded, sampled and is no duplicate.",
    "Prototype": "a centroid of k-means in the space of the second network, with the frames nearest to it.",
    "Cluster": "prototypes that are joined, and their frames; figures of clusters are of this level.",
    "Group": "a family of clusters. A frame's path is (group, cluster, prototype).",
    "Margin": "the frames counted by group, cluster, one attribute, or two attributes together.",
    "Covered": (
        "classes with a chosen frame, of those that exist. A pair of classes counts from 10 candidates on, or from "
        "half the mean of its table where there are few frames."
    ),
    "Entropy H": "−Σ p ln p over the shares p of the known classes, in nats.",
    "Effective classes": (
        "exp(H): so many classes of one size would have this entropy (Hill number of order 1). Between 1 and the "
        "number of classes."
    ),
    "Possible": "effective classes of the most even spread of as many frames that the candidates allow.",
    "KL to target": (
        "Σ p ln(p / t), of the shares p from the target's shares t over the known classes, in nats: 0 = as asked "
        "for, ∞ = frames where the target wants none."
    ),
    "Unknown": (
        f"share of the frames whose class is not known; they enter no distribution. {NUMBERS} says between which "
        "bounds each share lies, whatever they show."
    ),
    "Target": (
        "the share of the selection that each class of a margin should have: the shares of plan.json, where the "
        "targets of each margin stand with its weight. Groups share by the root of the number of their "
        "clusters; the clusters of a group share what is the group's, its prototypes what is the cluster's."
    ),
    "Wanted, exist, chosen": "frames asked for (share times frames chosen), candidates, and chosen frames of a class.",
    "Two rounds": (
        "a first, larger choice was labelled, and the selection was made from it by what the masks tell as well. "
        "Where this page says so, its candidates by class are the frames of the first choice."
    ),
    "Why": (
        "no frame: none exists. Too few frames: all were not enough. At odds with other targets: enough exist, but "
        "they belong to other classes as well, whose targets they would break."
    ),
    "Effective sources": "exp of the entropy of the frames over the sources.",
    "Inclusion probability": (
        "chosen over candidates of a frame's cell, times its chance under the limit per source and in an earlier "
        "round; column inclusion_prob of the chosen rows."
    ),
}


def _definitions() -> Html:
    lines = (join(tag("strong", name), ": ", text) for name, text in _DEFINITIONS.items())
    return section(
        "definitions",
        _TITLES["definitions"],
        items(lines),
        note("Nothing here is estimated from a sample: candidates and chosen frames were counted in full."),
    )
