"""Content hashes: equal things have equal keys, and nothing else has."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomloom.store.keys import (
    array_digest,
    canonical_json,
    chain_hash,
    short_hash,
    structure_digest,
)

SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8)
SPECS = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
)


def shuffled(value):
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(list(value))}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


def as_floats(value):
    if isinstance(value, dict):
        return {key: as_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(as_floats(item) for item in value)
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


@given(SPECS)
def test_order_and_number_type_do_not_change_a_key(spec):
    assert short_hash(spec) == short_hash(shuffled(spec)) == short_hash(as_floats(spec))


def test_swapped_values_give_another_key():
    assert short_hash({"cutoff": 8, "k": 12}) != short_hash({"cutoff": 12, "k": 8})


def test_true_and_one_differ():
    assert short_hash([True]) != short_hash([1])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), b"bytes"])
def test_what_json_cannot_hold_is_refused(value):
    with pytest.raises(TypeError, match="no canonical form"):
        canonical_json({"x": value})


def test_key_is_the_same_in_a_process_with_another_hash_seed():
    spec = {"b": [1, 2.5], "a": {"y": None, "x": "text"}}
    code = f"from atomloom.store.keys import short_hash; print(short_hash({spec!r}))"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert printed == {short_hash(spec)}


def test_chain_hash_marks_where_parts_end():
    assert chain_hash(["ab", "c"]) != chain_hash(["a", "bc"])


NUMBERS = np.array([11, 17])
POSITIONS = np.array([[0.0, 0.0, 0.0], [2.82, 0.0, 0.0]])
CELL = np.diag([5.64, 5.64, 5.64])
PBC = np.array([True, True, True])


def digest(numbers=NUMBERS, positions=POSITIONS, cell=CELL, pbc=PBC):
    return structure_digest(numbers, positions, cell, pbc)


def test_structure_hash_ignores_noise_below_1e_8_angstrom_and_the_sign_of_zero():
    assert digest(positions=POSITIONS + 1e-10) == digest()
    assert digest(positions=np.where(POSITIONS == 0, -0.0, POSITIONS)) == digest()


@pytest.mark.parametrize(
    "change",
    [
        {"numbers": np.array([11, 35])},
        {"positions": POSITIONS + np.array([[0, 0, 1e-3], [0, 0, 0]])},
        {"cell": CELL * 1.001},
        {"pbc": np.array([True, True, False])},
    ],
    ids=lambda change: next(iter(change)),
)
def test_structure_hash_sees_each_part(change):
    assert digest(**change) != digest()


def test_array_digest_sees_type_and_shape():
    array = np.arange(6, dtype=np.int32)
    others = [array.reshape(2, 3), array.view(np.uint32), array.astype(np.int64)]
    assert array_digest(array) not in {array_digest(other) for other in others}
    assert array_digest(np.zeros((0, 3))) != array_digest(np.zeros((3, 0)))
