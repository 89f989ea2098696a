"""A process that measures one artifact. It takes commands as lines of JSON.

A command is one line on standard input. Its answer is one line on standard output. Whatever
libraries print goes to standard error.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from u2export.core import registry
from u2export.core.arrays import Array
from u2export.core.backend import Runner
from u2export.core.enums import Stage
from u2export.core.models import PictureSpec
from u2export.core.requests import MAX_PIXELS, RunRequest
from u2export.errors import U2ExportError
from u2export.images import encode
from u2export.images.decode import open_image
from u2export.images.postprocess import resize_to_mask, stretch_saliency
from u2export.images.preprocess import preprocess
from u2export.system.files import file_sha256
from u2export.system.hardware import usable_cpus

# Warm-up before the samples of a block. Caches and clock rates still belong to another worker, and
# onnxruntime's threads spin for some 30 ms after their last call.
SETTLE_SECONDS = 0.05
SWEEP_CALLS = 3  # fewest calls per stream in the throughput sweep
STREAMS = (2, 4)
BATCHES = (4, 8)
_INPUTS_PER_BLOCK = 4  # different input batches in a block, at most
_KIB = 1024
_MB = 10**6
_T = TypeVar("_T")


class WorkerSpec(BaseModel):
    """What a worker measures.

    Attributes:
        artifact: the model file.
        inputs: .npy file of the preprocessed pictures, (N,3,size,size) float32.
        backend: backend of the model file; None finds it by the suffix.
        model: name of the model, for a file that u2export did not make.
        run: how to run the file.
        batch: pictures per call; None is the smallest batch of the file.
        pictures: picture files for the timing of stages.
        delay: share of its time that every call sleeps in addition. It proves that the benchmark
            detects a slowdown.
    """

    model_config = ConfigDict(frozen=True)

    artifact: Path
    inputs: Path
    backend: str | None = None
    model: str | None = None
    run: RunRequest = RunRequest()
    batch: int | None = None
    pictures: tuple[Path, ...] = ()
    delay: float = 0.0


class ArtifactMeter:
    """A loaded artifact and its measurements. Its public methods are the worker's commands."""

    def __init__(self, spec: WorkerSpec) -> None:
        """Load the artifact and time each step.

        Raises:
            U2ExportError: the artifact cannot be opened.
        """
        self._spec = spec
        self._inputs = list(np.load(spec.inputs)[:, None])
        self._baseline_mb = process_memory_mb("VmRSS")
        # The backend is imported alone. Opening a foreign file without it would import others.
        _, import_ms = _timed(lambda: registry.load(spec.backend) if spec.backend else None)
        self._artifact = registry.open_artifact(spec.artifact, spec.model)
        self._runner, load_ms = _timed(self._open_runner)
        self._batch = spec.batch or self._runner.min_batch
        x = self._input_batch(0)
        _, first_ms = _timed(lambda: self._runner(x))
        self.load_result: dict[str, Any] = {
            "import_ms": import_ms,
            "load_ms": load_ms,
            "first_ms": first_ms,
            "batch": self._batch,
        }

    def _open_runner(self, streams: int = 1) -> Runner:
        return registry.open_runner(self._artifact, replace(self._spec.run, streams=streams))

    def _input_batch(self, start: int, size: int | None = None) -> Array:
        """Return the inputs from `start` on, repeated as needed: (size,3,side,side)."""
        inputs = itertools.islice(itertools.cycle(self._inputs), start, None)
        return np.concatenate(list(itertools.islice(inputs, size or self._batch)))

    def describe(self) -> dict[str, Any]:
        """Describe the artifact and what the runtime runs. This may load the model once more."""
        facts, execution = self._artifact.facts, self._runner.executed()
        paths = registry.model_files(self._artifact)
        return {
            "backend": self._artifact.backend,
            "device": str(execution.device),
            "size": facts.size,
            "files": {path.name: file_sha256(path) for path in paths},
            "size_mb": sum(path.stat().st_size for path in paths) / _MB,
            "runtime": execution.runtime,
            "ran": execution.summary(),
        }

    def measure_block(self, seconds: float, min_samples: int) -> dict[str, Any]:
        """Sample the latency for some time.

        Args:
            seconds: shortest duration.
            min_samples: fewest samples.

        Returns:
            `samples`: ms per call. `cpu_ms`: processor time per picture. `pictures`: number of
            pictures, those of the warm-up included. `waiting_share`: time that threads waited for
            a core, divided by the duration of the samples and by the number of threads.
        """
        count = min(len(self._inputs), _INPUTS_PER_BLOCK)
        batches = itertools.cycle([self._input_batch(i * self._batch) for i in range(count)])
        warm_up_calls = self._warm_up(batches)
        samples: list[float] = []
        waiting_before = thread_waiting_ms()
        cpu_started, started = time.process_time(), time.perf_counter()
        while len(samples) < min_samples or time.perf_counter() - started < seconds:
            x = next(batches)
            call_started = time.perf_counter()
            self._call(x)
            samples.append(1e3 * (time.perf_counter() - call_started))
        threads = min(self._spec.run.threads or usable_cpus(), usable_cpus())
        cpu_ms = 1e3 * (time.process_time() - cpu_started) / (len(samples) * self._batch)
        waiting_ms = _total_increase(waiting_before, thread_waiting_ms())
        return {
            "samples": samples,
            "cpu_ms": cpu_ms,
            "pictures": (warm_up_calls + len(samples)) * self._batch,
            "waiting_share": waiting_ms / (sum(samples) * threads),
        }

    def _warm_up(self, batches: Iterator[Array]) -> int:
        """Call the runner for `SETTLE_SECONDS`, at least once; return the number of calls."""
        end = time.perf_counter() + SETTLE_SECONDS
        calls = 0
        while not calls or time.perf_counter() < end:
            self._call(next(batches))
            calls += 1
        return calls

    def _call(self, x: Array) -> Array:
        if not self._spec.delay:
            return self._runner(x)
        started = time.perf_counter()
        y = self._runner(x)
        time.sleep(self._spec.delay * (time.perf_counter() - started))
        return y

    def time_on_gpu(self, count: int) -> dict[str, Any]:
        """Time the network on a GPU without copies: ms per call; no samples on a CPU."""
        return {"gpu_samples": self._runner.on_device(self._input_batch(0), count)}

    def time_stages(self, rounds: int) -> dict[str, Any]:
        """Return the median ms of each stage from file to mask, over all pictures and rounds."""
        times: dict[str, list[float]] = {}
        for _ in range(rounds):
            for path in self._spec.pictures:
                for stage, ms in _time_stages(path.read_bytes(), self._runner, self._picture_spec):
                    times.setdefault(stage, []).append(ms)
        return {stage: float(np.median(samples)) for stage, samples in times.items()}

    @property
    def _picture_spec(self) -> PictureSpec:
        return self._artifact.facts.picture

    def measure_throughput(self, seconds: float) -> dict[str, Any]:
        """Measure pictures per second of single calls, of batches, and of parallel streams.

        Args:
            seconds: duration per setting.
        """
        rates = {f"batch {self._batch}": self._batch_rate(self._batch, seconds)}
        for batch in self._sweep_batches():
            rates[f"batch {batch}"] = self._batch_rate(batch, seconds)
        for streams in self._sweep_streams():
            with self._open_runner(streams) as runner:
                x = self._input_batch(0)
                rate = _stream_rate(runner, x, self._batch, streams, seconds)
            rates[f"{streams} streams"] = rate
        return rates

    def _batch_rate(self, batch: int, seconds: float) -> float:
        return _call_rate(self._runner, self._input_batch(0, batch), batch, seconds)

    def _sweep_batches(self) -> list[int]:
        """Return the larger batches that the runner accepts."""
        if self._runner.batch is not None:
            return []
        largest = self._runner.max_batch or max(BATCHES)
        return [batch for batch in BATCHES if self._batch < batch <= largest]

    def _sweep_streams(self) -> list[int]:
        """Return the numbers of streams that backend and threads allow."""
        if "streams" not in registry.load(self._artifact.backend).run_options:
            return []
        threads = max(min(STREAMS), self._spec.run.threads or usable_cpus())
        return [streams for streams in STREAMS if streams <= threads]

    def save_saliency(self, path: str) -> dict[str, Any]:
        """Save the saliency of every picture at every index of a batch.

        Args:
            path: .npz file to write. Its names are `picture/index`.
        """
        maps, count = {}, len(self._inputs)
        for start in range(count):
            for index, y in enumerate(self._runner(self._input_batch(start))):
                maps[f"{(start + index) % count}/{index}"] = y[0]
        np.savez(path, **maps)
        return {}

    def measure_memory(self) -> dict[str, Any]:
        """Return the largest resident memory so far and that before loading, MB."""
        return {"peak_mb": process_memory_mb("VmHWM"), "baseline_mb": self._baseline_mb}


