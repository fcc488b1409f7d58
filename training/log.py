"""Lines of a long run, on stdout."""

from __future__ import annotations

import sys
import time


def say(text: str) -> None:
    """One line, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Budget:
    """Seconds or steps, whichever ends first; ``share`` goes from 0 to 1 and leads the learning rate."""

    def __init__(self, seconds: float | None, steps: int | None, *, done: int = 0) -> None:
        if seconds is None and steps is None:
            raise ValueError("a budget is seconds, steps, or both")
        self.seconds, self.steps, self.step = seconds, steps, done
        self._began = time.monotonic()
        self._said = self._began
        self._since = done

    @property
    def elapsed(self) -> float:
        """Seconds since this budget began."""
        return time.monotonic() - self._began

    @property
    def share(self) -> float:
        """How much of it is spent, in [0, 1]."""
        shares = [self.elapsed / self.seconds] if self.seconds else []
        shares += [self.step / self.steps] if self.steps else []
        return min(1.0, max(shares))

    def left(self) -> bool:
        """Whether another step may be taken."""
        return self.share < 1

    def due(self, every: float = 10.0) -> str | None:
        """A line's beginning (step, its/s, seconds) when the last one is ``every`` seconds old."""
        now = time.monotonic()
        if now - self._said < every:
            return None
        rate = (self.step - self._since) / (now - self._said)
        self._said, self._since = now, self.step
        return f"step {self.step}  {rate:.2f} it/s  {self.elapsed:.0f} s  {self.share:.0%}"
