"""Laws of published human masks: as they were drawn, with what was left out, and the teacher's mask beside them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from manifests.mask import decode_mask, encode_mask, mask_sha256
from pipeline.audited import AUDITED
from pipeline.errors import StageError
from pipeline.publish import human_mask, publish_plan
from pipeline.stage import iter_tables
from tests.pipeline.test_label import MOST, rows_of
from tests.pipeline.test_publish import DECISION, VERDICT_NAMES, Published, by_row, draw_published


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return draw_published(tmp_path_factory.mktemp("human") / "drawn")


def audited_table(made: Published, used: bool = True) -> tuple[pa.Table, dict[int, np.ndarray[Any, Any]]]:
    """Human masks of the first two kept rows, one of them with pixels to ignore and one that is the teacher's."""
    labels = rows_of(made.label)
    first, second = [row for row in range(len(labels)) if DECISION[VERDICT_NAMES[row % 5]] == "keep"][:2]
    teacher = decode_mask(labels[first]["mask"], MOST)
    masks = {first: ~teacher, second: decode_mask(labels[second]["mask"], MOST)}
    rows = [
        {"row": row, "sample_id": str(row), "used": used, "mask": encode_mask(mask), **FOUND}
        | {"ignore": encode_mask(teacher) if row == first else None}
        for row, mask in masks.items()
    ]
    return pa.Table.from_pylist(rows, schema=AUDITED), masks


FOUND = {"sampled": True, "contradicted": False, "bad": True, "iou": 0.0, "miss": 0.0, "extra": 0.0}


def test_what_a_person_drew_is_published_with_what_they_left_out_and_the_teachers_mask_beside_it(
    made: Published,
) -> None:
    table, masks = audited_table(made)
    labels = pa.concat_tables(iter_tables(made.label.uris()))
    plan, shards = publish_plan(made.drawn.chosen, labels, made.verdicts, made.config, 2, table)
    assert shards == made.shards
    before, found = by_row(made.run("publish")), by_row(replace(made, plan=plan).run("audited"))
    for row, sample in found.items():
        if row not in masks:
            assert sample == before[row]
            continue
        teacher = decode_mask(labels.column("mask")[row].as_py(), MOST)
        np.testing.assert_array_equal(decode_mask(sample["mask"]["bytes"], MOST), masks[row])
        assert sample["mask_sha256"] == mask_sha256(masks[row])
        assert (sample["label_source"], sample["label_confidence"]) == ("human", None)
        alike = np.array_equal(teacher, masks[row])
        assert (sample["teacher_mask"] is None) == alike == (sample["ignore"] is None)
        if not alike:
            for name in ("teacher_mask", "ignore"):
                np.testing.assert_array_equal(decode_mask(sample[name]["bytes"], MOST), teacher)
    assert set(masks) <= set(found)


def test_a_human_mask_that_is_not_used_or_of_another_size_is_not_published(made: Published) -> None:
    labels = pa.concat_tables(iter_tables(made.label.uris()))
    unused, _ = audited_table(made, used=False)
    plan, _ = publish_plan(made.drawn.chosen, labels, made.verdicts, made.config, 2, unused)
    assert plan.equals(made.plan)
    with pytest.raises(StageError, match=r"a human mask has shape \(3, 4\), its frame \(4, 3\); remove the audit"):
        human_mask(encode_mask(np.zeros((3, 4), np.bool_)), None, 4, 3)
