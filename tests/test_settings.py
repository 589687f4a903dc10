"""What the text of a setting means."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dopr_robot.errors import UnknownNameError, UserError
from dopr_robot.settings import Word, is_setting, parse_words, plain, read_yaml, to_yaml, typed, unknown_key


@dataclass
class Part:
    width: int = 1
    label: str = "a"


@dataclass
class Options:
    path: str | None = None
    name: str = "n"
    rate: float = 1.0
    count: int = 1
    flag: bool = False
    keys: list[str] | None = None
    scales: list[float] = field(default_factory=list)
    either: int | str = 0
    part: Part = field(default_factory=Part)
    table: dict[str, int] = field(default_factory=dict)


def read(text: str, path: Path) -> dict:
    path.write_text(text, encoding="utf-8")
    return read_yaml(path, "configuration", ["a"])


TEXTS = [
    "2024_11_06",
    "lr=3/a.zarr",
    "my data (1)",
    "a,b",
    "~/s.zarr",
    "数据/x",
    "[x]",
    "{x}",
    "a: b #c",
    "007",
    "1e3",
    "yes",
    "'",
    "${oc.env:HOME}",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_taken_as_it_stands(text):
    assert typed(Options, parse_words([f"path={text}"])).path == text


@pytest.mark.parametrize(
    "text", ["2024_11_06", "007", "1e3", "yes", "0x1f", "数据", "lr=3", "12:30", "2024-01-01", "1_000"]
)
def test_text_of_a_file_is_taken_as_it_stands(text, tmp_path):
    assert typed(Options, read(f"path: {text}\nname: '{text}'", tmp_path / "a.yaml")) == Options(path=text, name=text)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("path=null", None), ("path='null'", "null"), ('path="a b"', "a b"), ("rate=1", 1.0), ("rate=1e-3", 1e-3), ("rate=-.5E+2", -50.0),
        ("count=1e4", 10_000), ("count=0x10", 16), ("flag=true", True), ("keys=[a, 01]", ["a", "01"]), ("keys=null", None),
        ("scales=[1, 1e-2]", [1.0, 0.01]), ("either=5", 5), ("either=auto", "auto"), ("part={width: 3}", Part(3)),
        ("table={a: 1}", {"a": 1}), ("rate=.inf", math.inf),
    ],
)  # fmt: skip
def test_a_value_is_of_its_fields_type(word, value):
    found = getattr(typed(Options, parse_words([word])), word.split("=")[0])
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("count=1.5", "o.count=1.5: a whole number"),
        ("count=true", "o.count=true: a whole number"),
        ("count=null", "o.count=null: a whole number"),
        ("rate=yes", "o.rate=yes: a number"),
        ("rate=1_0", "o.rate=1_0: a number"),
        ("flag=yes", "o.flag=yes: true or false"),
        ("flag=1", "o.flag=1: true or false"),
        ("keys=a", r"o.keys=a: a list \[a, b\]"),
        ("keys=[a", "is not YAML"),
        ("part={widht: 3}", "unknown key in o.part 'widht': did you mean 'width'"),
        ("part=3", "a mapping"),
        ("table={a:1}", "wants a space after the colon"),
        ("rat=1", "did you mean 'rate'"),
    ],
)
def test_another_type_is_refused_in_one_line(word, message):
    with pytest.raises(UserError, match=message) as caught:
        typed(Options, parse_words([word]), "o")
    assert "\n" not in str(caught.value)


def test_what_has_no_default_has_to_be_given():
    @dataclass
    class Needs:
        size: int

    with pytest.raises(UserError, match="size has to be given"):
        typed(Needs, {}, "o")


def test_numbers_of_yaml_1_2_and_not_of_1_1(tmp_path):
    text = "a: [1e-3, 1e3, 0o17, 017, 1_000, 12:30, yes, on, ~, null, .5, .nan, 2024-01-01]"
    *numbers, nan, date = plain(read(text, tmp_path / "a.yaml"))["a"]
    assert numbers == [1e-3, 1e3, 15, 17, "1_000", "12:30", "yes", "on", None, None, 0.5]
    assert math.isnan(nan) and date == "2024-01-01"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8", exclude_categories=["C"]))
    | st.from_regex(r"\A[-+]?[0-9._]{1,5}([eExo][-+]?[0-9]{1,3})?\Z"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc1e", min_size=1), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(values)
def test_what_is_written_is_read_back_by_both_versions_of_yaml(value):
    from dopr_robot.settings import _load

    assert plain(_load(to_yaml({"a": value}))) == {"a": value} == yaml.safe_load(to_yaml({"a": value}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "'a' stands there twice"),
        ("[1, 2]", "no configuration: a mapping with a"),
        ("a: !!python/object/apply:os.system [true]", "is not YAML"),
        ("a: !!binary aGVsbG8=", "is not YAML"),
        ("a: &a [*a]", "is not YAML"),
        ("a: [", "is not YAML"),
        ("[" * 5000, "is not YAML"),
        ("? [a]\n: 1", "a key has to be a single value"),
        ("a0: &a0 [1]\n" + "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(9)), "more than 100000 values"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_mapping_of_values_is_refused_in_one_line(text, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        read(text, tmp_path / "a.yaml")
    assert "\n" not in str(caught.value)


def test_a_file_that_can_not_be_read_is_named(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("a: é".encode("latin-1"))
    for name, message in (("latin.yaml", "is not YAML"), ("none.yaml", "does not exist"), ("", "can not be read")):
        with pytest.raises(UserError, match=message):
            read_yaml(tmp_path / name, "configuration", ["a"])


def test_merge_keys_and_anchors_are_followed(tmp_path):
    assert plain(read("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}", tmp_path / "a.yaml"))["b"] == {"x": 1, "y": 3}


def test_what_a_setting_looks_like():
    assert all(map(is_setting, ["a=", "data.store=lr=3/x.yaml", "policy.encoder.embed={task: 1}"]))
    assert not any(map(is_setting, ["pick_place", "./lr=3/c.yaml", "runs/lr=3/c.yaml", "+a=1", "=1", "a b=1"]))
    with pytest.raises(UserError, match=r"'~a=1' is not of the form key=value"):
        parse_words(["~a=1"])
    assert plain(parse_words(["a=1", "a=2"])["a"]) == 2 and plain(Word("")) is None
    with pytest.raises(UnknownNameError):
        typed(Options, {"pth": "x"})


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("policy.dmi", "unknown config key 'policy.dmi': did you mean 'policy.dim'? (known: policy.dim, policy.name)"),
        ("policy.zzz", "unknown config key 'policy.zzz' (known: policy.dim, policy.name)"),
        ("traning.steps", "unknown config key 'traning.steps': did you mean 'training.steps'? (known: training.steps)"),
        (
            "polcy",
            "unknown config key 'polcy': did you mean 'policy'? (known: policy, policy.dim, policy.name, training.steps)",
        ),
    ],
)
def test_an_unknown_key_names_those_like_it_or_beside_it_once(key, message):
    assert str(unknown_key(key, ["policy", "policy", "policy.name", "policy.dim", "training.steps"])) == message
