"""How far a stage is: the callback that stages report to, and the lines that a user sees of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from rich.console import Console

# stage, done, total (0 where nobody knows), note
Progress = Callable[[str, int, int, str], None]

# A stage that only counts is not worth a line before.
SHORT_SECONDS = 2.0
# Between two lines of one stage: in a terminal, where they replace each other, and elsewhere.
LIVE_SECONDS, LOG_SECONDS = 0.2, 10.0
# The rate is that of the last minute: a long stage is not as fast at its end as it was at its start.
RECENT_SECONDS, SAMPLE_SECONDS = 60.0, 0.2


def silent(stage: str, done: int, total: int, note: str) -> None:
    """No progress."""


# The end of a stage's name whose line stays.
WARNING = ", warning"


def clear_live_line(console: Console) -> None:
    """What comes next, an error say, begins its own line."""
    if console.is_terminal:
        console.file.write("\r\x1b[2K")


class ProgressLines:
    """Progress for a user: one live line in a terminal, a line now and then elsewhere and in `log_file`.

    A line has stage, count, rate, time left and the stage's note: "synth 40/200, 2.3/s, 70 s left: refused: 3 too
    faint". Stages that only count, without a note, are silent for their first seconds, so that quick commands are.
    `verbose`: every line there is. `clock`: seconds that only grow.
    """

    def __init__(
        self,
        console: Console,
        *,
        log_file: Path | None = None,
        verbose: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._log_file, self._verbose, self._clock = console, log_file, verbose, clock
        self._live = console.is_terminal and not verbose
        self._paces: dict[str, _Pace] = {}
        self._shown = ""
        self._printed = self._logged = 0.0

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        now = self._clock()
        pace = self._paces.get(stage)
        if pace is None or done < pace.done:  # It begins, or begins again.
            pace = self._paces[stage] = _Pace(now, done)
        pace.report(now, done)
        lasts = now - pace.started >= SHORT_SECONDS
        if not (note or lasts or self._verbose):
            return
        ended = total > 0 and done >= total
        due = self._verbose or ended or stage != self._shown
        if not (due or now - self._printed >= (LIVE_SECONDS if self._live else LOG_SECONDS)):
            return
        parts = [f"{stage} {done}/{total}" if total else stage]
        if total and lasts:
            parts += pace.words(total)
        line = ", ".join(parts) + (f": {note}" if note else "")
        if due or now - self._logged >= LOG_SECONDS:
            append_log(self._log_file, line)
            self._logged = now
        self._print(line, stays=ended or not self._live or stage.endswith(WARNING))
        self._printed, self._shown = now, stage

    def _print(self, line: str, *, stays: bool) -> None:
        width = max(self._console.width - 1, 20)
        if self._live:
            self._console.file.write("\r" + ("" if stays else line[:width]).ljust(width) + ("\r" if stays else ""))
            self._console.file.flush()
        if stays:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class _Pace:
    """How fast one stage is."""

    def __init__(self, now: float, done: int) -> None:
        self.started, self.first, self.done = now, done, done
        self._recent = deque([(now, done)])

    def report(self, now: float, done: int) -> None:
        self.done = done
        if now - self._recent[-1][0] < SAMPLE_SECONDS:
            return
        self._recent.append((now, done))
        while len(self._recent) > 2 and now - self._recent[1][0] >= RECENT_SECONDS:
            self._recent.popleft()

    def words(self, total: int) -> list[str]:
        """The rate and the time left; of a finished stage the mean rate and how long it took; [] before both."""
        (then, before), (now, done) = self._recent[0], self._recent[-1]
        if self.done >= total:
            then, before, done = self.started, self.first, self.done
        if done <= before or now <= then:
            return []
        seconds = (now - then) / (done - before)
        ends = f"took {_duration(now - then)}" if done >= total else f"{_duration(seconds * (total - done))} left"
        return [_rate(seconds), ends]


def _rate(seconds_each: float) -> str:
    if seconds_each >= 1:
        return f"{seconds_each:.1f} s each"
    per_second = 1 / seconds_each
    return f"{per_second:.1f}/s" if per_second < 10 else f"{per_second:.0f}/s"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def append_log(log_file: Path | None, line: str) -> None:
    """Adds `line`, with date and time, to the end of `log_file`, where there is one."""
    if log_file is None:
        return
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("a", encoding="utf-8") as file:
        file.write(f"{datetime.now().isoformat(sep=' ', timespec='seconds')}  {line}\n")
