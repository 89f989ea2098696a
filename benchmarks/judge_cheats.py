"""What the judge says of files that are wrong on purpose.

    python benchmarks/judge_cheats.py [--size 64]

The cheats are those of `tests/attacks/judge`, in float32 and with weights rounded to bfloat16,
whose budget is the widest. Each file is judged as `u2export parity torch FILE` does. Then each gets
a manifest that says int8, with a promise of nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import onnx
from report import leave

from u2export.core import registry
from u2export.core.enums import Precision
from u2export.core.models import MODELS
from u2export.core.requests import ExportSpec
from u2export.errors import ArtifactError
from u2export.export.build import build_artifact
from u2export.network import weights
from u2export.parity.check import check_parity
from u2export.parity.report import CandidateResult
from u2export.parity.request import ParityRequest

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from attacks.judge import cheats

LAX = {"calibration": [], "min_iou": 0.0, "max_mae": 1.0, "best_effort": True, "seed": 0}


def main() -> None:
    """Judge every cheat, leave the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64)
    args = parser.parse_args()
    model = MODELS["u2netp-demo"]
    verdicts: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spec = ExportSpec(model, args.size, batch=None)
        honest = build_artifact("onnx", spec, weights.find(model), folder).path
        for precision in (Precision.FP32, Precision.BF16):
            for cheat, verdict in _judge_all(honest, precision, folder).items():
                verdicts.setdefault(cheat, {})[str(precision)] = verdict
        for cheat in verdicts:
            verdicts[cheat]["fp32 that says int8"] = _judge_lie(honest, cheat, folder)
    leave("judge_cheats", {"model": model.name, "size": args.size, "verdicts": verdicts})


def _model(honest: Path, cheat: str, precision: Precision) -> onnx.ModelProto:
    model = onnx.load(honest)
    if precision is Precision.BF16:
        cheats.in_bfloat16(model)
    if cheat != "honest":
        cheats.apply(model, cheat)
    return model


def _judge_all(honest: Path, precision: Precision, folder: Path) -> dict[str, str]:
    names = ["honest", *cheats.names()]
    paths = [folder / f"{precision} {name}.onnx" for name in names]
    for name, path in zip(names, paths, strict=True):
        cheats.save(_model(honest, name, precision), honest, path, precision=str(precision))
    report, _ = check_parity(ParityRequest("torch", tuple(paths)))
    return {name: _verdict(result) for name, result in zip(names, report.candidates, strict=True)}


def _judge_lie(honest: Path, cheat: str, folder: Path) -> str:
    path = folder / "lie.onnx"
    model = _model(honest, cheat, Precision.FP32)
    cheats.save(model, honest, path, precision="int8", quantization=LAX)
    try:
        registry.with_stored_precision(registry.open_artifact(path))
    except ArtifactError:
        return "refused"
    return "believed"


def _verdict(result: CandidateResult) -> str:
    if result.judgement is None or result.judgement.mask_iou is None:
        return result.state
    failed = f"{len(result.failed)} of {len(result.checked)} cases"
    return f"{result.state}, {failed}, IoU {result.judgement.mask_iou:.4f}"


if __name__ == "__main__":
    main()
