"""The command line: parses, calls one function, prints."""

from __future__ import annotations

import copy
import gc
import inspect
import io
import itertools
import json
import shlex
import signal
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, closing, redirect_stdout
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
import typer.core
import typer.main

from u2export import plugins
from u2export.errors import InputError, U2ExportError
from u2export.machine import usable_cpus
from u2export.progress import phases, say, tracked
from u2export.spec import (
    DEFAULT_OPSET,
    MAX_MAE,
    MAX_PIXELS,
    MAX_THREADS,
    MIN_IOU,
    MODELS,
    OPSETS,
    Device,
    Engine,
    ExportSpec,
    Format,
    Precision,
    Quantization,
    Refine,
    Resize,
    model_named,
    parse_batch,
)

if TYPE_CHECKING:  # imported when called: the help must be quick
    from u2export.artifact import Artifact
    from u2export.backend import Backend

_RARELY, _USUALLY = 20_000, gc.get_threshold()  # objects between two looks for garbage
SIGNALLED = 128  # plus the signal's number: the exit status shells report
DEFAULT_MODEL = "u2netp"


class _Backends(typer.core.TyperGroup):
    """Gives every installed backend its command, with the options that backend has.

    Only the command that is called imports its backend, which may take long or not be possible.
    """

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the command that the words name."""
        if args and args[0] in plugins.names():
            from u2export import registry

            return args[0], _export_command(registry.load(args[0])), args[1:]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Backends,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Take U²-Net from PyTorch to the runtime it will live in.",
)
weights_app = typer.Typer(no_args_is_help=True, help="List, fetch and verify weights.")
app.add_typer(weights_app, name="weights")

_MODEL_OPTION = typer.Option(
    help=f"One of {', '.join(MODELS)}. By default u2netp, or u2netp-demo where it is not to be had."
)
_FOREIGN_MODEL = Annotated[
    str | None,
    typer.Option(help="For a file u2export did not make: the model it was made from."),
]
_DEVICE = Annotated[
    str | None,
    typer.Option(
        help=f"{', '.join(Device)}: exactly there, or an error. By default the backend's own."
    ),
]
_THREADS = Annotated[
    int | None, typer.Option(help="For computation. By default all this process may use.")
]
_PRECISION = Annotated[
    str | None,
    typer.Option(help=f"{', '.join(Precision)}: demand it. By default as the artifact says."),
]
_COMPILE = Annotated[
    bool, typer.Option("--compile", help="Let PyTorch compile the network (torch only).")
]
_JSON = Annotated[bool, typer.Option("--json", help="Machine-readable.")]
# What `u2export BACKEND` may take beside --out, by the field it sets: those of ExportSpec are
# offered where the backend honours them.
_COMMON: dict[str, tuple[Any, Any]] = {
    "model": (Annotated[str | None, _MODEL_OPTION], None),
    "weights": (
        Annotated[
            str | None,
            typer.Option(help="A .pth or .safetensors file, or random:SEED to measure latency."),
        ],
        None,
    ),
    "out": (Annotated[Path, typer.Option(help="Folder for the artifact.")], Path("exported")),
}
_OPTIONAL: dict[str, tuple[Any, Any]] = {
    "fp16": (Annotated[bool, typer.Option("--fp16", help="Half precision.")], False),
    "batch": (Annotated[str, typer.Option(help="Pictures per call, or 'dynamic'.")], "1"),
    "size": (
        Annotated[
            int | None,
            typer.Option(help="Side of the square input in pixels. By default the model's own."),
        ],
        None,
    ),
    "all_outputs": (
        Annotated[bool, typer.Option("--all-outputs", help="Give d0..d6, d0 first.")],
        False,
    ),
    "bf16": (
        Annotated[
            bool,
            typer.Option(
                "--bf16", help="bfloat16 arithmetic, on CPUs that have it; see the README."
            ),
        ],
        False,
    ),
    "int8": (
        Annotated[bool, typer.Option("--int8", help="8-bit whole numbers that keep the mask.")],
        False,
    ),
    "calibration": (
        Annotated[
            list[Path] | None,
            typer.Option(
                help="With --int8 or --bf16: 8 or more pictures, or folders of them, like those "
                "it will be used on; repeatable. For int8 half of them only judge."
            ),
        ],
        None,
    ),
    "min_iou": (
        Annotated[float, typer.Option(help="With --int8: of the masks with float32's, mean.")],
        MIN_IOU,
    ),
    "max_mae": (
        Annotated[float, typer.Option(help="With --int8: of the masks, mean.")],
        MAX_MAE,
    ),
    "best_effort": (
        Annotated[
            bool,
            typer.Option("--best-effort", help="With --int8: write it even if it misses these."),
        ],
        False,
    ),
    "seed": (
        Annotated[int, typer.Option(help="With --int8 or --bf16: of what is drawn at random.")],
        0,
    ),
    "opset": (
        Annotated[
            int | None,
            typer.Option(help=f"{min(OPSETS)} to {max(OPSETS)}. By default {DEFAULT_OPSET}."),
        ],
        None,
    ),
}
_PICTURES = ("calibration", "seed")  # which bf16 takes too
_QUANTIZATION = ("calibration", "min_iou", "max_mae", "best_effort", "seed")
_PROFILE_BATCH = Annotated[
    str, typer.Option(help="Pictures per call, 'dynamic', or the range MIN:OPT:MAX.")
]


def _export_command(backend: Backend) -> Any:
    """Make the command of a backend out of what it says of itself."""
    able = {*backend.options, *map(str, backend.precisions)}
    if "quantization" in backend.options:
        able |= {*_QUANTIZATION}
    options = {
        **_COMMON,
        **{
            name: (kind if name in able else _hidden(kind), default)
            for name, (kind, default) in _OPTIONAL.items()
        },
    }
    if "profile" in backend.options:
        options["batch"] = (_PROFILE_BATCH, "1")
    for setting in backend.settings:
        kind = Annotated[str | None, typer.Option(help=setting.help)]
        options[setting.name] = (kind, None)
    if backend.parent is not None:
        text = f"Convert this {backend.parent} file as it is, instead of exporting weights."
        options["source"] = (Annotated[Path | None, typer.Option("--from", help=text)], None)

    def command(**given: Any) -> None:
        print(_export(backend, given).path)

    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default
            )
            for name, (kind, default) in options.items()
        ]
    )
    command.__annotations__ = {name: kind for name, (kind, _) in options.items()}
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command(
        backend.name, help=f"Export with the {backend.name} backend and print the artifact's path."
    )(command)
    return typer.main.get_command(alone)


def _hidden(kind: Any) -> Any:
    """An option that is not shown, yet taken, so that a sentence can say that there is no such."""
    option = copy.copy(kind.__metadata__[0])
    option.hidden = True
    return Annotated[kind.__origin__, option]


def _export(backend: Backend, given: dict[str, Any]) -> Artifact:
    from u2export import build

    settings = tuple((s.name, given[s.name]) for s in backend.settings if given[s.name] is not None)
    model, weights, out = given["model"], given["weights"], given["out"]
    if given.get("source") is not None:
        kept = {"model", "out", "source", *(s.name for s in backend.settings)}
        defaults = {**_COMMON, **_OPTIONAL}
        for name in given.keys() - kept:
            if given[name] != defaults[name][1]:
                raise InputError(
                    f"--from converts the file as it is: leave --{name.replace('_', '-')} out"
                )
        with phases() as phase:
            return build.convert(
                backend.name, given["source"], out, model=model, settings=settings, phase=phase
            )
    wanted = model_named(model or DEFAULT_MODEL)
    batch, profile = parse_batch(given.get("batch", "1"))
    size = given.get("size")
    spec = ExportSpec(
        wanted,
        size=wanted.picture.size if size is None else size,
        precision=_wanted_precision(given),
        quantization=_quantization(given),
        batch=batch,
        all_outputs=given.get("all_outputs", False),
        opset=given.get("opset"),
        profile=profile,
        settings=settings,
    )
    fallback = model is None and weights is None
    with phases() as phase:
        return build.export(backend.name, spec, weights, out, fallback=fallback, phase=phase)


def _wanted_precision(given: dict[str, Any]) -> Precision:
    asked = [one for one in Precision if given.get(str(one))]
    if len(asked) > 1:
        names = " and ".join(f"--{one}" for one in asked)
        raise InputError(f"{names} are {len(asked)} files: ask for one at a time")
    return asked[0] if asked else Precision.FP32


def _quantization(given: dict[str, Any]) -> Quantization | None:
    """What int8 is asked for; None where nothing is said of it."""
    from u2export import places

    told = [name for name in _QUANTIZATION if given.get(name) != _OPTIONAL[name][1]]
    able = _QUANTIZATION if given.get("int8") else _PICTURES if given.get("bf16") else ()
    for name in told:
        if name not in able:
            both = "--int8 or --bf16" if name in _PICTURES else "--int8"
            raise InputError(f"--{name.replace('_', '-')} goes with {both}: add it")
    if not told:
        return None
    return Quantization(
        pictures=tuple(places.pictures_in(given["calibration"] or [])),
        **{name: given[name] for name in _QUANTIZATION[1:]},
    )


def _listed(name: str) -> None:
    """Show a backend's command in the help; `_Backends` makes the real one when it is called."""

    @app.command(name, help=f"Export with the {name} backend and print the artifact's path.")
    def command() -> None:
        raise AssertionError("replaced when called")


