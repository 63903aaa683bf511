"""When a run, all folds or a sweep stop by themselves, so that they end within their time, with time left to write."""

import time
from collections.abc import Callable

UNMEASURED_SAVE_S = 20.0  # of a checkpoint before one was written
END_S = 15.0  # for what comes after the last checkpoint: publishing it, ending the workers
SPARE = 1.5  # times the last checkpoint's and the longest step's seconds


class TimeLimit:
    """How long work may still go on.  Every rank of a run has one, and all stop where any of them says so; folds and
    sweeps have one too, near which they begin nothing new.

    Args:
        left_s: seconds from now on.
        clock: seconds that only grow: no change of the machine's time moves it.
    """

    def __init__(self, left_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.stopped_at: int | None = None  # the steps made where the run ended early to keep the limit
        self._ends = clock() + left_s
        self._save_s, self._step_s = UNMEASURED_SAVE_S, 0.0

    @classmethod
    def told(cls, left_s: float | None, told_at: float) -> "TimeLimit | None":
        """What is left of a time that another process told; None where it told none.

        Processes share no monotonic clock: the wall's is asked once, for what has passed since.

        Args:
            left_s: seconds that were left when it was told.
            told_at: when that was, in seconds since 1970.
        """
        return None if left_s is None else cls(left_s - max(0.0, time.time() - told_at))

    @property
    def left_s(self) -> float:
        """Seconds until the time is over."""
        return self._ends - self.clock()

    def stepped(self, seconds: float) -> None:
        """Note how long a step took, with all that was done between it and the next one but for a checkpoint."""
        self._step_s = max(self._step_s, seconds)

    def saved(self, seconds: float) -> None:
        """Note how long the last checkpoint took."""
        self._save_s = seconds

    @property
    def near(self) -> bool:
        """Whether another step would leave too little time to write a checkpoint and to end."""
        return self.left_s < SPARE * (self._save_s + self._step_s) + END_S


class OutOfTimeError(Exception):
    """Work ended between two of its pieces, to keep a time limit; the pieces that were made are kept."""


class Pieces:
    """Work that keeps every piece that it has made, such as the scores of a case: it ends before a piece that might
    not be ready in time.

    Args:
        limit: of all the work; None for no limit.
        made: whether this command has made anything yet.  The first piece of a command is always made, so that every
            command gets on.
    """

    def __init__(self, limit: TimeLimit | None, *, made: bool = False) -> None:
        self.made = made
        self._limit, self._longest_s = limit, UNMEASURED_SAVE_S
        self._began_at: float | None = None

    def begin(self) -> None:
        """Begin a piece, which ends where the next begins.

        Raises:
            OutOfTimeError: it might not be ready in time, if it takes as long as the longest one before.
        """
        if self._limit is not None:
            now = self._limit.clock()
            if self._began_at is not None:
                self._longest_s = max(self._longest_s, now - self._began_at)
            if self.made and self._limit.left_s < SPARE * self._longest_s + END_S:
                raise OutOfTimeError
            self._began_at = now
        self.made = True
