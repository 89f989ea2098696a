"""From pictures to masks or cut-outs, with any artifact on any runner."""

from __future__ import annotations

import io
import json
import math
import os
import sys
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from threading import BoundedSemaphore
from types import TracebackType
from typing import BinaryIO

import numpy as np
from PIL import Image

from u2export import artifact as artifacts
from u2export import encode, finish, flow, pipeline, registry
from u2export.artifact import Artifact
from u2export.backend import Array, Runner
from u2export.encode import PNG, Encoding
from u2export.errors import InputError, U2ExportError
from u2export.finish import MASK, Finish
from u2export.machine import usable_cpus
from u2export.places import STANDARD
from u2export.spec import MAX_PIXELS, Device, Format, Precision, Resize, Task

# Pixels of pictures that may be in memory at once; a larger one waits until it is the only one.
ROOM = 60_000_000
NAMED = 5  # pictures that a summary names
STAGES = ("read", "decode", "prepare", "infer", "finish", "encode")


class Segmenter:
    """An artifact opened for pictures; calling it gives a mask.

    Example:
        >>> segment = u2export.load("exported/u2netp-fp32.onnx")
        >>> mask = segment(Image.open("photo.jpg"))
    """

    def __init__(
        self,
        artifact: Artifact,
        device: Device | None = None,
        threads: int | None = None,
        resample: Resize | None = None,
        *,
        precision: Precision | None = None,
        compiled: bool = False,
        at_once: int = 1,
    ) -> None:
        """Load the artifact into its runtime.

        Args:
            artifact: from `registry.open_artifact`.
            device: where to compute; by default the backend's first.
            threads: for computation; by default all this process may use.
            resample: overrides the recorded resize.
            precision: of the arithmetic; by default what the artifact says.
            compiled: let PyTorch compile the network.
            at_once: pictures that may be computed at the same time, at most one for each thread:
                they share the threads, so each takes longer and all take less.

        Raises:
            DependencyError: the runtime or the device is not there.
            ArtifactError: the runtime refuses the file.
            ParityError: the runtime does something else than it was asked.
        """
        self.artifact = artifact
        spec = artifact.facts.picture
        self.spec = replace(spec, resize=resample) if resample else spec
        backend = registry.load(artifact.backend)
        place = device or backend.devices[0]
        able = "streams" in backend.run_options and place is Device.CPU
        self.workers = min(threads or usable_cpus(), at_once)
        self.streams = self.workers if able else 1
        self._runner: Runner = registry.open_runner(
            artifact,
            device,
            threads,
            precision=precision,
            streams=self.streams,
            compiled=compiled,
        )
        self._free = BoundedSemaphore(self.streams)

    @property
    def batch(self) -> int:
        """Pictures that a call takes at least."""
        return self._runner.fewest

    def __call__(self, picture: Image.Image) -> Image.Image:
        """Find the subject of a picture.

        Args:
            picture: any mode and size; its EXIF orientation is applied.

        Returns:
            Mode L, of the upright picture's size; 255 is subject.
        """
        return self.mask(pipeline.upright(picture))

    def mask(self, picture: Image.Image) -> Image.Image:
        """Find the subject of a picture that `upright` or `open_picture` gave."""
        x = pipeline.preprocess(picture, self.spec)
        return pipeline.postprocess(self.saliency(x)[0], picture.size, self.spec)

    def saliency(self, x: Array) -> Array:
        """Compute preprocessed pictures; several threads may ask at once.

        Args:
            x: (N,3,size,size) float32; where N is less than a call takes, the last is repeated.

        Returns:
            (N,size,size) float32 in [0,1], as the network gave it.

        Raises:
            InputError: wrong shape or type, or the segmenter is closed.
            ExportError: the runtime failed.
        """
        missing = self.batch - len(x)
        full = np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]) if missing > 0 else x
        with self._free:
            found: Array = self._runner(full)[: len(x), 0]
        return found

    def close(self) -> None:
        """Give the runtime's memory back; closing twice is allowed."""
        self._runner.close()

    def __enter__(self) -> Segmenter:
        """Give the segmenter itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the segmenter."""
        self.close()