for _name in plugins.names():
    _listed(_name)


@app.command()
def run(
    artifact: Annotated[Path, typer.Argument(help="An exported model file.")],
    pictures: Annotated[
        list[Path],
        typer.Argument(help="Pictures, folders of them, patterns such as 'a/**/*.jpg', or - ."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="A folder; for one picture also a file, or - . By default masks/ or cutouts/."
        ),
    ] = None,
    cutout: Annotated[
        bool, typer.Option("--cutout", help="Write the subject on transparency, not the mask.")
    ] = False,
    background: Annotated[
        str | None, typer.Option(help="Write the subject on a colour, or on a picture's file.")
    ] = None,
    refine: Annotated[
        str,
        typer.Option(
            help="plain; guided: edges follow the picture's; matting: hair and fur too, slow."
        ),
    ] = "plain",
    threshold: Annotated[
        float | None, typer.Option(help="From here on all is subject, below nothing: 0 to 1.")
    ] = None,
    feather: Annotated[float, typer.Option(help="Blur the mask's edge by so many pixels.")] = 0.0,
    post_process: Annotated[
        bool, typer.Option("--post-process", help="Drop small islands, fill small holes.")
    ] = False,
    decontaminate: Annotated[
        bool,
        typer.Option("--decontaminate", help="Take the ground's colour out of soft edges."),
    ] = False,
    crop: Annotated[bool, typer.Option("--crop", help="To the subject.")] = False,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format", help=f"{', '.join(Format)}. By default as --out's name says, else png."
        ),
    ] = None,
    quality: Annotated[
        int | None,
        typer.Option(help="Of webp (100: lossless) and jpg; 80 and 90 where it is not given."),
    ] = None,
    png_level: Annotated[int, typer.Option(help="Of PNG's compression, 0 to 9.")] = 1,
    name: Annotated[
        str | None,
        typer.Option(help="Template of results' names, such as '{folder}/{stem}-mask.{ext}'."),
    ] = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", help="Take folders of folders too.")
    ] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave out pictures whose result is there.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on with what comes into the folders.")
    ] = False,
    log: Annotated[
        Path | None, typer.Option(help="Add a line of JSON for each picture to this file.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help=f"{', '.join(Engine)}: threads of this process, or Ray's actors.")
    ] = "local",
    device: _DEVICE = None,
    threads: _THREADS = None,
    precision: _PRECISION = None,
    compiled: _COMPILE = False,
    resample: Annotated[
        str | None,
        typer.Option(
            help=f"How pictures become square: {', '.join(Resize)}. By default as recorded in "
            "the artifact."
        ),
    ] = None,
    model: _FOREIGN_MODEL = None,
    max_pixels: Annotated[int, typer.Option(help="Larger pictures are refused.")] = MAX_PIXELS,
) -> None:
    """Write a mask or cut-out for each picture, at its own size, and print its path."""
    from u2export import finish, places
    from u2export import run as running
    from u2export.artifact import check_places
    from u2export.encode import Encoding

    coloured = cutout or background is not None
    order = running.Order(
        finish=finish.Finish(
            cutout=cutout,
            background=None if background is None else finish.background(background),
            refine=Refine.named(refine),
            threshold=threshold,
            feather=feather,
            clean=post_process,
            decontaminate=decontaminate,
            crop=crop,
        ),
        encoding=Encoding(places.format_of(format_, out), quality=quality, png_level=png_level),
        max_pixels=max_pixels,
        hashed=log is not None,
    )
    usual = Path("cutouts" if coloured else "masks")
    plan = places.Plan(
        out or (places.STANDARD if pictures == [places.STANDARD] else usual),
        str(order.encoding.format),
        template=name,
        recursive=recursive,
        skip_existing=skip_existing,
    )
    rounds = plan.watched(pictures) if watch else iter([plan.targets(pictures)])
    first = next(rounds)
    check_places(log, *(result for _, result in first[:1] if result != places.STANDARD))
    if Engine.named(engine) is Engine.RAY and (watch or places.STANDARD in [*pictures, plan.out]):
        raise InputError("Ray takes pictures and results in files, all at the start")
    options: dict[str, Any] = {
        "model": model,
        "device": device,
        "precision": precision,
        "compiled": compiled,
        "resample": resample,
    }
    with ExitStack() as opened:
        make: Callable[[Iterable[tuple[Path, Path]]], Generator[running.Done, None, None]]
        told = sys.stdout
        if Engine.named(engine) is Engine.RAY:
            from u2export import ray

            opened.enter_context(redirect_stdout(sys.stderr))  # Ray has much to say
            make = partial(
                ray.map_pictures,
                artifact,
                order=order,
                workers=threads or usable_cpus(),
                options=options,
            )
        else:
            at_once = MAX_THREADS if watch else max(1, len(first))
            segment = running.load(artifact, threads=threads, at_once=at_once, **options)
            make = partial(running.process, opened.enter_context(segment), order=order)
        gc.set_threshold(*_USUALLY)
        journal = log and opened.enter_context(closing(running.Journal(log, artifact)))
        failed: list[str] = []
        for targets in itertools.chain([first], rounds):
            # closed, whatever happens here, before the runner is
            with closing(make(tracked(targets, "segmenting"))) as results:
                for done in results:
                    if journal:
                        journal.add(done)
                    if done.error:
                        failed.append(str(done.picture))
                        say(f"error: {done.error}")
                    elif done.result != places.STANDARD:
                        print(done.result, file=told, flush=True)
    if failed:
        raise InputError(f"{running.summary(failed, len(first))}; the rest were written")


