"""Pictures by the hundred thousand, on more machines than one: Ray Data over the same pipeline.

Runners live in actors, each with its share of the processors. A picture's result is written whole
or not at all, so an actor that dies loses nothing: Ray starts another, which does again what the
first had not told of.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from u2export import places, run
from u2export.errors import DependencyError, InputError, U2ExportError
from u2export.run import Done, Order

BLOCK = 16  # pictures that an actor takes at a time, and does again if it dies
_REMOTE = "://"


def map_pictures(
    artifact: str | Path,
    targets: Iterable[tuple[str | Path, str | Path]],
    order: Order | None = None,
    *,
    workers: int = 2,
    threads: int = 1,
    skip_existing: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Generator[Done, None, None]:
    """Write a result for each picture, on a Ray cluster; a local one is started if there is none.

    Args:
        artifact: the model file, at the same place on every machine.
        targets: pairs of picture and result: paths that every machine sees, or addresses of an
            object store such as `s3://bucket/a.jpg`, for which its fsspec package is needed.
        order: what is to be made of the pictures; by default masks.
        workers: actors, each with a runner of its own.
        threads: processors of an actor.
        skip_existing: leave out pictures whose result is there: a run that broke off goes on.
        options: what `u2export.load` takes further, such as `device`.

    Yields:
        What became of each picture, as it is done; times are those of the worker.

    Raises:
        DependencyError: Ray is not installed, or an object store's package is not.
        InputError: there is no such model file; or as `run.process` raises.
    """
    ray = _ray()
    order, given = order or Order(), dict(options or {})
    path = Path(artifact).absolute()
    pairs = [(_whole(str(picture)), _whole(str(result))) for picture, result in targets]
    wanted = [
        {"picture": picture, "result": result}
        for picture, result in pairs
        if not (skip_existing and _exists(result))
    ]
    if not wanted:
        return
    with run.load(path, **given) as segment:  # what is wrong is told here, not by an actor
        order.check(segment.artifact)
    folders = {Path(result).parent for _, result in pairs if _REMOTE not in result}
    places.sweep({folder for folder in folders if folder.is_dir()})
    _join(ray, workers * threads)
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        rows = ray.data.from_items(wanted, override_num_blocks=-(-len(wanted) // BLOCK))
        rows = rows.map_batches(
            _Maker,
            fn_constructor_args=(path, order, threads, given),
            compute=ray.data.ActorPoolStrategy(size=workers),
            batch_size=BLOCK,
            num_cpus=threads,
            max_restarts=-1,
            max_task_retries=-1,
        )
        for row in rows.iter_rows():
            if row["fatal"]:
                raise InputError(row["fatal"])
            yield Done(
                _place(row["picture"]),
                _place(row["result"]),
                row["error"],
                (int(row["width"]), int(row["height"])),
                row["sha256"],
                {name: float(row[name]) for name in run.STAGES if row[name] >= 0},
            )
    finally:
        context.enable_progress_bars = bars


def _join(ray: Any, processors: int) -> None:
    """Join the cluster there is, or start one on this machine."""
    if ray.is_initialized():
        return
    before = signal.getsignal(signal.SIGTERM)
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        ray.init(address="auto", **quiet)
    except ConnectionError:
        ray.init(num_cpus=processors, include_dashboard=False, **quiet)
    if before is not None:
        signal.signal(signal.SIGTERM, before)  # Ray's own ends with another status


def _whole(place: str) -> str:
    """A place that means the same in another process."""
    return place if _REMOTE in place else str(Path(place).absolute())


def _place(text: str) -> Path | str:
    return text if _REMOTE in text else Path(text)


class _Maker:
    """What an actor does."""

    def __init__(self, path: Path, order: Order, threads: int, options: dict[str, Any]) -> None:
        self._order = order
        self._segment = run.load(path, threads=threads, at_once=threads, **options)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        pairs = list(zip(map(str, batch["picture"]), map(str, batch["result"]), strict=True))
        with ExitStack() as held:
            home = Path(held.enter_context(tempfile.TemporaryDirectory()))
            local, failed = [], {}
            for place, pair in enumerate(pairs):
                try:
                    local.append(_brought(pair, home / str(place)))
                except (InputError, DependencyError) as error:
                    failed[place] = str(error)
                    local.append((home / "absent", home / "none"))
            told: list[dict[str, Any]] = []
            try:
                for done in run.process(self._segment, local, self._order):
                    pair, place = pairs[len(told)], len(told)
                    if place in failed:
                        done.error = failed[place]
                    elif not done.error and _REMOTE in pair[1]:
                        _sent(Path(done.result), pair[1])
                    told.append(_row(pair, done))
            except U2ExportError as error:  # a place cannot be written: the end of all
                told += [_row(pair, Done("", ""), str(error)) for pair in pairs[len(told) :]]
        return {name: np.array([row[name] for row in told]) for name in told[0]}


def _row(pair: tuple[str, str], done: Done, fatal: str = "") -> dict[str, Any]:
    return {
        "picture": pair[0],
        "result": pair[1],
        "error": done.error.replace(str(done.picture), pair[0]) if done.error else "",
        "fatal": fatal,
        "width": done.size[0],
        "height": done.size[1],
        "sha256": done.sha256,
        **{name: done.ms.get(name, -1.0) for name in run.STAGES},
    }


def _brought(pair: tuple[str, str], home: Path) -> tuple[Path, Path]:
    """Local files for a picture and its result; what lies elsewhere is copied here."""
    picture, result = (Path(one) for one in pair)
    if _REMOTE in pair[0]:
        system, inside = _store(pair[0])
        picture = home / PurePosixPath(inside).name
        picture.parent.mkdir(parents=True)
        try:
            with system.open(inside, "rb") as source, picture.open("wb") as file:
                shutil.copyfileobj(source, file)
        except FileNotFoundError as error:
            raise InputError(f"there is no picture at {pair[0]}") from error
        except OSError as error:
            raise InputError(f"{pair[0]} cannot be read: {error}") from error
    if _REMOTE in pair[1]:
        result = home / "result" / PurePosixPath(pair[1]).name
    return picture, result


def _sent(result: Path, address: str) -> None:
    """Put a result into an object store, where it appears whole."""
    system, inside = _store(address)
    try:
        system.makedirs(str(PurePosixPath(inside).parent), exist_ok=True)
        part = f"{inside}.part"
        system.put_file(str(result), part)
        try:
            system.mv(part, inside)
        except OSError:
            system.rm(part)
            raise
    except OSError as error:
        raise InputError(f"{address} cannot be written: {error}") from error


def _exists(place: str) -> bool:
    if _REMOTE not in place:
        return Path(place).exists()
    system, inside = _store(place)
    return bool(system.exists(inside))


def _store(address: str) -> tuple[Any, str]:
    import fsspec

    try:
        system, inside = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise DependencyError(f"{address} cannot be reached: {error}") from error
    return system, str(inside)


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise DependencyError("this needs Ray: pip install 'u2export[ray]'") from error
    return ray
