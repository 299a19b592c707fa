"""Does the audit find a gap that is there, and none where there is none? A synthetic world, many times over.

Usage: python -m benchmarks.planted_gap [--repetitions N] [--seed S]

240 people have one to six videos each, 65 % of the variance of scores lies between people; 21 classes of six
categories. With a gap, the class `dark` (a fifth of the people) scores 3 points lower, about what the audit itself
calls detectable with power 80 %. Printed: how often the gap is found, how often any gap is claimed where there is none
beside the nominal 5 %, and how often each kind of interval holds the truth; beside them the plain peers, which take
videos for people. Exits 1 where false claims are significantly above 5 %, or the gap is found significantly less often
than in 80 % of the repetitions.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from evaluation.estimates import Settings
from evaluation.fairness import Fairness, Row, analyse
from evaluation.groups import Videos
from evaluation.taxonomy import default_taxonomy

Floats = NDArray[np.float64]

PEOPLE = 240
GAP = 0.03
POWER = 0.8
MEAN = 0.92
SHARES: dict[str, tuple[float, ...]] = {
    "apparent_skin_tone": (0.5, 0.3, 0.2),
    "apparent_gender": (0.5, 0.5),
    "apparent_age_group": (0.05, 0.35, 0.3, 0.22, 0.08),
    "lighting_level": (0.3, 0.5, 0.2),
    "body_coverage": (0.2, 0.4, 0.3, 0.1),
    "background_complexity": (0.4, 0.4, 0.1),
}
"""How often each class occurs; what is left to 1 is unknown."""


def world(rng: np.random.Generator, gap: float) -> Videos:
    """Videos whose score is 1 less an error of the person (gamma, mean 0.05) and one of the video (mean 0.03).

    The mean of every class is 0.92 exactly, that of `dark` less `gap`.
    """
    taxonomy = default_taxonomy()
    people = np.repeat(np.arange(PEOPLE), rng.integers(1, 7, PEOPLE))
    attributes: dict[str, list[str | None]] = {}
    for name, shares in SHARES.items():
        category = taxonomy.category(name)
        names = np.array([*category.classes, ""])
        count = PEOPLE if category.level == "subject" else len(people)
        drawn = names[rng.choice(len(names), count, p=[*shares, max(0.0, 1 - sum(shares))])]
        attributes[name] = [str(v) or None for v in (drawn[people] if category.level == "subject" else drawn)]
    scores = 1 - rng.gamma(1.5, 0.05 / 1.5, PEOPLE)[people] - rng.gamma(1.0, 0.03, len(people))
    scores -= gap * np.array([value == "dark" for value in attributes["apparent_skin_tone"]])
    return Videos(
        names=[f"v{at}" for at in range(len(people))],
        subjects=[f"s{person}" for person in people],
        scores={"iou": np.clip(scores, 0.0, 1.0)},
        attributes=attributes,
    )


def plain_bootstrap(videos: Videos, rows: Sequence[Row], rng: np.random.Generator) -> list[tuple[float, float]]:
    """Percentile intervals of the rows from resamples of videos, whoever is in them."""
    columns = {name: np.array([value or "unknown" for value in values]) for name, values in videos.attributes.items()}
    member = np.stack([columns[row.category] == row.group for row in rows], axis=1).astype(np.float64)
    scores = videos.scores["iou"]
    weights = rng.multinomial(len(scores), np.full(len(scores), 1 / len(scores)), 1999).astype(np.float64)
    means = (weights @ (member * scores[:, None])) / (weights @ member)
    return [(float(low), float(high)) for low, high in np.quantile(means, (0.025, 0.975), axis=0).T]


class Score:
    """Counts of hits and trials by name, and the gaps that the audit says it can detect."""

    def __init__(self) -> None:
        self.hits: Counter[str] = Counter()
        self.trials: Counter[str] = Counter()
        self.detectable: list[float] = []

    def add(self, name: str, hit: bool) -> None:
        """Counts a trial."""
        self.hits[name] += hit
        self.trials[name] += 1

    def line(self, name: str, what: str) -> str:
        """Rate with its exact 95 % binomial interval (of trials taken as independent)."""
        hits, trials = self.hits[name], self.trials[name]
        found = stats.binomtest(hits, trials).proportion_ci(method="exact")
        return f"{what:<58} {100 * hits / trials:5.1f} %  [{100 * found.low:.1f}, {100 * found.high:.1f}]  n {trials}"


def count_claims(score: Score, audit: Fairness, kind: str) -> None:
    """Whether any gap of a class was claimed in this repetition, by the audit and by its plain peers."""
    rows = [row for row in audit.rows if row.family == "classes"]
    score.add(f"{kind} any, audit", any(row.p_adjusted is not None and row.p_adjusted <= 0.05 for row in rows))
    score.add(f"{kind} any, plain", any(row.welch_p_holm is not None and row.welch_p_holm <= 0.05 for row in rows))
    for row in audit.worst:
        if row.family == "classes" and row.at_least == 1 and row.p is not None:
            score.add(f"{kind} worst", row.p <= 0.05)


def count_dark(score: Score, audit: Fairness) -> None:
    """Whether the planted gap was found, and whether its intervals hold it."""
    dark = next(row for row in audit.rows if row.group == "dark")
    assert dark.p_adjusted is not None
    assert dark.gap_interval is not None
    assert dark.detectable is not None
    score.detectable.append(dark.detectable)
    score.add("found, audit", dark.p_adjusted <= 0.05)
    score.add("gap holds", dark.gap_interval[0] <= -GAP <= dark.gap_interval[1])
    worst = next(row for row in audit.worst if row.category == "apparent_skin_tone")
    assert worst.interval is not None
    score.add("worst gap holds", worst.interval[0] <= GAP <= worst.interval[1])
    score.add("similar claimed of the gap", bool(dark.equivalent))


def count_coverage(score: Score, videos: Videos, audit: Fairness, rng: np.random.Generator) -> None:
    """Whether each kind of interval of each class holds the true mean, where no gap was planted."""
    rows = [row for row in audit.rows if row.family == "classes" and row.interval is not None]
    for row, plain in zip(rows, plain_bootstrap(videos, rows, rng), strict=True):
        kinds = {"bootstrap-t": row.interval, "t": row.t_interval, "video t": row.video_interval, "video": plain}
        for kind, interval in kinds.items():
            assert interval is not None
            score.add(f"{row.flag} {kind}", interval[0] <= MEAN <= interval[1])


def audit_worlds(repetitions: int, seed: int) -> Score:
    """All repetitions, with and without the gap."""
    score, settings = Score(), Settings(intersections=())
    for at in range(repetitions):
        for kind, gap in (("no gap", 0.0), ("gap", GAP)):
            rng = np.random.default_rng([seed, at, int(gap > 0)])
            videos = world(rng, gap)
            audit = analyse(videos, default_taxonomy(), settings)
            count_claims(score, audit, kind)
            if gap:
                count_dark(score, audit)
            else:
                count_coverage(score, videos, audit, rng)
    return score


def report(score: Score) -> None:
    """Prints audit and peers side by side."""
    print(f"{PEOPLE} people, 1-6 videos each; rates with exact 95 % binomial intervals")
    print(f"With a gap of {100 * GAP:.0f} points in `dark` (a fifth of the people):")
    print(score.line("found, audit", f"  found (family-wise 5 %; stated >= {100 * POWER:.0f} %)"))
    detectable = 100 * float(np.median(score.detectable))
    print(f"  the audit's own smallest detectable gap, median: {detectable:.1f} points")
    print(score.line("gap holds", "  interval of the gap holds it (nominal 95 %)"))
    print(score.line("worst gap holds", "  interval of best less worst holds it (at least 95 %)"))
    print(score.line("similar claimed of the gap", "  called similar although it is there (at most 5 %)"))
    print("Without a gap:")
    print(score.line("no gap any, audit", "  any class claimed, audit (nominal 5 %)"))
    print(score.line("no gap any, plain", "  any class claimed, Welch over videos with Holm"))
    print(score.line("no gap worst", "  best less worst above its null quantile (nominal 5 %)"))
    for flag, size in (("sufficient", ">= 30 people"), ("indicative", "10-29 people")):
        print(f"Intervals of the mean that hold the truth, classes of {size} (nominal 95 %):")
        kinds = {"bootstrap-t": "bootstrap-t over people (the audit)", "t": "t, cluster-robust (beside it)"}
        kinds |= {"video": "plain bootstrap over videos (peer)", "video t": "plain t over videos (peer)"}
        for kind, what in kinds.items():
            print(score.line(f"{flag} {kind}", f"  {what}"))


def main() -> int:
    """Runs the worlds; 1 where the audit does not keep its promise."""
    parser = argparse.ArgumentParser(description="Find a planted gap, claim none where there is none.")
    parser.add_argument("--repetitions", type=int, default=200, help="worlds of each kind")
    parser.add_argument("--seed", type=int, default=0)
    values = parser.parse_args()
    before = time.process_time()
    score = audit_worlds(values.repetitions, values.seed)
    report(score)
    excess = _p_value(score, "no gap any, audit", 0.05, "greater")
    missed = _p_value(score, "found, audit", POWER, "less")
    print(f"false claims above 5 %: p = {excess:.3f}; found in less than {100 * POWER:.0f} %: p = {missed:.3f}")
    print(f"{time.process_time() - before:.0f} CPU s")
    return int(min(excess, missed) < 0.05)


def _p_value(score: Score, name: str, rate: float, side: str) -> float:
    return float(stats.binomtest(score.hits[name], score.trials[name], rate, alternative=side).pvalue)


if __name__ == "__main__":
    sys.exit(main())