@app.command()
def video(
    artifact: Annotated[Path, typer.Argument(help="An exported model file.")],
    frame: Annotated[str, typer.Option(help="Size of a frame, such as 1280x720.")],
    cutout: Annotated[
        bool, typer.Option("--cutout", help="Write RGBA frames, not masks (gray).")
    ] = False,
    smooth: Annotated[
        float, typer.Option(help="How much of earlier masks is kept, 0 to below 1.")
    ] = 0.0,
    device: _DEVICE = None,
    threads: _THREADS = None,
    precision: _PRECISION = None,
    resample: Annotated[
        str | None, typer.Option(help="How frames become square. By default as recorded.")
    ] = None,
    model: _FOREIGN_MODEL = None,
) -> None:
    """Turn raw rgb24 frames on standard input into raw masks or cut-outs on standard output."""
    from u2export import run as running
    from u2export import video as videos

    reel = videos.Reel(videos.frame_size(frame), cutout=cutout, smooth=smooth)
    with (
        running.load(
            artifact,
            model=model,
            device=device,
            threads=threads,
            precision=precision,
            resample=resample,
            at_once=MAX_THREADS,
        ) as segment,
        phases() as phase,
    ):
        phase("segmenting frames")
        count = videos.convert(segment, sys.stdin.buffer, sys.stdout.buffer, reel)
    say(f"{count} frames")


