"""From pictures to masks or cut-outs, with any artifact on any runner."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from PIL import Image

from u2export import pipeline, registry
from u2export.artifact import Artifact
from u2export.backend import Runner
from u2export.errors import InputError, U2ExportError
from u2export.spec import MAX_PIXELS, Device, Precision, Resize

# What is taken from a folder; a file named by itself may end in anything.
SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png"}
    | {".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)


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
    ) -> None:
        """Load the artifact into its runtime; `resample` overrides the recorded resize.

        Raises:
            DependencyError: the runtime or the device is not there.
            ArtifactError: the runtime refuses the file.
            ParityError: the runtime does something else than it was asked.
        """
        self.artifact = artifact
        spec = artifact.facts.picture
        self.spec = dataclasses.replace(spec, resize=resample) if resample else spec
        self._runner: Runner = registry.open_runner(
            artifact, device, threads, precision=precision, compiled=compiled
        )

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
        return pipeline.postprocess(self._runner.single(x), picture.size, self.spec)

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
    )


def pictures_in(paths: Sequence[Path]) -> list[Path]:
    """List the pictures that paths name: files as they are, folders by what lies in them.

    Raises:
        InputError: a path does not exist, or a folder holds no picture.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = [p for p in sorted(path.iterdir()) if p.suffix.lower() in SUFFIXES]
        if not inside:
            raise InputError(f"the folder {path} holds no pictures")
        found.extend(inside)
    return found


def output_paths(pictures: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Choose where each picture's result goes.

    A single picture with `out` ending in `.png` goes there; else `out` is a folder and results
    are called after their pictures, `name.png`, or `name.jpg.png` where two would share a name.

    Raises:
        InputError: several pictures and one file, two pictures of one name, or a result would
            overwrite a picture.
    """
    if out.suffix.lower() == ".png" and not out.is_dir():
        if len(pictures) != 1:
            raise InputError(f"{len(pictures)} pictures do not fit into the one file {out}")
        chosen = {pictures[0]: out}
    else:
        stems = [picture.stem for picture in pictures]
        chosen = {
            picture: out / f"{picture.stem if stems.count(picture.stem) == 1 else picture.name}.png"
            for picture in pictures
        }
    _refuse_overwriting(chosen, pictures)
    return chosen


def _refuse_overwriting(chosen: dict[Path, Path], pictures: Sequence[Path]) -> None:
    sources = {picture.resolve() for picture in pictures}
    seen: dict[Path, Path] = {}
    for picture, result in chosen.items():
        if result.resolve() in sources:
            raise InputError(f"{result} is one of the pictures: choose another --out")
        if result in seen:
            raise InputError(f"{seen[result]} and {picture} would both be written to {result}")
        seen[result] = picture


@dataclass(frozen=True)
class Done:
    """What became of one picture: its result, or the sentence that says why there is none."""

    picture: Path
    result: Path
    error: str = ""


def process(
    segment: Segmenter,
    targets: Iterable[tuple[Path, Path]],
    *,
    cutout: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Done]:
    """Write a mask or cut-out for each picture; a picture that cannot be read stops nothing.

    Args:
        segment: the opened artifact.
        targets: pairs of picture and result.
        cutout: write RGBA cut-outs instead of masks.
        max_pixels: larger pictures are refused.

    Yields:
        What became of each picture, in order.

    Raises:
        InputError: a result cannot be written.
    """
    for picture, result in targets:
        try:
            upright = pipeline.open_picture(picture, max_pixels=max_pixels)
            mask = segment.mask(upright)
        except U2ExportError as error:
            yield Done(picture, result, str(error))
            continue
        save(pipeline.cut_out(upright, mask) if cutout else mask, result)
        yield Done(picture, result)


def save(image: Image.Image, path: Path) -> None:
    """Write a PNG whole or not at all.

    Raises:
        InputError: the place cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                image.save(file, "PNG")
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