def load(
    path: str | os.PathLike[str],
    *,
    model: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    precision: str | None = None,
    compiled: bool = False,
    resample: str | None = None,
    at_once: int = 1,
) -> Segmenter:
    """Open an artifact for pictures.

    Args:
        path: the model file.
        model: for a file u2export did not make: the model it was made from, such as `u2net`.
        device: where to compute; exactly there, or an error. By default the backend's first.
        threads: for computation; by default all this process may use.
        precision: of the arithmetic, such as `bf16`; by default what the artifact says.
        compiled: let PyTorch compile the network.
        resample: how pictures become square, instead of what the artifact records.
        at_once: pictures that may be computed at the same time; see `Segmenter`.

    Returns:
        A callable from picture to mask.

    Raises:
        InputError: there is no such file, model, device or resample.
        ArtifactError: the file was changed since it was exported.
        DependencyError: its runtime or the device is not there.
        ParityError: the runtime does something else than it was asked.
    """
    return Segmenter(
        registry.open_artifact(Path(path), model),
        Device.named(device) if device else None,
        threads,
        Resize.named(resample) if resample else None,
        precision=Precision.named(precision) if precision else None,
        compiled=compiled,
        at_once=at_once,
    )


@dataclass(frozen=True)
class Order:
    """What is to be made of pictures.

    Attributes:
        finish: what results look like.
        encoding: how they are written.
        max_pixels: larger pictures are refused.
        hashed: tell each picture file's sha256.
    """

    finish: Finish = MASK
    encoding: Encoding = PNG
    max_pixels: int = MAX_PIXELS
    hashed: bool = False

    def __post_init__(self) -> None:
        """Refuse what no file could hold.

        Raises:
            InputError: transparency in a JPEG.
        """
        transparent = self.finish.cutout and self.finish.background is None
        if transparent and self.encoding.format is Format.JPG:
            raise InputError("JPEG has no transparency: give a --background, or another --format")

    def check(self, artifact: Artifact) -> None:
        """Make sure that this can be made of an artifact's results, here.

        Raises:
            InputError: a drawing was asked to be cut out or refined.
            DependencyError: a package that this needs is not installed.
        """
        if self.finish != MASK:
            refuse_drawings(artifact)
        self.finish.require()


def refuse_drawings(artifact: Artifact) -> None:
    """Refuse a portrait model where a subject is needed.

    Raises:
        InputError: it is one.
    """
    if artifact.facts.task is Task.PORTRAIT:
        raise InputError(
            "a portrait model's result is a drawing: there is no subject to cut out or refine"
        )


@dataclass
class Done:
    """What became of one picture.

    Attributes:
        picture: its file, or its address in an object store.
        result: where its result is, or would be.
        error: the sentence that says why there is none.
        size: (width, height) of the upright picture; (0, 0) where it could not be read.
        sha256: of the file; empty where that was not asked.
        ms: of each of `STAGES` that was reached; pictures computed in one call share its time, and
            `infer` includes waiting for others' calls.
    """

    picture: Path | str
    result: Path | str
    error: str = ""
    size: tuple[int, int] = (0, 0)
    sha256: str = ""
    ms: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Generator[None, None, None]:
        """Time what is done within."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.ms[name] = 1e3 * (time.perf_counter() - begun)


def process(
    segment: Segmenter, targets: Iterable[tuple[Path, Path]], order: Order | None = None
) -> Generator[Done, None, None]:
    """Write a result for each picture; a picture that cannot be read stops nothing.

    Where the segmenter computes several at once, one is decoded while another is computed and a
    third is written. What is in memory does not grow with their number.

    Args:
        segment: the opened artifact.
        targets: pairs of picture and result; `-` is standard input or output.
        order: what is to be made of them; by default masks.

    Yields:
        What became of each picture, in order.

    Raises:
        InputError: a result cannot be written, or a drawing was asked to be cut out.
        DependencyError: a package that the order needs is not installed.
    """
    order = order or Order()
    order.check(segment.artifact)
    shop = _Shop(segment, order)
    groups = flow.in_groups(targets, segment.batch)
    for group in flow.in_order(shop.make, groups, segment.workers, ahead=1):
        yield from group


class _Taken:
    """A picture on its way from its file to its result."""

    def __init__(self, done: Done, file: BinaryIO) -> None:
        self.done, self.file, self.state = done, file, _state(file)
        self.notes: dict[str, bytes] = {}
        self.header: Image.Image | None = None
        self.picture: Image.Image | None = None
        self.pixels = 0


class _Shop:
    """Makes results; several threads share it."""

    def __init__(self, segment: Segmenter, order: Order) -> None:
        self._segment, self._order = segment, order
        self._room = flow.Room(ROOM)
        # Half of the threads at a time: others have a network to compute meanwhile.
        self._turns = BoundedSemaphore(-(-segment.workers // 2))

    def make(self, pairs: Sequence[tuple[Path, Path]]) -> list[Done]:
        """Make the results of pictures that are computed in one call."""
        found = [Done(picture, result) for picture, result in pairs]
        with ExitStack() as held:
            taken = [one for one in (self._begin(done, held) for done in found) if one]
            held.enter_context(self._room.taken(sum(one.pixels for one in taken)))
            inputs = {one: x for one in taken if (x := self._prepare(one)) is not None}
            for one, saliency in zip(inputs, self._compute(inputs), strict=False):
                self._end(one, saliency)
        return found

    def _begin(self, done: Done, held: ExitStack) -> _Taken | None:
        """Open a file, and read its header."""
        with done.stage("read"), _noting(done):
            one = _Taken(done, held.enter_context(_opened(Path(done.picture))))
            if self._order.hashed:
                done.sha256 = artifacts.sha256_of_file(one.file)
                one.file.seek(0)
            one.header = pipeline.open_header(one.file, max_pixels=self._order.max_pixels)
            one.pixels = math.prod(one.header.size)
            return one
        return None

    def _prepare(self, one: _Taken) -> Array | None:
        """Decode a picture and make the network's input of it; keep of it what is needed later."""
        with _noting(one.done):
            finish, spec = self._order.finish, self._segment.spec
            header, one.header = one.header, None  # it becomes the picture: nobody else may hold it
            if header is None:
                return None
            with one.done.stage("decode"):
                least = None if finish.looks else pipeline.draft_side(spec)
                picture, one.done.size = pipeline.decode(header, least=least)
            if _state(one.file) != one.state:
                raise InputError(f"{one.done.picture} was changed while it was read")
            with one.done.stage("prepare"):
                x = pipeline.preprocess(picture, spec)
            if finish.looks:
                one.picture = picture
            if finish.coloured:
                one.notes = encode.notes_of(picture)
            return x
        return None

    def _compute(self, inputs: Mapping[_Taken, Array]) -> Array:
        """The maps of all that are ready; none where the runtime fails."""
        if not inputs:
            return np.empty((0, 0, 0), np.float32)
        with ExitStack() as timed:
            for one in inputs:
                timed.enter_context(one.done.stage("infer"))
            try:
                return self._segment.saliency(np.concatenate(list(inputs.values())))
            except U2ExportError as error:
                for one in inputs:
                    one.done.error = str(error)
                return np.empty((0, 0, 0), np.float32)

    def _end(self, one: _Taken, saliency: Array) -> None:
        """Make a result and write it; a place that cannot be written ends everything."""
        done, wanted = one.done, self._order
        with done.stage("finish"), _noting(done):
            stretched = pipeline.stretch(saliency, self._segment.spec)
            result = finish.finished(stretched, done.size, wanted.finish, one.picture)
            one.picture = None  # its memory has use elsewhere
            encode.check(result, wanted.encoding)
        if not done.error:
            with done.stage("encode"):
                ready = encode.ready(result, wanted.encoding)
                del result
                encode.save(ready, Path(done.result), wanted.encoding, one.notes, self._turns)


