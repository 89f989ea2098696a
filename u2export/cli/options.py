"""Options that several commands share, and what becomes of their values."""

from __future__ import annotations

import functools
import inspect
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from u2export.core.enums import Device, Precision, Resize
from u2export.core.models import MODELS
from u2export.core.requests import RunRequest
from u2export.errors import InputError
from u2export.system.progress import Verbosity, set_verbosity

DEFAULT_MODEL = "u2netp"
STDOUT = Path("-")
JSON_OPTION = "--json"


class Panel(str, Enum):
    """Headings that options stand under in a command's help."""

    INPUT = "Input"
    OUTPUT = "Output"
    MODEL = "Model"
    RUNTIME = "Runtime"
    LIMITS = "Limits"
    ADVANCED = "Advanced"


ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help=f"One of {', '.join(MODELS)}. By default u2netp, or u2netp-demo where u2netp cannot "
        "be had.",
        rich_help_panel=Panel.MODEL,
    ),
]
ForeignModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="For a file that u2export did not make: the model it was made from.",
        rich_help_panel=Panel.MODEL,
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        help="A .pth or .safetensors file, or random:SEED to measure latency.",
        rich_help_panel=Panel.MODEL,
    ),
]
ReferenceWeightsOption = Annotated[
    str | None,
    typer.Option(
        help="The weights file, where the reference is torch.", rich_help_panel=Panel.MODEL
    ),
]
CandidateWeightsOption = Annotated[
    str | None,
    typer.Option(help="The weights that the files were made from.", rich_help_panel=Panel.MODEL),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        help=f"{', '.join(Device)}: exactly there, or an error. By default the backend's first.",
        rich_help_panel=Panel.RUNTIME,
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        "-j",
        help="For computation. By default all that this process may use.",
        rich_help_panel=Panel.RUNTIME,
    ),
]
RunPrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help=f"{', '.join(Precision)}: demand this arithmetic. By default what the artifact says.",
        rich_help_panel=Panel.RUNTIME,
    ),
]
CompileOption = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Let PyTorch compile the network (torch only).",
        rich_help_panel=Panel.RUNTIME,
    ),
]
ResampleOption = Annotated[
    str | None,
    typer.Option(
        help=f"How pictures become square: {', '.join(Resize)}. By default as the artifact "
        "records.",
        rich_help_panel=Panel.ADVANCED,
    ),
]
PicturesOption = Annotated[
    list[Path] | None,
    typer.Option(
        help="Your own pictures, or folders of them; repeatable.", rich_help_panel=Panel.INPUT
    ),
]
BudgetOption = Annotated[
    Path | None,
    typer.Option(
        help='A JSON file of budgets, such as {"fp16": {"mask_mae": 0.004}}.',
        rich_help_panel=Panel.ADVANCED,
    ),
]
JsonOption = Annotated[
    Path | None,
    typer.Option(
        JSON_OPTION,
        metavar="[FILE.json|-]",
        help="Write the result as JSON: into a file that ends in .json, or to standard output.",
        rich_help_panel=Panel.OUTPUT,
    ),
]
HtmlOption = Annotated[
    Path | None,
    typer.Option(help="Write a page that needs nothing but itself.", rich_help_panel=Panel.OUTPUT),
]
MaxLatencyOption = Annotated[
    float | None,
    typer.Option("--max-latency-ms", help="Of a picture, median.", rich_help_panel=Panel.LIMITS),
]
MinIouOption = Annotated[
    float | None,
    typer.Option(
        "--min-iou", help="Of the masks with the reference's, mean.", rich_help_panel=Panel.LIMITS
    ),
]
MaxMaeOption = Annotated[
    float | None,
    typer.Option(
        "--max-mae", help="Of the masks, mean absolute difference.", rich_help_panel=Panel.LIMITS
    ),
]
MaxSizeOption = Annotated[
    float | None,
    typer.Option("--max-size-mb", help="Of the files.", rich_help_panel=Panel.LIMITS),
]
MaxMemoryOption = Annotated[
    float | None,
    typer.Option(
        "--max-memory-mb",
        help="Of the process, above Python's own.",
        rich_help_panel=Panel.LIMITS,
    ),
]


def run_request(
    device: str | None = None,
    threads: int | None = None,
    precision: str | None = None,
    *,
    compiled: bool = False,
    streams: int = 1,
) -> RunRequest:
    """Make a request of the options' values.

    Raises:
        InputError: there is no such device or precision, or no machine has so many threads.
    """
    return RunRequest(
        Device.named(device) if device else None,
        threads,
        Precision.named(precision) if precision else None,
        streams=streams,
        compiled=compiled,
    )


_QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Tell only errors beside results.")
]
_VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Name every step, and trace errors.")
]


def with_verbosity(function: Callable[..., None]) -> Callable[..., None]:
    """Let a command take `--quiet` and `--verbose` beside its own options."""
    signature = inspect.signature(function, eval_str=True)

    @functools.wraps(function)
    def command(*, quiet: bool, verbose: bool, **values: Any) -> None:
        if quiet and verbose:
            raise InputError("--quiet and --verbose contradict each other: leave one out")
        if quiet or verbose:
            set_verbosity(Verbosity.QUIET if quiet else Verbosity.VERBOSE)
        function(**values)

    own = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in (("quiet", _QuietOption), ("verbose", _VerboseOption))
    ]
    parameters = [*signature.parameters.values(), *own]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def command_line() -> str:
    """What was typed, for a report."""
    words = ["u2export", *sys.argv[1:]]
    return subprocess.list2cmdline(words) if sys.platform == "win32" else shlex.join(words)


def with_json_target(words: Sequence[str]) -> list[str]:
    """Let `--json` without a file mean standard output.

    The next word is the option's only where it is `-` or ends in `.json`. So a model file that
    follows is never taken for the report's place.
    """
    complete: list[str] = []
    for word, following in zip(words, [*words, ""][1:], strict=True):
        complete.append(word)
        if word == JSON_OPTION and following != "-" and not following.endswith(".json"):
            complete.append("-")
    return complete


def show(text: str, json_text: str, json_target: Path | None) -> None:
    """Print a result for people, and write it as JSON where that was asked for.

    Where the JSON goes to standard output, nothing else does.

    Raises:
        InputError: the file cannot be written.
    """
    if json_target != STDOUT:
        print(text)
    write_json(json_text, json_target)


def write_json(text: str, target: Path | None) -> None:
    """Write JSON to a file, or to standard output; nothing where `target` is None.

    Raises:
        InputError: the file cannot be written.
    """
    if target == STDOUT:
        print(text)
    elif target is not None:
        from u2export.system.files import write_text

        write_text(target, text + "\n")


def json_file(target: Path | None) -> Path | None:
    """The file that JSON goes into; None for standard output."""
    return None if target == STDOUT else target
