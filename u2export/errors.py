"""What can go wrong, and the exit status each family has."""


def pip_command(*extras: str, package: str = "u2export") -> str:
    """What to type to install a package with extras; every shell takes these quotation marks."""
    return f'pip install "{package}[{",".join(extras)}]"'


class U2ExportError(Exception):
    """Base of every error that is not a bug; its text is one sentence for the user."""

    exit_status = 1


class InputError(U2ExportError):
    """What was asked for or handed in cannot be used."""

    exit_status = 2


class DependencyError(U2ExportError):
    """A package or a device that the request needs is not there."""

    exit_status = 3


class ArtifactError(U2ExportError):
    """Weights or an artifact are altered, truncated or foreign."""

    exit_status = 4


class ExportError(U2ExportError):
    """An export failed or could not be confirmed."""

    exit_status = 5


class OutputError(ExportError):
    """No result can be written any more: the disk is full, or standard output is."""


class ParityError(U2ExportError):
    """An artifact does not do what its reference does, or not what was asked of it."""

    exit_status = 6


class ImagesFailedError(U2ExportError):
    """Some pictures failed; the results of the others were written."""

    exit_status = 7
