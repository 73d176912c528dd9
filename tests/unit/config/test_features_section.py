"""The section `features` names sources in the shortest way, and refuses what a source does not take."""

from __future__ import annotations

import pytest

from atomloom.config import dump_config, parse_config
from atomloom.errors import AtomloomError

DATASET = {"name": "a", "source": "a", "target": "gap"}


def parsed(features, **sections):
    return parse_config({"dataset": DATASET, "features": features, **sections})


@pytest.mark.parametrize(
    "short",
    ["composition", ["composition"], {"composition": {}}, {"composition": None},
     {"composition": "composition"}, {"composition": {"source": "composition"}}],
    ids=["text", "list", "mapping", "nothing", "name of the source", "in full"],
)  # fmt: skip
def test_a_source_may_be_named_shortly(short):
    config = parsed(short)
    assert {name: one.source for name, one in config.features.items()} == {
        "composition": "composition"
    }


def test_a_config_that_is_written_out_reads_the_same(tmp_path):
    from atomloom.config import load_config

    section = {
        "composition": {},
        "phonons": {"source": "gamma_frequencies", "calculator": "emt", "supercell": [1, 1, 2]},
    }
    config = parsed(section)
    (tmp_path / "a.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "a.yaml") == config


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (["compositoin"], "features.compositoin.source"),
        ({"a b": {"source": "composition"}}, "cannot be the name of a feature"),
        ({"x.y": {"source": "composition"}}, "cannot be the name of a feature"),
        (["composition", "composition"], "twice"),
        ({"composition": {"displacement": 0.1}}, "does not take displacement"),
        ({"composition": {"model": "x"}}, "does not take model"),
        ({"phonons": {"source": "gamma_frequencies"}}, "needs `model`"),
        ({"phonons": {"source": "gamma_frequencies", "modle": "x"}}, "did you mean `model`"),
        ({"phonons": {"source": "gamma_frequencies", "model": "x", "displacement": 0}}, "greater"),
        ({"phonons": {"source": "gamma_frequencies", "model": "x", "supercell": [0, 1, 1]}}, "1 to"),
        ({"phonons": {}}, "features.phonons.source"),
        ({"embedding": {}}, "needs `model`"),
        ({"embedding": {"model": "x", "calculator": "emt"}}, "does not take calculator"),
        ("phonons", "features.phonons.source"),
        (3, "features"),
        ([3], "features"),
    ],
)  # fmt: skip
def test_a_wrong_section_is_one_line_that_names_the_key(features, said):
    with pytest.raises(AtomloomError) as caught:
        parsed(features)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_potential_takes_no_features():
    with pytest.raises(AtomloomError, match="features are not for painn"):
        parse_config(
            {
                "dataset": {**DATASET, "target": "energy"},
                "model": "painn",
                "features": ["composition"],
            }
        )


def test_a_column_of_the_data_cannot_have_the_name_of_a_features():
    with pytest.raises(AtomloomError, match=r"composition\.x of the section dataset"):
        parse_config(
            {
                "dataset": {**DATASET, "global_features": ["composition.x"]},
                "features": "composition",
            }
        )
