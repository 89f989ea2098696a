"""`u2export BACKEND`: a command for each backend, made of what the backend says of itself."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from u2export.cli.options import (
    DEFAULT_MODEL,
    ModelOption,
    Panel,
    WeightsOption,
    with_verbosity,
)
from u2export.core.enums import CALIBRATED, Precision
from u2export.core.models import find_model
from u2export.core.requests import (
    DEFAULT_OPSET,
    MAX_MAE,
    MIN_IOU,
    OPSETS,
    ExportSpec,
    Quantization,
    parse_batch,
)
from u2export.errors import InputError
from u2export.system.progress import phases

if TYPE_CHECKING:  # imported when called: the help must be quick
    from u2export.core.artifact import Artifact
    from u2export.core.backend import Backend

# An option's annotated type and its default, by the name of the field it sets.
Options = dict[str, tuple[Any, Any]]

# What every backend takes.
_COMMON: Options = {
    "model": (ModelOption, None),
    "weights": (WeightsOption, None),
    "out": (
        Annotated[
            Path,
            typer.Option(
                "--out", "-o", help="Folder for the artifact.", rich_help_panel=Panel.OUTPUT
            ),
        ],
        Path("exported"),
    ),
}
# What a backend takes that has the precision or honours the field of `ExportSpec`.
_OPTIONAL: Options = {
    "precision": (
        Annotated[
            str | None,
            typer.Option(
                help=f"{', '.join(Precision)}: what the network computes in. By default fp32.",
                rich_help_panel=Panel.MODEL,
            ),
        ],
        None,
    ),
    "fp16": (
        Annotated[
            bool,
            typer.Option("--fp16", help="Short for --precision fp16.", rich_help_panel=Panel.MODEL),
        ],
        False,
    ),
    "bf16": (
        Annotated[
            bool,
            typer.Option(
                "--bf16",
                help="Short for --precision bf16, for CPUs that compute in it.",
                rich_help_panel=Panel.MODEL,
            ),
        ],
        False,
    ),
    "int8": (
        Annotated[
            bool,
            typer.Option(
                "--int8",
                help="Short for --precision int8: 8-bit integers that keep the mask.",
                rich_help_panel=Panel.MODEL,
            ),
        ],
        False,
    ),
    "batch": (
        Annotated[
            str,
            typer.Option(help="Pictures per call, or 'dynamic'.", rich_help_panel=Panel.MODEL),
        ],
        "1",
    ),
    "size": (
        Annotated[
            int | None,
            typer.Option(
                help="Side of the square input in pixels. By default the model's own.",
                rich_help_panel=Panel.MODEL,
            ),
        ],
        None,
    ),
    "all_outputs": (
        Annotated[
            bool,
            typer.Option(
                "--all-outputs", help="Give d0 to d6, d0 first.", rich_help_panel=Panel.MODEL
            ),
        ],
        False,
    ),
    "calibration": (
        Annotated[
            list[Path] | None,
            typer.Option(
                help="With int8 or bf16: 8 or more pictures, or folders of them, like those it "
                "will be used on; repeatable. Half of them only judge int8.",
                rich_help_panel=Panel.INPUT,
            ),
        ],
        None,
    ),
    "min_iou": (
        Annotated[
            float,
            typer.Option(
                help="With int8: IoU of the masks with float32's, mean.",
                rich_help_panel=Panel.ADVANCED,
            ),
        ],
        MIN_IOU,
    ),
    "max_mae": (
        Annotated[
            float,
            typer.Option(
                help="With int8: mean absolute difference of the masks.",
                rich_help_panel=Panel.ADVANCED,
            ),
        ],
        MAX_MAE,
    ),
    "best_effort": (
        Annotated[
            bool,
            typer.Option(
                "--best-effort",
                help="With int8: write the file even if it misses these.",
                rich_help_panel=Panel.ADVANCED,
            ),
        ],
        False,
    ),
    "seed": (
        Annotated[
            int,
            typer.Option(
                help="With int8 or bf16: of all random numbers.", rich_help_panel=Panel.ADVANCED
            ),
        ],
        0,
    ),
    "opset": (
        Annotated[
            int | None,
            typer.Option(
                help=f"{min(OPSETS)} to {max(OPSETS)}. By default {DEFAULT_OPSET}.",
                rich_help_panel=Panel.ADVANCED,
            ),
        ],
        None,
    ),
}
# Which of them belong to quantization, and which of these bf16 takes too.
_QUANTIZATION = ("calibration", "min_iou", "max_mae", "best_effort", "seed")
_CALIBRATION = ("calibration", "seed")
_PROFILE_BATCH = Annotated[
    str,
    typer.Option(
        help="Pictures per call, 'dynamic', or the range MIN:OPT:MAX.",
        rich_help_panel=Panel.MODEL,
    ),
]


def export_help(name: str) -> str:
    """One line on the command of a backend."""
    return f"Export with the {name} backend and print the artifact's path."


def export_command(backend: Backend) -> Any:
    """Make the command of a backend."""
    options = _options_of(backend)

    def command(**values: Any) -> None:
        print(_export(backend, values).path)

    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default
            )
            for name, (kind, default) in options.items()
        ]
    )
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(backend.name, help=export_help(backend.name))(with_verbosity(command))
    return typer.main.get_command(app)


def _options_of(backend: Backend) -> Options:
    supported = {"precision", *backend.export_options, *map(str, backend.precisions)}
    if "quantization" in backend.export_options:
        supported |= {*_QUANTIZATION}
    options = {
        **_COMMON,
        **{
            name: (kind if name in supported else _hidden(kind), default)
            for name, (kind, default) in _OPTIONAL.items()
        },
    }
    options["precision"] = (_precision_option(backend), None)
    if "profile" in backend.export_options:
        options["batch"] = (_PROFILE_BATCH, "1")
    for option in backend.backend_options:
        kind: Any = Annotated[
            str | None, typer.Option(help=option.help, rich_help_panel=Panel.ADVANCED)
        ]
        options[option.name] = (kind, None)
    if backend.parent is not None:
        text = f"Convert this {backend.parent} file as it is, instead of exporting weights."
        kind = Annotated[
            Path | None, typer.Option("--from", help=text, rich_help_panel=Panel.INPUT)
        ]
        options["source"] = (kind, None)
    return options


def _precision_option(backend: Backend) -> Any:
    """The option that names only what the backend exports."""
    text = f"{', '.join(backend.precisions)}: what the network computes in. By default fp32."
    return Annotated[str | None, typer.Option(help=text, rich_help_panel=Panel.MODEL)]


def _hidden(kind: Any) -> Any:
    """An option that the help leaves out; a sentence says that the backend has none such."""
    option = copy.copy(kind.__metadata__[0])
    option.hidden = True
    return Annotated[kind.__origin__, option]


def _export(backend: Backend, values: dict[str, Any]) -> Artifact:
    if values.get("source") is not None:
        return _convert(backend, values)
    from u2export.export.build import export_model

    model, weights = values["model"], values["weights"]
    uses_default = model is None and weights is None
    spec = _export_spec(backend, values)
    with phases() as phase:
        return export_model(
            backend.name, spec, weights, values["out"], fallback=uses_default, phase=phase
        )


def _convert(backend: Backend, values: dict[str, Any]) -> Artifact:
    from u2export.export.build import convert_model

    allowed = {"model", "out", "source", *(option.name for option in backend.backend_options)}
    defaults = {**_COMMON, **_OPTIONAL}
    for name in values.keys() - allowed:
        if values[name] != defaults[name][1]:
            raise InputError(
                f"--from converts the file as it is: leave --{name.replace('_', '-')} out"
            )
    with phases() as phase:
        return convert_model(
            backend.name,
            values["source"],
            values["out"],
            model=values["model"],
            backend_options=_backend_options(backend, values),
            phase=phase,
        )


def _export_spec(backend: Backend, values: dict[str, Any]) -> ExportSpec:
    model = find_model(values["model"] or DEFAULT_MODEL)
    batch, profile = parse_batch(values.get("batch", "1"))
    size = values.get("size")
    precision = _precision(values)
    return ExportSpec(
        model,
        size=model.picture.size if size is None else size,
        precision=precision,
        quantization=_quantization(backend, precision, values),
        batch=batch,
        all_outputs=values.get("all_outputs", False),
        opset=values.get("opset"),
        profile=profile,
        backend_options=_backend_options(backend, values),
    )


def _backend_options(backend: Backend, values: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    names = [option.name for option in backend.backend_options]
    return tuple((name, values[name]) for name in names if values[name] is not None)


def _precision(values: dict[str, Any]) -> Precision:
    """The one precision that was asked for, by `--precision` or by its short form."""
    requested = [precision for precision in Precision if values.get(str(precision))]
    options = [f"--{precision}" for precision in requested]
    if values.get("precision"):
        requested.append(Precision.named(values["precision"]))
        options.append(f"--precision {values['precision']}")
    if len(set(requested)) > 1:
        raise InputError(f"{' and '.join(options)} are {len(options)} files: ask for one at a time")
    return requested[0] if requested else Precision.FP32


def _quantization(
    backend: Backend, precision: Precision, values: dict[str, Any]
) -> Quantization | None:
    """How int8 or bf16 is to be found; None where nothing was said of it."""
    from u2export.images.inputs import image_files

    given = [name for name in _QUANTIZATION if values.get(name) != _OPTIONAL[name][1]]
    possible = {Precision.INT8: _QUANTIZATION, Precision.BF16: _CALIBRATION}.get(precision, ())
    for name in given:
        if name not in possible:
            takes = CALIBRATED if name in _CALIBRATION else (Precision.INT8,)
            flags = [f"--{one}" for one in reversed(takes) if one in backend.precisions]
            raise InputError(
                f"--{name.replace('_', '-')} goes with {' or '.join(flags) or '--int8'}: add it"
            )
    if not given:
        return None
    return Quantization(
        pictures=tuple(image_files(values["calibration"] or [])),
        **{name: values[name] for name in _QUANTIZATION[1:]},
    )
