"""Commands that make results of pictures: `run` and `video`."""

from __future__ import annotations

import gc
import itertools
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from u2export.cli.options import (
    CompileOption,
    DeviceOption,
    ForeignModelOption,
    Panel,
    ResampleOption,
    RunPrecisionOption,
    ThreadsOption,
)
from u2export.core.enums import Engine, Format, Frames, Refine
from u2export.core.requests import MAX_PIXELS, MAX_THREADS
from u2export.errors import ImagesFailedError, InputError
from u2export.system.console import print_result
from u2export.system.hardware import usable_cpus
from u2export.system.progress import phases, say, track

if TYPE_CHECKING:  # imported when called: the help must be quick
    from u2export.images.frames import Picture
    from u2export.inference.journal import Journal
    from u2export.inference.process import ImageOptions, ImageResult
    from u2export.inference.segmenter import Segmenter

    Targets = list[tuple[Picture, Path]]
    Process = Callable[[Iterable[tuple[Picture, Path]]], Generator[ImageResult, None, None]]


STDIO = Path("-")  # standard input or output instead of a file
HOLD_S = 10.0  # how long the error of a picture in a watched folder is held back
_GARBAGE_THRESHOLD = gc.get_threshold()  # Python's own, which start-up changes for a while


def run(
    artifact: Annotated[Path, typer.Argument(help="An exported model file.")],
    pictures: Annotated[
        list[Path],
        typer.Argument(help="Pictures, folders of them, patterns such as 'a/**/*.jpg', or - ."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="A folder; for one picture also a file, or - . By default masks/ or cutouts/.",
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = None,
    cutout: Annotated[
        bool,
        typer.Option(
            "--cutout",
            help="Write the subject on transparency, not the mask.",
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = False,
    background: Annotated[
        str | None,
        typer.Option(
            help="Write the subject on a colour, or on a picture's file.",
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = None,
    refine: Annotated[
        str,
        typer.Option(
            help="plain; guided: edges follow the picture's; matting: hair and fur too, slow.",
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = "plain",
    threshold: Annotated[
        float | None,
        typer.Option(
            help="From this value on all is subject, below it nothing: 0 to 1.",
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = None,
    feather: Annotated[
        float,
        typer.Option(help="Blur the mask's edge by so many pixels.", rich_help_panel=Panel.OUTPUT),
    ] = 0.0,
    post_process: Annotated[
        bool,
        typer.Option(
            "--post-process",
            help="Drop small islands, fill small holes.",
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = False,
    decontaminate: Annotated[
        bool,
        typer.Option(
            "--decontaminate",
            help="Take the background's colour out of soft edges.",
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = False,
    crop: Annotated[
        bool, typer.Option("--crop", help="To the subject.", rich_help_panel=Panel.OUTPUT)
    ] = False,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            help=f"{', '.join(Format)}. By default as --out's name says, else png.",
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = None,
    quality: Annotated[
        int | None,
        typer.Option(
            help="Of webp (100: lossless) and jpg. By default 80 and 90.",
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = None,
    png_level: Annotated[
        int, typer.Option(help="Of PNG's compression, 0 to 9.", rich_help_panel=Panel.OUTPUT)
    ] = 1,
    name: Annotated[
        str | None,
        typer.Option(
            help="Template of results' names, such as '{folder}/{stem}-mask.{ext}'.",
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = None,
    recursive: Annotated[
        bool,
        typer.Option(
            "--recursive", help="Take folders of folders too.", rich_help_panel=Panel.INPUT
        ),
    ] = False,
    skip_existing: Annotated[
        bool,
        typer.Option(
            "--skip-existing",
            help="Leave out pictures whose result is there.",
            rich_help_panel=Panel.INPUT,
        ),
    ] = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Go on with what comes into the folders.", rich_help_panel=Panel.INPUT
        ),
    ] = False,
    frames: Annotated[
        str,
        typer.Option(
            help=f"{' or '.join(Frames)}: of animations and files of several pages.",
            rich_help_panel=Panel.INPUT,
        ),
    ] = "first",
    log: Annotated[
        Path | None,
        typer.Option(
            help="Add a line of JSON for each picture to this file.",
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help=f"{', '.join(Engine)}: threads of this process, or Ray's actors.",
            rich_help_panel=Panel.RUNTIME,
        ),
    ] = "local",
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    precision: RunPrecisionOption = None,
    compiled: CompileOption = False,
    resample: ResampleOption = None,
    model: ForeignModelOption = None,
    max_pixels: Annotated[
        int, typer.Option(help="Larger pictures are refused.", rich_help_panel=Panel.ADVANCED)
    ] = MAX_PIXELS,
) -> None:
    """Write a mask or cut-out for each picture, at its own size, and print its path.

    Status 7: some pictures failed, and the others were written.
    """
    from u2export.images.compose import Composition, parse_background
    from u2export.images.encode import Encoding
    from u2export.images.outputs import OutputPaths, output_format
    from u2export.inference.process import ImageOptions, process_images
    from u2export.system.files import check_writable

    shows_colours = cutout or background is not None
    image_options = ImageOptions(
        composition=Composition(
            cutout=cutout,
            background=None if background is None else parse_background(background),
            refine=Refine.named(refine),
            threshold=threshold,
            feather=feather,
            clean=post_process,
            decontaminate=decontaminate,
            crop=crop,
        ),
        encoding=Encoding(output_format(format_, out), quality=quality, png_level=png_level),
        max_pixels=max_pixels,
        hash_files=log is not None,
    )
    default_folder = Path("cutouts" if shows_colours else "masks")
    output_paths = OutputPaths(
        out or (STDIO if pictures == [STDIO] else default_folder),
        str(image_options.encoding.format),
        template=name,
        recursive=recursive,
        skip_existing=skip_existing,
        frames=Frames.named(frames),
    )
    rounds = output_paths.watch(pictures) if watch else iter([output_paths.targets(pictures)])
    first = next(rounds)
    check_writable(log, *(result for _, result in first[:1] if result != STDIO))
    uses_ray = Engine.named(engine) is Engine.RAY
    if uses_ray and (watch or STDIO in [*pictures, output_paths.out]):
        raise InputError("Ray takes pictures and results in files, all at the start")
    load_options: dict[str, Any] = {
        "model": model,
        "device": device,
        "precision": precision,
        "compiled": compiled,
        "resample": resample,
    }
    stdout, unclaimed = sys.stdout, list[list["ImageResult"]]()
    with ExitStack() as stack:
        if uses_ray:
            stack.enter_context(redirect_stdout(sys.stderr))  # Ray prints much
            process = _on_ray(artifact, image_options, threads, load_options)
        else:
            streams = MAX_THREADS if watch else max(1, len(first))
            segmenter = _opened(artifact, threads, streams, load_options, stack)
            process = partial(
                process_images, segmenter, image_options=image_options, unclaimed=unclaimed
            )
        gc.set_threshold(*_GARBAGE_THRESHOLD)
        reporter = _Reporter(_open_journal(log, artifact, stack), stdout, watching=watch)
        _process_rounds(itertools.chain([first], rounds), process, reporter, unclaimed)
    _raise_if_failed(reporter.failed, len(first))


def _on_ray(
    artifact: Path, image_options: ImageOptions, threads: int | None, load_options: dict[str, Any]
) -> Process:
    from u2export.ray import map_pictures

    return partial(
        map_pictures,
        artifact,
        image_options=image_options,
        workers=threads or usable_cpus(),
        load_options=load_options,
    )


def _opened(
    artifact: Path,
    threads: int | None,
    streams: int,
    load_options: dict[str, Any],
    stack: ExitStack,
) -> Segmenter:
    from u2export.inference.segmenter import load

    return stack.enter_context(load(artifact, threads=threads, at_once=streams, **load_options))


def _open_journal(log: Path | None, artifact: Path, stack: ExitStack) -> Journal | None:
    from u2export.inference.journal import Journal

    return stack.enter_context(closing(Journal(log, artifact))) if log else None


class _Reporter:
    """Tells of results: paths on standard output, errors on standard error, both in the log.

    In a watched folder a picture may still be arriving. Its error is held back, and dropped if the
    picture changes before long.
    """

    def __init__(self, journal: Journal | None, stdout: TextIO, *, watching: bool) -> None:
        self._journal, self._stdout, self._watching = journal, stdout, watching
        self._held: dict[str, tuple[float, ImageResult]] = {}  # with the time to tell of it
        self.failed: list[str] = []

    def tell(self, result: ImageResult) -> None:
        """Tell of a result, or hold its error back."""
        if result.error and self._watching:
            self._held[result.name] = (time.monotonic() + HOLD_S, result)
        else:
            self._tell_now(result)

    def drop_held(self, targets: Targets) -> None:
        """Drop the errors of files that are read again: they changed."""
        from u2export.images.frames import file_of

        files = {file_of(picture) for picture, _ in targets}
        for name, (_, result) in list(self._held.items()):
            if result.picture in files:
                del self._held[name]

    def tell_held(self, *, all_of_them: bool = False) -> None:
        """Tell of the errors that were held back long enough."""
        now = time.monotonic()
        for name, (due, result) in list(self._held.items()):
            if all_of_them or due <= now:
                del self._held[name]
                self._tell_now(result)

    def _tell_now(self, result: ImageResult) -> None:
        if result.error:
            self.failed.append(result.name)
            say(f"error: {result.error}", always=True)
        elif result.output != STDIO:
            print_result(result.output, self._stdout)
        for note in result.notes:
            say(note)
        journal, self._journal = self._journal, None  # a log that failed is not tried again
        if journal:
            journal.add(result)
            self._journal = journal


def _process_rounds(
    rounds: Iterator[Targets],
    process: Process,
    reporter: _Reporter,
    unclaimed: list[list[ImageResult]],
) -> None:
    """Make the results and tell of them; of all that were written, whatever ends the work."""
    try:
        for targets in rounds:
            reporter.drop_held(targets)
            # closed before the runner is, whatever happens here
            with closing(process(track(targets, "segmenting"))) as results:
                for result in results:
                    reporter.tell(result)
            reporter.tell_held()
    finally:
        for result in itertools.chain.from_iterable(unclaimed):
            reporter.tell(result)
        reporter.tell_held(all_of_them=True)


def _raise_if_failed(failed: list[str], total: int) -> None:
    from u2export.inference.journal import failure_summary

    if failed:
        rest = "; the rest were written" if len(failed) < total else ""
        raise ImagesFailedError(f"{failure_summary(failed, total)}{rest}")


def video(
    artifact: Annotated[Path, typer.Argument(help="An exported model file.")],
    frame: Annotated[
        str,
        typer.Option(help="Size of a frame, such as 1280x720.", rich_help_panel=Panel.INPUT),
    ],
    cutout: Annotated[
        bool,
        typer.Option(
            "--cutout", help="Write RGBA frames, not gray masks.", rich_help_panel=Panel.OUTPUT
        ),
    ] = False,
    smooth: Annotated[
        float,
        typer.Option(
            help="How much of earlier masks stays, 0 to below 1.", rich_help_panel=Panel.OUTPUT
        ),
    ] = 0.0,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    precision: RunPrecisionOption = None,
    resample: ResampleOption = None,
    model: ForeignModelOption = None,
) -> None:
    """Turn raw rgb24 frames on standard input into raw masks or cut-outs on standard output."""
    from u2export.inference import video
    from u2export.inference.segmenter import load

    frame_format = video.FrameFormat(video.parse_frame_size(frame), cutout=cutout, smooth=smooth)
    segmenter = load(
        artifact,
        model=model,
        device=device,
        threads=threads,
        precision=precision,
        resample=resample,
        at_once=MAX_THREADS,
    )
    if sys.stdin is None:
        raise InputError("standard input is closed")
    with segmenter, phases() as phase:
        phase("segmenting frames")
        count = video.convert_video(segmenter, sys.stdin.buffer, sys.stdout.buffer, frame_format)
    say(f"{count} frame{'' if count == 1 else 's'}")
