"""Is every way to break an export seen, and at which stage?

    python benchmarks/parity_mutations.py [--weights FILE --pictures FOLDER] [--command]

Each mutation is made on a copy of a whole export, or of the pipeline around it, and judged by the
project's own budgets against PyTorch. Without real weights the bundled demo weights and drawn
pictures are taken. `ceil_mode dropped` is a control: pictures are multiples of 32 pixels, so that
no pool ever meets an odd side, and the function is the same. The demo
weights survive naive int8: that row passes on them, and fails on real weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper
from PIL import Image
from report import leave
from rich.console import Console
from rich.table import Table

from u2export.compare.budgets import BUDGETS, Budget
from u2export.compare.emulate import EmulatedNetwork
from u2export.compare.probe_images import Case, degenerate_cases, synthetic_cases, user_cases
from u2export.compare.stages import FirstDifference, Pipeline, find_first_difference, run_pipeline
from u2export.core import registry
from u2export.core.arrays import Array
from u2export.core.artifact import Artifact, manifest_path
from u2export.core.enums import Precision, Resize
from u2export.core.models import MODELS, ModelSpec, PictureSpec
from u2export.core.requests import ExportSpec
from u2export.errors import U2ExportError
from u2export.export.build import build_artifact
from u2export.images.decode import composite_on_white, open_image
from u2export.images.preprocess import preprocess, resize_square
from u2export.network import checkpoint, weights
from u2export.parity.report import ParityReport
from u2export.system.files import file_sha256

LAYER = "stage2d.rebnconv1d"
FACTOR = 1.01
OVERFLOW = 2.0**17  # times the largest activation of any published weights is beyond 65504
CALIBRATION = 6  # pictures for the naive quantization
SAME = "ceil_mode dropped on one pool"


@dataclass(frozen=True)
class Mutation:
    """One way to break an export.

    Attributes:
        name: in the table.
        model: changes a model in place; None where only the pipeline is changed.
        side: changes what goes before and after the network.
    """

    name: str
    model: Callable[[ModelProto], None] | None = None
    side: Callable[[Pipeline], Pipeline] = lambda side: side


def _weights_of(model: ModelProto, module: str) -> tuple[int, Array]:
    """Index and values of the weights of a module's convolution."""
    node = next(n for n in model.graph.node if n.op_type == "Conv" and module in n.name)
    names = [item.name for item in model.graph.initializer]
    index = names.index(node.input[1])
    return index, numpy_helper.to_array(model.graph.initializer[index]).copy()


def _put(model: ModelProto, index: int, values: Array) -> None:
    item = model.graph.initializer[index]
    item.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), item.name))


def swap_channels(model: ModelProto) -> None:
    """Take blue for red."""
    index, values = _weights_of(model, "stage1.rebnconvin")
    _put(model, index, values[:, ::-1])


def scale_layer(model: ModelProto) -> None:
    """Let all weights of one layer be off by 1 %."""
    index, values = _weights_of(model, LAYER)
    _put(model, index, values * np.float32(FACTOR))


def align_corners(model: ModelProto) -> None:
    """Let upsampling align corners."""
    for node in model.graph.node:
        if node.op_type == "Resize":
            _attribute(node, "coordinate_transformation_mode", "align_corners")


def drop_ceil_mode(model: ModelProto) -> None:
    """Let one pool round its output's size down."""
    node = next(n for n in reversed(model.graph.node) if n.op_type == "MaxPool")
    _attribute(node, "ceil_mode", 0)


def _attribute(node: NodeProto, name: str, value: object) -> None:
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def take_side_output(model: ModelProto) -> None:
    """Give d1 for d0."""
    side = next(n for n in model.graph.node if n.op_type == "Conv" and n.name.startswith("side1"))
    last = next(n for n in model.graph.node if model.graph.output[0].name in n.output)
    last.output[0] = "fused"
    model.graph.node.append(
        helper.make_node("Sigmoid", [side.output[0]], [model.graph.output[0].name])
    )


def _divided_by_255(picture: Image.Image, spec: PictureSpec) -> Array:
    square = resize_square(composite_on_white(picture), spec) / np.float32(255)
    square = (square - np.asarray(spec.mean, np.float32)) / np.asarray(spec.std, np.float32)
    return np.ascontiguousarray(square.transpose(2, 0, 1)[None], np.float32)


def _as_it_lies(file: object, most: int) -> Image.Image:
    return Image.open(file).convert("RGB")


def _swapped_mean_and_std(side: Pipeline) -> Pipeline:
    spec = dataclasses.replace(side.spec, mean=side.spec.std, std=side.spec.mean)
    return dataclasses.replace(side, spec=spec)