@app.command("inspect")
def inspect_artifact(
    artifact: Annotated[Path, typer.Argument(help="An exported model file.")],
    device: _DEVICE = None,
    threads: _THREADS = None,
    precision: _PRECISION = None,
    compiled: _COMPILE = False,
    model: _FOREIGN_MODEL = None,
    layers: Annotated[bool, typer.Option("--layers", help="Name every layer.")] = False,
    as_json: _JSON = False,
) -> None:
    """Tell what really runs: device and arithmetic of every layer; status 6 if it was not asked."""
    from u2export import inspection

    asked = Precision.named(precision) if precision else None
    place = Device.named(device) if device else None
    with phases() as phase:
        phase("asking the runtime")
        account = inspection.inspect(
            artifact,
            model=model,
            device=place,
            threads=threads,
            precision=asked,
            compiled=compiled,
        )
    if as_json:
        print(account.model_dump_json(indent=1))
    else:
        print(inspection.table(account, layers=layers))
    inspection.demand(account)


@app.command()
def sensitivity(
    artifact: Annotated[Path, typer.Argument(help="A model file exported with --int8.")],
    html: Annotated[Path | None, typer.Option(help="Write a page with plots.")] = None,
    as_json: _JSON = False,
) -> None:
    """Tell which layers of an int8 file stayed in float32, and why; nothing is run."""
    from u2export import inspection
    from u2export.artifact import check_places

    check_places(html)
    told = inspection.quantization(artifact)
    if html is not None:
        inspection.show_quantization(told, html)
    print(told.account.model_dump_json(indent=1) if as_json else told.text)


