"""Does a check that passes once pass every time?

    python benchmarks/false_alarms.py --weights FILE --pictures FOLDER... [--runs 200]

Every run opens the fp32 and fp16 files of ONNX and OpenVINO anew, every tenth time with one thread,
takes some photographs, in rotation, through the whole pipeline, and judges them against PyTorch by
the project's own budgets, as `u2export parity` does. PyTorch's answers are computed once.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from report import leave
from rich.progress import track

from u2export.compare.budgets import BUDGETS, budget_excess
from u2export.compare.metrics import summarize_differences
from u2export.compare.stages import Pipeline, find_first_difference, run_pipeline
from u2export.core import registry
from u2export.core.arrays import Array
from u2export.core.backend import Runner
from u2export.core.enums import Precision
from u2export.core.models import MODELS
from u2export.core.requests import ExportSpec, RunRequest
from u2export.export.build import build_artifact
from u2export.network import weights

ONE_THREAD = 10  # every so many runs


def main() -> None:
    """Judge again and again, leave the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="real u2netp weights; else the bundled demo weights")
    parser.add_argument("--pictures", type=Path, nargs="+", required=True, help="folders")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--each", type=int, default=4, help="photographs a run")
    args = parser.parse_args()
    model = MODELS["u2netp" if args.weights else "u2netp-demo"]
    source, spec = weights.find(model, args.weights), model.picture
    contents = [path.read_bytes() for folder in args.pictures for path in sorted(folder.iterdir())]

    def side(runner: Runner) -> Pipeline:
        def network(x: Array) -> Array:
            return runner(x)[0, 0]

        return Pipeline("a runner", network, spec)

    with registry.open_runner(source) as runner:
        references = [run_pipeline(content, side(runner)) for content in contents]
    alarms, judged, worst = [], 0, {}
    with tempfile.TemporaryDirectory() as folder:
        artifacts = [
            build_artifact(backend, ExportSpec(model, spec.size, precision), source, Path(folder))
            for precision in (Precision.FP32, Precision.FP16)
            for backend in ("onnx", "openvino")
        ]
        for run in track(range(args.runs), "judging"):
            some = [(run * args.each + i) % len(contents) for i in range(args.each)]
            for artifact in artifacts:
                budget = BUDGETS[artifact.facts.precision]
                threads = 1 if run % ONE_THREAD == 0 else None
                with registry.open_runner(artifact, RunRequest(threads=threads)) as runner:
                    ways = [run_pipeline(contents[i], side(runner)) for i in some]
                expected = [references[i] for i in some]
                partings = [
                    find_first_difference(a, b, budget) for a, b in zip(expected, ways, strict=True)
                ]
                judged += len(partings)
                alarms += [reason for one in partings if one.stage for reason in one.reasons]
                differences = [one.difference for one in partings if one.difference]
                total = summarize_differences(differences, [one.contrast for one in partings])
                alarms += [over] if (over := budget_excess(total, budget)) else []
                name = artifact.path.name
                worst[name] = max(worst.get(name, 0.0), total.raw_max)
    figures = {"weights": model.name, "runs": args.runs, "pictures": len(contents)}
    figures |= {"photographs a run": args.each}
    figures |= {"judgements": judged, "false alarms": alarms, "largest raw max": worst}
    leave("false_alarms", figures)


if __name__ == "__main__":
    main()
