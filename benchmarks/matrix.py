"""Our formats and precisions for both networks, measured in turns, with their masks judged.

    python benchmarks/matrix.py [--weights u2netp.safetensors --pictures FOLDER] [--seconds 60]

Real weights of the full network are not to be had everywhere, so it is measured with random
values, which have the same latency and no masks. Leaves `results/<machine>-<network>-<date>.json`
and `.md` for each network; a table in the README is made of the JSON by `readme_table.py`.
"""

from __future__ import annotations

import argparse
import datetime
import re
import tempfile
from pathlib import Path

from report import RESULTS, typed

from u2export.benchmark import markdown
from u2export.benchmark.measure import measure_artifacts
from u2export.benchmark.outputs import raise_if_failed
from u2export.benchmark.plan import BenchmarkPlan
from u2export.benchmark.text import format_benchmark
from u2export.core.enums import Precision
from u2export.core.models import MODELS
from u2export.core.requests import ExportSpec
from u2export.export.build import build_artifact
from u2export.images.inputs import image_files
from u2export.network import weights
from u2export.system import hardware

CANDIDATES = (
    ("onnx", Precision.FP32),
    ("onnx", Precision.FP16),
    ("openvino", Precision.FP32),
    ("openvino", Precision.FP16),
    ("torch", Precision.FP32),
)


def machine_name() -> str:
    """The processor and its usable CPUs, for a file's name."""
    told = hardware.describe_machine()
    words = re.sub(r"[^a-z0-9]+", "-", told["processor"].lower()).strip("-")
    return f"{words}-{told['usable CPUs']}cpus"


def main() -> None:
    """Export and measure one network after the other, leave both files of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="real u2netp weights; else the bundled demo weights")
    parser.add_argument("--pictures", type=Path, nargs="*", default=[], help="folders")
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    small = MODELS["u2netp" if args.weights else "u2netp-demo"]
    for model, given in ((small, args.weights), (MODELS["u2net"], "random:0")):
        source = weights.find(model, given)
        with tempfile.TemporaryDirectory() as folder:
            made, variant = [], source.facts.weights.variant
            for backend, precision in CANDIDATES:
                spec = ExportSpec(model, 320, precision, variant=variant)
                made.append(build_artifact(backend, spec, source, Path(folder)).path)
            plan = BenchmarkPlan(
                tuple(made),
                tuple(image_files(args.pictures)),
                weights=given,
                seconds=args.seconds,
                command=typed("matrix.py"),
            )
            report, _ = measure_artifacts(plan)
        print(format_benchmark(report))
        raise_if_failed(report)
        date = datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat()
        path = RESULTS / f"{machine_name()}-{model.name}-{date}.json"
        path.write_text(report.model_dump_json(indent=1) + "\n")
        path.with_suffix(".md").write_text(markdown.markdown_page(report))
        print(path)


if __name__ == "__main__":
    main()