@app.command()
def parity(
    reference: Annotated[
        str, typer.Argument(help="A model file, or 'torch': the weights the candidates come from.")
    ],
    candidates: Annotated[
        list[Path] | None, typer.Argument(help="The model files to be judged.")
    ] = None,
    pictures: Annotated[
        list[Path] | None, typer.Option(help="Your own pictures, or folders of them; repeatable.")
    ] = None,
    cases: Annotated[
        str, typer.Option(help="quick, or all: more pictures and properties.")
    ] = "quick",
    budget: Annotated[
        Path | None,
        typer.Option(help='A JSON file of budgets, such as {"fp16": {"mask_mae": 0.004}}.'),
    ] = None,
    emulate: Annotated[
        list[str] | None,
        typer.Option(help="Judge fp16 or bf16 arithmetic as well, emulated; repeatable."),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="The weights file, where the reference is torch.")
    ] = None,
    model: _FOREIGN_MODEL = None,
    resample: Annotated[
        str | None, typer.Option(help="How pictures become square for the candidates.")
    ] = None,
    device: _DEVICE = None,
    threads: _THREADS = None,
    allow_missing: Annotated[
        bool,
        typer.Option("--allow-missing", help="A candidate that cannot run here is no failure."),
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with the masks.")] = None,
    github: Annotated[
        bool, typer.Option("--github", help="Annotate a GitHub run and write its summary.")
    ] = False,
    replays: Annotated[Path, typer.Option(help="Folder for the replay files of failures.")] = Path(
        "replays"
    ),
) -> None:
    """Judge whether model files are the same function as a reference, from file to mask."""
    from u2export import judging, places
    from u2export.artifact import check_places

    if cases not in ("quick", "all"):
        raise InputError(f"cases must be quick or all, got {cases!r}")
    question = judging.Question(
        reference=reference,
        candidates=tuple(candidates or ()),
        pictures=tuple(places.pictures_in(pictures or [])),
        thorough=cases == "all",
        budgets=judging.budgets(budget),
        weights=weights,
        model=model,
        resample=Resize.named(resample) if resample else None,
        emulate=tuple(Precision.named(name) for name in emulate or []),
        device=Device.named(device) if device else None,
        threads=threads,
        allow_missing=allow_missing,
        command=shlex.join(["u2export", *sys.argv[1:]]),
        budget_file=budget,
    )
    check_places(json_file, junit, html)
    report, kept = judging.examine(question, tracked)
    print(judging.text(report))
    judging.write(report, kept, json_file=json_file, junit_file=junit, html_file=html)
    if github:
        judging.tell_github(report, kept)
    for sentence in judging.certify(question, report):
        say(sentence)
    for path in judging.leave_replays(question, report, kept, replays):
        say(f"{path} holds the failure: u2export replay {path}")
    judging.demand(report)


