"""Tables of irreducible representations: coupling coefficients, and the paths of a convolution.

A feature of degree l has 2 l + 1 components, in the real basis and order of e3nn (y is the polar axis,
so that degree 1 is x, y, z), and a parity. Products of two are coupled to a third by real coefficients
of Wigner (3j symbols), computed from the formula of Racah. It knows nothing of torch.

Legend: l degree, m component; u one of the copies (multiplicity) of a feature.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from math import factorial, sqrt

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, order=True)
class Irrep:
    """Degree and parity of a feature."""

    degree: int
    parity: int
    """1 for even, -1 for odd."""

    @property
    def components(self) -> int:
        """2 l + 1."""
        return 2 * self.degree + 1

    def times(self, other: Irrep) -> Iterator[Irrep]:
        """Irreps that the product of two holds."""
        low, high = abs(self.degree - other.degree), self.degree + other.degree
        return (Irrep(degree, self.parity * other.parity) for degree in range(low, high + 1))


EVEN_SCALAR = Irrep(0, 1)


@dataclass(frozen=True)
class Block:
    """Place of the copies of one irrep in a row of features: [2 l + 1, copies] from `start`."""

    irrep: Irrep
    copies: int
    start: int

    @property
    def stop(self) -> int:
        """End of the block."""
        return self.start + self.irrep.components * self.copies


@dataclass(frozen=True)
class Layout:
    """Features of an atom, irrep after irrep."""

    blocks: tuple[Block, ...]

    @classmethod
    def of(cls, copies: Iterable[tuple[Irrep, int]]) -> Layout:
        """Layout of so many copies of each irrep."""
        blocks: list[Block] = []
        start = 0
        for irrep, count in copies:
            blocks.append(Block(irrep, count, start))
            start = blocks[-1].stop
        return cls(tuple(blocks))

    @property
    def size(self) -> int:
        """Numbers of an atom."""
        return self.blocks[-1].stop if self.blocks else 0

    def __getitem__(self, irrep: Irrep) -> Block:
        return next(block for block in self.blocks if block.irrep == irrep)

    def copies(self, irrep: Irrep) -> int:
        """Copies of an irrep."""
        return sum(block.copies for block in self.blocks if block.irrep == irrep)


@dataclass(frozen=True)
class Path:
    """One way to couple a feature and a harmonic of the direction to a feature of the output."""

    source: Block
    """Block of the features."""
    degree: int
    """Degree of the harmonic."""
    target: Block
    """Block of the sums; `copies` are those of all paths that end there."""
    first: int
    """First of its columns in the target."""
    weight: int
    """First of its columns in the filters."""
    factors: Floats
    """[2 l1 + 1, 2 l2 + 1, 2 l3 + 1]."""


@dataclass(frozen=True, eq=False)
class Paths:
    """All paths of a convolution."""

    source: Layout
    target: Layout
    paths: tuple[Path, ...]
    filters: int
    """Number of filters: one per path and copy."""

    @classmethod
    def of(cls, source: Layout, harmonics: Iterable[Irrep], wanted: Iterable[Irrep]) -> Paths:
        """Paths from features and harmonics of a direction to the wanted irreps.

        Each copy of a feature is coupled by itself, with one weight per path (Batzner et al., equation
        8). Coefficients are scaled so that each output has the variance of its input, if weights have
        variance 1 and directions are random.
        """
        ends = set(wanted)
        found = [
            (block, harmonic.degree, end)
            for block in source.blocks
            for harmonic in harmonics
            for end in block.irrep.times(harmonic)
            if end in ends
        ]
        totals: dict[Irrep, int] = {}
        for block, _, end in found:
            totals[end] = totals.get(end, 0) + block.copies
        target = Layout.of(sorted(totals.items(), key=lambda item: _order(item[0])))
        paths: list[Path] = []
        columns = dict.fromkeys(totals, 0)
        filters = 0
        for block, degree, end in found:
            factors = sqrt(end.components) * coupling(block.irrep.degree, degree, end.degree)
            paths.append(Path(block, degree, target[end], columns[end], filters, factors))
            columns[end] += block.copies
            filters += block.copies
        return cls(source, target, tuple(paths), filters)


def _order(irrep: Irrep) -> tuple[int, int]:
    return irrep.degree, -irrep.parity


@cache
def coupling(first: int, second: int, third: int) -> Floats:
    """Real 3j symbols [2 l1 + 1, 2 l2 + 1, 2 l3 + 1] with a sum of squares of 1.

    The tensor is unchanged when all three indices are rotated; signs are those of e3nn's `wigner_3j`.
    """
    table = np.zeros((2 * first + 1, 2 * second + 1, 2 * third + 1))
    for m1 in range(-first, first + 1):
        for m2 in range(-second, second + 1):
            if abs(m1 + m2) <= third:
                value = _clebsch_gordan(first, m1, second, m2, third, m1 + m2)
                table[first + m1, second + m2, third + m1 + m2] = value
    real = np.einsum(
        "im,jn,kp,mnp->ijk",
        _to_real(first),
        _to_real(second),
        _to_real(third).conj(),
        table.astype(complex),
    ).real
    real = np.where(abs(real) < 1e-12, 0.0, real)
    sign = -1.0 if (first + second + third) % 2 else 1.0  # free where the sum is odd
    return sign * real / np.sqrt(np.square(real).sum())


def _to_real(degree: int) -> NDArray[np.complex128]:
    """Rows are real harmonics in terms of complex ones (Condon and Shortley's phase)."""
    found = np.zeros((2 * degree + 1, 2 * degree + 1), dtype=complex)
    found[degree, degree] = 1.0
    for m in range(1, degree + 1):
        sign = (-1) ** m
        found[degree - m, degree + m] = -1j / sqrt(2)
        found[degree - m, degree - m] = 1j / sqrt(2) * sign
        found[degree + m, degree + m] = 1 / sqrt(2)
        found[degree + m, degree - m] = sign / sqrt(2)
    return found * (-1j) ** degree


def _clebsch_gordan(l1: int, m1: int, l2: int, m2: int, l3: int, m3: int) -> float:
    """<l1 m1 l2 m2 | l3 m3> by Racah's formula."""
    f = factorial
    square = (
        (2 * l3 + 1)
        * f(l3 + l1 - l2)
        * f(l3 - l1 + l2)
        * f(l1 + l2 - l3)
        / f(l1 + l2 + l3 + 1)
        * f(l3 + m3)
        * f(l3 - m3)
        * f(l1 - m1)
        * f(l1 + m1)
        * f(l2 - m2)
        * f(l2 + m2)
    )
    total = 0.0
    for k in range(l1 + l2 - l3 + 1):
        below = (l1 + l2 - l3 - k, l1 - m1 - k, l2 + m2 - k, l3 - l2 + m1 + k, l3 - l1 - m2 + k)
        if min(below) >= 0:
            product = f(k)
            for number in below:
                product *= f(number)
            total += (-1) ** k / product
    return sqrt(square) * total


@cache
def harmonic_steps(degree: int) -> tuple[Floats, ...]:
    """Tables [2 l - 1, 3, 2 l + 1] that couple a harmonic of degree l - 1 with the direction to that of degree l.

    Harmonics of a unit vector have squares that sum to 2 l + 1, and are positive at the pole.
    """
    steps = []
    direction = sqrt(3) * np.array([0.0, 1.0, 0.0])
    values = direction
    for end in range(2, degree + 1):
        table = coupling(end - 1, 1, end)
        found = np.einsum("i,j,ijk->k", values, direction, table)
        scale = sqrt(2 * end + 1) / found[end]
        steps.append(table * scale)
        values = found * scale
    return tuple(steps)