MUTATIONS = (
    Mutation("red and blue swapped", swap_channels),
    Mutation("mean and standard deviation swapped", side=_swapped_mean_and_std),
    Mutation(
        "divided by 255 instead of the largest value",
        side=lambda side: dataclasses.replace(side, preprocess=_divided_by_255),
    ),
    Mutation(f"all weights of {LAYER} 1 % too large", scale_layer),
    Mutation("upsampling with aligned corners", align_corners),
    Mutation(SAME, drop_ceil_mode),
    Mutation("d1 taken for d0", take_side_output),
    Mutation(
        "EXIF orientation ignored",
        side=lambda side: dataclasses.replace(side, decode=_as_it_lies),
    ),
    Mutation(
        "resized as rembg does",
        side=lambda side: dataclasses.replace(
            side, spec=dataclasses.replace(side.spec, resize=Resize.LANCZOS)
        ),
    ),
)


def mutated(artifact: Artifact, mutation: Mutation, folder: Path) -> Artifact:
    """A changed copy of an ONNX artifact, as somebody else's file would be opened."""
    if mutation.model is None:
        return artifact
    model = onnx.load(artifact.path)
    mutation.model(model)
    del model.metadata_props[:]
    path = folder / f"{abs(hash(mutation.name))}.onnx"
    onnx.save(model, path)
    return dataclasses.replace(artifact, path=path, files={}, foreign=True)


def contents(cases: Sequence[Case]) -> list[bytes]:
    """The cases' files, a drawn picture that EXIF turns, and one that is dim."""
    more = [
        case for case in degenerate_cases(large=False) if case.name in ("turned by EXIF", "dim")
    ]
    return [case.read() for case in (*cases, *more)]


def partings(
    files: list[bytes], reference: Pipeline, candidate: Pipeline, budget: Budget
) -> list[FirstDifference | U2ExportError]:
    """How the two part on every picture, or what one of them failed with."""
    found: list[FirstDifference | U2ExportError] = []
    for content in files:
        try:
            found.append(
                find_first_difference(
                    run_pipeline(content, reference), run_pipeline(content, candidate), budget
                )
            )
        except U2ExportError as error:
            found.append(error)
    return found


def row(name: str, found: list[FirstDifference | U2ExportError]) -> dict[str, object]:
    """What a reader of the table wants to know of one mutation."""
    red = [one for one in found if isinstance(one, U2ExportError) or one.stage]
    first = red[0] if red else None
    parted = isinstance(first, FirstDifference) and first.stage
    return {
        "mutation": name,
        "verdict": "FAILED" if red else "passed",
        "pictures that fail": f"{len(red)} of {len(found)}",
        "first stage": first.stage.value if parted and first.stage else "",
        "why": first.reasons[0] if isinstance(first, FirstDifference) else str(first or ""),
    }


def side_of(runner: Callable[[Array], Array], spec: PictureSpec, name: str) -> Pipeline:
    """A whole pipeline around a runner."""
    return Pipeline(name, lambda x: runner(x)[0, 0], spec)


def damaged(artifact: Artifact, folder: Path) -> dict[str, tuple[Path, list[str]]]:
    """What can be done to a file: the file and the options to judge it with, by mutation."""
    found: dict[str, tuple[Path, list[str]]] = {}
    for mutation in MUTATIONS:
        if mutation.model:
            found[mutation.name] = (mutated(artifact, mutation, folder).path, [])
    found["resized as rembg does"] = (artifact.path, ["--resample", "lanczos"])
    swapped = folder / "swapped.onnx"
    facts = artifact.facts.model_copy(
        update={"mean": artifact.facts.std, "std": artifact.facts.mean}
    )
    shutil.copy(artifact.path, swapped)
    files = {swapped.name: file_sha256(swapped)}
    told = dataclasses.replace(artifact, facts=facts, files=files)
    manifest_path(swapped).write_text(told.manifest.text())
    found["mean and standard deviation swapped"] = (swapped, [])
    return found


def commanded(path: Path, options: list[str], folder: Path, common: list[str]) -> dict[str, str]:
    """Judge a file by the command line: exit status, first stage and metric."""
    words = ["parity", "torch", str(path), *options, "--json", "r.json", *common]
    done = subprocess.run(
        [sys.executable, "-m", "u2export", *words],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 6):
        raise RuntimeError(done.stderr)
    report = ParityReport.model_validate_json((folder / "r.json").read_text())
    failed = report.candidates[0].failed
    first = failed[0] if failed else None
    return {
        "status": str(done.returncode),
        "cases": f"{len(failed)} of {len(report.candidates[0].cases)} fail",
        "first stage": first.stage if first else "",
        "metric": first.reasons[0] if first else "",
        "replay": str((folder / "replays" / f"{path.name}.replay.zip").is_file()),
    }


def nncf_int8(artifact: Artifact, folder: Path, calibration: list[bytes]) -> Path:
    """Quantize an ONNX file for OpenVINO as NNCF does by itself."""
    import io

    import nncf
    import openvino as ov

    spec = artifact.facts.picture
    inputs = [preprocess(open_image(io.BytesIO(c)), spec) for c in calibration]
    model = ov.Core().read_model(artifact.path)
    made = nncf.quantize(model, nncf.Dataset(inputs))
    for key in list(made.get_rt_info()):
        if key.startswith("u2export"):
            del made.get_rt_info()[key]
    target = folder / "nncf-int8.xml"
    ov.save_model(made, target)
    return target


