"""Straight lines through measured points: y = fixed + slope · x, fitted so that neither large values nor outliers rule.

Knows nothing of what x and y are. In plain Python: two unknowns need no library.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

HUBER: Final = 1.345  # of the residuals' scale: 95 % as efficient as least squares on normal noise (Huber 1981)
STEPS: Final = 50  # of reweighting; it settles in about ten


@dataclass(frozen=True)
class Fit:
    """`fixed` and `slope` in the units of y and y/x; `error` is the median of |y - fitted| / y."""

    fixed: float
    slope: float
    error: float

    def at(self, x: float) -> float:
        return self.fixed + self.slope * x


def fit(x: Sequence[float], y: Sequence[float]) -> Fit:
    """Least squares on relative errors, reweighted by Huber's function; `fixed` is not let below 0.

    Relative, since a cost that spans decades is known to a share of itself, and the smallest points say what is fixed. Raises
    ValueError for fewer than two different x, or a y that is not above 0.
    """
    if len(set(x)) < 2 or min(y) <= 0:
        raise ValueError("a line needs two different x, and every y above 0")
    weights = [1 / value**2 for value in y]
    found = _solve(x, y, weights)
    for _ in range(STEPS):
        residuals = [(value - found.at(at)) / value for at, value in zip(x, y, strict=True)]
        scale = 1.4826 * statistics.median(map(abs, residuals))
        if scale < 1e-12:
            break
        huber = [min(1.0, HUBER * scale / abs(residual)) if residual else 1.0 for residual in residuals]
        found = _solve(x, y, [h / value**2 for h, value in zip(huber, y, strict=True)])
    return found


def _solve(x: Sequence[float], y: Sequence[float], weights: Sequence[float]) -> Fit:
    whole = sum(weights)
    mean_x = sum(w * a for w, a in zip(weights, x, strict=True)) / whole
    mean_y = sum(w * b for w, b in zip(weights, y, strict=True)) / whole
    across = sum(w * (a - mean_x) * (b - mean_y) for w, a, b in zip(weights, x, y, strict=True))
    slope = across / sum(w * (a - mean_x) ** 2 for w, a in zip(weights, x, strict=True))
    fixed = mean_y - slope * mean_x
    if fixed < 0:
        fixed = 0.0
        slope = sum(w * a * b for w, a, b in zip(weights, x, y, strict=True)) / sum(
            w * a * a for w, a in zip(weights, x, strict=True)
        )
    error = statistics.median(abs(b - fixed - slope * a) / b for a, b in zip(x, y, strict=True))
    return Fit(fixed, slope, error)
