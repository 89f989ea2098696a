"""What a GPU does: PyTorch's ways, the artifacts, the picture's whole way, beside two ceilings.

    python benchmarks/gpu.py [--weights u2netp.safetensors] [--minutes 8] [--device cuda]
    python benchmarks/gpu.py --device cpu --rehearse

Every way of one network at one batch takes turns with the others. Masks are compared with
PyTorch's float32 on the CPU; float32 on the GPU is without TF32. A time is that of a call from
host memory to host memory; the device's own is by events, without the copies. `--rehearse` does
all of it small, where there is no GPU: nothing it measures means anything, and it writes nothing.

Two ceilings are measured, a large copy and a large product in half precision, and told is what
share of each a way reaches: multiply-adds are counted by PyTorch's counter, bytes as what every
operation reads and writes if nothing is fused.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import functools
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import RESULTS, typed
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from u2export.benchmark import markdown, stats
from u2export.benchmark.measure import MAX_STABLE_HALF_WIDTH, measure_artifacts
from u2export.benchmark.plan import BenchmarkPlan
from u2export.benchmark.report import BenchmarkReport, MaskAccuracy, Ratio, Row, Throughput
from u2export.benchmark.rounds import time_fixed_work
from u2export.benchmark.text import format_benchmark
from u2export.compare.budgets import BUDGETS, budget_excess
from u2export.compare.metrics import compare_maps, summarize_differences
from u2export.core import registry
from u2export.core.arrays import Array
from u2export.core.artifact import Artifact
from u2export.core.enums import Device, Precision
from u2export.core.models import MODELS
from u2export.core.requests import ExportSpec, RunRequest
from u2export.errors import U2ExportError
from u2export.export.build import build_artifact
from u2export.images.preprocess import preprocess
from u2export.images.synthetic import draw_image
from u2export.images.torch_pipeline import TorchPipeline
from u2export.network import checkpoint, weights
from u2export.reports.text import printable
from u2export.system import hardware
from u2export.system.progress import say

TYPES = {
    Precision.FP32: torch.float32,
    Precision.FP16: torch.float16,
    Precision.BF16: torch.bfloat16,
}
EAGER, GRAPH, COMPILED = "eager", "graph", "compiled"
WARM = 3  # calls before any is timed: the first ones choose kernels
BLOCK_SECONDS = 0.05
AHEAD = 20_000_000  # cycles, about 10 ms: the host queues a whole call meanwhile
PICTURES = 8  # drawn, whose masks are compared
FRAME = (770, 595)  # pixels, of the picture's whole way
SEED = 1_000_800
TESTS_SECONDS = 300
COPY, PRODUCT = "copy, GB/s", "fp16 product, TFLOP/s"


@dataclass(frozen=True)
class Way:
    """How PyTorch computes."""

    how: str
    precision: Precision = Precision.FP32
    channels_last: bool = True

    def __str__(self) -> str:
        """As a row is called."""
        layout = "" if self.channels_last else " NCHW"
        return f"{self.how} {self.precision}{layout}"


BASELINE = Way(EAGER, channels_last=False)
WAYS = (
    BASELINE,
    Way(EAGER),
    Way(EAGER, Precision.FP16),
    Way(EAGER, Precision.BF16),
    Way(GRAPH, Precision.FP16),
    Way(COMPILED, Precision.FP16),
    Way(COMPILED, Precision.BF16),
)


@dataclass
class Lane:
    """One way, ready to be called, and what it took.

    Attributes:
        call: the network, from a batch on the device to the maps there.
        wall: ms of a call from host to host, by round.
        own: ms of a call on the device, by round.
    """

    way: Way
    batch: int
    call: Callable[[torch.Tensor], torch.Tensor] | None = None
    failed: str = ""
    memory_mb: float | None = None
    first_ms: float | None = None
    wall: list[list[float]] = field(default_factory=list)
    own: list[list[float]] = field(default_factory=list)
    mask: MaskAccuracy | str = ""
    notes: list[str] = field(default_factory=list)


class Clock:
    """Times on a device: by its events, or by this process's clock on a CPU."""

    def __init__(self, device: str) -> None:
        """Choose."""
        self.cuda = device == "cuda"

    def wait(self) -> None:
        """Let the device finish."""
        if self.cuda:
            torch.cuda.synchronize()

    def samples(self, work: Callable[[], Any], seconds: float) -> list[float]:
        """Repeat for so long, at least once; ms each."""
        found, begun = [], time.perf_counter()
        while not found or time.perf_counter() - begun < seconds:
            found.append(self._one(work))
        return found

    def _one(self, work: Callable[[], Any]) -> float:
        if not self.cuda:
            begun = time.perf_counter()
            work()
            return 1e3 * (time.perf_counter() - begun)
        event = functools.partial(torch.cuda.Event, enable_timing=True)
        begin, end = event(), event()
        torch.cuda._sleep(AHEAD)  # so that launching is not what is timed
        begin.record()
        work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write, as if none were fused."""

    def __init__(self) -> None:
        """Begin at none."""
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note one operation; what only looks at a tensor otherwise moves nothing."""
        result = func(*args, **(kwargs or {}))
        if func.is_view:
            return result
        given = torch.utils._pytree.tree_leaves((args, result))
        self.bytes += sum(t.numel() * t.element_size() for t in given if torch.is_tensor(t))
        return result