@app.command()
def bisect(
    reference: Annotated[
        str,
        typer.Argument(help="'torch': the weights it was made from; or a model file of the same."),
    ],
    candidate: Annotated[Path, typer.Argument(help="A model file that failed.")],
    picture: Annotated[Path, typer.Option(help="A picture file on which it fails.")],
    weights: Annotated[str | None, typer.Option(help="The weights it was made from.")] = None,
    model: _FOREIGN_MODEL = None,
    budget: Annotated[Path | None, typer.Option(help="A JSON file of budgets.")] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Measure every module, also after the first.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with the error's growth.")] = None,
    as_json: _JSON = False,
) -> None:
    """Name the first PyTorch module at which a model file leaves its reference; status 6 if any."""
    from u2export import judging
    from u2export.artifact import check_places
    from u2export.parity.bisect import table

    check_places(html)
    with phases() as phase:
        phase("comparing module by module")
        found = judging.bisected(
            reference,
            candidate,
            picture,
            given=weights,
            model=model,
            limits=judging.budgets(budget),
            whole=whole,
        )
    print(found.model_dump_json(indent=1) if as_json else table(found))
    if html:
        judging.show_growth(found, f"{candidate.name} against {reference}", html)
    judging.demand_bisected(found)


@app.command()
def bench(
    artifacts: Annotated[list[Path], typer.Argument(help="The model files to be measured.")],
    pictures: Annotated[
        list[Path] | None, typer.Option(help="Your own pictures, or folders of them; repeatable.")
    ] = None,
    batch: Annotated[
        str | None, typer.Option(help="Pictures a call, such as 1,4,8; by default the fewest.")
    ] = None,
    duration: Annotated[
        float, typer.Option(help="Seconds of steady measuring at most, all files together.")
    ] = 30.0,
    reference: Annotated[
        str, typer.Option(help="What masks are compared with: 'torch' or a model file.")
    ] = "torch",
    weights: Annotated[
        str | None, typer.Option(help="The weights file, where the reference is torch.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="The row that ratios are taken against; else the first.")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="An earlier report of this machine to compare with.")
    ] = None,
    max_slowdown: Annotated[
        str, typer.Option(help="With --baseline: status 6 beyond this, such as 10%.")
    ] = "10%",
    device: _DEVICE = None,
    threads: _THREADS = None,
    precision: _PRECISION = None,
    model: _FOREIGN_MODEL = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots and masks.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write a sheet.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write a Markdown table.")] = None,
) -> None:
    """Measure model files in turns, with their masks judged; status 6 if one is wrong or fails."""
    from u2export import benching, machine, places
    from u2export.artifact import check_places
    from u2export.bench import regress
    from u2export.bench import report as reports

    most, earlier = benching.share(max_slowdown), reports.read(baseline) if baseline else None
    if earlier:
        regress.comparable(machine.described(), earlier)
    plan = benching.Plan(
        artifacts=tuple(artifacts),
        pictures=tuple(places.pictures_in(pictures or [])),
        reference=reference,
        weights=weights,
        model=model,
        device=Device.named(device) if device else None,
        threads=threads,
        precision=Precision.named(precision) if precision else None,
        batches=benching.batches(batch),
        seconds=duration,
        baseline=against,
        command=shlex.join(["u2export", *sys.argv[1:]]),
    )
    check_places(json_file, html, csv, markdown)
    with phases() as phase:
        report, shown = benching.measure(plan, phase)
    print(benching.text(report))
    benching.write(
        report, shown, json_file=json_file, html_file=html, csv_file=csv, markdown_file=markdown
    )
    found = regress.changes(report, earlier, most) if earlier else []
    for change in found:
        print(regress.told(change))
    for name in regress.missing(report, earlier) if earlier else []:
        print(f"{name}: in the baseline, and not measured now")
    benching.demand(report)
    regress.demand(found, most)


_LIMITS = {
    "latency": typer.Option("--max-latency-ms", help="Of a picture, median."),
    "iou": typer.Option("--min-iou", help="Of the masks with the reference's, mean."),
    "mae": typer.Option("--max-mae", help="Of the masks, mean absolute difference."),
    "size": typer.Option("--max-size-mb", help="Of the files."),
    "memory": typer.Option("--max-memory-mb", help="Of the process, above Python's own."),
}


@app.command()
def recommend(
    report: Annotated[Path, typer.Argument(help="What `u2export bench --json` wrote.")],
    max_latency_ms: Annotated[float | None, _LIMITS["latency"]] = None,
    min_iou: Annotated[float | None, _LIMITS["iou"]] = None,
    max_mae: Annotated[float | None, _LIMITS["mae"]] = None,
    max_size_mb: Annotated[float | None, _LIMITS["size"]] = None,
    max_memory_mb: Annotated[float | None, _LIMITS["memory"]] = None,
    as_json: _JSON = False,
) -> None:
    """Name the fastest file with the right mask that keeps all limits; status 6 if none does."""
    from u2export.bench import recommend as recommending
    from u2export.bench import report as reports

    limits = recommending.Limits(
        max_latency_ms=max_latency_ms,
        min_iou=min_iou,
        max_mae=max_mae,
        max_size_mb=max_size_mb,
        max_memory_mb=max_memory_mb,
    )
    measured = reports.read(report)
    found = recommending.recommend(measured, limits)
    if as_json:
        print(found.model_dump_json(indent=1))
    else:
        print(recommending.text(measured, found, limits))
    recommending.demand(found)


@app.command()
def auto(
    model: Annotated[str | None, _MODEL_OPTION] = None,
    weights: Annotated[str | None, typer.Option(help="A .pth or .safetensors file.")] = None,
    sizes: Annotated[
        str | None, typer.Option(help="Sides of the input to try, such as 320,256.")
    ] = None,
    pictures: Annotated[
        list[Path] | None, typer.Option(help="Your own pictures, or folders of them; repeatable.")
    ] = None,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(help="Try int8 too, calibrated with these, other pictures; repeatable."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the winner.")] = Path("exported"),
    threads: _THREADS = None,
    duration: Annotated[float, typer.Option(help="Seconds of steady measuring at most.")] = 30.0,
    max_latency_ms: Annotated[float | None, _LIMITS["latency"]] = None,
    min_iou: Annotated[float | None, _LIMITS["iou"]] = None,
    max_mae: Annotated[float | None, _LIMITS["mae"]] = None,
    max_size_mb: Annotated[float | None, _LIMITS["size"]] = None,
    max_memory_mb: Annotated[float | None, _LIMITS["memory"]] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots and masks.")] = None,
) -> None:
    """Export every format, judge, measure, and leave the best here; prints its path."""
    from u2export import benching, choosing, places
    from u2export.artifact import check_places
    from u2export.bench.recommend import Limits

    wish = choosing.Wish(
        model_named(model or DEFAULT_MODEL),
        weights,
        fallback=model is None and weights is None,
        limits=Limits(
            max_latency_ms=max_latency_ms,
            min_iou=min_iou,
            max_mae=max_mae,
            max_size_mb=max_size_mb,
            max_memory_mb=max_memory_mb,
        ),
        sizes=benching.batches(sizes),
        pictures=tuple(places.pictures_in(pictures or [])),
        calibration=tuple(places.pictures_in(calibration or [])),
        out=out,
        threads=threads,
        seconds=duration,
        command=shlex.join(["u2export", *sys.argv[1:]]),
    )
    check_places(json_file, html)
    with phases() as phase:
        choice = choosing.choose(wish, phase)
    say(choosing.text(choice, wish))
    benching.write(choice.report, choice.shown, json_file=json_file, html_file=html)
    choosing.insist(choice)
    print(choice.path)


@app.command()
def verify(
    artifact: Annotated[Path, typer.Argument(help="An exported model file.")],
    as_json: _JSON = False,
) -> None:
    """Check an artifact's bytes and its certificate of parity; nothing is run."""
    from u2export import judging

    certificate = judging.verified(artifact)
    if as_json:
        print(certificate.model_dump_json(indent=1))
    else:
        print(judging.certificate_text(artifact, certificate))


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(help="A replay file that a failed check left.")],
    device: _DEVICE = None,
    threads: _THREADS = None,
) -> None:
    """Judge a recorded failure again on this machine; status 6 if it fails here too."""
    from u2export import judging

    place = Device.named(device) if device else None
    with phases() as phase:
        phase("judging again")
        found = judging.replayed(file, device=place, threads=threads)
    print(judging.replayed_text(found))
    judging.demand_replayed(found)


