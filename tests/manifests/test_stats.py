import pyarrow as pa

from manifests.stats import rows_by_class, statistics

NAMES = ["light", "pose"]


def test_statistics_of_a_table_are_counts_of_its_rows() -> None:
    attr = pa.struct([pa.field(name, pa.struct([pa.field("value", pa.string())])) for name in NAMES])
    rows = [
        {
            "decision": decision,
            "verdict": decision,
            "split": "train",
            "source_uri": source,
            "attr": {name: {"value": value} for name in NAMES},
        }
        for decision, source, value in (("keep", "a", "x"), ("keep", "a", None), ("drop", "b", "x"))
    ]
    schema = pa.schema([*((n, pa.string()) for n in ("decision", "verdict", "split", "source_uri")), ("attr", attr)])
    found = statistics(pa.Table.from_pylist(rows, schema=schema), {"judged": 2}, ("pose",))
    assert found["decisions"] == found["verdicts"] == {"keep": 2, "drop": 1}
    assert (found["sources"], found["splits"], found["balanced"]) == (2, {"train": 3}, ["pose"])
    assert found["judge"] == {"judged": 2}
    values = {"x": {"keep": 1, "hold": 0, "drop": 1}, "unknown": {"keep": 1, "hold": 0, "drop": 0}}
    assert found["attributes"] == dict.fromkeys(NAMES, values)


def test_rows_of_a_cell_count_in_its_group_and_in_each_of_its_classes() -> None:
    cells = {'[0,1,2,"dark",null]': 3, '[0,4,5,"bright","sitting"]': 2, '[1,6,7,"dark","sitting"]': 1}
    assert rows_by_class(["light", "pose"], cells) == {
        "group=0": 5,
        "group=1": 1,
        "light=dark": 4,
        "light=bright": 2,
        "pose=unknown": 3,
        "pose=sitting": 3,
    }
