"""The contract between the project and a runtime."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Condition
from types import TracebackType

import numpy as np

from u2export.core.arrays import Array, Tensors
from u2export.core.artifact import Artifact
from u2export.core.digest import DIGEST_PREFIX
from u2export.core.enums import Device, Precision
from u2export.core.execution import Execution
from u2export.core.facts import Facts
from u2export.core.requests import MAX_BATCH, ExportSpec, RunSpec
from u2export.errors import ArtifactError, ExportError, InputError
from u2export.system.leaving import interrupt_when_leaving


class Runner(ABC):
    """A model loaded into a runtime, ready to be called.

    A context manager. Results are in host memory and belong to the caller: a later call does not
    change them.
    """

    def __init__(
        self, size: int, batch: int | None, limits: tuple[int, int | None] = (1, None)
    ) -> None:
        """Remember what a call must look like.

        Args:
            size: side of the pictures in pixels.
            batch: pictures per call; None for any number.
            limits: of a free batch: the fewest pictures of a call, and the most.

        Raises:
            ArtifactError: no memory holds so many pictures.
        """
        if batch is not None and not 1 <= batch <= MAX_BATCH:
            raise ArtifactError(
                f"the file takes {batch} pictures per call: 1 to {MAX_BATCH} can be"
            )
        self.size, self.batch = size, batch
        self.min_batch, self.max_batch = (batch, batch) if batch else limits
        self._open = True
        self._calls = 0  # that compute at this moment, in all threads
        self._calls_changed = Condition()
        interrupt_when_leaving(self)

    def __call__(self, x: Array) -> Array:
        """Compute the saliency of preprocessed pictures.

        Args:
            x: (N,3,size,size) float32, from `u2export.images.preprocess.preprocess`.

        Returns:
            (N,1,size,size) float32 in [0,1]; the fused map d0.

        Raises:
            InputError: wrong shape or type, NaN or infinity, or the runner is closed.
            ExportError: the runtime gave something else than it promised.
        """
        self._check(x)
        with self._computing():
            return self._checked_output(self._infer(np.ascontiguousarray(x)), len(x))

    def single(self, x: Array) -> Array:
        """Compute the saliency of one picture, repeated where a call takes more.

        Args:
            x: (1,3,size,size) float32.

        Returns:
            (size,size) float32 in [0,1].

        Raises:
            InputError: as for a call.
            ExportError: as for a call.
        """
        many = np.repeat(x, self.min_batch, axis=0) if self.min_batch > 1 else x
        saliency: Array = self(many)[0, 0]
        return saliency

    def maps(self, x: Array) -> tuple[Array, ...]:
        """Compute every output the artifact has: d0 alone, or d0..d6.

        Args:
            x: as for a call.

        Returns:
            (N,1,size,size) float32 arrays in [0,1], d0 first.

        Raises:
            InputError: as for a call.
            ExportError: as for a call.
        """
        self._check(x)
        with self._computing():
            found = self._infer_all(np.ascontiguousarray(x))
            return tuple(self._checked_output(y, len(x)) for y in found)

    def stream(self, inputs: Iterable[Array]) -> Iterator[Array]:
        """Compute many inputs, several at once where the runtime can and was opened for it.

        Args:
            inputs: each as for a call; taken only as fast as results are.

        Yields:
            What a call would give for each, in order.

        Raises:
            InputError: as for a call.
            ExportError: as for a call.
        """
        for x in inputs:
            yield self(x)

    def on_device(self, x: Array, count: int) -> list[float]:
        """Time the network alone on a GPU, by the GPU's own events: copies are not in it.

        Args:
            x: as for a call; copied to the GPU once, before.
            count: how many times to run.

        Returns:
            ms each; empty on a CPU, and where the runtime does not let itself be timed so.

        Raises:
            InputError: as for a call.
            ExportError: the GPU reports a failure.
        """
        self._check(x)
        with self._computing():
            return self._on_device(np.ascontiguousarray(x), count)

    def _on_device(self, x: Array, count: int) -> list[float]:
        """Time a checked, contiguous input."""
        return []

    def executed(self) -> Execution:
        """Say what really runs, layer by layer, from the runtime itself; may run the network once.

        Raises:
            InputError: the runner is closed.
            ExportError: the runtime does not tell.
        """
        with self._computing():
            return self._executed()

    @abstractmethod
    def _executed(self) -> Execution:
        """Ask the runtime what it runs."""

    def _checked_output(self, y: Array, count: int) -> Array:
        if y.shape != (count, 1, self.size, self.size) or y.dtype != np.float32:
            raise ExportError(f"the runtime answered {y.dtype} {y.shape} to {count} pictures")
        return y if y.flags.owndata else y.copy()

    def _check_open(self) -> None:
        if not self._open:
            raise InputError("this runner is closed: open the artifact again")

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Keep the runtime for the block: `close` waits for its end."""
        with self._calls_changed:
            self._check_open()
            self._calls += 1
        try:
            yield
        finally:
            with self._calls_changed:
                self._calls -= 1
                self._calls_changed.notify_all()

    def _check(self, x: Array) -> None:
        self._check_open()
        n = "N" if self.batch is None else self.batch
        expected = f"float32 ({n}, 3, {self.size}, {self.size})"
        if not isinstance(x, np.ndarray) or x.dtype != np.float32:
            raise InputError(f"the input must be {expected}, got {getattr(x, 'dtype', type(x))}")
        fits = x.ndim == 4 and x.shape[1:] == (3, self.size, self.size) and len(x) > 0
        if not fits or self.batch not in (None, len(x)):
            raise InputError(f"the input must be {expected}, got {x.shape}")
        if not np.isfinite(x).all():
            raise InputError("the input must be finite: it holds NaN or infinity")

    @abstractmethod
    def _infer(self, x: Array) -> Array:
        """Run the network on a checked, contiguous input; d0 only."""

    def _infer_all(self, x: Array) -> tuple[Array, ...]:
        """Run the network on a checked, contiguous input; all outputs, d0 first."""
        return (self._infer(x),)

    def interrupt(self) -> None:  # noqa: B027 - most runtimes cannot
        """End the calls under way and refuse later ones, where the runtime can.

        Called from another thread, when the process is to end. Calls that end so raise ExportError.
        """

    def close(self) -> None:
        """Give the runtime's memory back once the calls of other threads have ended.

        Calls that come later get an error. Closing twice is allowed.
        """
        with self._calls_changed:
            if not self._open:
                return
            self._open = False
            self._calls_changed.wait_for(lambda: not self._calls)
        self._release()

    @abstractmethod
    def _release(self) -> None:
        """Drop whatever the runtime holds; called once."""

    def __enter__(self) -> Runner:
        """Give the runner itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the runner."""
        self.close()


