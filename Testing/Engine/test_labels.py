"""Structures are matched by name, never by number; every wrong mapping is refused with the reason."""

from __future__ import annotations

import unicodedata

import pytest

from tcurlora.errors import InputError
from tcurlora.imaging.structure_matching import match_structures, parse_mapping
from tcurlora.imaging.structures import Structure, normalized, parse_labels, require_distinct
from tcurlora.method.channels import Channel, channel_groups, plan_channels

BASE = ("anterior hippocampus", "posterior hippocampus")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Anterior_Hippocampus", "anterior hippocampus"),
        ("  Left   Amygdala ", "left-amygdala"),
        ("STRASSE", "straße"),
        ("Müller-Linie", unicodedata.normalize("NFD", "müller_linie")),
        ("海馬 左", "海馬_左"),
    ],
)
def test_names_that_are_the_same(one: str, other: str) -> None:
    assert normalized(one) == normalized(other)
    assert normalized(one) != ""


@pytest.mark.parametrize(("one", "other"), [("CA1", "CA2"), ("left amygdala", "amygdala left"), ("海馬", "扁桃体")])
def test_names_that_differ(one: str, other: str) -> None:
    assert normalized(one) != normalized(other)


def test_equal_names_match_whatever_their_spelling() -> None:
    assert match_structures(["Posterior_Hippocampus"], BASE) == {"Posterior_Hippocampus": ["posterior hippocampus"]}


def test_an_accent_splits_no_word() -> None:
    assert normalized(unicodedata.normalize("NFD", "Größe_Übersicht")) == "grösse übersicht"


def test_an_equal_name_goes_before_containment() -> None:
    base = ["hippocampus", "left hippocampus", "right hippocampus"]
    assert match_structures(["Hippocampus"], base) == {"Hippocampus": ["hippocampus"]}


def test_a_whole_consists_of_the_parts_of_the_base() -> None:
    assert match_structures(["hippocampus"], [*BASE, "amygdala"]) == {"hippocampus": list(BASE)}


def test_parts_start_from_the_whole_of_the_base() -> None:
    site = ["anterior hippocampus", "hippocampus posterior"]
    assert match_structures(site, ["hippocampus", "amygdala"]) == {name: ["hippocampus"] for name in site}


def test_words_may_stand_in_another_order() -> None:
    assert match_structures(["Hippocampus, posterior"], BASE) == {"Hippocampus, posterior": ["posterior hippocampus"]}


@pytest.mark.parametrize("name", ["left hippocampus", "Hippocampus_R", "rh-Hippocampus"])
def test_sides_are_passed_over_where_the_base_names_none(name: str) -> None:
    assert match_structures([name], [*BASE, "amygdala"]) == {name: list(BASE)}
    assert match_structures([f"{name} posterior"], BASE) == {f"{name} posterior": ["posterior hippocampus"]}


def test_a_side_is_never_taken_for_the_other_one() -> None:
    base = ["left hippocampus", "left amygdala"]
    assert match_structures(["right hippocampus", "left"], base) == {"right hippocampus": [], "left": base}
    assert match_structures(["left"], BASE) == {"left": []}


def test_two_candidates_for_a_part_leave_it_new() -> None:
    assert match_structures(["left hippocampus head"], ["hippocampus", "left"]) == {"left hippocampus head": []}


def test_only_whole_words_are_contained() -> None:
    assert match_structures(["campus", "hippo"], BASE) == {"campus": [], "hippo": []}


@pytest.mark.parametrize("name", ["++", "?"])
def test_a_name_without_words_matches_nothing(name: str) -> None:
    assert match_structures([name], BASE) == {name: []}
    assert match_structures(["hippocampus"], [name]) == {"hippocampus": []}


def test_the_explicit_mapping_decides_first() -> None:
    matched = match_structures(
        ["hippocampus", "thalamus", "Amygdala"],
        [*BASE, "amygdala"],
        {"Hippocampus": ["POSTERIOR_hippocampus"], "amygdala": ["new"], "thalamus": ["amygdala"]},
    )
    assert matched == {"hippocampus": ["posterior hippocampus"], "thalamus": ["amygdala"], "Amygdala": []}
    assert list(matched) == ["hippocampus", "thalamus", "Amygdala"]


def test_an_explicit_union() -> None:
    assert match_structures(["a"], ["x", "y", "z"], {"a": ["z", "x"]}) == {"a": ["z", "x"]}


