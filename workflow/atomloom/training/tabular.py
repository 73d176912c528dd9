"""Fits of tabular models by scikit-learn, as arrays from which atomloom predicts by itself.

What scikit-learn has fitted is compared with what the arrays give, for every training row, so that no change of
its inner tables can go unnoticed. It knows nothing of files.

Legend: S training rows, G features, K outputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atomloom.config.model import (
    ExtraTreesConfig,
    GaussianProcessConfig,
    GradientBoostingConfig,
    SVRConfig,
    TabularSection,
)
from atomloom.config.training import Training
from atomloom.data.memory import free_memory
from atomloom.errors import AtomloomError
from atomloom.models.tabular.base import TabularModel

AGREEMENT = 1e-6
"""Max difference of outputs, in standard deviations, from those of scikit-learn."""
LONGEST, SHORTEST = 1e4, 1e-2
"""Bounds of length scales, in standard deviations of the features."""

Arrays = dict[str, np.ndarray]
Log = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Table:
    """Training rows of one output, or of one target with several classes."""

    features: np.ndarray
    """[S, G] float64, standardised."""
    targets: np.ndarray
    """[S] float64: standardised, or indices of classes."""


@dataclass(frozen=True)
class Fit:
    """Circumstances of a fit."""

    training: Training
    threads: int
    log: Log


@dataclass(frozen=True, eq=False)
class Fitted:
    """Fit of one output, or of one target with several classes."""

    arrays: Arrays
    outputs: np.ndarray
    """[S], or [S, K] of several classes: outputs for the training rows by scikit-learn itself; of classes,
    probabilities."""


def fit_table(
    model: TabularModel, features: np.ndarray, targets: np.ndarray, fit: Fit
) -> dict[str, Tensor]:
    """Fit a model, fill it in, and return its arrays.

    Args:
        model: a new one.
        features: [S, G] float64, standardised.
        targets: [S, columns] float64, standardised or classes; NaN where unknown.
        fit: circumstances.

    Raises:
        AtomloomError: when it cannot be fitted to these rows.
    """
    section = model.config
    if type(section) not in FITS:
        raise AtomloomError(
            f"there is no fit of {section.name}", where="model.name", todo=f"choose from {_names()}"
        )
    fits, known = [], np.isfinite(targets)
    for column in range(targets.shape[1]):
        rows = known[:, column]
        table = Table(features[rows], targets[rows, column])
        fits.append(_with_its_warnings(section, table, fit))
    arrays = JOINTS[type(section)]([one.arrays for one in fits], model.outputs)
    tensors = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}
    model.fill_in(tensors)
    for column, one in enumerate(fits):
        _compare(model, features[known[:, column]], column, one, fit.training.classes)
    return tensors


def _names() -> list[str]:
    return sorted(section.model_fields["name"].default for section in FITS)


def _with_its_warnings(section: TabularSection, table: Table, fit: Fit) -> Fitted:
    """Fit one output on the given threads; what scikit-learn warns of goes to the log, once each."""
    from threadpoolctl import threadpool_limits

    with warnings.catch_warnings(record=True) as heard, threadpool_limits(fit.threads):
        warnings.simplefilter("always")
        try:
            found = FITS[type(section)](section, table, fit)
        except (ValueError, np.linalg.LinAlgError) as error:
            raise AtomloomError(
                f"scikit-learn cannot fit {section.name}: {_line(error)}", where="model"
            ) from None
        except MemoryError:
            raise AtomloomError(
                f"the fit of {section.name} to {len(table.targets):,} rows takes more memory than there is",
                where="model",
            ) from None
    for text in dict.fromkeys(_line(one.message) for one in heard):
        fit.log(f"note: {text}")
    return found


def _line(said: Any) -> str:
    return " ".join(str(said).split())[:200]


def _compare(
    model: TabularModel, features: np.ndarray, column: int, fitted: Fitted, classes: bool
) -> None:
    """Check that the arrays give what scikit-learn predicts."""
    with torch.no_grad():
        parts = [model.of_features(part) for part in torch.from_numpy(features).split(256)]
    ours = torch.cat(parts)
    if fitted.outputs.ndim == 1:
        ours = ours[:, column]
    if classes:
        ours = ours.sigmoid() if fitted.outputs.ndim == 1 else ours.softmax(dim=1)
    difference = float(np.abs(ours.numpy() - fitted.outputs).max(initial=0.0))
    if not difference <= AGREEMENT * max(1.0, float(np.abs(fitted.outputs).max(initial=0.0))):
        import sklearn

        raise AtomloomError(
            f"the arrays of {model.config.name} differ by {difference:.3g} from scikit-learn "
            f"{sklearn.__version__}, whose tables have changed",
            todo="use the version in envs/requirements.lock",
        )


# --- kernel machines ---


def _fit_svr(section: SVRConfig, table: Table, fit: Fit) -> Fitted:
    from sklearn.svm import SVR

    gamma = section.gamma
    if gamma == "scale":
        variance = table.features.var()
        gamma = 1.0 / (table.features.shape[1] * variance) if variance > 0 else 1.0
    machine = SVR(kernel=section.kernel, C=section.C, epsilon=section.epsilon, gamma=gamma)
    machine.fit(table.features, table.targets)
    arrays = {
        "rows": machine.support_vectors_,
        "weights": machine.dual_coef_[0],
        "gamma": np.array([gamma]),
        "intercept": machine.intercept_,
    }
    return Fitted(arrays, machine.predict(table.features))


def _fit_gaussian_process(section: GaussianProcessConfig, table: Table, fit: Fit) -> Fitted:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Matern, WhiteKernel

    count, features = table.features.shape
    _require_memory(section, count, features)
    scale = np.sqrt(features) * (np.ones(features) if section.anisotropic else 1.0)
    bounds = (SHORTEST, LONGEST)
    rbf = section.kernel == "rbf"
    correlation = RBF(scale, bounds) if rbf else Matern(scale, bounds, nu=section.nu)
    kernel = ConstantKernel(1.0, (1e-3, 1e3)) * correlation
    noise: float | str = section.noise
    if noise == "fit":
        kernel, noise = kernel + WhiteKernel(0.1, (1e-6, 10.0)), 1e-10
    process = GaussianProcessRegressor(
        kernel,
        alpha=noise,
        n_restarts_optimizer=section.n_restarts_optimizer,
        random_state=fit.training.seed,
    ).fit(table.features, table.targets)
    fitted = process.kernel_.k1 if section.noise == "fit" else process.kernel_
    terms = fitted.k1.constant_value * np.abs(process.alpha_).sum()
    if np.finfo(np.float64).eps * terms > 0.1 * AGREEMENT:
        raise AtomloomError(
            f"noise {section.noise} is too small for these rows: predictions are differences of terms of up to "
            f"{terms:.2g} standard deviations, which leave too few digits",
            where="model.noise",
            todo="use a larger one, or fit",
        )
    arrays = {
        "rows": process.X_train_,
        "weights": process.alpha_,
        "variance": np.array([fitted.k1.constant_value]),
        "length_scale": np.broadcast_to(fitted.k2.length_scale, (1, features)),
    }
    return Fitted(arrays, process.predict(table.features))


def _require_memory(section: GaussianProcessConfig, count: int, features: int) -> None:
    """Raise AtomloomError if the covariance of all rows, with its derivatives, does not fit into memory."""
    derivatives = 2 + (features if section.anisotropic else 1)
    need, free = 8 * count**2 * (4 + derivatives), free_memory().size
    if need > free:
        raise AtomloomError(
            f"the covariance of {count:,} rows and its derivatives take some {need / 1e9:.3g} GB, and "
            f"{free / 1e9:.3g} GB are free",
            where="model.name",
            todo="use svr, extra_trees or gradient_boosting"
            + (", or anisotropic: false" if section.anisotropic else ""),
        )


def _join_kernels(parts: Sequence[Arrays], outputs: int) -> Arrays:
    """Arrays of all outputs."""
    first = np.cumsum([0, *(len(part["weights"]) for part in parts)], dtype=np.int32)
    return {**_concatenated(parts), "first": first}


def _concatenated(parts: Sequence[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


# --- trees ---


def _fit_extra_trees(section: ExtraTreesConfig, table: Table, fit: Fit) -> Fitted:
    from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor

    options = {
        "n_estimators": section.n_estimators,
        "max_features": section.max_features,
        "min_samples_leaf": section.min_samples_leaf,
        "max_depth": section.max_depth,
        "random_state": fit.training.seed,
        "n_jobs": fit.threads,
    }
    classes = fit.training.classes
    if classes:
        forest = ExtraTreesClassifier(**options).fit(table.features, table.targets)
        outputs = forest.predict_proba(table.features)
    else:
        criterion = {"mse": "squared_error", "mae": "absolute_error"}[fit.training.loss]
        forest = ExtraTreesRegressor(criterion=criterion, **options)
        outputs = forest.fit(table.features, table.targets).predict(table.features)
    binary = classes and fit.training.loss == "bce"
    trees = [_nodes_of(one.tree_, binary) for one in forest.estimators_]
    return Fitted(
        {**_planted(trees), "classes": np.array([classes], dtype=np.int32)},
        outputs[:, 1] if binary else outputs,
    )


def _nodes_of(tree: Any, binary: bool) -> Arrays:
    """Nodes of a tree of scikit-learn, whose leaves have the child -1."""
    own, leaf = np.arange(tree.node_count), tree.children_left < 0
    value = tree.value[:, 0, :]
    return {
        "feature": np.where(leaf, 0, tree.feature),
        "threshold": np.where(leaf, 0.0, tree.threshold),
        "left": np.where(leaf, own, tree.children_left),
        "right": np.where(leaf, own, tree.children_right),
        "value": value[:, 1:] if binary else value,
    }


def _fit_gradient_boosting(section: GradientBoostingConfig, table: Table, fit: Fit) -> Fitted:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    options = {
        "learning_rate": section.learning_rate,
        "max_iter": section.max_iter,
        "max_leaf_nodes": section.max_leaf_nodes,
        "max_depth": section.max_depth,
        "min_samples_leaf": section.min_samples_leaf,
        "l2_regularization": section.l2_regularization,
        "max_features": section.max_features,
        "early_stopping": False,
        "random_state": fit.training.seed,
    }
    if fit.training.classes:
        boosted = HistGradientBoostingClassifier(**options).fit(table.features, table.targets)
        outputs = boosted.predict_proba(table.features)
        outputs = outputs[:, 1] if fit.training.loss == "bce" else outputs
    else:
        loss = {"mse": "squared_error", "mae": "absolute_error"}[fit.training.loss]
        boosted = HistGradientBoostingRegressor(loss=loss, **options)
        outputs = boosted.fit(table.features, table.targets).predict(table.features)
    # There is no public table of its nodes; `_compare` tells if this one changes.
    rounds = boosted._predictors
    baseline = np.asarray(boosted._baseline_prediction, dtype=np.float64).reshape(-1)
    if fit.training.loss == "cross_entropy" and len(rounds[0]) == 1:
        # scikit-learn has one tree for two classes, the logarithm of the odds of the second.
        baseline, output = np.array([0.0, baseline[0]]), [1] * len(rounds)
    else:
        output = [place for trees in rounds for place in range(len(trees))]
    arrays = _planted([_nodes_of_histogram(one.nodes) for trees in rounds for one in trees])
    arrays["output"] = np.array(output, dtype=np.int32)
    return Fitted({**arrays, "baseline": baseline}, outputs)


def _nodes_of_histogram(nodes: np.ndarray) -> Arrays:
    """Nodes of a tree of histograms."""
    own, leaf = np.arange(len(nodes)), nodes["is_leaf"].astype(bool)
    return {
        "feature": np.where(leaf, 0, nodes["feature_idx"]),
        "threshold": np.where(leaf, 0.0, nodes["num_threshold"]),
        "left": np.where(leaf, own, nodes["left"]),
        "right": np.where(leaf, own, nodes["right"]),
        # The root of a tree that could not be divided is a leaf that adds nothing.
        "value": np.where(leaf, nodes["value"], 0.0)[:, None],
    }


def _planted(trees: Sequence[Arrays]) -> Arrays:
    """Arrays of the nodes of all trees of one fit, one after another."""
    counts = [len(tree["feature"]) for tree in trees]
    root = np.cumsum([0, *counts[:-1]])
    arrays = _concatenated(trees)
    for name in ("left", "right"):
        arrays[name] = arrays[name] + np.repeat(root, counts)
    for name in ("feature", "left", "right"):
        arrays[name] = arrays[name].astype(np.int32)
    return {
        **arrays,
        "root": root.astype(np.int32),
        "output": np.zeros(len(trees), dtype=np.int32),
    }


def _join_trees(parts: Sequence[Arrays], outputs: int) -> Arrays:
    """Arrays of all outputs."""
    first = np.cumsum([0, *(len(part["feature"]) for part in parts[:-1])])
    moved = []
    for column, (part, start) in enumerate(zip(parts, first, strict=True)):
        shifted = {name: part[name] + np.int32(start) for name in ("left", "right", "root")}
        moved.append({**part, **shifted, "output": part["output"] + np.int32(column)})
    joint = _concatenated(moved)
    if "classes" in joint:
        joint["classes"] = joint["classes"][:1]
    return {"baseline": np.zeros(outputs), **joint}


FITS: Mapping[type[TabularSection], Callable[[Any, Table, Fit], Fitted]] = {
    SVRConfig: _fit_svr,
    ExtraTreesConfig: _fit_extra_trees,
    GaussianProcessConfig: _fit_gaussian_process,
    GradientBoostingConfig: _fit_gradient_boosting,
}
"""Fit of one output by the section of its model."""
JOINTS: Mapping[type[TabularSection], Callable[[Sequence[Arrays], int], Arrays]] = {
    SVRConfig: _join_kernels,
    ExtraTreesConfig: _join_trees,
    GaussianProcessConfig: _join_kernels,
    GradientBoostingConfig: _join_trees,
}
"""Arrays of all outputs from those of each."""
