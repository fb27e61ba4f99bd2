"""every failure that a user can mend -> one tree of exceptions, each with its exit code.

    MistralError
    |-- ConfigError        a value of an experiment, a cluster file or the command line
    |-- DataError          a corpus, a tokenizer or a shard
    |-- ManifestError      a record that is missing, damaged or contradicts another
    |   `-- PathError      a path that leaves the workspace
    |-- LeaseError         another process owns the run
    |-- CheckpointError    a checkpoint that cannot be written or read
    |-- StorageError       the disk is full, the quota is used up, a file cannot be written or read
    |-- EnvironmentProblem this machine lacks something that the config asks for
    |-- LostRanks          the other ranks of a run are gone: nothing to mend here, run it again
    |-- Findings           work that finished and found something wrong (exit code 3)
    |   `-- NonFiniteLoss  the loss is not a number
    `-- Stopped            stopped on a signal, with everything saved (exit code 75)

A message says what was found, what was expected, and what to do.
"""


class MistralError(Exception):
    """A failure with a message for the user; shown without a traceback unless --debug is given."""

    exit_code = 1


class ConfigError(MistralError):
    """A value of an experiment, a cluster file or the command line is wrong."""


class DataError(MistralError):
    """A corpus, a tokenizer or a shard is not what it should be."""


class ManifestError(MistralError):
    """A record is missing, damaged, or contradicts another one."""


class PathError(ManifestError):
    """A path that leaves the workspace."""


class LeaseError(MistralError):
    """Another process owns the run, or may own it."""


class CheckpointError(MistralError):
    """A checkpoint cannot be written or read."""


class StorageError(MistralError):
    """The disk is full, the quota is used up, or a file cannot be written or read."""


class EnvironmentProblem(MistralError):
    """This machine lacks something that the configuration asks for."""


class LostRanks(MistralError):
    """The connection to the other ranks of a run is torn, as one of them died or failed."""


class Findings(MistralError):
    """The command did its work and found something wrong, or some of its units failed."""

    exit_code = 3


class NonFiniteLoss(Findings):
    """The loss of a step is not a finite number."""


class Stopped(MistralError):
    """Stopped on a signal; all finished work is saved and the same command goes on from there."""

    exit_code = 75