@pytest.mark.parametrize(
    ("explicit", "named"),
    [
        ({"thalamus": ["new"]}, "'thalamus'"),
        ({"hippocampus": ["hipocampus"]}, "'hipocampus'"),
        ({"hippocampus": ["anterior hippocampus", "tail"]}, "'tail'"),
        ({"hippocampus": ["new", "anterior hippocampus"]}, "'new'"),
        ({"hippocampus": ["background"]}, "'background'"),
    ],
)
def test_unknown_names_in_the_mapping_are_refused(explicit: dict[str, list[str]], named: str) -> None:
    with pytest.raises(InputError) as refusal:
        match_structures(["hippocampus"], BASE, explicit)
    assert named in refusal.value.message
    assert "hippocampus" in refusal.value.message
    assert refusal.value.remedy
    assert refusal.value.code == "unknown_structure"


def test_channels_of_equal_structures_are_those_of_the_base() -> None:
    channels = plan_channels({"B": ["b"], "A": ["a"]}, ["background", "a", "b"])
    assert channels == [Channel("background", 0), Channel("A", 1), Channel("B", 2)]


def test_channels_of_a_union_a_split_a_rest_and_a_new_structure() -> None:
    matched = {"hippocampus": list(BASE), "left": ["caudate"], "right": ["caudate"], "lesion": []}
    channels = plan_channels(matched, ["background", *BASE, "thalamus", "caudate"])
    assert channels == [
        Channel("background", 0),
        Channel("hippocampus", 1),
        Channel("hippocampus", 2),
        Channel("background", 3),
        Channel("left", 4),
        Channel("right", 4),
        Channel("lesion", None),
    ]
    groups = channel_groups([c.name for c in channels], ["hippocampus", "left", "right", "lesion"])
    assert groups == [[0, 3], [1, 2], [4], [5], [6]]


def test_groups_follow_the_order_of_the_names() -> None:
    assert channel_groups(["background", "a", "b"], ["b", "a"]) == [[0], [2], [1]]


def test_labels_are_read() -> None:
    assert parse_labels(" 1=hippocampus, 20 = Amygdala left ,3=海馬,") == [
        Structure("hippocampus", 1),
        Structure("Amygdala left", 20),
        Structure("海馬", 3),
    ]
    assert parse_labels("") == []


@pytest.mark.parametrize("entry", ["hippocampus", "1", "1=", "=a", "0=a", "-1=a", "1.5=a", "a=1", "²=a", "1:a"])
def test_wrong_labels_are_refused(entry: str) -> None:
    with pytest.raises(InputError, match="--labels") as refusal:
        parse_labels(f"7=fine,{entry}")
    assert f"'{entry}'" in refusal.value.message
    assert refusal.value.exit_code == 2


@pytest.mark.parametrize(("text", "word"), [("1=a,1=b", "label number"), ("1=left_ear,2=Left ear", "name")])
def test_labels_that_repeat_are_refused(text: str, word: str) -> None:
    with pytest.raises(InputError, match=f"repeats the {word}") as refusal:
        parse_labels(text)
    assert refusal.value.code == "duplicate_structure"


def test_distinct_structures_pass_and_the_second_of_two_equal_ones_is_named() -> None:
    require_distinct([Structure("a", 1), Structure("b", 2)], "here")
    with pytest.raises(InputError, match=r"here: 'B' \(label 3\)"):
        require_distinct([Structure("b", 2), Structure("B", 3)], "here")


def test_several_labels_may_be_background() -> None:
    assert parse_labels("2=background,3=Background") == [Structure("background", 2), Structure("Background", 3)]
    with pytest.raises(InputError, match="label number"):
        parse_labels("2=background,2=a")


def test_mappings_are_read() -> None:
    assert parse_mapping(["hippocampus = anterior hippocampus + posterior hippocampus", "amygdala=new"]) == {
        "hippocampus": list(BASE),
        "amygdala": ["new"],
    }
    assert parse_mapping(["CA1 (T=1.5)=new"]) == {"CA1 (T=1.5)": ["new"]}
    assert parse_mapping([]) == {}


@pytest.mark.parametrize("entry", ["", "hippocampus", "=new", "a=", "a=b+", "a=+b", " = "])
def test_wrong_mappings_are_refused(entry: str) -> None:
    with pytest.raises(InputError, match="--map") as refusal:
        parse_mapping(["fine=new", entry])
    assert f"'{entry}'" in refusal.value.message
    assert refusal.value.remedy


def test_a_structure_that_is_mapped_twice_is_refused() -> None:
    with pytest.raises(InputError, match="'Left_ear' twice"):
        parse_mapping(["left ear=a", "Left_ear=b"])


@pytest.mark.parametrize("structure", [Structure("a", 3), Structure("海馬", 2, (0.1, 0.5, 1.0), "a~b^c")])
def test_structures_are_read_back(structure: Structure) -> None:
    assert Structure.from_dict(structure.to_dict()) == structure
    assert None not in structure.to_dict().values()
