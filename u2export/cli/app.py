"""The command line: it parses, calls one function, and prints."""

from __future__ import annotations

import copy
import gc
import importlib.metadata
import sys
import traceback
import warnings
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any, NoReturn

import typer
import typer.core
import typer.main

from u2export.cli import check, environment, measure, run
from u2export.cli.export import export_command, export_help
from u2export.cli.options import with_json_target, with_verbosity
from u2export.core import plugins
from u2export.errors import ExportError, InputError, U2ExportError
from u2export.system.console import guard_streams
from u2export.system.leaving import leave_on_signals
from u2export.system.progress import Verbosity, say, verbosity

_UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # Click's, or Typer's copy of it
_RARELY = 20_000  # objects between two looks for garbage, while imports make many


class CommandPanel(str, Enum):
    """Headings that commands stand under in the help."""

    EXPORT = "Export"
    RUN = "Run"
    CHECK = "Check"
    MEASURE = "Measure and choose"
    ENVIRONMENT = "This machine"


class _Group(typer.core.TyperGroup):
    """Gives every installed backend its command, with the options that backend has.

    Only the command that is called imports its backend, which may be slow or fail.
    """

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the command that the words name."""
        if args and args[0] in plugins.names():
            from u2export.core import registry

            return args[0], export_command(registry.load(args[0])), args[1:]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Take U²-Net from PyTorch to the runtime it will live in.",
)


def _print_version(given: bool) -> None:
    if given:
        print(f"u2export {importlib.metadata.version('u2export')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Take U²-Net from PyTorch to the runtime it will live in."""


def _listed(name: str) -> Callable[[], None]:
    """Stand for a backend's command in the help; `_Group` makes the real one when it is called."""

    def command() -> None:
        raise AssertionError(f"the command {name} is replaced when it is called")

    return command


for _name in plugins.names():
    app.command(_name, help=export_help(_name), rich_help_panel=CommandPanel.EXPORT)(_listed(_name))
for _panel, _functions in (
    (CommandPanel.RUN, (run.run, run.video)),
    (
        CommandPanel.CHECK,
        (check.inspect, check.parity, check.verify, check.bisect, check.replay, check.sensitivity),
    ),
    (CommandPanel.MEASURE, (measure.bench, measure.recommend, measure.auto)),
    (CommandPanel.ENVIRONMENT, (environment.doctor, environment.backends)),
):
    for _function in _functions:
        app.command(rich_help_panel=_panel)(with_verbosity(_function))
app.add_typer(environment.weights_app, name="weights", rich_help_panel=CommandPanel.ENVIRONMENT)


def _app_for(words: list[str]) -> typer.Typer:
    """All commands, or the called one alone, so that Typer need not build the others."""
    called = [command for command in app.registered_commands if [_name_of(command)] == words]
    if not called:
        return app
    single = copy.copy(app)
    single.registered_commands = called
    return single


def _name_of(command: typer.models.CommandInfo) -> str:
    return command.name or typer.main.get_command_name(getattr(command.callback, "__name__", ""))


def main() -> NoReturn:
    """Run the command line; every error of ours becomes one line and its exit status."""
    runs_pictures = sys.argv[1:2] == ["run"]
    if runs_pictures:  # imports make many objects and leave nothing to collect
        gc.set_threshold(_RARELY)
    guard_streams()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # damage that matters is an error
    leave_on_signals()
    sys.argv[1:] = with_json_target(sys.argv[1:])
    try:
        sys.exit(_status_of(lambda: _call(_app_for(sys.argv[1:2]))))
    finally:
        if runs_pictures:
            # The process ends, and everything of ours is closed. A search for garbage would take a
            # twelfth of the time. Exports must not skip it: the package onnx complains of leaks.
            gc.freeze()


def _call(commands: typer.Typer) -> None:
    """Call the command that the words name; words it cannot take become an error of ours."""
    try:
        status = commands(standalone_mode=False)
    except _UsageError as error:
        raise _as_ours(error) from error
    if isinstance(status, int):  # of `--help` and `--version`
        sys.exit(status)


def _as_ours(error: Any) -> InputError | SystemExit:
    """The error as one sentence; it names what was meant, or else where the help is."""
    if type(error).__name__ == "NoArgsIsHelpError":  # whose text is the help, where rich told none
        print(error.message, end="", file=sys.stderr)
        return SystemExit(error.exit_code)
    text = error.format_message().removesuffix(".")
    sentence = text[:1].lower() + text[1:]
    if error.ctx is None or sentence.endswith(("?", ")")):  # it names what is near
        return InputError(sentence)
    return InputError(f"{sentence}: see {error.ctx.command_path} --help")


def _status_of(command: Callable[[], object]) -> int | str | None:
    """Run the command, write what it printed, and give the exit status."""
    status: int | str | None = 0
    try:
        try:
            command()
        except SystemExit as leaving:  # Typer's way to end
            status = leaving.code
        sys.stdout.flush()
    except U2ExportError as error:
        if verbosity() is Verbosity.VERBOSE:
            traceback.print_exc()
        say(f"error: {error}", always=True)
        return error.exit_status
    except MemoryError:
        say("error: there is not enough memory for this", always=True)
        return ExportError.exit_status
    except FileNotFoundError as error:
        if error.filename is not None:
            raise
        say("error: the current folder no longer exists", always=True)
        return InputError.exit_status
    return status
