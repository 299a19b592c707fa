import numpy as np
import pytest

from evaluation.groups import Grouping, Videos, crossings, groupings
from evaluation.taxonomy import Category, Taxonomy, default_taxonomy

TONES = ("light", "dark", None, "unknown", "dark")


def _videos(**changes: object) -> Videos:
    columns: dict[str, object] = {
        "names": ["a", "b", "c", "d", "e"],
        "scores": {"iou": [0.5, 0.6, 0.7, 0.8, 0.9]},
        "attributes": {"apparent_skin_tone": TONES, "lighting_level": ("dim", None, "dim", None, "bright")},
    }
    return Videos(**(columns | changes))  # type: ignore[arg-type]


def _group(grouping: Grouping) -> list[str]:
    return [grouping.classes[code] for code in grouping.codes]


def test_every_video_is_in_exactly_one_class_and_unknown_is_one_of_its_own() -> None:
    light, tone = sorted(groupings(_videos(), default_taxonomy()), key=lambda g: g.category, reverse=True)
    assert tone.category == "apparent_skin_tone"
    assert tone.classes == ("light", "medium", "dark", "unknown")
    assert tone.known == (True, True, True, False)
    assert _group(tone) == ["light", "dark", "unknown", "unknown", "dark"]
    assert _group(light) == ["dim", "unknown", "dim", "unknown", "bright"]


def test_a_crossing_has_all_pairs_of_known_classes_and_the_unknown_pairs_that_occur() -> None:
    found = groupings(_videos(), default_taxonomy())
    (cross,) = crossings(found, [("apparent_skin_tone", "lighting_level"), ("hair_texture", "lighting_level")])
    assert cross.category == "apparent_skin_tone x lighting_level"
    assert (cross.level, cross.sensitive) == ("video", True)
    assert sum(cross.known) == 9
    assert _group(cross) == ["light x dim", "dark x unknown", "unknown x dim", "unknown x unknown", "dark x bright"]
    assert set(np.array(cross.classes)[~np.array(cross.known)]) == {
        "dark x unknown",
        "unknown x dim",
        "unknown x unknown",
    }


def test_a_video_without_a_person_is_a_person_of_its_own() -> None:
    assert _videos().people().tolist() == [0, 1, 2, 3, 4]
    assert _videos(subjects=["s", None, "t", None, "s"]).people().tolist() == [0, 1, 2, 3, 0]


def test_a_person_of_two_skin_tones_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"subject 's': 'light' in video 'a', 'dark' in video 'b'; correct"):
        groupings(_videos(subjects=["s", "s", "s", "t", "t"]), default_taxonomy())


def test_a_person_may_be_seen_in_two_lights_and_be_known_in_one_video_only() -> None:
    found = groupings(_videos(subjects=["r", "s", "s", "t", "t"]), default_taxonomy())
    assert _group(found[0])[1:3] == ["dark", "unknown"]


def test_an_attribute_of_the_user_is_compared_when_it_is_added() -> None:
    videos = _videos(attributes={"team": ["x", "y", "x", None, "y"]})
    with pytest.raises(ValueError, match="no category 'team'"):
        groupings(videos, default_taxonomy())
    (team,) = groupings(videos, default_taxonomy().extended(Category(name="team", open=True)))
    assert team.classes == ("x", "y", "unknown")
    assert groupings(videos, Taxonomy(categories=(Category(name="team", classes=("y", "x")),)))[0].classes[0] == "y"


def test_scores_are_copied_and_cannot_be_written() -> None:
    mine = np.full(5, 0.5)
    videos = _videos(scores={"iou": mine})
    mine[0] = 7
    assert videos.scores["iou"][0] == 0.5
    with pytest.raises(ValueError, match="read-only"):
        videos.scores["iou"][0] = 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ["a", "b", "c", "d", "a"]}, "'a' twice"),
        ({"names": [], "scores": {"iou": []}, "attributes": {}}, "at least one video"),
        ({"scores": {}}, "at least one video and one metric"),
        ({"scores": {"iou": [0.5]}}, r"scores\['iou'\] must have a value for each of the 5 videos, got 1"),
        ({"scores": {"iou": np.zeros((5, 2))}}, r"must have shape \(5,\)"),
        ({"scores": {"iou": [0.5, 1.5, 0, 0, 0]}}, r"iou of video 'b' is 1.5, outside \[0.0, 1.0\]"),
        ({"scores": {"iou": [0.5, float("inf"), 0, 0, 0]}}, "is inf, outside"),
        ({"ranges": {"iou": (1.0, 1.0)}}, "low < high"),
        ({"ranges": {"f": (0.0, 1.0)}}, "no metric"),
        ({"subjects": ["s", "", "s", "s", "s"]}, "subjects must be non-empty text or None"),
        ({"attributes": {"apparent_gender": [1, 2, 3, 4, 5]}}, "must be non-empty text or None"),
        ({"attributes": {"apparent_gender": ["feminine"]}}, "must have a value for each of the 5 videos, got 1"),
    ],
)
def test_a_bad_column_is_refused_by_name(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _videos(**changes)


def test_a_metric_may_have_its_own_range() -> None:
    assert _videos(scores={"excess": [-1, 0, 0.5, 1, 0]}, ranges={"excess": (-1.0, 1.0)}).span("excess") == (-1.0, 1.0)
