import json

import pytest

from evaluation.taxonomy import Category, Taxonomy, default_taxonomy, nearest, parse_taxonomy


def test_the_product_compares_43_categories_of_151_classes_8_of_them_sensitive() -> None:
    categories = default_taxonomy().categories
    assert len(categories) == 43
    assert sum(len(category.classes) for category in categories) == 151
    assert sum(category.sensitive for category in categories) == 8
    assert not any(category.open for category in categories)


def test_what_is_computed_by_the_pipeline_has_the_classes_of_the_taxonomy() -> None:
    from pipeline.attributes import COMPUTED

    ours = {category.name: set(category.classes) for category in default_taxonomy().categories}
    shared = set(COMPUTED) & set(ours)
    assert shared >= {"aspect_ratio", "background_complexity", "lighting_level", "resolution", "sharpness"}
    for name in shared:
        assert set(COMPUTED[name]) == ours[name], name


def test_a_taxonomy_written_as_json_is_read_as_it_was() -> None:
    mine = Taxonomy(
        categories=(
            Category(name="team", level="subject", open=True, note="of the company"),
            Category(name="shirt", classes=("red", "blue"), sensitive=True, obtained="computed"),
        )
    )
    rows = [{name: getattr(category, name) for name in Category.__slots__} for category in mine.categories]
    assert parse_taxonomy(json.dumps(rows)) == mine


def test_an_unknown_class_is_refused_with_its_video_and_the_nearest_class() -> None:
    tone = default_taxonomy().category("apparent_skin_tone")
    with pytest.raises(ValueError, match=r"apparent_skin_tone of video 'b' is 'drak', .* nearest is 'dark'"):
        tone.observed({"a": "light", "b": "drak"})
    assert tone.observed({"a": None, "b": "unknown"}) == ("light", "medium", "dark")


def test_an_open_category_takes_other_classes_behind_its_own() -> None:
    team = Category(name="team", classes=("red",), open=True)
    assert team.observed({"a": "zebra", "b": "ant", "c": None, "d": "red"}) == ("red", "ant", "zebra")


def test_an_unknown_category_is_refused_with_the_nearest_name_and_the_way_to_add_it() -> None:
    with pytest.raises(ValueError, match=r"no category 'lighting'; .* 'lighting_\w+'.*extended"):
        default_taxonomy().category("lighting")
    added = default_taxonomy().extended(Category(name="lighting", open=True))
    assert added.category("lighting").open
    with pytest.raises(ValueError, match="more than one category 'headwear'"):
        default_taxonomy().extended(Category(name="headwear", open=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ("{}", "must be a JSON list"),
        ("[1]", "must be an object with a name"),
        ('[{"name": "a", "clases": []}]', "no field 'clases'; the nearest is 'classes'"),
        ('[{"name": "a", "classes": "b"}]', "must be a list of strings"),
        ('[{"name": "a", "classes": ["b"], "sensitive": 1}]', "'sensitive' of category 'a' must be bool"),
        ('[{"name": 3}]', "'name' of category 3 must be str"),
        ('[{"name": "a b", "open": true}]', "letters, digits and underscores"),
        ('[{"name": "a"}]', "a has no classes"),
        ('[{"name": "a", "classes": ["b", "b"]}]', "distinct"),
        ('[{"name": "a", "classes": ["unknown"]}]', "must not list 'unknown'"),
        ('[{"name": "a", "open": true, "level": "frame"}]', "a.level must be one of"),
        ('[{"name": "a", "open": true, "obtained": "guessed"}]', "a.obtained must be one of"),
    ],
)
def test_a_bad_taxonomy_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_taxonomy(text)


def test_nearest_is_empty_only_where_nothing_is_known() -> None:
    assert nearest("x", []) == ""
    assert nearest("zzz", ["a"]) == "a"