@dataclass(frozen=True)
class BackendOption:
    """An option that only one backend has.

    Attributes:
        name: of the option, as in `--name`, and of the entry in `ExportSpec.backend_options`.
        help: what it does.
        choices: what it may be; empty where anything is for the backend to judge.
    """

    name: str
    help: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Backend:
    """What a backend file provides, as `BACKEND`.

    Attributes:
        name: of the entry point and of the command.
        suffixes: of the files it opens; the first is the one it writes.
        parent: name of the backend whose artifact it converts; None converts the weights.
        run_packages: importable names that running needs; "a or b" where one of them is enough.
            Reports give their versions.
        export_packages: importable names that exporting needs, likewise.
        run_extra: the installation extra that brings `run_packages`.
        export_extra: the installation extra that brings `export_packages`.
        precisions: what it can export.
        devices: where it can run; the first is the default.
        export: converts the parent to a model file at the given path and gives the file's facts.
            It embeds them where the format has a place.
        open_runner: gives a runner on exactly that device, or raises DependencyError.
        read_facts: gives the text embedded under `FACTS_KEY` in a model file, or None.
        run_precisions: what `RunSpec.precision` may demand.
        export_options: names of `ExportSpec` fields that it honours beyond the common ones.
        run_options: names of `RunSpec` fields that it honours beyond device and threads.
        backend_options: options of its own.
        companion_suffixes: of further files that belong to a model file, such as `.bin`.
        external_files: gives where else a model file's weights lie, as it says: paths from its
            folder.
        check_on_open: devices on which every opening is checked with `Runner.executed`. Elsewhere
            the runtime can do nothing else, or asking it takes too long.
        unavailable_reason: why it cannot run on a device of this machine, as a phrase; else empty.
        unsupported_reason: why this machine cannot run an artifact as asked, though it has the
            device, as a phrase; else empty.
        stored_precisions: gives the precision of most weights in a file, then others that it can
            say of itself; read from its bytes and not from what it says. Without it a file counts
            as what its runtime computes.
        load_onnx: loads an ONNX file from memory; raises anything where the runtime refuses it.
        module_tensors: for one input, gives the saliency, and the float32 tensors of these modules
            by module. A module that the file does not name is left out.
        digest_prefix: stands before the digest in its model files.
        plot_colour: of its rows in plots, as `#rrggbb`, to be read on white and on black.
    """

    name: str
    suffixes: tuple[str, ...]
    parent: str | None
    run_packages: tuple[str, ...]
    export_packages: tuple[str, ...]
    run_extra: str
    export_extra: str
    precisions: tuple[Precision, ...]
    devices: tuple[Device, ...]
    export: Callable[[Artifact, ExportSpec, Path], Facts]
    open_runner: Callable[[Artifact, RunSpec], Runner]
    read_facts: Callable[[Path], str | None]
    run_precisions: tuple[Precision, ...] = ()
    export_options: tuple[str, ...] = ()
    run_options: tuple[str, ...] = ()
    backend_options: tuple[BackendOption, ...] = ()
    companion_suffixes: tuple[str, ...] = ()
    external_files: Callable[[Path], list[str]] = lambda path: []
    check_on_open: tuple[Device, ...] = ()
    unavailable_reason: Callable[[Device], str] = lambda device: ""
    unsupported_reason: Callable[[Artifact, RunSpec], str] = lambda artifact, run_spec: ""
    stored_precisions: Callable[[Path], tuple[Precision, ...]] | None = None
    load_onnx: Callable[[bytes], object] | None = None
    module_tensors: Callable[[Artifact, Array, Sequence[str]], tuple[Array, Tensors]] | None = None
    digest_prefix: str = DIGEST_PREFIX
    plot_colour: str = "#7b7f86"

    def companion_paths(self, path: Path) -> list[Path]:
        """Where what belongs to a model file lies beside it."""
        beside = [path.with_suffix(suffix) for suffix in self.companion_suffixes]
        return beside + [path.parent / name for name in self.external_files(path)]