def ready(network: torch.nn.Module, lane: Lane, device: str, x: torch.Tensor) -> None:
    """Make a way callable and warm; what cannot be had is said in its row."""
    way = lane.way
    clock = Clock(device)
    try:
        if clock.cuda:
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if clock.cuda else 0
        layout = torch.channels_last if way.channels_last else torch.contiguous_format
        own = copy.deepcopy(network).to(device, TYPES[way.precision]).to(memory_format=layout)
        begun = time.perf_counter()
        call = functools.partial(_computed, own, TYPES[way.precision], layout)
        if way.how == COMPILED:
            compiled = _compiled(own, clock)
            call = functools.partial(_computed, compiled, TYPES[way.precision], layout)
        if way.how == GRAPH:
            call = _captured(call, x, clock)
        call(x)
        clock.wait()
        lane.first_ms = 1e3 * (time.perf_counter() - begun)
        for _ in range(WARM):
            call(x)
        clock.wait()
        lane.call = call
        if clock.cuda:
            lane.memory_mb = (torch.cuda.max_memory_allocated() - before) / 1e6
    except Exception as error:  # compilers and drivers raise whatever they like
        lane.failed = printable(f"{type(error).__name__}: {(str(error) or '.').splitlines()[0]}")


def _computed(
    network: Callable[[torch.Tensor], torch.Tensor],
    kind: torch.dtype,
    layout: torch.memory_format,
    x: torch.Tensor,
) -> torch.Tensor:
    return network(x.to(kind).contiguous(memory_format=layout))


def _compiled(network: torch.nn.Module, clock: Clock) -> Callable[[torch.Tensor], torch.Tensor]:
    if not clock.cuda:  # traced, and nothing is compiled: that would take minutes
        return torch.compile(network, backend="eager", dynamic=False)
    return torch.compile(network, mode="reduce-overhead", dynamic=False)  # with CUDA graphs


