"""The errors a user may see. Each is one message: where, what, the value got, what to do. `cli` prints it and exits."""

from __future__ import annotations


class DefectgenError(Exception):
    """A run or its data failed; the command exits with 1."""

    exit_code = 1


class DataError(DefectgenError):
    """The user's images or labels cannot be used as they are."""


class RunError(DefectgenError):
    """A stage could not do its work: no output reached, folder in use, folder of another run."""


class UsageError(DefectgenError):
    """The command line or the recipe is wrong; the command exits with 2."""

    exit_code = 2
