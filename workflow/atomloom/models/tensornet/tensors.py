"""3 x 3 matrices by their components along an orthonormal basis of irreducible matrices.

Component 0 is along the identity (I), 1 to 3 along the skew-symmetric matrices of the axes (A), 4 to 8 along
symmetric traceless matrices (S). The square of the Frobenius norm is the sum of squares of components, and
the transpose changes the sign of components 1 to 3. It knows nothing of networks.
"""

from __future__ import annotations

import numpy as np

COMPONENTS = 9
PARTS = (1, 3, 5)
"""Number of components of I, A and S."""


def _basis() -> np.ndarray:
    found = np.zeros((COMPONENTS, 3, 3))
    found[0] = np.eye(3) / np.sqrt(3)
    for axis in range(3):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        found[1 + axis, second, first] = np.sqrt(0.5)
        found[1 + axis, first, second] = -np.sqrt(0.5)
    for place, (row, column) in enumerate(((0, 1), (0, 2), (1, 2))):
        found[4 + place, row, column] = found[4 + place, column, row] = np.sqrt(0.5)
    found[7] = np.diag([-1.0, -1.0, 2.0]) / np.sqrt(6)
    found[8] = np.diag([1.0, -1.0, 0.0]) / np.sqrt(2)
    return found


BASIS = _basis()
"""[9, 3, 3]."""


def _symmetric_products() -> tuple[np.ndarray, np.ndarray]:
    """Terms of the components of XY + YX: indices [T, 3] of the result and of two components, factors [T].

    With (k, a, b) and factor f comes f (x_a y_b + x_b y_a) in component k.
    """
    products = np.einsum("kij,aim,bmj->kab", BASIS, BASIS, BASIS)
    products += products.transpose(0, 2, 1)
    terms = [
        (k, a, b)
        for k, a, b in np.ndindex(products.shape)
        if a <= b and abs(products[k, a, b]) > 1e-12
    ]
    factors = [products[k, a, b] * (0.5 if a == b else 1.0) for k, a, b in terms]
    return np.array(terms), np.array(factors)


TERMS, FACTORS = _symmetric_products()
SIGNS = np.array([1.0, -1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
"""[9], of the transpose."""
PART = np.repeat(np.arange(3), PARTS)
"""[9], place of each component's part."""