@app.command()
def doctor(
    as_json: _JSON = False,
    require: Annotated[
        list[str] | None,
        typer.Option(help="Status 3 unless this backend can export and run here; repeatable."),
    ] = None,
) -> None:
    """Tell what this machine can export and run, and what is missing for the rest."""
    from u2export import doctor as examination

    with phases() as phase:
        report = examination.examine(phase)
    print(report.model_dump_json(indent=1) if as_json else examination.text(report))
    examination.demand(report, require or [])


@app.command()
def backends(as_json: _JSON = False) -> None:
    """List the backends: what each writes, and whether it can export and run here."""
    from u2export import doctor as examination

    found = [examination.backend_report(name, probe=False) for name in plugins.names()]
    if as_json:
        print(json.dumps([one.model_dump(mode="json") for one in found], indent=1))
    else:
        print(examination.listing(found))


@weights_app.command("list")
def list_weights() -> None:
    """List the models, and where their weights are on this machine."""
    from u2export import weights

    for model in MODELS.values():
        place = weights.local(model)
        print(f"{model.name:<16} {model.architecture:<6} {model.task:<9} {place or 'not here'}")


@weights_app.command("fetch")
def fetch_weights(model: Annotated[str, typer.Argument(help="The model's name.")]) -> None:
    """Fetch a model's weights, verify them, and print where they are."""
    from u2export import weights

    found = weights.find(model_named(model))
    say(f"{found.path.name} has sha256 {found.facts.weights.sha256}")
    print(found.path)


