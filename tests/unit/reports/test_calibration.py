"""Whether the spread of a committee says how large its error is."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from atomloom.commands.committee import join_predictions
from atomloom.reports.calibration import calibration_caption, calibration_figure, calibration_of


def committee(scale: float, count: int = 4000) -> pd.DataFrame:
    """Normal errors, each of its own size, of which `scale` is said."""
    random = np.random.default_rng(0)
    size = random.uniform(0.1, 1.0, count)
    return pd.DataFrame({
        "id": [f"m{n}" for n in range(count)], "split": "test", "gap": 0.0,
        "gap_predicted": size * random.normal(size=count), "gap_std": scale * size,
    })  # fmt: skip


@pytest.mark.parametrize(("scale", "within"), [(1.0, 0.683), (0.5, 0.383), (2.0, 0.954)])
def test_a_committee_is_calibrated_where_spread_and_error_are_equal(scale, within):
    found = calibration_of(committee(scale), "gap")
    np.testing.assert_allclose(found.error * scale, found.spread, rtol=0.2)
    assert found.within == pytest.approx(within, abs=0.03)
    assert found.rank > 0.3
    axes = calibration_figure(found, "eV").axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == (
        "deviation of the members (eV)",
        "RMSE of gap (eV)",
    )
    assert "Committee on 4,000 test structures: MAE of gap 0." in calibration_caption(found, "eV")


def test_the_test_set_counts_and_what_is_unknown_does_not():
    frame = committee(1.0, 300)
    frame.loc[:99, "split"] = "val"
    frame.loc[100, "gap"] = np.nan
    assert calibration_of(frame, "gap").count == 199
    assert calibration_of(frame[frame["split"] == "val"], "gap").split == "val"
    assert calibration_of(frame.assign(gap=np.nan), "gap") is None
    assert calibration_of(frame.assign(gap_std=0.0), "gap") is None


def test_predictions_are_joined_by_id_and_split_and_not_by_row():
    first = pd.DataFrame({
        "id": ["a", "b", "c", "d", "d"], "split": "test", "formula": "X", "elements": "X", "n_atoms": 1,
        "gap": [1.0, 2.0, 3.0, 4.0, 4.0], "gap_predicted": [1.0, 2.0, 3.0, 4.0, 4.0],
        "kind": 0, "kind_predicted": 0, "kind_p0": 1.0,
    })  # fmt: skip
    second = first.iloc[[2, 0, 1, 3]].assign(gap_predicted=[5.0, 1.0, np.nan, 4.0])
    second.loc[0, "split"] = "train"
    found = join_predictions([first, second])
    assert found["id"].tolist() == ["b", "c"]
    assert found["gap_predicted"].tolist()[1] == 4.0
    assert np.isnan(found["gap_predicted"][0])
    assert found["gap_std"][1] == pytest.approx(2**0.5)
    assert "kind_std" not in found
