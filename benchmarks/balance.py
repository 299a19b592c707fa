"""How evenly a selection covers hidden components and attributes: the main job's own path beside its peers.

Usage: python -m benchmarks.balance [DATA…] [--json FILE] [--methods NAME…] [--seeds S] [--pool-seed P] [--budget M]
       [--slow]

DATA are folders made by ``$CURATE_SHARED/bench/curation/gen_mixture.py``, names of its presets (plain50k, plain200k,
plain500k, video50k, video200k, tiny), which are generated then, or "digits" (scikit-learn's, long-tailed, ten draws).
One JSON line per pool and method goes to standard output, or to a file; the tables and the goals come at the end.

Every method runs in a process of its own, on one thread. CPU seconds count all it does to choose; ``rss_mb`` is the
most memory the process held, ``own_mb`` that less what data and imports take. Figures of several draws or seeds are
means, ``eff_least`` is the smallest. For ours two laws are measured as well: how much of a selection is in one of twice
the size (``grown``), and whether another order of the rows gives the same one (``same_for_any_order``).

eff         effective number of components, exp of the entropy       cover   share of components that are reached
tail        share of the rarer half of the components                KL      to the most even reachable target
attr KL     mean over attributes of KL(known classes, equal shares)  worst   rarest class over its equal share
pairs       share of the class pairs with 10 frames of those that the pool has 10 of
unknown     mean share of frames whose attribute is not known        redund. frames less than 16 from another one taken

Rows marked "quoted" were measured elsewhere, most of them for peers that cannot be run here; compare their CPU seconds
by way of a peer that is both quoted and measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

from benchmarks.balance_methods import Recipe, methods
from benchmarks.balance_pools import BUDGETS, GOALS, Pool, folders, quoted, read_pool
from pipeline.cluster import ClusterConfig

Record = dict[str, Any]
PLAIN = {"eff": 1, "eff_least": 1, "coverage": 3, "tail_share": 3, "kl": 3}
VIDEO = {"attr_kl": 3, "worst": 2, "pair_coverage": 3, "unknown": 3, "redundant": 3}
COST = {"cpu_s": 2, "rss_mb": 0, "own_mb": 0, "eff_to_ours": 2, "cpu_to_ours": 2}
TITLES = {
    "eff_least": "least",
    "coverage": "cover",
    "tail_share": "tail",
    "kl": "KL",
    "attr_kl": "attr KL",
    "pair_coverage": "pairs",
    "redundant": "redund.",
    "cpu_s": "CPU s",
    "rss_mb": "RSS MB",
    "own_mb": "own",
    "eff_to_ours": "eff/ours",
    "cpu_to_ours": "CPU/ours",
}


def apart(draws: Sequence[Path], name: str, budget: int, seeds: int, recipe: Recipe) -> Record:
    """What ``balance_process`` measures, in a fresh process."""
    task = {"draws": [str(folder) for folder in draws], "name": name, "budget": budget, "seeds": seeds}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.balance_process", json.dumps({**task, "recipe": asdict(recipe)})],
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        check=True,
    )
    return dict(json.loads(done.stdout))


def compare(
    draws: Sequence[Path], budget: int, flags: argparse.Namespace, say: Callable[[Record], None]
) -> list[Record]:
    """A record per method, ours first; each is said as soon as it is known."""
    pool = read_pool(draws[0])
    config = ClusterConfig()
    recipe = Recipe(sample=config.sample, per_cluster=config.per_cluster, most=config.most)
    names = list(methods(pool, budget, recipe, slow=flags.slow or flags.methods != ["*"]))
    wanted = [name for name in names if any(fnmatchcase(name, pattern) for pattern in flags.methods)]
    facts = {"pool": draws[0].name.split("-")[0], "n": len(pool.numbers), "m": budget, "draws": len(draws)}
    records: list[Record] = []
    for name in wanted:
        found = apart(draws, name, budget, flags.seeds, recipe)
        record = {**facts, "seeds": flags.seeds, "method": name, **found}
        records.append({**record, **ratios(record, [*records, record][0])})
        say(records[-1])
    return records


def ratios(record: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, float]:
    """What others reach and cost as a multiple of ours; nothing where ours was not measured."""
    if first["method"] != "ours":
        return {}
    names = {"eff_to_ours": "eff", "cpu_to_ours": "cpu_s"}
    return {name: record[key] / first[key] for name, key in names.items() if key in record}


def show(console: Console, records: Sequence[Record], others: Mapping[str, Mapping[str, float]]) -> None:
    """The table of a pool."""
    first = records[0]
    digits = {**PLAIN, **(VIDEO if "attr_kl" in first else {}), **COST}
    title = f"{first['pool']}: {first['m']} of {first['n']:,}; {first['draws']} draw(s), {first['seeds']} seed(s)"
    table = Table("method", title=title, title_justify="left")
    for key in digits:
        table.add_column(TITLES.get(key, key), justify="right", no_wrap=True)
    rows = [(record["method"], record) for record in records]
    rows += [(f"{name} (quoted)", {**found, **ratios(found, first)}) for name, found in others.items()]
    for name, found in rows:
        table.add_row(name, *(f"{found[key]:,.{places}f}" if key in found else "-" for key, places in digits.items()))
    console.print(table)


def verdicts(record: Record, preset: str, unknown: float) -> list[str]:
    """What is promised of ours and whether it holds, a line each."""
    lines = [
        (goal.met(record[goal.figure], unknown), f"{goal.text(unknown)}: {record[goal.figure]:.4g}")
        for goal in GOALS.get(preset, [])
    ]
    lines.append((record["grown"] == 1, f"share that is in a selection twice as large = 1: {record['grown']:g}"))
    lines.append((record["same_for_any_order"], "the same selection for another order of the rows"))
    return [f"{'met    ' if met else 'NOT MET'} {text}" for met, text in lines]


def unknown_share(pool: Pool) -> float:
    """Mean share of rows whose attribute is not known."""
    return 0.0 if pool.attributes is None else float((pool.attributes < 0).mean())


def run(flags: argparse.Namespace, lines: TextIO) -> list[Callable[[Console], None]]:
    """Measures all pools; what is to be shown of each."""

    def say(record: Record) -> None:
        print(json.dumps({key: round(v, 4) if isinstance(v, float) else v for key, v in record.items()}), file=lines)
        lines.flush()

    shown: list[Callable[[Console], None]] = []
    for data in flags.data:
        with tempfile.TemporaryDirectory() as scratch:
            preset, draws = folders(data, flags.pool_seed, Path(scratch))
            pool = read_pool(draws[0])
            usual = BUDGETS.get(preset, max(1, len(pool.numbers) // 100))
            budget = flags.budget or usual
            records = compare(draws, budget, flags, say)
        known = preset if budget == usual else ""  # goals and quotes are for the usual budget
        shown.append(partial(conclude, records, known, unknown_share(pool), flags.pool_seed == 0))
    return shown


def conclude(records: Sequence[Record], preset: str, unknown: float, quote: bool, console: Console) -> None:
    """The table of a pool and, where ours was measured, its verdicts."""
    if not records:
        return
    show(console, records, quoted(preset) if quote else {})
    if records[0]["method"] == "ours":
        console.print("\n".join(verdicts(records[0], preset, unknown)) + "\n", highlight=False)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", default=["plain50k", "digits", "video50k"], metavar="DATA")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the JSON lines go; default: standard output")
    parser.add_argument("--methods", nargs="+", default=["*"], metavar="NAME", help="only these; * stands for anything")
    parser.add_argument("--seeds", type=int, default=1, help="runs of every method on every draw")
    parser.add_argument("--pool-seed", type=int, default=0, help="of generated pools; settings were chosen on 0")
    parser.add_argument("--budget", type=int, help="how many to draw; default: by preset, or 1 %%")
    parser.add_argument("--slow", action="store_true", help="also the methods that take minutes")
    flags = parser.parse_args()
    with contextlib.ExitStack() as stack:
        shown = run(flags, stack.enter_context(flags.json.open("w")) if flags.json else sys.stdout)
    console = Console(width=180 if any("video" in data for data in flags.data) else 150)
    for part in shown:
        part(console)


if __name__ == "__main__":
    main()
