"""Errors for people: what was wrong, with which file or flag, what to do.

The tree, with the exit code each ends the command with::

    LdvidError                     1
    ├── SettingsError              2   a flag, preset or setting that can't be used
    ├── InputError                 3   the clip or the source can't be read
    │   └── TruncatedInputError    3   it ends early; says what could be read
    ├── FaceError                  4   no usable face where one is needed
    ├── OutputExistsError          5   something is in the way, nothing was touched
    ├── OutputError                6   writing failed (disk full, no permission)
    ├── PackError                  7   a model pack is missing, damaged or unsuited
    ├── JobError                   8   a job folder belongs to another job, or a segment failed
    └── Interrupted              130   Ctrl-C; the job folder is kept for resume

A message is one or two sentences without a trailing traceback; the command line prints it
as a single line and shows the traceback only with ``--debug``.
"""

from __future__ import annotations


class LdvidError(Exception):
    """Base of every error that ldvid raises on purpose."""

    exit_code: int = 1


class SettingsError(LdvidError):
    """A flag, preset or setting can't be used."""

    exit_code = 2


class InputError(LdvidError):
    """The clip, the frame folder or the source picture can't be read."""

    exit_code = 3


class TruncatedInputError(InputError):
    """The clip ends before its own header says it should."""


class FaceError(LdvidError):
    """No usable face in the source or in the clip."""

    exit_code = 4


class OutputExistsError(LdvidError):
    """The output or another file of the user's is in the way."""

    exit_code = 5


class OutputError(LdvidError):
    """Writing failed."""

    exit_code = 6


class PackError(LdvidError):
    """A model pack is missing, damaged or unsuited."""

    exit_code = 7


class JobError(LdvidError):
    """The job folder can't be used, or a segment of the job failed."""

    exit_code = 8


class Interrupted(LdvidError):  # noqa: N818 - not an error of anyone's
    """The user stopped the job; it can be resumed."""

    exit_code = 130
