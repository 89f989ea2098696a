"""Pictures by the hundred thousand, on several machines: Ray Data runs the same pipeline.

Each actor holds a runner and its share of the processors. A result is written completely or not at
all. An actor that dies loses nothing: Ray starts another, which repeats the unreported batch.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from u2export.core.enums import Stage
from u2export.errors import (
    DependencyError,
    InputError,
    OutputError,
    U2ExportError,
    pip_command,
)
from u2export.images.frames import Frame, Picture
from u2export.inference.process import ImageOptions, ImageResult, process_images
from u2export.inference.segmenter import load
from u2export.system.documents import is_folder, is_there
from u2export.system.files import remove_partials, scratch_folder

BATCH_SIZE = 16  # pictures of an actor's batch, which is repeated if the actor dies
_SCHEME_MARK = "://"  # in the address of an object store
_Row = dict[str, Any]


class _Pair(NamedTuple):
    """Paths or addresses of a picture's file and of its result; the number of a frame, or 0."""

    picture: str
    output: str
    frame: int = 0


def map_pictures(
    artifact: str | Path,
    targets: Iterable[tuple[str | Picture, str | Path]],
    image_options: ImageOptions | None = None,
    *,
    workers: int = 2,
    threads: int = 1,
    skip_existing: bool = False,
    load_options: Mapping[str, Any] | None = None,
) -> Generator[ImageResult, None, None]:
    """Write a result for each picture, on a Ray cluster; a local one is started if there is none.

    Args:
        artifact: the model file, at the same path on every machine.
        targets: pairs of picture and result: paths that every machine sees, or addresses of an
            object store such as `s3://bucket/a.jpg`. Its fsspec package must be installed. A
            `Frame` is one of several pictures in a file; of a path or address with several, the
            first is taken.
        image_options: what to make of the pictures; by default masks.
        workers: actors, each with a runner of its own.
        threads: processors of an actor.
        skip_existing: skip pictures whose result exists, to continue a run that stopped.
        load_options: further arguments of `u2export.load`, such as `device`.

    Yields:
        The outcome of each picture, when it is ready; times are those of the worker.

    Raises:
        DependencyError: Ray or an object store's package is not installed.
        InputError: there is no such model file; or as for `process.process_images`.
        OutputError: the disk that takes results is full.
    """
    ray = _import_ray()
    image_options, load_options = image_options or ImageOptions(), dict(load_options or {})
    path = Path(artifact).absolute()
    pairs = [_pair(picture, output) for picture, output in targets]
    pending = [pair for pair in pairs if not (skip_existing and _exists(pair.output))]
    if not pending:
        return
    with load(path, **load_options) as segmenter:  # errors appear here, not in an actor
        image_options.check(segmenter.artifact)
    _remove_partials(pairs)
    _connect(ray, workers * threads)
    with _no_progress_bars(ray):
        rows = [pair._asdict() for pair in pending]
        pictures = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // BATCH_SIZE))
        results = pictures.map_batches(
            _ImageActor,
            fn_constructor_args=(path, image_options, threads, load_options),
            compute=ray.data.ActorPoolStrategy(size=workers),
            batch_size=BATCH_SIZE,
            num_cpus=threads,
            max_restarts=-1,
            max_task_retries=-1,
        )
        yield from map(_result_from_row, results.iter_rows())


def _pair(picture: str | Picture, output: str | Path) -> _Pair:
    file, number = picture, 0
    if isinstance(picture, Frame):
        file, number = picture.path, picture.number
    return _Pair(_absolute(str(file)), _absolute(str(output)), number)


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise DependencyError(f"this needs Ray: {pip_command('ray')}") from error
    return ray


def _remove_partials(pairs: Sequence[_Pair]) -> None:
    """Remove what killed workers left in the local folders of results."""
    folders = {Path(pair.output).parent for pair in pairs if not _is_remote(pair.output)}
    remove_partials({folder for folder in folders if is_folder(folder)})


def _connect(ray: Any, processors: int) -> None:
    """Connect to the running cluster, or start one on this machine."""
    if ray.is_initialized():
        return
    handler = signal.getsignal(signal.SIGTERM)
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        ray.init(address="auto", **quiet)
    except ConnectionError:
        ray.init(num_cpus=processors, include_dashboard=False, **quiet)
    if handler is not None:
        signal.signal(signal.SIGTERM, handler)  # Ray's own handler exits with another status


@contextmanager
def _no_progress_bars(ray: Any) -> Iterator[None]:
    context = ray.data.DataContext.get_current()
    enabled, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        yield
    finally:
        context.enable_progress_bars = enabled