@contextmanager
def _noting(done: Done) -> Generator[None, None, None]:
    """What goes wrong with one picture is noted of it, and ends what is done within."""
    try:
        yield
    except U2ExportError as error:
        done.error = str(error)


def _opened(path: Path) -> BinaryIO:
    """Open a picture's file; what arrives on standard input is read whole."""
    if path == STANDARD:
        file = io.BytesIO(sys.stdin.buffer.read())
        file.name = "standard input"
        return file
    try:
        return path.open("rb")
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise InputError(f"there is no picture at {path}") from error
        raise InputError(f"{path} cannot be read as a picture: {error.strerror}") from error


def _state(file: BinaryIO) -> tuple[int, int]:
    """Size and time of an open file, to notice that somebody writes into it."""
    try:
        told = os.fstat(file.fileno())
    except OSError:  # it is memory
        return (0, 0)
    return (told.st_size, told.st_mtime_ns)


class Journal:
    """A log of a run: a line of JSON for each picture, written when it is done."""

    def __init__(self, path: Path, artifact: Path) -> None:
        """Open the log; a later run adds to it.

        Raises:
            InputError: it cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from error
        self._artifact = {
            "artifact": artifact.name,
            "artifact_sha256": artifacts.sha256_of(artifact),
        }

    def add(self, done: Done) -> None:
        """Write a picture's line.

        Raises:
            InputError: it cannot be written.
        """
        told = {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "picture": str(done.picture),
            "sha256": done.sha256,
            "width": done.size[0],
            "height": done.size[1],
            "result": None if done.error else str(done.result),
            "error": done.error or None,
            "ms": {name: round(ms, 2) for name, ms in done.ms.items()},
        }
        try:
            self._file.write(json.dumps(told | self._artifact) + "\n")
            self._file.flush()
        except OSError as error:
            raise InputError(f"the log cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Close the log."""
        self._file.close()


def summary(failed: Sequence[str], total: int) -> str:
    """Say how many pictures failed, and which, a few by name."""
    names = ", ".join(failed[:NAMED])
    more = f" and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
    return f"{len(failed)} of {total} pictures failed ({names}{more})"