@weights_app.command("verify")
def verify_weights(
    file: Annotated[Path, typer.Argument(help="A weights file.")],
) -> None:
    """Print the sha256 of a weights file and the model it belongs to; status 4 if it is unknown."""
    from u2export import weights

    sha256, model = weights.identify(file)
    print(f"{sha256}  {model.name}")


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """Leave through the finally blocks, which remove what is half done."""
    if number == signal.SIGINT:
        say("interrupted")
    raise SystemExit(SIGNALLED + number)


def _app_for(words: list[str]) -> typer.Typer:
    """All commands, or the one alone that is called, so that Typer need not build the others."""
    called = [one for one in app.registered_commands if [_name_of(one)] == words]
    if not called:
        return app
    alone = copy.copy(app)
    alone.registered_commands = called
    return alone


def _name_of(command: typer.models.CommandInfo) -> str:
    return command.name or typer.main.get_command_name(getattr(command.callback, "__name__", ""))


def main() -> NoReturn:
    """Run the command line; every error of ours becomes one line and its exit status."""
    short = sys.argv[1:2] == ["run"]
    if short:  # imports leave much behind and nothing to collect
        gc.set_threshold(_RARELY)
    signal.signal(signal.SIGTERM, _leave)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in a shell's background job
        signal.signal(signal.SIGINT, _leave)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files are what they are
    try:
        _app_for(sys.argv[1:2])(standalone_mode=True)
    except U2ExportError as error:
        say(f"error: {error}")
        sys.exit(error.exit_status)
    finally:
        if short:
            # What is left goes with the process, all of ours is closed, and to look through it for
            # garbage first would take a twelfth of the time. The package onnx, which exporting
            # needs and this does not, would complain of leaks.
            gc.freeze()
    sys.exit(0)
