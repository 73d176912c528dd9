"""Every key of the config, given what it should not have: one line that names the key, or a value that
its description allows."""

from __future__ import annotations

import copy
import math
from typing import Any, get_args

import pytest
import yaml

from atomloom.config import ModelConfig, dump_config, load_config, parse_config
from atomloom.config.base import Section
from atomloom.config.model import ELEMENT, TabularSection
from atomloom.config.root import Config
from atomloom.errors import AtomloomError
from atomloom.store.keys import canonical_json
from atomloom.structures.elements import SYMBOLS

MODELS = {cls.model_fields["name"].default: cls for cls in get_args(get_args(ModelConfig)[0])}
BASE: dict[str, Any] = {
    "dataset": {"name": "x", "source": "s", "target": "energy", "labels": {}},
    "teacher": {"calculator": "emt"},
    "training": {"batch": {}, "loader": {}, "potential": {}},
}
BAD = {
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "'nan'": "nan",
    "'inf'": "inf",
    "-1": -1,
    "0": 0,
    "1e30": 1e30,
    "1e-300": 1e-300,
    "10**12": 10**12,
    "10**400": 10**400,
    "true": True,
    "empty": "",
    "blank": "  ",
    "null character": "a\0b",
    "line break": "a\nb",
    "surrogate": "\ud800",
    "text": "no such thing",
    "long text": "a" * 10_000,
    "list": [],
    "list of nan": [math.nan],
    "list of empty": [""],
    "mapping": {},
    "mapping of nan": {"a": math.nan},
    "mapping by number": {1: 2},
    "mapping by element": {"Xx": 1},
    "null": None,
}