class _ImageActor:
    """Processes batches of pictures in a process of the cluster."""

    def __init__(
        self,
        path: Path,
        image_options: ImageOptions,
        threads: int,
        load_options: Mapping[str, Any],
    ) -> None:
        self._options = image_options
        self._segmenter = load(path, threads=threads, at_once=threads, **load_options)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Process a batch: columns of `_Pair` to the columns of `_result_row`."""
        columns = (batch[name] for name in _Pair._fields)
        pairs = [_Pair(str(p), str(o), int(f)) for p, o, f in zip(*columns, strict=True)]
        with scratch_folder() as folder:
            rows = self._process(pairs, Path(folder))
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def _process(self, pairs: Sequence[_Pair], folder: Path) -> list[_Row]:
        """Process pictures; remote files pass through a local folder."""
        local_pairs, fetch_errors = _fetch_all(pairs, folder)
        rows: dict[int, _Row] = {}
        index = -1
        try:
            for result in process_images(self._segmenter, local_pairs, self._options):
                # in order, but a picture that a full disk kept from being written is left out
                index = local_pairs.index(result.target, index + 1)
                pair, fetch_error = pairs[index], fetch_errors[index]
                if fetch_error:
                    result.error = fetch_error
                elif not result.error and _is_remote(pair.output):
                    _upload(Path(result.output), pair.output)
                rows[index] = _result_row(pair, result)
        except U2ExportError as error:  # a result cannot be written: this ends the run
            no_result = ImageResult("", "")
            for missing in set(range(len(pairs))) - rows.keys():
                rows[missing] = _result_row(pairs[missing], no_result, error)
        return [rows[number] for number in range(len(pairs))]


def _result_row(pair: _Pair, result: ImageResult, fatal: U2ExportError | None = None) -> _Row:
    """An outcome as a flat row; `_result_from_row` reads it. A stage not reached has time -1."""
    return {
        "picture": pair.picture,
        "result": pair.output,
        "frame": pair.frame,
        "error": result.error.replace(str(result.picture), pair.picture) if result.error else "",
        "fatal": str(fatal or ""),
        "full": isinstance(fatal, OutputError),
        "width": result.size[0],
        "height": result.size[1],
        "sha256": result.sha256,
        "notes": "\n".join(result.notes),
        **{stage: result.ms.get(stage, -1.0) for stage in map(str, Stage)},
    }


def _result_from_row(row: Mapping[str, Any]) -> ImageResult:
    if row["fatal"]:
        raise (OutputError if row["full"] else InputError)(row["fatal"])
    return ImageResult(
        _path_or_address(row["picture"]),
        _path_or_address(row["result"]),
        row["error"],
        (int(row["width"]), int(row["height"])),
        row["sha256"],
        {stage: float(row[stage]) for stage in map(str, Stage) if row[stage] >= 0},
        row["notes"].splitlines(),
        int(row["frame"]) or None,
    )


def _fetch_all(
    pairs: Sequence[_Pair], folder: Path
) -> tuple[list[tuple[Picture, Path]], list[str]]:
    """Fetch the pictures of a batch.

    Returns:
        Local paths of each picture and its result, and the error of each; empty where there is
        none. A picture that was not fetched has paths that do not exist.
    """
    local_pairs: list[tuple[Picture, Path]] = []
    errors = []
    for index, pair in enumerate(pairs):
        try:
            local_pairs.append(_fetch(pair, folder / str(index)))
            errors.append("")
        except (InputError, DependencyError) as error:
            local_pairs.append((folder / str(index) / "absent", folder / str(index) / "none"))
            errors.append(str(error))
    return local_pairs, errors


def _fetch(pair: _Pair, folder: Path) -> tuple[Picture, Path]:
    """Local paths of a picture and its result; a remote picture is copied into the folder."""
    picture, output = Path(pair.picture), Path(pair.output)
    if _is_remote(pair.picture):
        store, key = _open_store(pair.picture)
        picture = folder / PurePosixPath(key).name
        picture.parent.mkdir(parents=True)
        try:
            with store.open(key, "rb") as source, picture.open("wb") as file:
                shutil.copyfileobj(source, file)
        except FileNotFoundError as error:
            raise InputError(f"there is no picture at {pair.picture}") from error
        except OSError as error:
            raise InputError(f"{pair.picture} cannot be read: {error}") from error
    if _is_remote(pair.output):
        output = folder / "result" / PurePosixPath(pair.output).name
    return Frame(picture, pair.frame) if pair.frame else picture, output


def _upload(file: Path, address: str) -> None:
    """Copy a file into an object store, where it appears complete."""
    store, key = _open_store(address)
    try:
        store.makedirs(str(PurePosixPath(key).parent), exist_ok=True)
        partial = f"{key}.part"
        store.put_file(str(file), partial)
        try:
            store.mv(partial, key)
        except OSError:
            store.rm(partial)
            raise
    except OSError as error:
        raise InputError(f"{address} cannot be written: {error}") from error


def _exists(path_or_address: str) -> bool:
    if not _is_remote(path_or_address):
        return is_there(Path(path_or_address))
    store, key = _open_store(path_or_address)
    return bool(store.exists(key))


def _open_store(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it."""
    import fsspec

    try:
        store, key = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise DependencyError(f"{address} cannot be reached: {error}") from error
    return store, str(key)


def _absolute(path_or_address: str) -> str:
    """Make a path independent of the current folder; an address stays."""
    if _is_remote(path_or_address):
        return path_or_address
    return str(Path(path_or_address).absolute())


def _path_or_address(text: str) -> Path | str:
    return text if _is_remote(text) else Path(text)


def _is_remote(text: str) -> bool:
    return _SCHEME_MARK in text
