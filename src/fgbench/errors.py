"""The errors fgbench raises on purpose."""


class FgbenchError(Exception):
    """Something a user can fix; the command line prints it as it is, without a traceback.

    Attributes:
        exit_code: what the ``fgbench`` command exits with (0 done; 1 a run failed; 2 usage or config;
            3 some runs of a sweep failed; 4 diverged; 130 Ctrl-C; 143 SIGTERM).
    """

    exit_code = 1


class ConfigError(FgbenchError, ValueError):
    """A mistake in a config, an option or an argument: where, what was got, what is allowed."""

    exit_code = 2


class DataError(ConfigError):
    """A dataset that is missing, unreadable or damaged: which file, where it was looked for."""


class MissingDataError(DataError):
    """A dataset that is not here and could not be fetched.

    Attributes:
        dataset: its name, for ``fgbench data fetch``.
    """

    def __init__(self, message: str, dataset: str = "") -> None:
        super().__init__(message)
        self.dataset = dataset


def exit_code_of(error: BaseException) -> int:
    """The exit code of a process that ended with this error."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    return error.exit_code if isinstance(error, FgbenchError) else 1