def _fields(model: type[Section], place: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Places of all keys of a section that hold no section themselves."""
    found = []
    for name, field in model.model_fields.items():
        inner = _sections(field.annotation)
        found += [place_ for cls in inner[:1] for place_ in _fields(cls, (*place, name))]
        if not inner:
            found.append((*place, name))
    return found


def _sections(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [cls for inner in get_args(annotation) for cls in _sections(inner)]


def _with(content: dict[str, Any], place: tuple[str, ...], value: object) -> dict[str, Any]:
    content = copy.deepcopy(content)
    section = content
    for part in place[:-1]:
        section = section.setdefault(part, {})
    section[place[-1]] = value
    return content


KEYS = [place for place in _fields(Config) if place[0] != "model"]
KEYS += [("model", model, name) for model, cls in MODELS.items() for name in cls.model_fields]


def _case(place: tuple[str, ...]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A whole config in which a key can be set, and its place there."""
    if place[0] == "published":
        error = {"target": "energy", "value": 1.0}
        return {**BASE, "published": {"source": "a paper", "errors": error}}, place
    if place[0] != "model":
        return BASE, place
    own = {"name": place[1], **({"species": ["Cu"]} if place[1] == "chebyshev" else {})}
    base = BASE
    if issubclass(MODELS[place[1]], TabularSection):
        base = {**BASE, "dataset": {**BASE["dataset"], "global_features": "temperature"}}
    return {**base, "model": own}, ("model", place[2])


@pytest.mark.parametrize("place", KEYS, ids=".".join)
def test_a_bad_value_is_one_line_that_names_its_key(place):
    base, place = _case(place)
    for name, value in BAD.items():
        try:
            config = parse_config(_with(base, place, value))
        except AtomloomError as error:
            said = str(error)
            assert "\n" not in said, name
            assert len(said) < 400, said
            assert ".".join(place) in said or f"{place[-1]}" in said, f"{name}: {said}"
            continue
        # What is taken can be named by keys, and written down and read again.
        canonical_json(config.model_dump(mode="json"))
        assert parse_config(yaml.safe_load(dump_config(config))) == config
        assert name not in ("nan", "inf", "-inf", "list of nan", "mapping of nan", "1e30"), name
        assert name not in ("null character", "surrogate", "10**400", "long text", "blank"), name


def _numeric(annotation: Any) -> bool:
    return annotation in (int, float) or any(map(_numeric, get_args(annotation)))


@pytest.mark.parametrize("place", KEYS, ids=".".join)
def test_every_number_has_bounds(place):
    """Whatever a key takes of huge and tiny numbers lies within bounds that its table states."""
    base, place = _case(place)
    for value in (1e13, 10**13, -(10**13), -1e-300):
        with pytest.raises(AtomloomError):
            parse_config(_with(base, place, value))


def test_the_pattern_of_elements_knows_them_all():
    assert [s for s in SYMBOLS[1:] if not ELEMENT.fullmatch(s)] == []
    assert not [s for s in ("X", "Xx", "J", "Na1", "na", "", "D") if ELEMENT.fullmatch(s)]


def _section(section: str, /, **content: Any) -> dict[str, Any]:
    return {**BASE, section: {**BASE.get(section, {}), **content}}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (_section("training", epochs=10**9), "training.epochs: .* 1000000, not 1000000000"),
        (_section("training", learning_rate=math.nan), "training.learning_rate: .*finite"),
        (
            _section("training", epochs=True),
            "training.epochs: .* not be true or false",
        ),
        (_section("split", ratios=[math.nan] * 3), "split.ratios.0: .*finite"),
        (
            _section("split", ratios=[80, 10, 10]),
            "split.ratios.0: .*less than or equal to 1, not 80",
        ),
        (_section("split", ratios=0.8), "split.ratios: Input should be a list, not 0.8"),
        ({**BASE, "graph": 5}, "graph: Input should be a mapping of keys, not 5"),
        (
            {**BASE, "model": {"name": "foo"}},
            "model.name: Input should be .*'painn'.* or `module:Class`, not 'foo'",
        ),
        (_section("dataset", source=[""]), "dataset.source: .*empty"),
        (_section("dataset", labels={"id_column": -1}), "dataset.labels.id_column: .*equal to 0"),
        (_section("dataset", chunks={"max": 100}), "max 100 is below the mean, 1000"),
        (_section("dataset", chunks={"min": 5000}), "min 5000 is above the mean, 1000"),
        (_section("dataset", options={"a": {"b": math.inf}}), "options: a.b should be a finite"),
        (_section("dataset", name="a b"), r"dataset.name: Input should have letters .*, not 'a b'"),
        (
            _section("dataset", name="größe"),
            r"dataset.name: Input should have letters .*, not 'größe'",
        ),
        (_section("dataset", name=2020), r"dataset.name: .*string \(put it in quotes\), not 2020"),
        (_section("training", log_targets=["gap"]), "training.log_targets: gap is not a target"),
        (
            _section("training", potential={"reference_energies": {"Xx": 1.0}}),
            "training.potential.reference_energies.Xx.*'Xx' is not a chemical element",
        ),
        (
            _section("training", potential={"energy_scale": 0}),
            "training.potential.energy_scale: .*'range', or greater than or equal to 0.000001, not 0",
        ),
        (
            {
                **BASE,
                "model": {"name": "painn"},
                "training": {"potential": {"energy_weight": 0}},
            },
            "the weights of all targets are 0",
        ),
        (
            {**BASE, "model": {"name": "chebyshev", "species": ["Cu"], "min_distance": 9}},
            "min_distance 9.0 is not below the cutoff 5.0",
        ),
    ],
)
def test_what_is_said_of_a_bad_value(content, says):
    with pytest.raises(AtomloomError, match=says) as error:
        parse_config(content)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "place", "value"),
    [
        (_section("training", precision=32), ("training", "precision"), "32"),
        (_section("training", precision=64.0), ("training", "precision"), "64"),
        (_section("training", learning_rate="1e-3"), ("training", "learning_rate"), 0.001),
        (_section("split", ratios=[0.9, 0.1]), ("split", "ratios"), (0.9, 0.1, 0.0)),
        (_section("split", kind="sources", test_sources="a"), ("split", "test_sources"), ["a"]),
        (_section("training", log_targets="energy"), ("training", "log_targets"), ["energy"]),
        (_section("model", width=64), ("model", "name"), "icomformer"),
        (_section("model", width=64), ("model", "width"), 64),
        ({**BASE, "model": "painn"}, ("model", "name"), "painn"),
        ({**BASE, "model": {}}, ("model", "name"), "icomformer"),
        ({**BASE, "model": None}, ("model", "name"), "icomformer"),
    ],
)
def test_what_is_plainly_meant_is_taken(content, place, value):
    section = parse_config(content)
    for part in place:
        section = getattr(section, part)
    assert section == value


