"""A process that measures one artifact, told what to do line by line.

Orders come as JSON on standard input, one a line; each is answered by one line on what was standard
output. Whatever libraries print goes to standard error.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from u2export import artifact as artifacts
from u2export import encode, pipeline, registry
from u2export.backend import Array, Runner
from u2export.errors import U2ExportError
from u2export.machine import usable_cpus
from u2export.spec import MAX_PIXELS, Device, PictureSpec, Precision

# Before the samples of a block: caches and clocks were another worker's, and onnxruntime's threads
# go on spinning for some 30 ms after their last call.
SETTLE_SECONDS = 0.05
SWEEP_CALLS = 3  # of each request, at least
STREAMS = (2, 4)
BATCHES = (4, 8)
_MIB, _KB = 2**20, 1024
_MB = 10**6


class Assignment(BaseModel):
    """What a worker is to measure.

    Attributes:
        artifact: the model file.
        backend: of the model file; found by its suffix if None.
        inputs: a file of the pictures as the network takes them, (N,3,size,size) float32.
        model: for a foreign file: the model it was made from.
        device: where to run; the backend's first if None.
        threads: for computation.
        precision: of the arithmetic; what the file says if None.
        batch: pictures a call; the fewest the file takes if None.
        pictures: files.
        delay: share of its time that every call sleeps, for proving that the benchmark sees it.
    """

    model_config = ConfigDict(frozen=True)

    artifact: Path
    inputs: Path
    backend: str | None = None
    model: str | None = None
    device: Device | None = None
    threads: int | None = None
    precision: Precision | None = None
    batch: int | None = None
    pictures: tuple[Path, ...] = ()
    delay: float = 0.0


class Worker:
    """One artifact, loaded, and what is measured of it."""

    def __init__(self, wanted: Assignment) -> None:
        """Load the artifact and time each step.

        Raises:
            U2ExportError: as opening an artifact says.
        """
        self._wanted = wanted
        self._inputs = list(np.load(wanted.inputs)[:, None])
        self.baseline = memory("VmRSS")
        begun = time.perf_counter()
        if wanted.backend:  # alone: opening a foreign file would import others to find it
            registry.load(wanted.backend)
        imported = time.perf_counter()
        self._artifact = registry.open_artifact(wanted.artifact, wanted.model)
        opening = time.perf_counter()
        self._runner = self._open()
        loaded = time.perf_counter()
        self._batch = wanted.batch or self._runner.fewest
        self._spec = self._artifact.facts.picture
        x = self._batch_of(0)
        ready = time.perf_counter()
        self._runner(x)
        first = time.perf_counter()
        self.told: dict[str, Any] = {
            "import_ms": 1e3 * (imported - begun),
            "load_ms": 1e3 * (loaded - opening),
            "first_ms": 1e3 * (first - ready),
            "batch": self._batch,
        }

    def _open(self, streams: int = 1) -> Runner:
        wanted = self._wanted
        return registry.open_runner(
            self._artifact,
            wanted.device,
            wanted.threads,
            precision=wanted.precision,
            streams=streams,
        )

    def _batch_of(self, start: int, count: int | None = None) -> Array:
        many = itertools.islice(itertools.cycle(self._inputs), start, None)
        return np.concatenate(list(itertools.islice(many, count or self._batch)))

    def account(self) -> dict[str, Any]:
        """Say what runs, and what the artifact is; asking may open it once more."""
        facts, told = self._artifact.facts, self._runner.executed()
        paths = registry.model_files(self._artifact)
        files = {one.name: artifacts.sha256_of(one) for one in paths}
        return {
            "backend": self._artifact.backend,
            "device": str(told.device),
            "size": facts.size,
            "files": files,
            "size_mb": sum(one.stat().st_size for one in paths) / _MB,
            "runtime": told.runtime,
            "ran": told.summary(),
        }

    def block(self, seconds: float, least: int) -> dict[str, Any]:
        """Take samples for a while, at least so many: ms each, and processor ms a picture.

        The pictures told are of all calls, also of those before the samples; `waited` is the time
        that a thread waited for a core, by the time the samples took.
        """
        batches = [self._batch_of(i * self._batch) for i in range(min(len(self._inputs), 4))]
        turns = itertools.cycle(batches)
        settled = time.perf_counter() + SETTLE_SECONDS
        warm = 0
        while not warm or time.perf_counter() < settled:
            self._call(next(turns))
            warm += 1
        samples: list[float] = []
        waiting, used, begun = waited_ms(), time.process_time(), time.perf_counter()
        while len(samples) < least or time.perf_counter() - begun < seconds:
            x = next(turns)
            start = time.perf_counter()
            self._call(x)
            samples.append(1e3 * (time.perf_counter() - start))
        threads = min(self._wanted.threads or usable_cpus(), usable_cpus())
        cpu = 1e3 * (time.process_time() - used) / (len(samples) * self._batch)
        return {
            "samples": samples,
            "cpu_ms": cpu,
            "pictures": (warm + len(samples)) * self._batch,
            "waited": _grown(waiting, waited_ms()) / (sum(samples) * threads),
        }

    def on_device(self, count: int) -> dict[str, Any]:
        """Samples of the network alone on a GPU, ms a call; none on a CPU."""
        return {"on_device": self._runner.on_device(self._batch_of(0), count)}

    def _call(self, x: Array) -> Array:
        if not self._wanted.delay:
            return self._runner(x)
        begun = time.perf_counter()
        y = self._runner(x)
        time.sleep(self._wanted.delay * (time.perf_counter() - begun))
        return y

    def stages(self, rounds: int) -> dict[str, Any]:
        """Median ms of each stage from file to mask, over the pictures."""
        found: dict[str, list[float]] = {}
        for _ in range(rounds):
            for path in self._wanted.pictures:
                for name, ms in _walk(path.read_bytes(), self._runner, self._spec):
                    found.setdefault(name, []).append(ms)
        return {name: float(np.median(times)) for name, times in found.items()}

    def throughput(self, seconds: float) -> dict[str, Any]:
        """Pictures a second of single calls, of batches, and of several calls under way at once.

        Each is tried for so many seconds.
        """
        alone = _rate(self._runner, self._batch_of(0), self._batch, seconds)
        found = {f"batch {self._batch}": alone}
        most = self._runner.most or max(BATCHES)
        for count in BATCHES if self._runner.batch is None else ():
            if self._batch < count <= most:
                found[f"batch {count}"] = _rate(
                    self._runner, self._batch_of(0, count), count, seconds
                )
        backend = registry.load(self._artifact.backend)
        threads = max(min(STREAMS), self._wanted.threads or usable_cpus())
        able = [n for n in STREAMS if n <= threads] if "streams" in backend.run_options else []
        for streams in able:
            with self._open(streams) as runner:
                found[f"{streams} streams"] = _flow(
                    runner, self._batch_of(0), self._batch, streams, seconds
                )
        return found

    def answers(self, path: str) -> dict[str, Any]:
        """Write the saliency of every picture, from every place in a batch: `picture/place`."""
        maps, count = {}, len(self._inputs)
        for start in range(count):
            for place, y in enumerate(self._runner(self._batch_of(start))):
                maps[f"{(start + place) % count}/{place}"] = y[0]
        np.savez(path, **maps)
        return {}

    def memory(self) -> dict[str, Any]:
        """The largest resident memory so far, MB: all of it, and what was there at the start."""
        return {"peak": memory("VmHWM"), "baseline": self.baseline}


def waited_ms() -> dict[str, float]:
    """How long each of this process's threads has been ready to run without a core to run on.

    Nothing where the kernel does not tell.

    Source:
        Linux, Documentation/scheduler/sched-stats: the second number of `schedstat`, in ns.
    """
    found = {}
    for task in Path("/proc/self/task").glob("*/schedstat"):
        try:
            found[task.parent.name] = int(task.read_text().split()[1]) / 1e6
        except (OSError, IndexError):  # a thread that is gone, a kernel that does not count
            continue
    return found


def _grown(before: dict[str, float], after: dict[str, float]) -> float:
    """What was added, all threads together; one that is new began at 0."""
    return sum(value - before.get(thread, 0.0) for thread, value in after.items())


def memory(field: str) -> float:
    """A figure of this process's memory, MB.

    Not `ru_maxrss`, which still knows the process this one was started from.
    """
    if sys.platform.startswith("linux"):
        lines = Path("/proc/self/status").read_text().splitlines()
        line = next(line for line in lines if line.startswith(f"{field}:"))
        return int(line.split()[1]) * _KB / _MB
    import psutil

    return float(psutil.Process().memory_info().rss) / _MB


def _walk(content: bytes, runner: Runner, spec: PictureSpec) -> Iterator[tuple[str, float]]:
    """Take a picture from file to mask; name and ms of each stage."""
    value: Any = content
    out = io.BytesIO()
    picture = pipeline.open_picture(io.BytesIO(content))

    steps: list[tuple[str, Callable[[Any], Any]]] = [
        ("decode", lambda v: pipeline.open_picture(io.BytesIO(v), max_pixels=MAX_PIXELS)),
        ("resize", lambda v: pipeline.squash(pipeline.opaque(v), spec)),
        ("normalise", lambda v: pipeline.normalise(v, spec)),
        ("infer", runner.single),
        ("stretch", lambda v: pipeline.stretch(v, spec)),
        ("upsample", lambda v: pipeline.enlarge(v, picture.size)),
        ("encode", lambda v: encode.encode(v, out, encode.PNG, {})),
    ]
    for name, step in steps:
        begun = time.perf_counter()
        value = step(value)
        yield name, 1e3 * (time.perf_counter() - begun)


def _rate(runner: Runner, x: Array, count: int, seconds: float) -> float:
    """Pictures a second of calls one after the other."""
    runner(x)
    calls, begun = 0, time.perf_counter()
    while (passed := time.perf_counter() - begun) < seconds or calls < 2:
        runner(x)
        calls += 1
    return calls * count / passed


def _flow(runner: Runner, x: Array, count: int, streams: int, seconds: float) -> float:
    """Pictures a second of calls that overlap, from the first that is begun to the last result."""
    begun = time.perf_counter()
    for _ in runner.stream([x] * streams):  # warm, and to see how many fit the time
        pass
    rounds = max(SWEEP_CALLS, round(seconds / (time.perf_counter() - begun)))
    begun = time.perf_counter()
    done = sum(1 for _ in runner.stream(itertools.repeat(x, rounds * streams)))
    return done * count / (time.perf_counter() - begun)


def main() -> None:
    """Answer orders until there are no more."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to standard output as they like
    worker: Worker | None = None
    for line in sys.stdin:
        order = json.loads(line)
        name, given = order["order"], order.get("given", {})
        answer: dict[str, Any]
        try:
            if name == "open":
                worker = Worker(Assignment.model_validate(given))
                answer = worker.told
            else:
                answer = getattr(worker, name)(**given)
        except U2ExportError as error:
            answer = {"error": str(error), "status": error.exit_status}
        except MemoryError:
            answer = {"error": "out of memory", "status": 5}
        _say(out, answer)


def _say(out: IO[str], answer: dict[str, Any]) -> None:
    out.write(json.dumps(answer) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
