"""From picture files to result files, on any runner; several pictures are processed at once."""

from __future__ import annotations

import io
import math
import os
import sys
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import BoundedSemaphore
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile

from u2export.core.arrays import Array
from u2export.core.artifact import Artifact
from u2export.core.enums import Format, Stage
from u2export.core.requests import MAX_PICTURE_BYTES, MAX_PIXELS
from u2export.errors import InputError, OutputError, U2ExportError
from u2export.images import encode
from u2export.images.compose import MASK_ONLY, Composition, compose
from u2export.images.decode import decode_image, read_header
from u2export.images.encode import PNG_DEFAULT, Encoding
from u2export.images.frames import (
    MAX_COUNTED_PAGES,
    Frame,
    Picture,
    count_frames,
    draw_frames_before,
    file_of,
    frame_name,
    read_frame_header,
)
from u2export.images.inputs import STDIO
from u2export.images.postprocess import stretch_saliency
from u2export.images.preprocess import min_decode_side, preprocess
from u2export.inference.segmenter import Segmenter, refuse_drawings
from u2export.system import ordered_pool
from u2export.system.documents import first_line, open_regular
from u2export.system.files import stream_sha256
from u2export.system.leaving import is_leaving

# Pixels of all pictures in memory. A larger picture waits until it is the only one.
MAX_PIXELS_IN_MEMORY = 60_000_000


@dataclass(frozen=True)
class ImageOptions:
    """What to make of pictures.

    Attributes:
        composition: what results look like.
        encoding: how results are encoded.
        max_pixels: larger pictures are refused.
        hash_files: record the sha256 of each picture file.
    """

    composition: Composition = MASK_ONLY
    encoding: Encoding = PNG_DEFAULT
    max_pixels: int = MAX_PIXELS
    hash_files: bool = False

    def __post_init__(self) -> None:
        """Check that the format can hold the result.

        Raises:
            InputError: transparency in a JPEG, or no picture could be small enough.
        """
        if self.max_pixels < 1:
            raise InputError(f"max-pixels must be at least 1, got {self.max_pixels}")
        is_transparent = self.composition.cutout and self.composition.background is None
        if is_transparent and self.encoding.format is Format.JPG:
            raise InputError("JPEG has no transparency: give a --background, or another --format")

    def check(self, artifact: Artifact) -> None:
        """Check that an artifact and this machine can make these results.

        Raises:
            InputError: the artifact makes drawings, which cannot be cut out or refined.
            DependencyError: a required package is not installed.
        """
        if self.composition != MASK_ONLY:
            refuse_drawings(artifact)
        self.composition.check_packages()


