"""Does the judge ever blame a right file?

    python benchmarks/judge_alarms.py --model u2netp --weights FILE --runs 100 FILES...

Every run makes a copy of one of the files, in rotation, that computes the same and has other bytes:
so it gets other pictures of its own. The copy is judged as `u2export parity torch COPY` does. As a
foreign file it has no promise of its own; the files themselves are judged once, as they are.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import onnx
from report import leave
from rich.progress import track

from u2export.parity.check import check_parity
from u2export.parity.explanations import failure_reason
from u2export.parity.report import CandidateResult
from u2export.parity.request import ParityRequest


def main() -> None:
    """Judge again and again, leave the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights")
    parser.add_argument("--runs", type=int, default=100)
    args = parser.parse_args()
    worst: dict[str, dict[str, float]] = {}
    alarms = []
    for path in args.files:
        alarms += _judge(path, None, args, worst)
    for run in track(range(args.runs), "judging"):
        path = args.files[run % len(args.files)]
        with tempfile.TemporaryDirectory() as folder:
            copy = _same_in_other_bytes(path, Path(folder), run)
            alarms += _judge(copy, args.model, args, worst)
    figures = {"model": args.model, "runs": args.runs, "files": [path.name for path in args.files]}
    leave("judge_alarms", figures | {"false alarms": alarms, "worst of all checks": worst})


def _judge(
    path: Path, model: str | None, args: argparse.Namespace, worst: dict[str, dict[str, float]]
) -> list[str]:
    """Check one file; note its worst figures, and give what the judge blames it for."""
    request = ParityRequest("torch", (path,), weights=args.weights, model=model)
    result = check_parity(request)[0].candidates[0]
    _note(result, worst.setdefault(path.name, {}))
    return [] if result.passed else [f"{path.name}: {failure_reason(result)}"]


def _note(result: CandidateResult, figures: dict[str, float]) -> None:
    found = result.judgement
    assert found is not None
    for name in ("raw_mean", "mask_mae"):
        figures[name] = max(figures.get(name, 0.0), getattr(found, name))
    for name in ("mask_iou", "worst_iou"):
        figures[name] = min(figures.get(name, 1.0), getattr(found, name))


def _same_in_other_bytes(path: Path, folder: Path, run: int) -> Path:
    """Copy a model file; the copy differs in a remark."""
    copy = folder / path.name
    if path.suffix == ".onnx":
        model = onnx.load(path)
        model.doc_string = f"copy {run}"
        onnx.save(model, copy)
    else:
        copy.write_bytes(path.read_bytes() + f"<!-- copy {run} -->".encode())
        shutil.copy(path.with_suffix(".bin"), folder)
    return copy


if __name__ == "__main__":
    main()
