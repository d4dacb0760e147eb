"""Errors that a user can act on. The command line prints their text as one line and exits with their code."""


class UserError(ValueError):
    """A mistake in what the user gave. The message says what was given, what was expected and what to do."""

    exit_code = 2


class ConfigError(UserError):
    """A field of the config is unknown, of the wrong type, or inconsistent with another."""


class DataError(UserError):
    """A data source is missing, empty or malformed."""

    exit_code = 65


class StorageError(UserError):
    """The run directory cannot be written, or what it holds is corrupt."""

    exit_code = 74