@dataclass
class ImageResult:
    """The outcome of one picture.

    Attributes:
        picture: the path of its file, or its address in an object store.
        output: the path or address of its result, also where that was not written.
        error: why there is no result, in one sentence; else empty.
        size: (width, height) of the upright picture; (0, 0) where it could not be read.
        sha256: of the file; empty where it was not requested.
        ms: milliseconds by `Stage`, for each stage that was reached. The pictures of one call share
            its time. `infer` includes waiting for other calls.
        notes: what else is to be told, as sentences.
        frame: the picture's number in a file of several, from 1; None where the file was taken as
            one picture.
    """

    picture: Path | str
    output: Path | str
    error: str = ""
    size: tuple[int, int] = (0, 0)
    sha256: str = ""
    ms: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    frame: int | None = None

    @classmethod
    def awaited(cls, picture: Picture, output: Path | str) -> ImageResult:
        """The outcome of a picture before its work begins."""
        number = picture.number if isinstance(picture, Frame) else None
        return cls(file_of(picture), output, frame=number)

    @property
    def target(self) -> tuple[Picture, Path]:
        """What was to be read and written, for local files."""
        file = Path(self.picture)
        return file if self.frame is None else Frame(file, self.frame), Path(self.output)

    @property
    def name(self) -> str:
        """What messages call the picture: its path or address, and its number in the file."""
        return frame_name(self.picture, self.frame)

    @contextmanager
    def time_stage(self, stage: Stage) -> Generator[None, None, None]:
        """Record the time of the block as a stage's."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.ms[stage] = 1e3 * (time.perf_counter() - start)

    @contextmanager
    def record_error(self) -> Generator[None, None, None]:
        """Record an error of the block as this picture's, and end the block.

        Whatever goes wrong with one picture is no reason to leave the others out. A full disk is:
        it passes through, and so does whatever asks the process to end.
        """
        try:
            yield
        except OutputError:
            raise
        except U2ExportError as error:
            self.error = str(error)
        except MemoryError:
            self.error = f"{self.name} needs more memory than there is"
        except Exception as error:  # no kind is known that would not be of a picture
            self.error = f"{self.name} failed: {type(error).__name__}: {first_line(error)}"


def process_images(
    segmenter: Segmenter,
    targets: Iterable[tuple[Picture, Path]],
    image_options: ImageOptions | None = None,
    unclaimed: list[list[ImageResult]] | None = None,
) -> Generator[ImageResult, None, None]:
    """Write a result for each picture; an unreadable picture does not stop the others.

    A segmenter with several workers overlaps the steps. One picture is decoded while another is
    computed and a third is encoded. Memory use does not grow with the number of pictures.

    Args:
        segmenter: the opened artifact.
        targets: pairs of picture and result; `-` is standard input or output. A `Frame` is one of
            several pictures in a file; of a path with several, the first is taken.
        image_options: what to make of the pictures; by default masks.
        unclaimed: gets the results that were written, and not yielded since the caller stopped.

    Yields:
        The outcome of each picture, in order.

    Raises:
        InputError: a drawing was to be cut out.
        OutputError: the disk is full. All results that were written have been yielded by then.
        DependencyError: a package that the options need is not installed.
    """
    image_options = image_options or ImageOptions()
    image_options.check(segmenter.artifact)
    processor = _ImageProcessor(segmenter, image_options, unclaimed)
    batches = ordered_pool.in_batches(targets, segmenter.batch)
    for results in ordered_pool.map_in_order(
        processor.process_batch, batches, segmenter.workers, ahead=1, unclaimed=unclaimed
    ):
        untold = iter(results)
        try:
            yield from untold
        finally:  # the caller stopped in the middle of a batch
            if unclaimed is not None and (rest := list(untold)):
                unclaimed.append(rest)
    if processor.failure:
        raise processor.failure


class _ImageTask:
    """A picture while it is processed."""

    def __init__(self, result: ImageResult, file: BinaryIO) -> None:
        self.result, self.file, self.initial_state = result, file, _file_state(file)
        self.metadata: dict[str, bytes] = {}
        self.header: ImageFile.ImageFile | None = None
        self.picture: Image.Image | None = None
        self.pixel_count = 0


class _ImageProcessor:
    """Processes batches of pictures; several threads share it."""

    def __init__(
        self,
        segmenter: Segmenter,
        image_options: ImageOptions,
        unclaimed: list[list[ImageResult]] | None = None,
    ) -> None:
        self._segmenter, self._options = segmenter, image_options
        self._unclaimed = [] if unclaimed is None else unclaimed
        self.failure: OutputError | None = None  # after which nothing can be written
        self._pixel_budget = ordered_pool.MemoryBudget(MAX_PIXELS_IN_MEMORY)
        # Half of the threads may compress WebP at once; the others compute the network meanwhile.
        self._webp_limiter = BoundedSemaphore(-(-segmenter.workers // 2))

    def process_batch(self, pairs: Sequence[tuple[Picture, Path]]) -> list[ImageResult]:
        """Write the results of pictures that are computed in one call."""
        if self.failure:
            return []
        results = [ImageResult.awaited(picture, output) for picture, output in pairs]
        written: list[ImageResult] = []
        try:
            self._process(results, written)
        except BaseException:  # such as a signal's
            self._unclaimed.append(written)
            raise
        failed = [] if is_leaving() else [result for result in results if result.error]
        done = {id(result) for result in (*failed, *written)}
        return [result for result in results if id(result) in done]

    def _process(self, results: Sequence[ImageResult], written: list[ImageResult]) -> None:
        """Process pictures; add those whose results were written to `written` at once."""
        with ExitStack() as stack:
            tasks = [task for result in results if (task := self._open(result, stack))]
            pixel_count = sum(task.pixel_count for task in tasks)
            stack.enter_context(self._pixel_budget.taken(pixel_count))
            inputs = {task: x for task in tasks if (x := self._preprocess(task)) is not None}
            for task, saliency in zip(inputs, self._infer(inputs), strict=False):
                if self._try_write(task, saliency):
                    written.append(task.result)

    def _open(self, result: ImageResult, stack: ExitStack) -> _ImageTask | None:
        """Open a picture's file and read its header; None where that fails."""
        with result.time_stage(Stage.READ), result.record_error():
            task = _ImageTask(result, stack.enter_context(_open_file(Path(result.picture))))
            if self._options.hash_files:
                result.sha256 = stream_sha256(task.file)
                task.file.seek(0)
            task.header = self._read_header(task)
            task.pixel_count = math.prod(task.header.size)
            return task
        return None

    def _read_header(self, task: _ImageTask) -> ImageFile.ImageFile:
        """Read the header of a picture's file, or of its frame."""
        result, max_pixels = task.result, self._options.max_pixels
        if result.frame is not None:
            return read_frame_header(task.file, result.frame, max_pixels=max_pixels)
        header = read_header(task.file, max_pixels=max_pixels)
        if (frames := count_frames(header)) > 1:
            count = f"at least {frames}" if frames == MAX_COUNTED_PAGES else frames
            result.notes.append(
                f"{result.picture} holds {count} pictures; only the first was taken: "
                "--frames all takes each"
            )
        return header

    def _preprocess(self, task: _ImageTask) -> Array | None:
        """Decode and preprocess a picture; None where that fails.

        The task keeps of the picture only what its result needs.
        """
        result, composition = task.result, self._options.composition
        with result.record_error():
            picture = self._decode(task)
            if _file_state(task.file) != task.initial_state:
                raise InputError(f"{result.name} was changed while it was read")
            with result.time_stage(Stage.PREPROCESS):
                x = preprocess(picture, self._segmenter.spec)
            if composition.needs_picture:
                task.picture = picture
            if composition.has_colours:
                task.metadata = encode.image_metadata(picture)
            return x
        return None

    def _decode(self, task: _ImageTask) -> Image.Image:
        # The header becomes the picture. The task drops it, so that the picture can be freed.
        header, task.header = task.header, None
        assert header is not None
        with task.result.time_stage(Stage.DECODE):
            draw_frames_before(header, task.result.frame or 1)
            needs_all = self._options.composition.needs_picture
            min_side = None if needs_all else min_decode_side(self._segmenter.spec)
            picture, task.result.size = decode_image(header, min_side=min_side)
        return picture

    def _infer(self, inputs: Mapping[_ImageTask, Array]) -> Array:
        """Compute the saliency maps of a batch, (N,H,W); none where the runtime fails."""
        if not inputs:
            return np.empty((0, 0, 0), np.float32)
        with ExitStack() as stages:
            for task in inputs:
                stages.enter_context(task.result.time_stage(Stage.INFER))
            try:
                return self._segmenter.saliency(np.concatenate(list(inputs.values())))
            except U2ExportError as error:
                reason = str(error)
            except MemoryError:
                reason = "the network needs more memory than there is"
        for task in inputs:
            task.result.error = reason
        return np.empty((0, 0, 0), np.float32)

    def _try_write(self, task: _ImageTask, saliency: Array) -> bool:
        """Write a result, unless no result can be written any more; say whether it was tried."""
        if self.failure:
            return False
        try:
            self._write(task, saliency)
        except OutputError as error:
            self.failure = error
            return False
        return True

    def _write(self, task: _ImageTask, saliency: Array) -> None:
        """Make a result and write it.

        Raises:
            OutputError: the disk is full. This ends the run.
        """
        result, encoding = task.result, self._options.encoding
        with result.time_stage(Stage.POSTPROCESS), result.record_error():
            stretched = stretch_saliency(saliency, self._segmenter.spec)
        if result.error:
            return
        with result.time_stage(Stage.COMPOSE), result.record_error():
            image = compose(stretched, result.size, self._options.composition, task.picture)
            task.picture = None  # frees its memory
            encode.check_size_limits(image, encoding)
        if result.error:
            return
        with result.time_stage(Stage.ENCODE), result.record_error():
            encodable = encode.to_encodable(image, encoding)
            del image  # frees its memory
            path = Path(result.output)
            encode.save_image(encodable, path, encoding, task.metadata, self._webp_limiter)


def _open_file(path: Path) -> BinaryIO:
    """Open a picture's file; standard input is read into memory."""
    if path == STDIO:
        return _read_standard_input()
    try:
        return open_regular(path)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise InputError(f"there is no picture at {path}") from error
        raise InputError(f"{path} cannot be read as a picture: {error.strerror}") from error


def _read_standard_input() -> BinaryIO:
    if sys.stdin is None:
        raise InputError("standard input is closed")
    content = sys.stdin.buffer.read(MAX_PICTURE_BYTES + 1)
    if len(content) > MAX_PICTURE_BYTES:
        raise InputError(f"standard input holds more than {MAX_PICTURE_BYTES} bytes")
    file = io.BytesIO(content)
    file.name = "standard input"
    return file


def _file_state(file: BinaryIO) -> tuple[int, int]:
    """Size in bytes and time of modification of an open file, to notice that it changes."""
    try:
        status = os.fstat(file.fileno())
    except OSError:  # a file in memory
        return (0, 0)
    return (status.st_size, status.st_mtime_ns)
