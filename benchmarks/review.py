"""What `curate review` costs on a release of a million rows, beside the same questions asked of the files directly.

Usage: python -m benchmarks.review [--rows N] [--rounds K] [--output DIR] [--json FILE]

The release is written once below the output (`benchmarks.review_release`: minutes, 1.1 GB for both versions; only its
split `val` has pixels) and used again. The server runs in a process of its own; it is asked over HTTP with its token,
as the page asks it, medians of K rounds. "Cold" is the first answer of a server that was just started, files in the
page cache. Each question has other values in each round, so that no answer is a kept one, except where it says so.

The plain way of each question is what one writes without the review: the leaf columns read with pyarrow, a filter, a
top k or a group_by (for one sample, a scan with statistics; for a cell, its JSON parsed); for pixels, the row group
read and the JPEG and mask decoded with OpenCV, without drawing a thumbnail. Both run side by side in one run on the
same files, on as many cores as the machine gives them. The plain way keeps nothing between two questions, so the ratio
says what holding coded columns is worth, not that Arrow is slow.

Goals: overview 0.2 s, first screen after a cold start 3 s, a histogram, a filter or a page of 60 sorted by any number
1 s, a page of 60 thumbnails with masks 2 s, near duplicates of a million frames 5 s, two versions compared 5 s,
memory of the server 1 GB.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from benchmarks import review_release
from manifests.diff import compare
from manifests.schema import manifest_schema
from review.structure import near_duplicates

GOAL_MB = 1000
SERVER = "import sys; from pathlib import Path; from review.server import serve; serve(Path(sys.argv[1]), say=print)"
WARM_SECONDS = 300.0
TILES = 60
TILE = [
    "sample_id", "width", "height", "decision", "split", "verdict", "decision_reasons", "label_source", "media_kind",
    "label_confidence", "student_iou", "shard",
]  # fmt: skip
BROWSER = 6
"""Connections that a browser opens to one server."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One measured question.

    Attributes:
        what: was asked.
        seconds: of our answer, median.
        goal: seconds; None where there is none.
        plain: seconds of the plain way; None where there is none.
    """

    what: str
    seconds: float
    goal: float | None = None
    plain: float | None = None


class Client:
    """Asks the server, one connection at a time, as the page does."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname, parts.port
        self._headers = {"X-Curate-Token": parts.fragment.removeprefix("token=")}

    def get(self, path: str) -> bytes:
        """The body of a good answer."""
        connection = http.client.HTTPConnection(self._host or "", self._port, timeout=600)
        try:
            connection.request("GET", path, headers=self._headers)
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise RuntimeError(f"{path} answered {response.status}: {data[:300]!r}")
        return data

    def json(self, path: str) -> Any:
        """The JSON of a good answer."""
        return json.loads(self.get(path))

    def page(self, value: dict[str, Any], limit: int = TILES) -> Any:
        """A page of the grid."""
        return self.json(f"/api/page?filter={quote(json.dumps(value))}&offset=0&limit={limit}")

    def until_warm(self) -> float:
        """Seconds until the columns have been read."""
        start = time.perf_counter()
        while self.json("/api/overview")["loading"]:
            if time.perf_counter() - start > WARM_SECONDS:
                raise RuntimeError(f"the columns were not read within {WARM_SECONDS} s")
            time.sleep(0.05)
        return time.perf_counter() - start


@contextmanager
def server(folder: Path) -> Iterator[tuple[Client, int, float]]:
    """A server in a process of its own: how to ask it, its process, and the seconds until it gave its address."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-u", "-c", SERVER, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise RuntimeError("the server did not start")
        client = Client(url)
        client.json("/api/session")
        yield client, process.pid, time.perf_counter() - start
    finally:
        process.terminate()
        process.wait()


def memory_mb(pid: int) -> tuple[float, float]:
    """Resident memory of a process now, and its peak, in MB; NaN where the system does not tell."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return float("nan"), float("nan")
    told = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return int(told["VmRSS"]) / 1024, int(told["VmHWM"]) / 1024


def timed(ask: Callable[[int], object], rounds: int) -> float:
    """Median seconds of `ask(round)`."""
    taken = []
    for number in range(rounds):
        start = time.perf_counter()
        ask(number)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