def test_an_empty_section_has_its_defaults(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text(
        "dataset: {name: x, source: s, target: t, labels: }\ngraph:\nmodel:\nteacher:\n"
        "training:\n  batch:\n  loader:\n"
    )
    assert load_config(path) == parse_config(
        {"dataset": {"name": "x", "source": "s", "target": "t"}}
    )


def test_a_model_without_a_name_has_the_key_of_the_default_model():
    named = parse_config(_section("model", name="icomformer", width=64))
    assert parse_config(_section("model", width=64)) == named
    assert parse_config({**BASE, "model": {"width": 64}}).graph.lattice


FILES = {
    "a section twice": (
        b"training: {epochs: 3}\ndataset: {name: x}\ntraining: {seed: 1}\n",
        "`training` occurs twice, in lines 1 and 3",
    ),
    "a key twice": (
        b"training:\n  epochs: 3\n  epochs: 4\n",
        "`epochs` occurs twice, in lines 2 and 3",
    ),
    "a key twice in JSON": (b'{"a": 1, "a": 2}', "`a` occurs twice"),
    "latin-1": ("# Å\ndataset: {}".encode("latin-1"), "line 1 is not UTF-8"),
    "utf-16": ("dataset: {}".encode("utf-16"), "line 1 is not UTF-8"),
    "deep": (b"a: " + b"[" * 5000, "nests far too deeply"),
    "rather deep": (b"a: " + b"[" * 60 + b"]" * 60, "nests deeper than 32 levels"),
    "an anchor in itself": (b"a: &x [*x]", "an anchor contains itself"),
    "a bomb": (
        b"a0: &a0 [x, x]\n"
        + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (n, n, n - 1, n - 1) for n in range(1, 40)),
        "more than 100,000 values",
    ),
    "a bomb of mappings": (
        b"a0: &a0 {x: x, y: y}\n"
        + b"".join(b"a%d: &a%d {x: *a%d, y: *a%d}\n" % (n, n, n - 1, n - 1) for n in range(1, 40)),
        "more than 100,000 values",
    ),
    "a huge number": (b"training: {epochs: " + b"9" * 5000 + b"}", "not valid YAML"),
    "no date": (b"a: 2020-13-45", "not valid YAML: month must be"),
    "code": (b"a: !!python/object/apply:os.system [ls]", "not valid YAML"),
    "a list": (b"- a\n- b\n", "a config is a mapping of sections"),
    "a mapping as a key": (b"? {a: 1}\n: 2\n", "not valid YAML"),
    "large": (b"a: " + b"x" * (1 << 21), "characters are not a config"),
    "a null character": (b"a: \0", "not valid YAML"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_config_is_one_line(name, tmp_path):
    content, says = FILES[name]
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(AtomloomError) as error:
        load_config(path)
    assert says in str(error.value)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


GOOD = "base: {a: 1}\ndataset: {name: x, source: s, target: t}\n"


def test_anchors_merge_keys_json_and_byte_order_marks_are_read(tmp_path):
    path = tmp_path / "good.yaml"
    path.write_text(
        "dataset: &d {name: x, source: [&s s, *s], target: t}\n"
        "graph: {<<: {cutoff: 6}, cutoff: 7}\n"
    )
    assert load_config(path).graph.cutoff == 7
    path.write_bytes(b"\xef\xbb\xbfdataset: {name: x, source: s, target: t}")
    assert load_config(path).dataset.name == "x"
    path.write_text(
        '{\n\t"dataset": {"name": "x", "source": "s", "target": "t"},\n\t"model": "painn"}'
    )
    with pytest.raises(AtomloomError, match="model painn learns the targets energy"):
        load_config(path)
    path.write_text("{dataset: {name: x, source: s, target: t}}")
    assert load_config(path).dataset.name == "x"
