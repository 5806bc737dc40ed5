"""Failures a user can mend. Each message is one line: what is wrong, where, and what to do about it."""

from recbole_mm.utils.escaping import one_line


class RecboleMMError(Exception):
    """An expected failure. The command line prints it without a traceback and exits with status 2."""

    def __str__(self) -> str:
        """The message, in which no id, name or value of somebody's data begins a line or moves the cursor."""
        return one_line(super().__str__())


class ConfigError(RecboleMMError):
    """A configuration names something that does not exist or does not fit together."""


class DataError(RecboleMMError):
    """A data file is missing, malformed or inconsistent with another one."""


class ImageError(DataError):
    """An image cannot be decoded safely."""


class StoreError(RecboleMMError):
    """The artifact store cannot be read or written."""


class ModelLoadError(RecboleMMError):
    """A pretrained model cannot be found or loaded."""


class CheckpointError(RecboleMMError):
    """A checkpoint or run folder is missing, unreadable, or of a kind that is never loaded."""


class DiskError(RecboleMMError):
    """A file or folder cannot be written: a full or read-only disk, or a path where it cannot be."""
