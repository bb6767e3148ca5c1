"""The one exception that is meant for the user."""


class UserError(ValueError):
    """Something that the user can mend: says in one line what is wrong, where, and what to do.

    `cli.py` prints it as `error: ...` and exits with code 2.
    """