def main() -> None:
    """Answer commands until standard input ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to standard output as they like
    meter: ArtifactMeter | None = None
    for line in sys.stdin:
        message = json.loads(line)
        command, arguments = message["command"], message.get("arguments", {})
        answer: dict[str, Any]
        try:
            if command == "open":
                meter = ArtifactMeter(WorkerSpec.model_validate(arguments))
                answer = meter.load_result
            else:
                answer = getattr(meter, command)(**arguments)
        except U2ExportError as error:
            answer = {"error": str(error), "status": error.exit_status}
        except MemoryError:
            answer = {"error": "out of memory", "status": 5}
        _send(out, answer)


def _send(out: IO[str], answer: dict[str, Any]) -> None:
    out.write(json.dumps(answer) + "\n")
    out.flush()


def thread_waiting_ms() -> dict[str, float]:
    """Return how long each thread of this process was ready to run without a core, ms.

    The result is empty if the kernel does not count.

    Source:
        Linux, Documentation/scheduler/sched-stats: the second number of `schedstat`, in ns.
    """
    waiting = {}
    for task in Path("/proc/self/task").glob("*/schedstat"):
        try:
            waiting[task.parent.name] = int(task.read_text().split()[1]) / 1e6
        except (OSError, IndexError):  # the thread has ended, or the kernel does not count
            continue
    return waiting


def _total_increase(before: dict[str, float], after: dict[str, float]) -> float:
    """Return the increase, summed over all threads. A new thread starts at 0."""
    return sum(value - before.get(thread, 0.0) for thread, value in after.items())


def process_memory_mb(field: str) -> float:
    """Return a figure of this process's memory, MB.

    On Linux `ru_maxrss` is no alternative: it includes the process that started this one.

    Args:
        field: name in `/proc/self/status`: `VmRSS` is resident memory, `VmHWM` its peak.
    """
    if sys.platform.startswith("linux"):
        lines = Path("/proc/self/status").read_text().splitlines()
        line = next(line for line in lines if line.startswith(f"{field}:"))
        return int(line.split()[1]) * _KIB / _MB
    import psutil

    memory = psutil.Process().memory_info()
    if field != "VmHWM":
        return float(memory.rss) / _MB
    if sys.platform == "win32":
        return float(memory.peak_wset) / _MB
    import resource

    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / _MB  # macOS: bytes


def _timed(function: Callable[[], _T]) -> tuple[_T, float]:
    """Call a function; return its result and its duration, ms."""
    started = time.perf_counter()
    result = function()
    return result, 1e3 * (time.perf_counter() - started)


def _time_stages(content: bytes, runner: Runner, spec: PictureSpec) -> Iterator[tuple[str, float]]:
    """Process a picture from file to mask; yield name and ms of each stage."""
    value: Any = content
    out = io.BytesIO()
    picture = open_image(io.BytesIO(content))

    steps: list[tuple[Stage, Callable[[Any], Any]]] = [
        (Stage.DECODE, lambda v: open_image(io.BytesIO(v), max_pixels=MAX_PIXELS)),
        (Stage.PREPROCESS, lambda v: preprocess(v, spec)),
        (Stage.INFER, runner.single),
        (Stage.POSTPROCESS, lambda v: stretch_saliency(v, spec)),
        (Stage.COMPOSE, lambda v: resize_to_mask(v, picture.size)),
        (Stage.ENCODE, lambda v: encode.encode_image(v, out, encode.PNG_DEFAULT, {})),
    ]
    for stage, step in steps:
        started = time.perf_counter()
        value = step(value)
        yield stage, 1e3 * (time.perf_counter() - started)


def _call_rate(runner: Runner, x: Array, batch: int, seconds: float) -> float:
    """Return pictures per second of consecutive calls."""
    runner(x)
    calls, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds or calls < 2:
        runner(x)
        calls += 1
    return calls * batch / elapsed


def _stream_rate(runner: Runner, x: Array, batch: int, streams: int, seconds: float) -> float:
    """Return pictures per second of overlapping calls, from the first start to the last result."""
    started = time.perf_counter()
    for _ in runner.stream([x] * streams):  # warms up, and shows how many calls fit the time
        pass
    rounds = max(SWEEP_CALLS, round(seconds / (time.perf_counter() - started)))
    started = time.perf_counter()
    calls = sum(1 for _ in runner.stream(itertools.repeat(x, rounds * streams)))
    return calls * batch / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
