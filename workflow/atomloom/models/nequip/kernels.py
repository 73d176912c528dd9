"""Compiled passes of NequIP's convolution on a CPU, over pairs of edges.

An atom i receives from its neighbour j, along each path from features x of degree l1 with harmonics y of
degree l2 to sums of degree l3, and for each copy u,

    m_i[m3, u] += w[u] a[m1, m3] x_j[m1, u]        a[m1, m3] = sum over m2 of c[m1, m2, m3] y[m2]

The sum S of g m, with an arbitrary g, is linear in each of g, w, x and y; `push` is dS/dg, and `push_back`
the derivatives by the other three. An edge and its reverse share filters, and harmonics up to the sign
(-1)^l2, and are processed together, as a pair. Messages are never stored. Inner loops run over copies,
so that compilers vectorise them. It knows nothing of torch.

Legend: N atoms, P pairs, S components of harmonics, W filters, X and M numbers of an atom before and
after. A row of `places` is a path: start, copies and components of its source; start of its harmonic and
the sign of its reverse; start, copies, components and first column of its target; first filter.
"""

from __future__ import annotations

import numpy as np

from atomloom.compiled import njit
from atomloom.models.common.kernels import FAST


@njit(**FAST)
def push(
    first, last, src, dst, mutual, places, ptr, entries, factors, harmonics, filters, features, sums
):
    """Add the messages of pairs `first` to `last` to `sums`.

    Args:
        first, last: range of pairs.
        src, dst, mutual: [P] int64.
        places: [paths, 10] int64, see the legend.
        ptr: [paths+1] int64, first entry of each path.
        entries: [C, 3] int64, m1, m2, m3 of the coefficients that are not zero.
        factors: [C].
        harmonics: [P, S].
        filters: [P, W].
        features: [N, X].
        sums: [N, M], changed in place.
    """
    most = max(places[:, 2].max(), places[:, 7].max())
    coupled = np.empty((most, most), dtype=sums.dtype)
    weighted = np.empty(places[:, 1].max(), dtype=sums.dtype)
    for p in range(first, last):
        for path in range(len(places)):
            start, copies, before, harmonic, sign, goal, wide, after, column, weight = places[path]
            coupled[:before, :after] = 0.0
            for c in range(ptr[path], ptr[path + 1]):
                coupled[entries[c, 0], entries[c, 2]] += (
                    factors[c] * harmonics[p, harmonic + entries[c, 1]]
                )
            weights = filters[p, weight:][:copies]
            i, j = dst[p], src[p]
            for side in range(1 + mutual[p]):
                if side == 1:
                    i, j = j, i
                    if sign < 0:
                        coupled[:before, :after] *= -1
                for m1 in range(before):
                    sent = features[j, start + m1 * copies :][:copies]
                    for u in range(copies):
                        weighted[u] = weights[u] * sent[u]
                    for m3 in range(after):
                        factor = coupled[m1, m3]
                        row = sums[i, goal + m3 * wide + column :][:copies]
                        for u in range(copies):
                            row[u] += factor * weighted[u]


@njit(**FAST)
def push_back(
    first,
    last,
    src,
    dst,
    mutual,
    places,
    ptr,
    entries,
    factors,
    harmonics,
    filters,
    features,
    grad,
    of_harmonics,
    of_filters,
    of_features,
):
    """Derivatives of the sum of `grad` times `push` over pairs `first` to `last`.

    Args:
        first, last, src, dst, mutual, places, ptr, entries, factors, harmonics, filters, features: as of `push`.
        grad: [N, M].
        of_harmonics: [P, S], written for these pairs.
        of_filters: [P, W], likewise.
        of_features: [N, X], changed in place.
    """
    most = max(places[:, 2].max(), places[:, 7].max())
    coupled = np.empty((most, most), dtype=grad.dtype)
    of_coupled = np.empty((most, most), dtype=grad.dtype)
    back = np.empty(places[:, 1].max(), dtype=grad.dtype)
    weighted = np.empty(places[:, 1].max(), dtype=grad.dtype)
    for p in range(first, last):
        of_harmonics[p] = 0.0
        of_filters[p] = 0.0
        for path in range(len(places)):
            start, copies, before, harmonic, sign, goal, wide, after, column, weight = places[path]
            coupled[:before, :after] = 0.0
            of_coupled[:before, :after] = 0.0
            for c in range(ptr[path], ptr[path + 1]):
                coupled[entries[c, 0], entries[c, 2]] += (
                    factors[c] * harmonics[p, harmonic + entries[c, 1]]
                )
            weights = filters[p, weight:][:copies]
            of_weights = of_filters[p, weight:][:copies]
            turned = False
            i, j = dst[p], src[p]
            for side in range(1 + mutual[p]):
                if side == 1:
                    i, j = j, i
                    turned = sign < 0
                    if sign < 0:
                        coupled[:before, :after] *= -1
                for m1 in range(before):
                    sent = features[j, start + m1 * copies :][:copies]
                    of_sent = of_features[j, start + m1 * copies :][:copies]
                    for u in range(copies):
                        weighted[u] = weights[u] * sent[u]
                        back[u] = 0.0
                    for m3 in range(after):
                        factor = coupled[m1, m3]
                        row = grad[i, goal + m3 * wide + column :][:copies]
                        total = factor - factor
                        for u in range(copies):
                            back[u] += factor * row[u]
                            total += weighted[u] * row[u]
                        of_coupled[m1, m3] += -total if turned else total
                    for u in range(copies):
                        of_sent[u] += weights[u] * back[u]
                        of_weights[u] += sent[u] * back[u]
            for c in range(ptr[path], ptr[path + 1]):
                of_harmonics[p, harmonic + entries[c, 1]] += (
                    factors[c] * of_coupled[entries[c, 0], entries[c, 2]]
                )