def _captured(
    call: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, clock: Clock
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The same as one CUDA graph, which is replayed."""
    if not clock.cuda:
        raise RuntimeError("CUDA graphs need a GPU")
    given = x.clone()
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM):
            call(given)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call(given)

    def replayed(batch: torch.Tensor, kept: object = call) -> torch.Tensor:
        """Replay; a graph holds addresses only, so the weights are kept here."""
        given.copy_(batch)
        graph.replay()
        return result

    return replayed


def walls(lane: Lane, host: torch.Tensor, device: str, seconds: float) -> list[float]:
    """Time calls from pinned host memory to pinned host memory; ms each."""
    assert lane.call
    clock, call = Clock(device), lane.call
    back = torch.empty((lane.batch, 1, *host.shape[2:]), pin_memory=clock.cuda)
    found: list[float] = []
    begun = time.perf_counter()
    while not found or time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        back.copy_(call(host.to(device, non_blocking=True)).float(), non_blocking=True)
        clock.wait()
        found.append(1e3 * (time.perf_counter() - start))
    return found


def judged(
    lane: Lane, inputs: Array, reference: Sequence[Array], device: str
) -> MaskAccuracy | str:
    """Compare the masks of the pictures with the reference's."""
    assert lane.call
    maps: list[Array] = []
    for start in range(0, len(inputs), lane.batch):
        part = inputs[start : start + lane.batch]
        padded = np.resize(part, (lane.batch, *part.shape[1:]))  # the batch of a graph is fixed
        y = lane.call(torch.tensor(padded, device=device)).float().cpu().numpy()
        maps += [one[0] for one in y[: len(part)]]
    try:
        differences = [compare_maps(a, b) for a, b in zip(reference, maps, strict=True)]
    except U2ExportError as error:
        return MaskAccuracy(passed=False, reasons=(str(error),))
    found = summarize_differences(differences, [float(np.ptp(a)) for a in reference])
    if found.mask_iou is None:
        return "weights of random values give no masks"
    over = budget_excess(found, BUDGETS[lane.way.precision])
    return MaskAccuracy(
        passed=not over,
        reasons=(over,) if over else (),
        pictures=found.pictures,
        mae=found.mask_mae,
        iou=found.mask_iou,
        worst_iou=found.worst_iou,
    )


def ceilings(device: str, small: bool) -> dict[str, float]:
    """Bytes a second of a large copy, and floating-point operations of a large product in half."""
    clock = Clock(device)
    count, side = (2**16, 128) if small else (2**29, 8192)
    a = torch.empty(count, device=device)
    b = torch.empty_like(a)
    m = torch.randn(side, side, device=device).half()
    seconds = 0.02 if small else 1.0
    for work in (lambda: b.copy_(a), lambda: m @ m):
        clock.samples(work, seconds / 4)
    copied = float(np.median(clock.samples(lambda: b.copy_(a), seconds)))
    product = float(np.median(clock.samples(lambda: m @ m, seconds)))
    return {
        COPY: 2 * a.numel() * a.element_size() / copied / 1e6,
        PRODUCT: 2 * side**3 / product / 1e9,
    }


def work_of(network: torch.nn.Module, x: torch.Tensor) -> tuple[float, float]:
    """Floating-point operations of a batch, and bytes in float32."""
    with FlopCounterMode(display=False) as flops, Traffic() as traffic, torch.inference_mode():
        network(x)
    return float(flops.get_total_flops()), float(traffic.bytes)


def whole_way(lane: Lane, source: Artifact, device: str, seconds: float) -> str:
    """How much of the time from 8-bit pictures to 8-bit masks, all on the device, is the network's.

    Both are taken in turns.
    """
    assert lane.call
    call, clock = lane.call, Clock(device)
    way = TorchPipeline(source.facts.picture, device)
    rng = np.random.default_rng(SEED)
    width, height = FRAME
    shape = (lane.batch, height, width, 3)
    frames = torch.tensor(rng.integers(0, 256, shape, np.uint8), device=device)
    x = way.preprocess(frames)
    sizes = [FRAME] * lane.batch
    network: list[list[float]] = []
    whole: list[list[float]] = []
    for _ in range(6):
        network.append(clock.samples(lambda: call(x), seconds))
        whole.append(
            clock.samples(lambda: way.postprocess(call(way.preprocess(frames)), sizes), seconds)
        )
    found = stats.latency_ratio(network[1:], whole[1:])
    return (
        f"from {width}x{height} 8-bit pictures to 8-bit masks on the device, the network takes "
        f"{found.value:.0%} ({found.low:.0%} to {found.high:.0%}) of the time"
    )


def group(
    network: torch.nn.Module, source: Artifact, batch: int, args: argparse.Namespace
) -> list[Lane]:
    """Every way of one network at one batch, in turns."""
    torch.compiler.reset()  # what was compiled for other groups, and its graphs, are given back
    device, spec = args.device, source.facts.picture
    pictures = [draw_image(SEED + i).picture for i in range(2 if args.rehearse else PICTURES)]
    inputs = np.concatenate([preprocess(one, spec) for one in pictures])
    with torch.inference_mode():
        reference = [network(torch.tensor(x[None])).numpy()[0, 0] for x in inputs]
        host = torch.tensor(np.resize(inputs, (batch, *inputs.shape[1:])))
        host = host.pin_memory() if device == "cuda" else host
        x = host.to(device)
        lanes = [Lane(way, batch) for way in WAYS]
        for lane in lanes:
            say(f"{source.facts.model}, batch {batch}: {lane.way}")
            ready(network, lane, device, x)
        able = [lane for lane in lanes if lane.call]
        order, seconds = random.Random(0), 0.0 if args.rehearse else BLOCK_SECONDS
        for _ in range(args.rounds):
            for lane in order.sample(able, len(able)):
                lane.wall.append(walls(lane, host, device, seconds))
                assert lane.call
                own = functools.partial(lane.call, x)
                lane.own.append(Clock(device).samples(own, seconds))
        for lane in able:
            lane.mask = judged(lane, inputs, reference, device)
        if able:
            fast = next((one for one in able if one.way.how == GRAPH), able[-1])
            fast.notes.append(whole_way(fast, source, device, seconds))
    return lanes


def row_of(lane: Lane, source: Artifact, device: str) -> Row:
    """A lane in the schema of `u2export bench`."""
    name = f"{source.facts.model} {lane.way} b{lane.batch}"
    latency = stats.summarize_latency(lane.wall) if lane.wall else None
    own = [t for block in lane.own for t in block]
    row = Row(
        name=name,
        file=source.path.name,
        backend="torch",
        precision=str(lane.way.precision),
        device=device,
        threads=torch.get_num_threads(),
        batch=lane.batch,
        size=source.facts.size,
        runtime=f"torch {torch.__version__}",
        ran=str(lane.way),
        first_ms=lane.first_ms,
        gpu_mb=lane.memory_mb,
        notes=tuple(lane.notes),
    )
    if latency is None:
        return row.model_copy(update={"failed": lane.failed or "it was not measured"})
    found: dict[str, object] = {
        "latency": latency,
        "throughput": Throughput(
            pictures=1e3 * lane.batch / latency.median, how=f"batch {lane.batch}"
        ),
        "mask": lane.mask if isinstance(lane.mask, MaskAccuracy) else None,
        "unjudged": lane.mask if isinstance(lane.mask, str) else "",
    }
    if device == "cuda":
        found |= {
            "gpu_ms": float(np.median(own)),
            "gpu_samples": tuple(round(t, 4) for t in own),
        }
    return row.model_copy(update=found)


def artifacts(source: Artifact, args: argparse.Namespace) -> list[Row]:
    """Rows of what u2export exports, where its runtime is here and runs on the device."""
    found: list[Row] = []
    model, variant = MODELS[source.facts.model], source.facts.weights.variant
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for backend in ("onnx", "tensorrt"):
            spec = ExportSpec(model, source.facts.size, Precision.FP16, variant=variant)
            try:
                artifact = build_artifact(backend, spec, source, Path(folder))
                if Device(args.device) in registry.load(backend).devices:
                    with registry.open_runner(artifact, RunRequest(Device(args.device))):
                        paths.append(artifact.path)
                        continue
                reason = f"it does not run on {args.device}"
            except U2ExportError as error:
                reason = printable(str(error))
            name = f"{model.name} {backend} fp16"
            row = Row(name=name, file="", backend=backend, precision="fp16", failed=reason)
            found.append(row.model_copy(update={"device": args.device, "size": source.facts.size}))
        if paths:
            given = source.facts.weights.name if variant else None
            plan = BenchmarkPlan(
                tuple(paths), run=RunRequest(Device(args.device)), weights=given, model=model.name,
                seconds=2.0 if args.rehearse else 20.0,
            )  # fmt: skip
            found += measure_artifacts(plan)[0].rows
    return found


def tests(args: argparse.Namespace) -> str:
    """What the tests that need a GPU say; the last line of pytest."""
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    words += ["--collect-only"] if args.rehearse else []
    home = Path(__file__).parents[1]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, cwd=home, timeout=TESTS_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"pytest -m gpu: not done within {TESTS_SECONDS} s"
    last = (done.stdout.strip() or done.stderr.strip() or "nothing").splitlines()[-1]
    return f"pytest -m gpu: {printable(last)} (status {done.returncode})"


def main() -> None:
    """Measure all there is time for, print, leave the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="real u2netp weights; else the bundled demo weights")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batches", default="1,8,32", type=lambda t: [*map(int, t.split(","))])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--minutes", type=float, default=8.0, help="begin nothing after these")
    parser.add_argument("--rehearse", action="store_true", help="small, and write nothing")
    args = parser.parse_args()
    if args.device == "cuda" and hardware.query_cuda().reason:
        parser.error(hardware.query_cuda().reason)
    if args.rehearse:
        args.batches, args.rounds = [1, 2], 3
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # else it goes eager, silently
    if args.device == "cuda":
        if not torch.cuda.is_available():
            parser.error("this PyTorch cannot use the GPU: install a CUDA build the driver serves")
        torch.backends.cuda.matmul.allow_tf32 = False  # float32 means float32
        for kind in (torch.backends.cudnn.conv, torch.backends.cudnn.rnn):
            kind.fp32_precision = "ieee"
        torch.backends.cudnn.benchmark = True
    report, shares = measured(args)
    print(format_benchmark(report), *shares, sep="\n")
    if args.rehearse:
        return
    card = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    name = re.sub(r"[^a-z0-9]+", "-", card.lower())
    path = RESULTS / f"gpu-{name}-{report.created[:10]}.json"
    path.write_text(report.model_dump_json(indent=1) + "\n")
    path.with_suffix(".md").write_text("\n".join([markdown.markdown_page(report), *shares]) + "\n")
    print(path)


def measured(args: argparse.Namespace) -> tuple[BenchmarkReport, list[str]]:
    """Everything, as one report, and a table of shares."""
    notes = [tests(args)]
    begun = time.perf_counter()
    most = ceilings(args.device, args.rehearse)
    notes += [f"ceiling: {name} {value:.1f}" for name, value in most.items()]
    notes.append("memory of PyTorch's ways is its allocator's, that of artifacts the driver's")
    notes.append("cuDNN chose its kernels by trying them, also for the baseline")

    def late(what: str) -> bool:
        over = time.perf_counter() - begun > 60 * args.minutes
        if over:
            notes.append(f"{what} was left out: the time was over")
        return over

    rows: list[Row] = []
    ratios: list[Ratio] = []
    shares = ["| way | of the fp16 product | of the copy |", "|-|-|-|"]
    small = MODELS["u2netp" if args.weights else "u2netp-demo"]
    for model, given in [(small, args.weights), (MODELS["u2net"], "random:0")]:
        source = weights.find(model, given)
        if args.rehearse:
            source = source.with_facts(size=64)
        network = checkpoint.load_network(source, say)
        for batch in args.batches:
            what = f"{model.name} at batch {batch}"
            if late(what):
                continue
            x = torch.zeros(batch, 3, source.facts.size, source.facts.size)
            try:
                lanes = group(network, source, batch, args)
                work = work_of(network, x)
            except Exception as error:  # a GPU without memory, say: what was measured is kept
                notes.append(printable(f"{what} failed: {error}"))
                continue
            named = [(row_of(lane, source, args.device), lane) for lane in lanes]
            rows += [row for row, _ in named]
            ratios += ratios_of(named)
            shares += shares_of(named, work, most)
            if args.device == "cuda":
                del lanes, named  # the next networks need their room
                torch.cuda.empty_cache()
        what = f"{model.name} as artifacts"
        if late(what):
            continue
        try:
            rows += artifacts(source, args)
        except Exception as error:  # what was measured is kept
            notes.append(printable(f"{what} failed: {error}"))
    samples = tuple(tuple(time_fixed_work()) for _ in range(3))
    device = {"GPU": torch.cuda.get_device_name()} if args.device == "cuda" else {}
    report = BenchmarkReport(
        created=datetime.datetime.now(tz=datetime.timezone.utc).isoformat(timespec="seconds"),
        command=typed("gpu.py"),
        machine={**hardware.describe_machine(), **device},
        versions=registry.package_versions(registry.names()),
        reference="PyTorch float32 on the CPU",
        pictures=tuple(f"drawn {SEED + i}" for i in range(2 if args.rehearse else PICTURES)),
        baseline=f"PyTorch {BASELINE} of the same network and batch",
        rows=tuple(rows),
        ratios=tuple(ratios),
        calibration_ms=float(np.median(samples)),
        calibration=samples,
        seconds=round(time.perf_counter() - begun, 1),
        stable=all((r.high - r.low) / 2 / r.ratio <= MAX_STABLE_HALF_WIDTH for r in ratios),
        notes=tuple(notes),
    )
    return report, shares


def ratios_of(named: Sequence[tuple[Row, Lane]]) -> list[Ratio]:
    """Each lane's wall time against the first's, where both were measured."""
    _, base = named[0]
    found = []
    for row, lane in named[1:]:
        if lane.wall and base.wall:
            one = stats.latency_ratio(lane.wall, base.wall)
            verdict = stats.verdict(one)
            found.append(
                Ratio(name=row.name, ratio=one.value, low=one.low, high=one.high, verdict=verdict)
            )
    return found


def shares_of(
    named: Sequence[tuple[Row, Lane]], work: tuple[float, float], most: dict[str, float]
) -> list[str]:
    """Lines of a table: the share of either ceiling that a lane reaches on the device."""
    flops, moved = work
    lines = []
    for row, lane in named:
        if lane.own:
            ms = float(np.median([t for block in lane.own for t in block]))
            width = 1 if lane.way.precision is Precision.FP32 else 0.5
            computed = flops / ms / 1e9 / most[PRODUCT]
            copied = width * moved / ms / 1e6 / most[COPY]
            lines.append(f"| {row.name} | {computed:.1%} | {copied:.1%} |")
    return lines


if __name__ == "__main__":
    main()
