"""From pairs to the table: means, medians, intervals, and the measures' names, units and directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ..stages.records import F32, F64
from .frechet import frechet_distance
from .judge import recovery
from .pair import Figures

RESAMPLES, LEVEL = 2000, 95
DIGITS = 6  # in what is written; far below what any of the judges can tell apart


@dataclass(frozen=True, slots=True)
class Measure:
    """One column. ``better`` is ``up`` or ``down``; ``digits`` are those shown to people."""

    key: str
    label: str
    better: str
    unit: str = ""
    digits: int = 3

    @property
    def heading(self) -> str:
        """The label with its arrow: ``pose ↓ (°)``."""
        unit = f" ({self.unit})" if self.unit else ""
        return f"{self.label} {'↑' if self.better == 'up' else '↓'}{unit}"


MEASURES = (
    Measure("identity_guiding", "identity (guiding network)", "up"),
    Measure("identity", "identity (judge)", "up"),
    Measure("recovery", "identity recovery", "up"),
    Measure("recovery_common", "identity recovery, common anchor", "up"),
    Measure("pose", "pose error", "down", "°", 2),
    Measure("landmark", "landmark error", "down", "%", 2),
    Measure("expression", "expression error", "down", "%", 2),
    Measure("delta_e", "skin ΔE2000", "down", "", 2),
    Measure("delta_e_cast", "skin ΔE2000, cast", "down", "", 2),
    Measure("psnr", "background PSNR", "up", "dB", 1),
    Measure("frechet", "Fréchet distance of identity features", "down"),
)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measure over ``n`` pairs: mean, median, and the bounds of the mean's interval; None where not
    defined (a median of a distance between two sets, an interval over one pair)."""

    mean: float
    n: int
    median: float | None = None
    low: float | None = None
    high: float | None = None


def bootstrap_interval(n: int, statistic: Callable[[NDArray[np.int64]], F64]) -> tuple[float, float] | None:
    """The percentile bootstrap's 95 % interval (Efron 1979) over ``n`` pairs; None below two pairs.

    ``statistic`` takes indices (R, n) of R resamples and returns R values; those not finite are left out.
    The draw depends on ``n`` alone, so that variants over the same pairs are resampled alike.
    """
    if n < 2:
        return None
    indices = np.random.default_rng(n).integers(0, n, (RESAMPLES, n))
    values = statistic(indices)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.percentile(values, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)


def _mean(values: Sequence[float | None]) -> Estimate | None:
    known = np.array([v for v in values if v is not None], np.float64)
    if not len(known):
        return None
    low, high = bootstrap_interval(len(known), lambda i: cast(F64, known[i].mean(1))) or (None, None)
    return Estimate(float(known.mean()), len(known), float(np.median(known)), low, high)


def _recovery(figures: Sequence[Figures], anchor: float | None = None) -> Estimate | None:
    """From the means over the pairs with both anchors: a ratio of single pairs would be mostly noise.

    With an ``anchor`` every pair counts, and all have that s_same.
    """
    if anchor is not None:
        figures = [replace(f, same=anchor) for f in figures]
    rows = [(f.identity, f.unrelated, f.same) for f in figures if f.same is not None]
    if not rows:
        return None
    swapped, unrelated, same = np.array(rows, np.float64).T
    if abs(same.mean() - unrelated.mean()) < 1e-6:
        return None

    def resampled(i: NDArray[np.int64]) -> F64:
        low, high = unrelated[i].mean(1), same[i].mean(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return cast(F64, (swapped[i].mean(1) - low) / (high - low))

    single = [r for f in figures if (r := f.recovery) is not None]
    bounds = bootstrap_interval(len(rows), resampled) or (None, None)
    median = float(np.median(single)) if single else None
    return Estimate(recovery(swapped, unrelated, same), len(rows), median, *bounds)


def _frechet(swapped: Sequence[F32], sources: Sequence[F32]) -> Estimate | None:
    """None where there is no distribution to compare with: fewer than two different sources."""
    if len({f.tobytes() for f in sources}) < 2:
        return None
    return Estimate(frechet_distance(np.stack(swapped), np.stack(sources)), len(swapped))


def summarise(
    figures: Sequence[Figures],
    swapped: Sequence[F32] = (),
    sources: Sequence[F32] = (),
    anchor: float | None = None,
) -> dict[str, Estimate | None]:
    """Every measure of ``MEASURES`` over the pairs of one variant, by key; None where nothing defines it.

    Args:
        figures: one per pair, at least one.
        swapped, sources: the judge's identity features of the swapped and the source pictures, (J,)
            each, in the same order; without them there is no Fréchet distance.
        anchor: an s_same for all pairs, for the recovery of those too that have none of their own; by
            default there is no such figure.
    """
    found: dict[str, Estimate | None] = {
        m.key: _mean([getattr(f, m.key) for f in figures])
        for m in MEASURES
        if m.key not in ("recovery", "recovery_common", "frechet")
    }
    found |= {"recovery": _recovery(figures), "frechet": _frechet(swapped, sources)}
    found["recovery_common"] = None if anchor is None else _recovery(figures, anchor)
    return {m.key: found[m.key] for m in MEASURES}


def rounded(value: float | None) -> float | None:
    """As it is written to a file."""
    return None if value is None else round(float(value), DIGITS)


def as_dict(estimate: Estimate | None) -> dict[str, float | int | None] | None:
    """For JSON."""
    if estimate is None:
        return None
    values = {k: rounded(getattr(estimate, k)) for k in ("mean", "median", "low", "high")}
    return {**values, "n": estimate.n}
