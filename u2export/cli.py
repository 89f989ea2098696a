"""The command line: parses, calls one function, prints."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from u2export import registry
from u2export.errors import InputError, U2ExportError
from u2export.pipeline import MAX_PIXELS
from u2export.progress import phases, say, tracked
from u2export.spec import (
    DEFAULT_OPSET,
    MODELS,
    OPSETS,
    ExportSpec,
    Precision,
    Resize,
    model_named,
    parse_batch,
)

INTERRUPTED, TERMINATED = 130, 143  # 128 plus the signal's number, as shells report it
DEFAULT_MODEL = "u2netp"

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Take U²-Net from PyTorch to the runtime it will live in.",
)
weights_app = typer.Typer(no_args_is_help=True, help="List, fetch and verify weights.")
app.add_typer(weights_app, name="weights")

ModelOption = Annotated[
    str | None,
    typer.Option(
        help=f"One of {', '.join(MODELS)}. By default u2netp, or u2netp-demo where it is not "
        "to be had."
    ),
]


def _export_command(name: str) -> None:
    """Give a backend its command."""

    @app.command(name, help=f"Export with the {name} backend and print the artifact's path.")
    def export(
        model: ModelOption = None,
        weights: Annotated[
            str | None,
            typer.Option(help="A .pth or .safetensors file, or random:SEED to measure latency."),
        ] = None,
        fp16: Annotated[bool, typer.Option("--fp16", help="Half precision.")] = False,
        batch: Annotated[str, typer.Option(help="Pictures per call, or 'dynamic'.")] = "1",
        size: Annotated[
            int | None,
            typer.Option(help="Side of the square input in pixels. By default the model's own."),
        ] = None,
        all_outputs: Annotated[
            bool, typer.Option("--all-outputs", help="Give d0..d6, d0 first.")
        ] = False,
        opset: Annotated[
            int | None,
            typer.Option(help=f"{min(OPSETS)} to {max(OPSETS)}. By default {DEFAULT_OPSET}."),
        ] = None,
        out: Annotated[Path, typer.Option(help="Folder for the artifact.")] = Path("exported"),
    ) -> None:
        from u2export import build

        wanted = model_named(model or DEFAULT_MODEL)
        spec = ExportSpec(
            wanted,
            size=wanted.picture.size if size is None else size,
            precision=Precision.FP16 if fp16 else Precision.FP32,
            batch=parse_batch(batch),
            all_outputs=all_outputs,
            opset=opset,
        )
        with phases() as phase:
            artifact = build.export(
                name, spec, weights, out, fallback=model is None and weights is None, phase=phase
            )
        print(artifact.path)


for _name in registry.names():
    _export_command(_name)


@app.command()
def run(
    artifact: Annotated[Path, typer.Argument(help="An exported model file.")],
    pictures: Annotated[list[Path], typer.Argument(help="Pictures, or folders of them.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="A folder, or for one picture a .png file. By default masks/ or cutouts/."
        ),
    ] = None,
    cutout: Annotated[
        bool, typer.Option("--cutout", help="Write the subject on transparency, not the mask.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda; exactly there, or an error.")] = "cpu",
    threads: Annotated[
        int | None, typer.Option(help="For computation. By default all this process may use.")
    ] = None,
    resample: Annotated[
        str | None,
        typer.Option(
            help=f"How pictures become square: {', '.join(Resize)}. By default as recorded in "
            "the artifact."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="For a file u2export did not make: the model it was made from."),
    ] = None,
    max_pixels: Annotated[int, typer.Option(help="Larger pictures are refused.")] = MAX_PIXELS,
) -> None:
    """Write a mask or cut-out for each picture, at its own size, and print its path."""
    from u2export import run as running

    found = running.pictures_in(pictures)
    default = Path("cutouts" if cutout else "masks")
    targets = running.output_paths(found, out or default)
    failed = 0
    with running.load(
        artifact, model=model, device=device, threads=threads, resample=resample
    ) as segment:
        pairs = tracked(list(targets.items()), "segmenting")
        for done in running.process(segment, pairs, cutout=cutout, max_pixels=max_pixels):
            if done.error:
                failed += 1
                say(f"error: {done.error}")
            else:
                print(done.result, flush=True)
    if failed:
        raise InputError(f"{failed} of {len(targets)} pictures failed; the rest were written")


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


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """Leave through the finally blocks, which remove what is half done."""
    raise SystemExit(TERMINATED)


def main() -> NoReturn:
    """Run the command line; every error of ours becomes one line and its exit status."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app(standalone_mode=True)
    except U2ExportError as error:
        say(f"error: {error}")
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(INTERRUPTED)
    sys.exit(0)
