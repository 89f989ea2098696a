"""8 bits and bfloat16 beside float32, and what other tools make of 8 bits: masks and latency.

    python benchmarks/int8.py --weights u2netp.safetensors --calibration DIR... --pictures DIR...

Ours, NNCF's and onnxruntime's own are calibrated with the same pictures and judged on others.
The full network is measured with random values: the same recipe, the same latency, no masks.
Ratios are against float32 in onnxruntime, and all take turns. bfloat16 is measured on a CPU that
has it.

Needs NNCF, which nothing else does: pip install nncf
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import tempfile
import time
from pathlib import Path

from matrix import machine_name
from parity_mutations import naive_int8, nncf_int8
from report import RESULTS, typed

from u2export.benchmark import markdown
from u2export.benchmark.measure import measure_artifacts
from u2export.benchmark.plan import BenchmarkPlan
from u2export.benchmark.report import BenchmarkReport
from u2export.benchmark.text import format_benchmark
from u2export.core.artifact import Artifact
from u2export.core.enums import Precision
from u2export.core.int8_record import read_int8_record
from u2export.core.models import MODELS
from u2export.core.requests import ExportSpec, Quantization
from u2export.export.build import build_artifact
from u2export.images.inputs import image_files
from u2export.network import weights
from u2export.system import hardware


def files_of(
    source: Artifact, calibration: tuple[Path, ...], folder: Path, *, naive: bool
) -> tuple[list[Path], list[str]]:
    """Float32 in onnxruntime; our 8 bits for both runtimes; bf16; theirs; what is to be said."""
    model, variant = MODELS[source.facts.model], source.facts.weights.variant
    plain = build_artifact("onnx", ExportSpec(model, 320, variant=variant), source, folder)
    asked = Quantization(calibration, best_effort=bool(variant))
    spec = ExportSpec(model, 320, Precision.INT8, variant=variant, quantization=asked)
    begun = time.perf_counter()
    made = [build_artifact(backend, spec, source, folder) for backend in ("onnx", "openvino")]
    seconds = time.perf_counter() - begun
    found = read_int8_record(made[0])
    notes = [
        f"searched for {seconds:.0f} s: {found.share:.1%} of the multiply-adds in whole numbers, "
        f"in float32 {', '.join(found.in_float) or 'nothing'}; held-back calibration pictures: "
        f"{found.result.description}; in the signed form for TensorRT: {found.signed.description}"
    ]
    paths = [plain.path, *(one.path for one in made)]
    if "BF16" in hardware.cpu_features()[1]:
        brain = dataclasses.replace(spec, precision=Precision.BF16)
        paths.append(build_artifact("openvino", brain, source, folder).path)
    if naive:
        contents = [path.read_bytes() for path in calibration]
        paths += [one(plain, folder, contents) for one in (naive_int8, nncf_int8)]
    return paths, notes


def leave(report: BenchmarkReport, notes: list[str], name: str) -> None:
    """Print a report, and write it where results lie."""
    print(format_benchmark(report), *notes, sep="\n")
    date = datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat()
    path = RESULTS / f"int8-{machine_name()}-{name}-{date}.json"
    path.write_text(report.model_dump_json(indent=1) + "\n")
    lines = "".join(f"\n* {note}" for note in notes)
    path.with_suffix(".md").write_text(f"{markdown.markdown_page(report)}{lines}\n")
    print(path)


def main() -> None:
    """Quantize and measure the small network with its masks, and the full one without."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="real u2netp weights; else the bundled demo weights")
    parser.add_argument("--calibration", type=Path, nargs="+", required=True)
    parser.add_argument("--pictures", type=Path, nargs="+", required=True, help="to be judged")
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--only", choices=("small", "full"))
    args = parser.parse_args()
    calibration = tuple(image_files(args.calibration))
    judged = tuple(path for path in image_files(args.pictures) if path not in calibration)
    small = MODELS["u2netp" if args.weights else "u2netp-demo"]
    networks = [(small, args.weights)] * (args.only != "full")
    networks += [(MODELS["u2net"], "random:0")] * (args.only != "small")
    for model, given in networks:
        source = weights.find(model, given)
        with tempfile.TemporaryDirectory() as folder:
            paths, notes = files_of(source, calibration, Path(folder), naive=model is small)
            plan = BenchmarkPlan(
                tuple(paths),
                judged,
                weights=given,
                model=model.name,
                seconds=args.seconds,
                command=typed("int8.py"),
            )
            report, _ = measure_artifacts(plan)
        leave(report, notes, model.name)


if __name__ == "__main__":
    main()
