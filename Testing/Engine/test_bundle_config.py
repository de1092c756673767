"""Configs are data: references and a few expressions are computed, everything else is only named."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tcurlora.errors import InputError
from tcurlora.models.bundle_config import BundleConfig, StoredEntry, Unknown, first_unknown, read_config

CONTENT: dict[str, Any] = {
    "highres": True,
    "low": False,
    "nothing": None,
    "size": [96, 96, 96],
    "many": [0] * 3000,
    "labels": {"background": 0, "liver": 1},
    "display": {"overlap": 0.25, "inner": [{"deep": 7}]},
    "bundle_root": ".",
    "name": "model.pt",
    "first": [{"_target_": "A"}],
    "second": [{"_target_": "B"}],
    "code": "$torch.load(@bundle_root + '/models/code.pt', map_location=torch.device('cuda'))",
    "self": "@self",
    "one": "$@two + 1",
    "two": "$@one + 1",
    "evil": "$__import__('os').system('touch canary')",
}


def value_of(text: Any) -> Any:
    return BundleConfig(CONTENT, "x").resolve(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("@size", [96, 96, 96]),
        ("@display::overlap", 0.25),
        ("@display#inner#0#deep", 7),
        ("%display::overlap", 0.25),
        ("$@size", [96, 96, 96]),
        ("$@first + @second", [{"_target_": "A"}, {"_target_": "B"}]),
        ("$[1.5]*3 if @highres else [3]*3", [1.5, 1.5, 1.5]),
        ("$[1.5, 1.5, 1.5] if @low else [3.0, 3.0, 3.0]", [3.0, 3.0, 3.0]),
        ("$len(@labels) + 1", 3),
        ("$len(@size)", 3),
        ("$@bundle_root + '/models/' + @name", "./models/model.pt"),
        ("$'model.pt' if @display#overlap < 0.5 and not @low else 'other.pt'", "model.pt"),
        ("$None", None),
        ("$@nothing", None),
        ("$True", True),
        ("$-(2 + 3) * 4 / 5 // 1", -4.0),
        ("$@size[0]", 96),
        ("$@labels['liver']", 1),
        ("$(1, 2)", [1, 2]),
        ("$monai.utils.CommonKeys.IMAGE", "image"),
        ("$np.float32", "float32"),
        ("$np.array([[0, 1], [1, 0]])", [[0, 1], [1, 0]]),
        ("$@code['a']", StoredEntry("./models/code.pt", "a")),
        ("$torch.from_numpy(@code['b'])", StoredEntry("./models/code.pt", "b")),
        ({"a": ["@name", {"b": "$1 + 1"}]}, {"a": ["model.pt", {"b": 2}]}),
        ("just a text with @name in it", "just a text with @name in it"),
        ("", ""),
    ],
)
def test_what_describes_a_model_is_computed(text: Any, value: Any) -> None:
    assert value_of(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "@self",
        "@one",
        "@nowhere",
        "@size::9",
        "%other.json::x",
        "%../../secret.json",
        "@evil",
        "$@evil",
        "$[@evil]",
        "$__import__('os').system('touch canary')",
        "$open('canary', 'w')",
        "$eval('1')",
        "$(lambda: 1)()",
        "$[x for x in [1]]",
        "$().__class__.__mro__",
        "$@size.__class__",
        "$'%s' % 'x'",
        "$f'{1}'",
        "$2 ** 99999999",
        "$[0] * 10000000000",
        "$'a' * 10000000000",
        "$[[0] * 4000] * 4000",
        "$[@many, @many]",
        "$1 << 100000",
        "$1 / 0",
        "$[][0]",
        "$len(5)",
        "$len(@size, 1)",
        "$int('9' * 5)",
        "$x",
        "$os.path",
        "$torch.load(@size)",
        "$torch.load('x', pickle_module=y)",
        "$@size + 1",
        "$1 +",
        "$" + "(" * 500 + ")" * 500,
        "$" + "1+" * 3000 + "1",
        "$\0",
        "$1 if @evil else 2",
        "$b'x'",
        "$1j",
        "$...",
    ],
)
def test_what_is_not_known_is_named_and_not_executed(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = first_unknown(value_of(text))
    assert isinstance(found, Unknown) and found.why
    assert not list(tmp_path.iterdir())


def test_only_the_branch_that_is_taken_is_computed() -> None:
    assert value_of("$@size if @highres else @evil") == [96, 96, 96]


def test_references_without_an_end_are_refused_in_no_time() -> None:
    content: dict[str, Any] = {"a0": [1] * 10}
    content |= {f"a{n}": [f"@a{n - 1}"] * 10 for n in range(1, 15)}
    start = time.monotonic()
    with pytest.raises(InputError):
        BundleConfig(content, "x").get("a14")
    nested: Any = "x"
    for _ in range(200):
        nested = [nested]
    with pytest.raises(InputError):
        BundleConfig({"a": nested}, "x").get("a")
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    "text",
    [
        "a: &x [1, 2]\nb: *x\n",
        "a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
        "a: !!python/object/apply:os.system ['touch canary']\n",
        "a: !!python/name:os.system\n",
        "a: [",
        "- 1\n- 2\n",
        "",
        "a: " + "[" * 5000,
        "? [1, 2]\n: 3\n",
    ],
)
def test_yaml_that_is_more_than_data_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bundle" / "configs" / "inference.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_config(path)
    assert caught.value.code == "bad_bundle" and "inference.yaml" in caught.value.message
    assert not (tmp_path / "canary").exists()


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    path = tmp_path / "bundle" / "configs" / "inference.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("labels:\n  0: background\n  1: Leber ü\nsize: [1, 2.5]\non: true\n", encoding="utf-8")
    expected = {"labels": {"0": "background", "1": "Leber ü"}, "size": [1, 2.5], "True": True}
    assert read_config(path) == expected
    path.with_suffix(".json").write_text(json.dumps(expected), encoding="utf-8")
    assert read_config(path.with_suffix(".json")) == expected


def test_a_config_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "bundle" / "configs" / "inference.json"
    path.parent.mkdir(parents=True)
    path.write_text('"' + "x" * 2**23 + '"', encoding="utf-8")
    with pytest.raises(InputError):
        read_config(path)
