"""When a run stops by itself, so that it ends within its time: between two steps, with time left to write."""

import time
from collections.abc import Callable

UNMEASURED_SAVE_S = 20.0  # of a checkpoint before one was written
END_S = 15.0  # for what comes after the last checkpoint: publishing it, ending the workers
SPARE = 1.5  # times the last checkpoint's and the longest step's seconds


class TimeLimit:
    """How long a run may still go on; every rank has one, and all stop where any of them says so.

    Args:
        left_s: seconds from now on.
        clock: seconds that only grow: no change of the machine's time moves it.
    """

    def __init__(self, left_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.stopped_at: int | None = None  # the steps made where the run ended early to keep the limit
        self._ends = clock() + left_s
        self._save_s, self._step_s = UNMEASURED_SAVE_S, 0.0

    def stepped(self, seconds: float) -> None:
        """Note how long a step took, with all that was done between it and the next one but for a checkpoint."""
        self._step_s = max(self._step_s, seconds)

    def saved(self, seconds: float) -> None:
        """Note how long the last checkpoint took."""
        self._save_s = seconds

    @property
    def near(self) -> bool:
        """Whether another step would leave too little time to write a checkpoint and to end."""
        return self._ends - self.clock() < SPARE * (self._save_s + self._step_s) + END_S