def naive_int8(artifact: Artifact, folder: Path, calibration: list[bytes]) -> Path:
    """Quantize as onnxruntime's static quantizer does by itself."""
    import io

    from onnxruntime import quantization as q

    spec = artifact.facts.picture
    inputs = [preprocess(open_image(io.BytesIO(c)), spec) for c in calibration]

    class Reader(q.CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(inputs)

        def get_next(self) -> dict[str, Array] | None:
            x = next(self._left, None)
            return None if x is None else {"input": x}

    plain = onnx.load(artifact.path)
    del plain.metadata_props[:]
    onnx.save(plain, folder / "plain.onnx")
    target = folder / "naive-int8.onnx"
    q.quantize_static(
        folder / "plain.onnx", target, Reader(), quant_format=q.QuantFormat.QDQ, per_channel=True
    )
    return target


def overflowing(source: Artifact, budget: Budget, file: bytes) -> FirstDifference | U2ExportError:
    """Move a factor from one layer into the one before: the same function, too large for half."""
    network = checkpoint.load_network(source, print)
    inner = dict(network.named_modules())
    before, after = inner["stage2d.rebnconv2d"], inner["stage2d.rebnconv1d"]
    plain = checkpoint.load_network(source, print)
    for values in (before.bn_s1.weight, before.bn_s1.bias):
        values.data *= OVERFLOW
    half = before.bn_s1.weight.shape[0]
    after.conv_s1.weight.data[:, :half] /= OVERFLOW
    spec = source.facts.picture
    emulated = EmulatedNetwork(plain, Precision.FP16)
    reference = Pipeline("the reference", lambda x: emulated(x)[0, 0], spec)
    candidate = Pipeline(
        "emulated fp16", lambda x: EmulatedNetwork(network, Precision.FP16)(x)[0, 0], spec
    )
    return partings([file], reference, candidate, budget)[0]


def main() -> None:
    """Break, judge, print the table, leave the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="real u2netp weights; else the bundled demo weights")
    parser.add_argument("--pictures", type=Path, help="a folder of photographs; else drawn ones")
    parser.add_argument("--command", action="store_true", help="by the command line as well")
    args = parser.parse_args()
    model: ModelSpec = MODELS["u2netp" if args.weights else "u2netp-demo"]
    source = weights.find(model, args.weights)
    cases = list(
        user_cases(sorted(args.pictures.iterdir())) if args.pictures else synthetic_cases(3)
    )
    files = contents(cases)
    budget, spec = BUDGETS[Precision.FP32], model.picture
    rows = []
    typed: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as name, registry.open_runner(source) as torch_runner:
        folder = Path(name)
        artifact = build_artifact("onnx", ExportSpec(model, spec.size), source, folder)
        reference = side_of(torch_runner, spec, "PyTorch")
        for mutation in (Mutation("none"), *MUTATIONS):
            with registry.open_runner(mutated(artifact, mutation, folder)) as runner:
                candidate = mutation.side(side_of(runner, spec, mutation.name))
                rows.append(row(mutation.name, partings(files, reference, candidate, budget)))
        calibration = contents(list(synthetic_cases(8)))[:CALIBRATION]
        path = naive_int8(artifact, folder, calibration)
        with registry.open_runner(registry.open_artifact(path, model.name)) as runner:
            candidate = side_of(runner, spec, "naive int8")
            found = partings(files, reference, candidate, BUDGETS[Precision.INT8])
        rows.append(row("naive int8 (onnxruntime's static quantizer as it comes)", found))
        if args.command:
            common = ["--model", model.name]
            common += ["--weights", str(Path(args.weights).resolve())] if args.weights else []
            common += ["--pictures", str(args.pictures.resolve())] if args.pictures else []
            files_to_judge = damaged(artifact, folder)
            files_to_judge["naive int8 (onnxruntime's static quantizer as it comes)"] = (path, [])
            if importlib.util.find_spec("nncf"):
                quantized = nncf_int8(artifact, folder, calibration)
                files_to_judge["naive int8 (NNCF as it comes)"] = (quantized, [])
            for name, (file, options) in {"none": (artifact.path, []), **files_to_judge}.items():
                typed[name] = commanded(file, options, folder, common)
    over = overflowing(source, BUDGETS[Precision.FP16], files[0])
    rows.append(row("fp16 overflow in stage2d.rebnconv2d (emulated)", [over]))
    table = Table(*rows[0])
    for one in rows:
        table.add_row(*map(str, one.values()))
    console = Console(width=160)
    console.print(table)
    if typed:
        table = Table("by the command line", *typed["none"])
        for name, told in typed.items():
            table.add_row(name, *told.values())
        console.print(table)
    figures = {"weights": model.name, "pictures": len(files), "mutations": rows, "command": typed}
    leave(f"parity_mutations-{model.name}", figures)


if __name__ == "__main__":
    main()
