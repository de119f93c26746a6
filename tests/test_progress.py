"""Lines of progress, by a clock that a test sets."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from defectgen.progress import WARNING, ProgressLines, clear_live_line


class Shown:
    """Progress of a stage over time, and what a user sees of it."""

    def __init__(self, *, terminal: bool = False, verbose: bool = False, log_file: Path | None = None) -> None:
        self.now, self.file = 0.0, io.StringIO()
        console = Console(file=self.file, force_terminal=terminal, width=80, color_system=None)
        self.lines = ProgressLines(console, verbose=verbose, log_file=log_file, clock=lambda: self.now)

    def at(self, now: float, done: int, total: int = 100, note: str = "", stage: str = "synth") -> list[str]:
        """The lines that this report adds."""
        before = len(self.file.getvalue())
        self.now = now
        self.lines(stage, done, total, note)
        return self.file.getvalue()[before:].splitlines()


def test_line_has_stage_count_rate_time_left_and_note() -> None:
    shown = Shown()
    assert shown.at(0, 0, note="starting 2 processes") == ["synth 0/100: starting 2 processes"]
    # 20 in 10 seconds: 2 a second, 80 to go.
    assert shown.at(10, 20, note="refused: 3 too faint") == ["synth 20/100, 2.0/s, 40 s left: refused: 3 too faint"]


def test_slow_items_are_told_by_seconds_each_and_long_times_in_minutes_and_hours() -> None:
    shown = Shown()
    shown.at(0, 0, 1000, "x")
    assert shown.at(12, 4, 1000) == ["synth 4/1000, 3.0 s each, 50 min left"]
    assert Shown().at(0, 5) == []
    slow = Shown()
    slow.at(0, 0, 1000, "x")
    assert slow.at(60, 2, 1000) == ["synth 2/1000, 30.0 s each, 8.3 h left"]


def test_time_left_follows_the_recent_rate_not_the_mean() -> None:
    shown = Shown()
    shown.at(0, 0, 1000, "x")
    for second in range(1, 101):  # Five a second.
        shown.at(second, 5 * second, 1000)
    for second in range(101, 201):  # Then one a second.
        shown.at(second, 500 + (second - 100), 1000)
    assert shown.at(211, 611, 1000) == ["synth 611/1000, 1.0 s each, 6 min left"]


def test_finished_stage_says_its_mean_rate_and_how_long_it_took() -> None:
    shown = Shown()
    shown.at(0, 0, note="x")
    shown.at(90, 10)
    assert shown.at(200, 100) == ["synth 100/100, 2.0 s each, took 3 min"]


def test_quick_counting_is_silent_and_a_note_is_not() -> None:
    shown = Shown()
    assert [line for done in range(1, 101) for line in shown.at(done / 100, done)] == []
    assert shown.at(1, 4, 4, "already made", stage="read") == ["read 4/4: already made"]
    # The same stage again, of another folder, and longer.
    assert shown.at(10, 1) == []
    assert shown.at(12, 21) == ["synth 21/100, 10/s, 8 s left"]


def test_without_a_terminal_a_stage_has_a_line_every_ten_seconds() -> None:
    shown = Shown()
    shown.at(0, 0, 1000, "x")
    times = [second for second in range(1, 41) if shown.at(second, second, 1000, "x")]
    assert times == [10, 20, 30, 40]
    assert "\r" not in shown.file.getvalue()


def test_in_a_terminal_lines_replace_each_other_until_the_stage_ends() -> None:
    shown = Shown(terminal=True)
    shown.at(0, 0, note="x")
    shown.at(3, 30, note="x")
    assert shown.file.getvalue() == "".join(
        "\r" + line.ljust(79) for line in ("synth 0/100: x", "synth 30/100, 10/s, 7 s left: x")
    )
    assert shown.file.getvalue().count("\n") == 0
    shown.at(10, 100)
    assert shown.file.getvalue().endswith("\r" + " " * 79 + "\rsynth 100/100, 10/s, took 10 s\n")


def test_warning_stays_in_a_terminal_and_what_follows_a_live_line_begins_its_own() -> None:
    shown = Shown(terminal=True)
    shown.at(0, 0, note="x")
    warned = shown.at(0.01, 0, 0, "mlflow has failed " + 90 * "x", stage=f"fit{WARNING}")
    assert warned[-1] == "fit, warning: mlflow has failed " + 90 * "x"
    shown.at(3, 30, note="x")
    console = Console(file=shown.file, force_terminal=True)
    clear_live_line(console)
    assert shown.file.getvalue().endswith("\r\x1b[2K")
    plain = io.StringIO()
    clear_live_line(Console(file=plain))
    assert plain.getvalue() == ""


def test_verbose_shows_every_report() -> None:
    shown = Shown(verbose=True, terminal=True)
    assert shown.at(0, 1) == ["synth 1/100"]
    assert shown.at(0.01, 2) == ["synth 2/100"]


def test_log_file_gets_the_lines_of_a_quiet_terminal_too(tmp_path: Path) -> None:
    log = tmp_path / "logs/run.txt"
    shown = Shown(terminal=True, log_file=log)
    for second in range(41):
        shown.at(second, second, note="x")
    lines = [line[21:] for line in log.read_text().splitlines()]
    assert lines[:2] == ["synth 0/100: x", "synth 10/100, 1.0 s each, 2 min left: x"]
    assert len(lines) == 5


@pytest.mark.parametrize("text", ["[bold]", "100 % [/]"])
def test_notes_are_no_markup(text: str) -> None:
    assert Shown().at(0, 0, 0, text, stage=text) == [f"{text}: {text}"]
