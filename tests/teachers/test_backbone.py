"""The size of a network's input follows Detectron2's rule."""

import json
from pathlib import Path

from teachers.backbone import network_size


def test_the_shorter_edge_is_resized_as_detectron2_does(goldens: Path) -> None:
    rows = json.loads((goldens / "student" / "detectron2_aspect.json").read_text())
    rows = rows["resize_shortest_edge_rows_h_w_short_max_newh_neww"]
    assert len(rows) == 300
    for height, width, short, longest, new_height, new_width in rows:
        assert network_size(height, width, shortest=short, longest=longest) == (new_height, new_width)
