"""An artifact opened for pictures: a callable from picture to mask."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from threading import BoundedSemaphore
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from u2export.core import registry
from u2export.core.arrays import Array
from u2export.core.artifact import Artifact
from u2export.core.backend import Runner
from u2export.core.enums import Device, Precision, Resize, Task
from u2export.core.requests import MAX_THREADS, RunRequest
from u2export.errors import InputError
from u2export.images.decode import as_image
from u2export.images.postprocess import postprocess
from u2export.images.preprocess import preprocess
from u2export.system.hardware import usable_cpus


class Segmenter:
    """An artifact opened for pictures; calling it gives a mask.

    Examples:
        >>> segment = u2export.load("exported/u2netp-fp32.onnx")
        >>> mask = segment(Image.open("photo.jpg"))
    """

    def __init__(
        self,
        artifact: Artifact,
        request: RunRequest | None = None,
        *,
        resize: Resize | None = None,
    ) -> None:
        """Load the artifact into its runtime.

        Args:
            artifact: from `registry.open_artifact`.
            request: how to run it. `streams` is how many pictures may be computed at the same
                time, at most one for each thread. They share the threads, so each picture takes
                longer and all together take less.
            resize: how pictures become square, instead of what the artifact records.

        Raises:
            DependencyError: the runtime or the device is not there.
            ArtifactError: the runtime refuses the file.
            ParityError: the runtime does something else than it was asked.
        """
        self.artifact = artifact
        self._request, self._resize = request, resize
        spec = artifact.facts.picture
        self.spec = replace(spec, resize=resize) if resize else spec
        request = request or RunRequest()
        backend = registry.load(artifact.backend)
        device = request.device or backend.devices[0]
        can_stream = "streams" in backend.run_options and device is Device.CPU
        self.workers = min(request.threads or usable_cpus(), request.streams)
        self.streams = self.workers if can_stream else 1
        self._runner: Runner = registry.open_runner(
            artifact, replace(request, streams=self.streams)
        )
        self._free = BoundedSemaphore(self.streams)

    @property
    def batch(self) -> int:
        """Pictures that a call takes at least."""
        return self._runner.min_batch

    def __call__(
        self, picture: Image.Image | str | os.PathLike[str] | NDArray[np.uint8]
    ) -> Image.Image:
        """Find the subject of a picture.

        Args:
            picture: a Pillow image of any mode and size, whose EXIF orientation is applied; the
                path of a file; or uint8 values, (H,W,3) RGB, (H,W,4) RGBA, (H,W,1) or (H,W) gray.

        Returns:
            Mode L, of the upright picture's size; 255 is subject.

        Raises:
            InputError: it is no such picture, or its file cannot be read.
        """
        return self.mask(as_image(picture))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy as path and options: the other one opens the file again."""
        model = self.artifact.facts.model if self.artifact.foreign else None
        return _reopen, (self.artifact.path, model, self._request, self._resize)

    def mask(self, picture: Image.Image) -> Image.Image:
        """Find the subject of a picture that `to_upright` or `open_image` gave."""
        x = preprocess(picture, self.spec)
        return postprocess(self.saliency(x)[0], picture.size, self.spec)

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


def _reopen(
    path: Path, model: str | None, request: RunRequest | None, resize: Resize | None
) -> Segmenter:
    return Segmenter(registry.open_artifact(path, model), request, resize=resize)


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
    request = RunRequest(
        Device.named(device) if device else None,
        threads,
        Precision.named(precision) if precision else None,
        streams=min(at_once, MAX_THREADS),
        compiled=compiled,
    )
    return Segmenter(
        registry.open_artifact(Path(path), model),
        request,
        resize=Resize.named(resample) if resample else None,
    )


def refuse_drawings(artifact: Artifact) -> None:
    """Refuse a portrait model where a subject is needed.

    Raises:
        InputError: it is one.
    """
    if artifact.facts.task is Task.PORTRAIT:
        raise InputError(
            "a portrait model's result is a drawing: there is no subject to cut out or refine"
        )
