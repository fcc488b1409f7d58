"""The facial guidance module (§4.1–4.2, eq. 3–5): a list of terms, each with its λ schedule.

A term is any object with ``loss(x_hat, context) -> (B,)``; see ``context.Term`` and ``docs/guidance.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...configs import GuidanceTerm
from ...errors import SettingsError
from .context import Context, SourcePicture, Term
from .schedule import stepwise
from .terms import Geometry, Identity, IdentityCrop, Segmentation
from .user_term import failed_in, load_user_term
from .views import arcface_theta, arcface_view

__all__ = [
    "TERMS",
    "Context",
    "Geometry",
    "Identity",
    "IdentityCrop",
    "Scheduled",
    "Segmentation",
    "SourcePicture",
    "Term",
    "arcface_theta",
    "arcface_view",
    "build_terms",
    "check_finite",
    "guidance_loss",
    "parse_once",
]

TERMS: dict[str, Callable[..., Term]] = {
    "geometry": Geometry,
    "identity": Identity,
    "identity_crop": IdentityCrop,
    "segmentation": Segmentation,
}


@dataclass(frozen=True)
class Scheduled:
    """A term and its λ(t). ``file`` is the user's, where the term is the user's own."""

    name: str
    term: Term
    scale: float
    schedule: Sequence[tuple[float, float]]
    file: Path | None = None

    def weight(self, progress: float) -> float:
        """λ at ``progress`` in [0, 1), the share of steps done."""
        return self.scale * stepwise(self.schedule, progress)

    def loss(self, x_hat: Tensor, context: Context) -> Tensor:
        """The term's loss (B,), not weighted.

        Raises:
            SettingsError: it is no tensor of that shape, has no gradient, or the user's code failed.
        """
        try:
            value = self.term.loss(x_hat, context)
        except Exception as error:
            if self.file is None or isinstance(error, torch.OutOfMemoryError):
                raise
            raise failed_in(self.file, self.name, error) from error
        wanted = (len(x_hat),)
        if not isinstance(value, Tensor) or tuple(value.shape) != wanted:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise SettingsError(
                f"guidance term {self.name}: its loss must be one number a picture, a tensor of shape "
                f"{wanted}, not {got}"
            )
        if torch.is_grad_enabled() and x_hat.requires_grad and not value.requires_grad:
            raise SettingsError(
                f"guidance term {self.name}: its loss has no gradient; compute it from x_hat with "
                "differentiable operations (no detach, no argmax, no numpy)"
            )
        return value


def build_terms(terms: Sequence[GuidanceTerm]) -> list[Scheduled]:
    """The terms of the settings.

    Raises:
        SettingsError: an unknown one, a parameter it does not take, or a user's file that can't be used.
    """
    built = []
    for t in terms:
        if t.file is not None:
            term = load_user_term(t)
        elif t.term not in TERMS:
            raise SettingsError(
                f"guidance term {t.term}: no such term; there are {', '.join(sorted(TERMS))}, "
                "or FILE.py:Class for one of your own"
            )
        else:
            try:
                term = TERMS[t.term](**(t.model_extra or {}))
            except (TypeError, ValueError) as error:
                raise SettingsError(f"guidance term {t.term}: {error}") from error
        built.append(Scheduled(t.name, term, t.scale, t.schedule, t.file))
    return built


def parse_once(terms: Sequence[Scheduled]) -> bool:
    """Whether at most one of them looks at what the parser says of x̂."""
    return sum(not isinstance(t.term, (Identity, IdentityCrop)) for t in terms) <= 1


def guidance_loss(
    terms: Sequence[Scheduled], x_hat: Tensor, context: Context, progress: float
) -> Tensor | None:
    """G_fac of eq. 5 per picture (B,); None when every λ is 0 at this step."""
    total: Tensor | None = None
    for scheduled in terms:
        weight = scheduled.weight(progress)
        if weight == 0:
            continue
        value = weight * scheduled.loss(x_hat, context)  # lines 10–11: G_id, G_seg, …
        total = value if total is None else total + value  # line 12, eq. 5
    context.forget()
    return total


def check_finite(
    loss: Tensor,
    gradient: Tensor | None,
    terms: Sequence[Scheduled],
    x_hat: Tensor,
    context: Context,
    progress: float,
) -> None:
    """Nothing if loss and gradient are finite; otherwise SettingsError that names the term at fault.

    Where the context collects verdicts, whoever gave it the list looks at them.
    """
    if gradient is not None:
        verdict = loss.isfinite().all() & gradient.isfinite().all()
        if context.verdicts is not None:
            context.verdicts.append(verdict)
            return
        if bool(verdict):
            return
    with torch.enable_grad():
        for scheduled in terms:
            if scheduled.weight(progress) == 0:
                continue
            x = x_hat.detach().requires_grad_(True)
            value = scheduled.loss(x, context)
            (own,) = torch.autograd.grad(value.sum(), x, allow_unused=True)
            at = f"guidance term {scheduled.name}: at step {context.step}"
            if not value.isfinite().all():
                raise SettingsError(f"{at} its loss is not finite ({value.tolist()})")
            if own is None or not own.isfinite().all():
                what = "has no gradient" if own is None else "is finite but its gradient is not"
                raise SettingsError(f"{at} its loss {what} with respect to x_hat")
    raise SettingsError(
        f"guidance: at step {context.step} the gradient through the decoder is not finite though every "
        "term's is; lower the terms' scale, or try --set dtype=float32"
    )
