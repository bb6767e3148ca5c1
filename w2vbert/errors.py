"""The exceptions that are meant for the user."""

REQUEUE_EXIT_CODE = 75
"""Of a run that was told to stop and has saved its state (EX_TEMPFAIL of sysexits.h): start the same command again."""


class UserError(ValueError):
    """Something that the user can mend: says in one line what is wrong, where, and what to do.

    `cli` prints it as `error: ...` and exits with code 2.
    """


class Unfinished(Exception):
    """A run has saved its state and stopped before its end, because it was told to.

    `cli` prints it and exits with `REQUEUE_EXIT_CODE`.
    """