class Plain:
    """The same questions asked of the files directly, the leaf columns alone, nothing kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths = [str(path) for path in sorted(folder.glob("[md]*/*.parquet"))]
        self._data = ds.dataset(self._paths, schema=manifest_schema(review_release.ATTRIBUTES))

    def _read(self, columns: list[str], attributes: list[str] | None = None) -> pa.Table:
        """Columns, and the values of attributes under their own names."""
        names = attributes or []
        leaves = [*columns, *(f"attr.{name}.value" for name in names)]
        table = pa.concat_tables([pq.ParquetFile(path).read(columns=leaves) for path in self._paths])
        for name in names:
            table = table.append_column(name, pc.struct_field(table.column("attr"), [name, "value"]))
        return table.drop_columns(["attr"]) if names else table

    def page(self, where: ds.Expression | None, sort: str | None, attribute: str | None = None) -> pa.Table:
        """The first page of 60, sorted; with the columns that a tile shows."""
        more = [] if sort in (None, "q", *TILE) else [str(sort)]
        table = self._read([*TILE, "judge.q", *more], [] if attribute is None else [attribute])
        table = table.append_column("q", pc.struct_field(table.column("judge"), ["q"]))
        if where is not None:
            table = table.filter(where)
        if sort is None:
            return table.slice(0, TILES)
        return table.take(pc.select_k_unstable(table, TILES, sort_keys=[(sort, "ascending")]))

    def histogram(self, column: str, by: str | None) -> object:
        """Forty bins of a column, for each value of an attribute."""
        table = self._read([column], [] if by is None else [by])
        place = pc.floor(pc.multiply(table.column(column), 40.0))
        table = table.append_column("place", place).drop_columns([column])
        return table.group_by(table.column_names).aggregate([([], "count_all")])

    def bias(self, names: list[str]) -> object:
        """Value by decision of some attributes."""
        table = self._read(["decision"], names)
        return [table.group_by([name, "decision"]).aggregate([([], "count_all")]) for name in names]

    def sample(self, sample_id: str) -> object:
        """One row, found by the statistics of its row group."""
        return self._data.to_table(filter=ds.field("sample_id") == sample_id).to_pylist()[0]

    def clusters(self) -> object:
        """Coarse cluster by decision and split."""
        table = self._read(["cluster_path", "decision", "split"])
        coarse = pc.list_element(table.column("cluster_path"), 0)
        table = table.append_column("coarse", coarse).drop_columns(["cluster_path"])
        return table.group_by(["coarse", "decision", "split"]).aggregate([([], "count_all")])

    def cell(self, before: int, value: str) -> pa.Table:
        """The first page of a cell: every cell parsed."""
        table = self._read(["quota_cell", *TILE])
        found = [json.loads(cell)[before] == value for cell in table.column("quota_cell").to_pylist()]
        return table.filter(pa.array(found)).slice(0, TILES)

    def pixels(self, tiles: list[tuple[int, int]]) -> None:
        """Image and mask of some (shard, row), decoded."""
        for shard, row in tiles:
            path = next((self._folder / "shards" / "val").glob(f"{shard:05d}-of-*.parquet"))
            file = pq.ParquetFile(path, page_checksum_verification=True)
            table = file.read_row_group(row // 64, columns=["image", "mask"]).slice(row % 64, 1).to_pylist()[0]
            cv2.imdecode(np.frombuffer(table["image"]["bytes"], np.uint8), cv2.IMREAD_COLOR)
            cv2.imdecode(np.frombuffer(table["mask"]["bytes"], np.uint8), cv2.IMREAD_GRAYSCALE)


def questions(client: Client, plain: Plain, rounds: int) -> Iterator[Line]:
    """The screens that ask the tables."""
    names = list(review_release.ATTRIBUTES)
    yield Line(what="overview", seconds=timed(lambda _: client.json("/api/overview"), rounds), goal=0.2)
    yield Line(what="coverage (kept answer)", seconds=timed(lambda _: client.json("/api/coverage"), rounds), goal=1)
    yield Line(
        what="filter bias of one attribute",
        seconds=timed(lambda n: client.json(f"/api/bias?attribute={names[n]}"), rounds),
        goal=1,
        plain=timed(lambda n: plain.bias([names[n]]), rounds),
    )
    yield Line(
        what="filter bias of 20 attributes",
        seconds=timed(lambda _: client.json("/api/bias"), 1),
        plain=timed(lambda _: plain.bias(names), 1),
    )
    yield Line(
        what="clusters",
        seconds=timed(lambda _: client.json("/api/clusters"), rounds),
        goal=1,
        plain=timed(lambda _: plain.clusters(), rounds),
    )
    yield from histograms(client, plain, names, rounds)
    yield from pages(client, plain, rounds)
    ids = [tile["id"] for tile in client.page({"decision": ["keep"]}, rounds)["samples"]]
    yield Line(
        what="one sample",
        seconds=timed(lambda n: client.json(f"/api/sample/{ids[n]}"), rounds),
        goal=1,
        plain=timed(lambda n: plain.sample(ids[n]), rounds),
    )


def histograms(client: Client, plain: Plain, names: list[str], rounds: int) -> Iterator[Line]:
    """Forty bins, of all rows, of slices, of a filter."""
    shares = ["label_confidence", "boundary_uncertainty", "student_iou", "student_boundary_iou"]
    yield Line(
        what="histogram of a number",
        seconds=timed(lambda n: client.json(f"/api/histogram?column={shares[n % 4]}"), rounds),
        goal=1,
        plain=timed(lambda n: plain.histogram(shares[n % 4], None), rounds),
    )
    yield Line(
        what="histogram by an attribute",
        seconds=timed(lambda n: client.json(f"/api/histogram?column=student_iou&by={names[n]}"), rounds),
        goal=1,
        plain=timed(lambda n: plain.histogram("student_iou", names[n]), rounds),
    )


def pages(client: Client, plain: Plain, rounds: int) -> Iterator[Line]:
    """The first 60 of a filter, of an order, and of both."""
    numbers = ["student_iou", "label_confidence", "boundary_uncertainty", "cluster_distance", "student_boundary_iou"]
    names = list(review_release.ATTRIBUTES)
    yield Line(
        what="first page of a filter of an attribute",
        seconds=timed(lambda n: client.page({"attr": {names[n]: ["class_1"]}, "decision": ["hold"]}), rounds),
        goal=1,
        plain=timed(
            lambda n: plain.page((pc.field(names[n]) == "class_1") & (pc.field("decision") == "hold"), None, names[n]),
            rounds,
        ),
    )
    yield Line(
        what="first page of all, sorted by a number",
        seconds=timed(lambda n: client.page({"sort": numbers[n % 5], "descending": n >= 5}), rounds),
        goal=1,
        plain=timed(lambda n: plain.page(None, numbers[n % 5]), rounds),
    )
    yield Line(
        what="first page of a range, sorted by q",
        seconds=timed(lambda n: client.page({"range": {"student_iou": [n / 50, 0.5]}, "sort": "q"}), rounds),
        goal=1,
        plain=timed(
            lambda n: plain.page((pc.field("student_iou") >= n / 50) & (pc.field("student_iou") < 0.5), "q"),
            rounds,
        ),
    )
    yield Line(
        what="first page of a quota cell",
        seconds=timed(lambda n: client.page({"cell": f"{names[n % 8]}=class_1"}), rounds),
        goal=1,
        plain=timed(lambda n: plain.cell(3 + n % 8, "class_1"), 1),
    )


def pixels(client: Client, plain: Plain, rounds: int) -> Iterator[Line]:
    """A page of 60 tiles of `val`: thumbnail and mask each, over the connections of a browser."""
    pages = []
    for number in range(rounds):
        query = {"split": ["val"], "sort": "student_iou", "range": {"student_iou": [number / rounds, None]}}
        pages.append([tile["id"] for tile in client.page(query)["samples"]])

    def ask(number: int) -> None:
        urls = [f"/{kind}/{one}?side=256" for one in pages[number] for kind in ("thumb", "mask")]
        with ThreadPoolExecutor(BROWSER) as pool:
            list(pool.map(client.get, urls))

    places = [[_place(client, one) for one in ids] for ids in pages]
    yield Line(
        what=f"page of {TILES} with thumbnails and masks",
        seconds=timed(ask, rounds),
        goal=2,
        plain=timed(lambda number: plain.pixels(places[number]), rounds),
    )


def _place(client: Client, sample_id: str) -> tuple[int, int]:
    decision = client.json(f"/api/sample/{sample_id}")["decision"]
    return int(decision["shard"]), int(decision["shard_row"])


def beside(first: Path, second: Path, rows: int) -> Iterator[Line]:
    """What takes longest, in this process: near duplicates of frames of videos, and two versions compared."""
    rng = np.random.default_rng(3)
    video = rng.integers(0, 1 << 63, rows // review_release.VIDEO, np.uint64)
    hashes = np.repeat(video, review_release.VIDEO)
    for _ in range(12):  # frames of a video differ in some dozen bits
        hashes ^= np.uint64(1) << rng.integers(0, 64, len(hashes), np.uint64)
    copies = rng.integers(0, len(hashes), (2, rows // 1000))
    hashes[copies[0]] = hashes[copies[1]] ^ (np.uint64(1) << rng.integers(0, 64, rows // 1000, np.uint64))
    split = rng.choice(np.array([1, 2, 4], np.uint8), len(video), p=[0.9, 0.05, 0.05])
    near: list[int] = []
    seconds = timed(lambda _: near.append(near_duplicates(hashes, np.repeat(split, review_release.VIDEO))[1]), 1)
    yield Line(what=f"near duplicates across splits ({near[0]:,} pairs)", seconds=seconds, goal=5)
    yield Line(what="two versions compared", seconds=timed(lambda _: compare(first, second), 1), goal=5)


def report(lines: list[Line], console: Console) -> None:
    """Print the table."""
    table = Table(title="Seconds (median)")
    for heading in ("question", "ours", "goal", "", "plain way", "plain / ours"):
        table.add_column(heading, justify="left" if heading in ("question", "") else "right")
    for line in lines:
        table.add_row(
            line.what,
            f"{line.seconds:.3f}",
            "" if line.goal is None else f"{line.goal:g}",
            "" if line.goal is None else ("met" if line.seconds <= line.goal else "MISSED"),
            "" if line.plain is None else f"{line.plain:.3f}",
            "" if line.plain is None else f"{line.plain / line.seconds:.1f}",
        )
    console.print(table)


def main() -> None:
    """Write what is not there, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5, help="at most 20")
    parser.add_argument("--output", type=Path, default=Path("review_benchmark"))
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    if not 1 <= flags.rounds <= 20 or flags.rows < 10_000:
        parser.error(f"rounds must be in [1, 20] and rows >= 10,000, got {flags.rounds} and {flags.rows}")
    console = Console(width=120)
    first = review_release.write(flags.output, flags.rows)
    second = review_release.write(flags.output, flags.rows, 2, [review_release.fingerprint_of(first)])
    plain = Plain(first)
    lines = []
    with server(first) as (client, pid, started):
        lines.append(Line(what="server started, first answer", seconds=started))
        lines.append(Line(what="overview, cold", seconds=timed(lambda _: client.json("/api/overview"), 1), goal=0.2))
        cold = timed(lambda _: (client.json("/api/coverage"), client.page({"sort": "q"})), 1)
        lines.append(Line(what="coverage and first page sorted by q, cold", seconds=cold, goal=3))
        lines.append(Line(what="until all columns are read", seconds=client.until_warm()))
        lines += questions(client, plain, flags.rounds)
        lines += pixels(client, plain, flags.rounds)
        now, peak = memory_mb(pid)
    lines += beside(first, second, flags.rows)
    console.print(f"{flags.rows:,} rows, {len(review_release.ATTRIBUTES)} attributes, {os.cpu_count()} cores")
    report(lines, console)
    console.print(f"memory of the server: {now:,.0f} MB, peak {peak:,.0f} MB (goal {GOAL_MB:,} MB)")
    if flags.json:
        found = [{name: getattr(line, name) for name in Line.__slots__} for line in lines]
        flags.json.write_text(json.dumps({"rows": flags.rows, "lines": found, "rss_mb": now, "peak_mb": peak}))


if __name__ == "__main__":
    main()
