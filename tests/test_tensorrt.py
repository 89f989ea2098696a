"""TensorRT: real RTX builds without a GPU; running and the other flavour against acted parts."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fakes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from u2export.backends.tensorrt import build, flavours
from u2export.backends.tensorrt.build import (
    EngineRequest,
    _build_engine,
    build_in_subprocess,
    export,
)
from u2export.backends.tensorrt.flavours import MODULES, choose_flavour
from u2export.backends.tensorrt.inspector import parse_layer
from u2export.compare.budgets import BUDGETS
from u2export.core import registry
from u2export.core.artifact import Artifact
from u2export.core.enums import Device, Precision
from u2export.core.execution import Execution, check_execution
from u2export.core.facts import WeightsFacts, model_facts
from u2export.core.models import MODELS
from u2export.core.requests import ExportSpec, RunSpec
from u2export.errors import (
    ArtifactError,
    DependencyError,
    ExportError,
    InputError,
    ParityError,
)
from u2export.export.build import build_artifact
from u2export.images.preprocess import preprocess
from u2export.images.synthetic import draw_image
from u2export.inference.segmenter import Segmenter
from u2export.network import weights
from u2export.parity.bisect import bisect_artifact
from u2export.system import fixed_process, hardware
from u2export.system.files import file_sha256

DEMO = MODELS["u2netp-demo"]
NO_GPU = not hardware.query_cuda().gpus
TARGETS = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")  # NVIDIA's list for RTX 1.x


def _build(parent: Artifact, out: Path, **asked: Any) -> Artifact:
    spec = ExportSpec(DEMO, parent.facts.size, **asked)
    return build_artifact("tensorrt", spec, weights.find(DEMO), out)


@pytest.fixture
def folder(small: Path, tmp_path: Path) -> Path:
    """A copy of the 64-pixel artifacts, so that an export finds its parent there."""
    for path in small.glob("u2netp-demo-fp32-64-bN.*"):
        shutil.copy(path, tmp_path)
    return tmp_path


@pytest.fixture
def parent(folder: Path) -> Artifact:
    return registry.open_artifact(folder / "u2netp-demo-fp32-64-bN.onnx")


def _engine(parent: Artifact, out: Path, settings: tuple[tuple[str, str], ...] = ()) -> bytes:
    """Only the conversion, with no artifact around it."""
    spec = ExportSpec(DEMO, parent.facts.size, batch=parent.facts.batch, backend_options=settings)
    export(parent, spec, out)
    return out.read_bytes()


def test_the_same_onnx_gives_the_same_engine_in_seconds(exported: Path, tmp_path: Path):
    found = registry.open_artifact(exported / "u2netp-demo-fp16.onnx")
    begun = time.monotonic()
    first = _engine(found, tmp_path / "a.engine")
    assert time.monotonic() - begun < 5
    assert first == _engine(found, tmp_path / "b.engine")
    assert first == (exported / "u2netp-demo-fp16.engine").read_bytes()


def test_a_dynamic_engine_is_the_same_from_another_place_and_environment(
    parent: Artifact, folder: Path, tmp_path: Path, monkeypatch
):
    first = _engine(parent, folder / "a.engine")
    monkeypatch.setenv("SOMETHING", "else" * 1000)
    monkeypatch.chdir("/")
    (tmp_path / "a much longer name of a folder").mkdir()
    other = tmp_path / "a much longer name of a folder" / parent.path.name
    shutil.copy(parent.path, other)
    assert first == _engine(dataclasses.replace(parent, path=other), folder / "b.engine")


@pytest.mark.parametrize("note", ["x", "much more than any author would say " * 300])
def test_what_an_onnx_file_tells_of_itself_does_not_change_a_dynamic_engine(
    note: str, parent: Artifact, folder: Path
):
    first = _engine(parent, folder / "a.engine")
    model = onnx.load(parent.path)
    model.metadata_props.add(key="note", value=note)
    onnx.save(model, folder / "told.onnx")
    told = dataclasses.replace(parent, path=folder / parent.path.name)
    shutil.move(folder / "told.onnx", told.path)
    assert first == _engine(told, folder / "b.engine")


def test_a_builder_that_crashes_is_an_error_and_this_process_lives(parent, tmp_path, monkeypatch):
    def crash(*words: object) -> subprocess.CompletedProcess[bytes]:
        code = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
        return subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False)

    monkeypatch.setattr(fixed_process, "run_function", crash)
    with pytest.raises(ExportError, match=r"builder ended with status -11 on u2netp-demo"):
        _engine(parent, tmp_path / "x.engine")


def test_half_precision_makes_a_smaller_engine(exported: Path):
    half, single = (
        (exported / f"u2netp-demo-{precision}.engine").stat().st_size
        for precision in ("fp16", "fp32")
    )
    # The 1.13 million parameters alone are 2.26 MB less.
    assert single - half > 1.13e6 * 2 * 0.9


def test_the_manifest_says_how_it_was_built_and_that_it_was_not_run(exported: Path):
    found = registry.open_artifact(exported / "u2netp-demo-fp16.engine")
    assert found.facts.build["flavour"] == "rtx"
    assert found.facts.precision is Precision.FP16
    assert "tensorrt_rtx" in found.facts.tools
    if NO_GPU:
        assert found.checks["not_executed"]
        known = found.checks["parent"]["u2netp-demo-fp16.onnx"]
        assert known["emulated_fp16"]["mask_iou"] > 0.99


def test_a_batch_profile_is_recorded_and_named(parent: Artifact, folder: Path):
    found = _build(parent, folder, batch=None, profile=(1, 2, 5))
    assert found.path.name == "u2netp-demo-fp32-64-b1-2-5.engine"
    assert found.facts.build["profile"] == "1:2:5"
    assert found.facts.batch is None


def test_targets_are_recorded_and_change_the_engine(parent: Artifact, folder: Path):
    settings = (("target", "SM86,SM89"),)
    found = _build(parent, folder, batch=None, backend_options=settings)
    assert found.path.name == "u2netp-demo-fp32-64-bN-sm86-sm89.engine"
    assert found.facts.build["targets"] == "SM86,SM89"
    assert found.path.read_bytes() != _engine(parent, folder / "all.engine")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ((("target", "SM99"),), f"target must be some of .*{TARGETS[1]}.*, got SM99"),
        ((("target", ""),), "target must be some of"),
        ((("flavour", "gtx"),), "flavour must be one of rtx, tensorrt, got 'gtx'"),
        ((("colour", "red"),), "has no --colour"),
    ],
)
def test_options_that_make_no_sense_are_refused(parent, folder, settings, sentence):
    with pytest.raises(InputError, match=sentence):
        _build(parent, folder, batch=None, backend_options=settings)


def test_a_flavour_that_is_not_installed_is_refused(parent: Artifact, folder: Path, monkeypatch):
    monkeypatch.setitem(MODULES, "tensorrt", ("tensorrt_that_is_not_there",))
    with pytest.raises(DependencyError, match=r'pip install "u2export\[tensorrt\]"'):
        _build(parent, folder, batch=None, backend_options=(("flavour", "tensorrt"),))


def _graph(tmp_path: Path, nodes, initializers=(), kind=TensorProto.FLOAT, batch="N", last="N"):
    shape_in, shape_out = [batch, 3, 64, 64], [last, 3, 64, 64]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape_in)],
        [helper.make_tensor_value_info("y", kind, shape_out)],
        initializers,
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("none", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    path = tmp_path / "given.onnx"
    onnx.save(model, path)
    facts = model_facts(
        DEMO, WeightsFacts(name="given", sha256="0" * 64, origin="custom")
    ).model_copy(update={"size": 64})
    return Artifact(path, "onnx", facts)


def _quantized(tmp_path: Path, zero_point: int):
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [0.02])
    zero = helper.make_tensor("zero", zero_point, [], [0])
    return _graph(
        tmp_path,
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="first"),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        ],
        [scale, zero],
    )


def test_unsigned_zero_points_are_refused_and_signed_ones_build(tmp_path: Path):
    with pytest.raises(InputError, match=r"unsigned zero points \(at first\)"):
        _engine(_quantized(tmp_path, TensorProto.UINT8), tmp_path / "u.engine")
    assert _engine(_quantized(tmp_path, TensorProto.INT8), tmp_path / "s.engine")


def test_an_unsigned_zero_point_in_a_constant_or_by_default_is_refused(tmp_path: Path):
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [0.02])
    zero = helper.make_tensor("", TensorProto.UINT8, [], [0])
    nodes = [
        helper.make_node("Constant", [], ["zero"], value=zero),
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="inside"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    with pytest.raises(InputError, match=r"unsigned zero points \(at inside\)"):
        _engine(_graph(tmp_path, nodes, [scale]), tmp_path / "e.engine")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale"], ["q"], name="bare"),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["y"]),
    ]
    with pytest.raises(InputError, match=r"unsigned zero points \(at bare\)"):
        _engine(_graph(tmp_path, nodes, [scale]), tmp_path / "e.engine")


def test_a_batch_that_is_written_down_inside_is_refused(tmp_path: Path):
    shape = helper.make_tensor("shape", TensorProto.INT64, [4], [1, 3, 64, 64])
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    given = _graph(tmp_path, nodes, [shape], last=1)
    with pytest.raises(ExportError, match="the batch is written down inside it"):
        _engine(dataclasses.replace(given), tmp_path / "e.engine", ())


def test_double_precision_input_is_refused(tmp_path: Path):
    given = _graph(tmp_path, [helper.make_node("Relu", ["x"], ["y"])], kind=TensorProto.DOUBLE)
    with pytest.raises(InputError, match="takes double at x; it must take float32"):
        _engine(given, tmp_path / "e.engine")


def test_what_tensorrt_cannot_read_is_refused_with_its_reason(tmp_path: Path):
    given = _graph(tmp_path, [helper.make_node("Nonsense", ["x"], ["y"], domain="none")])
    with pytest.raises(ExportError, match=r"cannot read .*given.onnx: .*Nonsense"):
        _engine(given, tmp_path / "e.engine")


# --- running, on an acted GPU -------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, exported: Path, small: Path):
    cuda, library = fakes.act(monkeypatch, exported)
    library.learn(small)
    return cuda, library


def _noise(count: int, size: int = 64) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 3, size, size)).astype(np.float32)


def test_a_batch_outside_the_profile_is_refused_and_the_runner_lives_on(gpu, small: Path):
    artifact = registry.open_artifact(small / "u2netp-demo-fp32-64-bN.engine")
    with registry.open_runner(artifact) as runner:
        with pytest.raises(InputError, match="a batch of 9 is outside the engine's"):
            runner(_noise(9))
        assert runner(_noise(8)).shape == (8, 1, 64, 64)


def test_an_engine_that_takes_no_single_picture_still_gives_a_mask(gpu, parent, folder):
    spec = ExportSpec(DEMO, 64, batch=None, profile=(2, 4, 8))
    made = folder / "twos.engine"
    facts = export(parent, spec, made)
    gpu[1].sources[file_sha256(made)] = (parent.path, (2, 4, 8))
    found = Artifact(made, "tensorrt", facts)
    with Segmenter(found) as segment:
        assert segment(draw_image(1_000_004).picture).getextrema() == (0, 255)


def test_a_closed_runner_holds_no_memory_of_the_gpu(gpu, small: Path):
    artifact = registry.open_artifact(small / "u2netp-demo-fp32-64-bN.engine")
    with registry.open_runner(artifact) as runner:
        for count in (1, 1, 4, 2, 2):
            runner(_noise(count))
        assert gpu[0].held > 0
    assert gpu[0].held == 0


def test_an_engine_that_cannot_start_leaves_nothing_behind(gpu, small: Path, monkeypatch):
    artifact = registry.open_artifact(small / "u2netp-demo-fp32-64-bN.engine")
    monkeypatch.setattr(fakes.FakeEngine, "create_execution_context", lambda *a: None)
    with pytest.raises(ExportError, match="TensorRT cannot start"):
        registry.open_runner(artifact)
    assert gpu[0].held == 0


def test_kernels_that_rtx_compiled_are_kept_beside_the_engine(gpu, exported: Path, tmp_path: Path):
    for name in ("u2netp-demo-fp32.engine", "u2netp-demo-fp32.engine.json"):
        shutil.copy(exported / name, tmp_path)
    artifact = registry.open_artifact(tmp_path / "u2netp-demo-fp32.engine")
    registry.open_runner(artifact).close()
    cache = tmp_path / "u2netp-demo-fp32.engine.cache"
    assert cache.read_bytes() == b"compiled kernels"
    config = gpu[1].engines[-1].configs[-1]
    assert config.cuda_graph_strategy == "WHOLE_GRAPH_CAPTURE"


def test_kernels_of_another_gpu_are_said_and_replaced(gpu, exported, tmp_path, capsys):
    for name in ("u2netp-demo-fp32.engine", "u2netp-demo-fp32.engine.json"):
        shutil.copy(exported / name, tmp_path)
    cache = tmp_path / "u2netp-demo-fp32.engine.cache"
    cache.write_bytes(b"other kernels")
    registry.open_runner(registry.open_artifact(tmp_path / "u2netp-demo-fp32.engine")).close()
    assert "is of another GPU or version" in capsys.readouterr().err
    assert cache.read_bytes() == b"compiled kernels"


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"tools": {"tensorrt_rtx": "1.2.0"}}, "was built by tensorrt_rtx 1.2.0, here is"),
        ({"build": {"flavour": "rtx", "targets": "SM89"}}, r"was built for SM89, here is .*SM86"),
        (
            {"build": {"flavour": "rtx", "capability": "9.0"}},
            r"was built for compute capability 9.0, here is Acted GPU with 8.6",
        ),
    ],
)
def test_an_engine_of_another_version_or_gpu_is_refused(gpu, small: Path, facts, sentence):
    found = registry.open_artifact(small / "u2netp-demo-fp32-64-bN.engine")
    other = dataclasses.replace(found, facts=found.facts.model_copy(update=facts))
    with pytest.raises(ArtifactError, match=sentence):
        registry.open_runner(other)


def test_an_engine_for_another_gpu_is_built_and_not_run(gpu, parent, folder, capsys):
    found = _build(parent, folder, batch=None, backend_options=(("target", "SM89"),))
    assert "was built but not run" in capsys.readouterr().err
    assert "here is Acted GPU (SM86)" in found.checks["not_executed"]


def test_rtx_on_a_gpu_it_has_no_code_for_says_so(gpu, small: Path, monkeypatch):
    big = hardware.Gpu("Acted data-centre GPU", (9, 0))
    monkeypatch.setattr(hardware, "query_cuda", lambda: hardware.CudaDriver((big,), "12.8"))
    with pytest.raises(ArtifactError, match=r"has no code for .* \(SM90\): use --flavour tensorrt"):
        registry.open_runner(registry.open_artifact(small / "u2netp-demo-fp32-64-bN.engine"))


def test_a_place_that_takes_no_kernels_is_said_and_no_matter(gpu, exported, tmp_path, capsys):
    for name in ("u2netp-demo-fp32.engine", "u2netp-demo-fp32.engine.json"):
        shutil.copy(exported / name, tmp_path)

    def read_only(self: Path, *words: object, **named: object) -> None:
        raise OSError(30, "Read-only file system")

    artifact = registry.open_artifact(tmp_path / "u2netp-demo-fp32.engine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_bytes", read_only)
        patch.setattr(Path, "unlink", read_only)
        registry.open_runner(artifact).close()
    assert "cannot be written, the next start will compile again" in capsys.readouterr().err


def test_a_foreign_engine_of_a_free_batch_names_its_own_limits(gpu, parent, folder):
    spec = ExportSpec(DEMO, 64, batch=None, profile=(2, 4, 8))
    made = folder / "theirs.engine"
    facts = export(parent, spec, made)
    gpu[1].sources[file_sha256(made)] = (parent.path, (2, 4, 8))
    facts = facts.model_copy(update={"build": {}, "tools": {}})
    with registry.open_runner(Artifact(made, "tensorrt", facts, foreign=True)) as runner:
        assert (runner.min_batch, runner.max_batch) == (2, 8)


def test_what_is_no_engine_is_refused(gpu, small: Path, tmp_path: Path):
    found = registry.open_artifact(small / "u2netp-demo-fp32-64-bN.engine")
    path = tmp_path / "cut.engine"
    path.write_bytes(found.path.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match=r"refuses .*cut.engine: this is no engine"):
        registry.open_runner(dataclasses.replace(found, path=path))


def test_float32_layers_in_a_half_precision_engine_are_status_6(gpu, exported: Path):
    artifact = registry.open_artifact(exported / "u2netp-demo-fp16.engine")
    registry.open_runner(artifact).close()
    sentence = r"asked to compute in fp16 on cuda, but 1 of \d+ layers .*: slow fp32 on cuda"
    library = gpu[1]
    original = library.Runtime

    def runtime(logger: Any) -> SimpleNamespace:
        real = original(logger).deserialize_cuda_engine

        def deserialize(blob: bytes) -> Any:
            engine = real(blob)
            wide = _rtx("Float")
            layer = {"Name": "slow", "LayerType": "Convolution", "Inputs": wide, "Outputs": wide}
            engine.layers.append(layer)
            return engine

        return SimpleNamespace(deserialize_cuda_engine=deserialize)

    library.Runtime = runtime
    with pytest.raises(ParityError, match=sentence) as caught:
        registry.open_runner(artifact)
    assert caught.value.exit_status == 6
    assert gpu[0].held == 0  # what was opened for the check was closed


def _rtx(*types: str, name: str = "t") -> list[dict[str, Any]]:
    """Tensors in the words that lie in the library of RTX 1.7."""
    linear = "(Linear) Row major linear format"
    return [{"Name": name, "Dimensions": [1], "Datatype": t, "Format": linear} for t in types]


def _ten(*types: str) -> list[dict[str, Any]]:
    return [{"Name": "t", "Dimensions": [1], "Format/Datatype": t} for t in types]


@pytest.mark.parametrize(
    ("inputs", "outputs", "precision"),
    [
        (_rtx("Half"), _rtx("Half"), "fp16"),
        (_rtx("Float"), _rtx("Float"), "fp32"),
        (_rtx("BFloat16"), _rtx("BFloat16"), "bf16"),
        (_rtx("Int8"), _rtx("Half"), "int8"),
        (_rtx("Half"), _rtx("Float"), "fp16+fp32"),  # mixed is not proved to be either
        (_rtx("Int64", "Half"), _rtx("Half"), "fp16"),
        (_rtx("Float", name="input"), _rtx("Half"), "fp16"),  # the ends are float32 anyway
        (_ten("Row major linear FP32"), _ten("Row major linear FP32"), "fp32"),
        (_ten("Channel major FP16 format where channel % 8 == 0"), _ten("Half"), "fp16"),
        (_ten("Thirty-two wide channel vectorized row major Int8 format"), _ten("Int8"), "int8"),
        ([{"Name": "t"}], [], "unknown"),
    ],
)
def test_the_inspectors_words_for_types_are_understood(inputs, outputs, precision):
    told = {"Name": "__myl_Conv_myl0_1", "LayerType": "kgen", "Inputs": inputs, "Outputs": outputs}
    layer = parse_layer(told, ["input", "saliency"])
    assert (layer.precision, layer.moves) == (precision, False)


@pytest.mark.parametrize(
    ("name", "kind", "types", "moves"),
    [
        ("__myl_CastMove_myl0_1", "kgen", ("Float", "Half"), True),
        ("__myl_CastMulAdd_myl0_2", "kgen", ("Float", "Half"), False),
        ("__myl_MovConc_myl0_3", "kgen", ("Half",), False),  # a word nobody knows is no move
        ("Reformatting CopyNode for Input", "Reformat", ("Float", "Half"), True),
        ("__mye12_wait", "wait", (), True),
        ("__mye13_signal", "signal", (), True),
        ("__mye14", "cjmp", (), True),
        ("shape arithmetic", "kgen", ("Int64", "Bool"), True),
    ],
)
def test_what_only_moves_or_orders_is_told_from_what_computes(name, kind, types, moves):
    told = {"Name": name, "LayerType": kind, "Inputs": _rtx(*types), "Outputs": []}
    assert parse_layer(told).moves == moves


def test_tensor_float_32_hides_in_the_kernels_name_and_is_found():
    tactic = "sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32_nhwckrsc_nhwc_tilesize128x128"
    told = {"Name": "conv", "LayerType": "CaskConvolution", "TacticName": tactic}
    told |= {"Inputs": _ten("Row major linear FP32"), "Outputs": _ten("Row major linear FP32")}
    assert parse_layer(told).precision == "tf32"


def test_a_layer_that_tells_only_its_name_is_no_proof():
    layer = parse_layer("stage1.rebnconvin.conv_s1 + Relu")
    assert layer.precision == "unknown"
    account = Execution(
        runtime="tensorrt 10.0", device=Device.CUDA, stored=Precision.FP32, layers=(layer,)
    )
    with pytest.raises(ParityError):
        check_execution(account, RunSpec(Device.CUDA, 1), "x.engine")


# --- the full flavour, by stand-ins with the enumerations of 10.x and 11.x ------------------------


class _Flags10(enum.IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class _Flags11(enum.IntEnum):
    STRONGLY_TYPED = 0


class _Builder10(enum.IntEnum):
    FP16 = 0
    INT8 = 2
    TF32 = 7


class _Builder11(enum.IntEnum):
    DEBUG = 0
    TF32 = 3


class Stand:
    """A `tensorrt` module that notes what the exporter asks of it."""

    def __init__(self, version: str, flags: type, builder: type) -> None:
        self.__version__, self.NetworkDefinitionCreationFlag = version, flags
        self.BuilderFlag, self.asked = builder, {}
        self.DataType = SimpleNamespace(FLOAT="FLOAT")
        self.ProfilingVerbosity = SimpleNamespace(DETAILED="DETAILED")
        self.answer: bytes | None = b"an engine"

    def Builder(self, logger: Any) -> Any:
        first = SimpleNamespace(name="input", dtype="FLOAT", shape=(-1, 3, 64, 64))
        last = SimpleNamespace(name="saliency", shape=(-1, 1, 64, 64))
        network = SimpleNamespace(
            num_inputs=1, num_outputs=1, get_input=lambda i: first, get_output=lambda i: last
        )
        config = SimpleNamespace(
            clear_flag=lambda flag: self.asked.setdefault("cleared", []).append(flag.name),
            set_flag=lambda flag: self.asked.setdefault("set", []).append(flag.name),
            add_optimization_profile=lambda made: 0,
        )

        def create_network(given: int) -> Any:
            self.asked["network"] = given
            return network

        def set_shape(name: str, *shapes: tuple[int, ...]) -> None:
            self.asked["profile"] = (name, shapes)

        return SimpleNamespace(
            create_network=create_network,
            create_builder_config=lambda: config,
            create_optimization_profile=lambda: SimpleNamespace(set_shape=set_shape),
            build_serialized_network=lambda network, config: self.answer,
        )

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        return SimpleNamespace(parse=lambda content: True)


def _stand(monkeypatch: pytest.MonkeyPatch, version: str) -> Stand:
    ten = version.startswith("10")
    made = Stand(version, _Flags10 if ten else _Flags11, _Builder10 if ten else _Builder11)
    logger = SimpleNamespace(lines=["[E] out of memory", "catchCudaError: cudaError 35"])
    monkeypatch.setattr(flavours, "load_library", lambda flavour: (made, logger))
    monkeypatch.setattr(build, "build_in_subprocess", _build_engine)
    monkeypatch.setattr(flavours, "installed_flavours", lambda: ["rtx", "tensorrt"])
    monkeypatch.setattr(hardware, "query_cuda", lambda: hardware.CudaDriver((fakes.GPU,), "12.8"))
    return made


@pytest.mark.parametrize(("version", "strongly"), [("10.3.0", 1 << 1), ("11.2.0", 1 << 0)])
def test_the_full_flavour_builds_a_strongly_typed_network(
    parent: Artifact, tmp_path: Path, monkeypatch, capsys, version: str, strongly: int
):
    made = _stand(monkeypatch, version)
    out = tmp_path / "x.engine"
    facts = export(parent, ExportSpec(DEMO, 64, batch=None), out)
    assert out.read_bytes() == b"an engine"
    assert made.asked["network"] == strongly
    assert made.asked["cleared"] == ["TF32"]
    assert "set" not in made.asked  # no FP16 flag: precision lives in the network
    shapes = tuple((count, 3, 64, 64) for count in (1, 4, 8))
    assert made.asked["profile"] == ("input", shapes)
    assert facts.tools["tensorrt"] == version
    assert facts.build["capability"] == "8.6"
    assert "both flavours of TensorRT are installed: taking tensorrt" in capsys.readouterr().err


def test_a_build_that_fails_says_the_reason_and_not_the_noise(
    parent: Artifact, tmp_path: Path, monkeypatch
):
    made = _stand(monkeypatch, "10.3.0")
    made.answer = None
    original = made.Builder

    def failing(logger: Any) -> Any:
        logger.lines += ["out of memory", "out  of memory", "catchCudaError: cudaError 35"]
        return original(logger)

    made.Builder = failing
    with pytest.raises(ExportError, match=r"TensorRT 10.3.0 cannot build it: out of memory$"):
        export(parent, ExportSpec(DEMO, 64, batch=None), tmp_path / "x.engine")
    assert not (tmp_path / "x.engine").exists()


def test_the_full_flavour_refuses_targets_and_a_machine_without_gpu(
    parent: Artifact, tmp_path: Path, monkeypatch
):
    _stand(monkeypatch, "10.3.0")
    spec = ExportSpec(DEMO, 64, batch=None, backend_options=(("flavour", "tensorrt"),))
    aimed = dataclasses.replace(spec, backend_options=(*spec.backend_options, ("target", "SM86")))
    with pytest.raises(InputError, match="--target is an option of the rtx flavour"):
        export(parent, aimed, tmp_path / "x.engine")
    monkeypatch.setattr(hardware, "query_cuda", lambda: hardware.CudaDriver((), reason="no driver"))
    with pytest.raises(DependencyError, match="builds on a GPU only, and no driver"):
        export(parent, spec, tmp_path / "x.engine")


def test_without_a_gpu_both_flavours_mean_rtx(monkeypatch, capsys):
    monkeypatch.setattr(flavours, "installed_flavours", lambda: ["rtx", "tensorrt"])
    monkeypatch.setattr(hardware, "query_cuda", lambda: hardware.CudaDriver((), reason="no driver"))
    assert choose_flavour(None) == "rtx"
    assert "taking rtx, since it builds without a GPU" in capsys.readouterr().err


# --- without a GPU: refused, and nothing crashes ------------------------------------------------


@pytest.mark.skipif(not NO_GPU, reason="this machine has a GPU: nothing to refuse")
@pytest.mark.parametrize("word", ["run", "inspect"])
def test_without_a_gpu_running_is_status_3_and_no_crash(command, exported, picture_file, word):
    engine = exported / "u2netp-demo-fp16.engine"
    words = ["run", engine, picture_file] if word == "run" else ["inspect", engine]
    done = command(*words)
    assert done.returncode == 3
    assert done.stderr.count("error: ") == 1
    assert "cannot run on cuda here" in done.stderr
    assert done.stdout == ""


def test_a_truncated_engine_is_status_4_and_no_crash(command, exported: Path, tmp_path: Path):
    for name in ("u2netp-demo-fp16.engine", "u2netp-demo-fp16.engine.json"):
        shutil.copy(exported / name, tmp_path)
    path = tmp_path / "u2netp-demo-fp16.engine"
    path.write_bytes(path.read_bytes()[:-1000])
    done = command("inspect", path)
    assert done.returncode == 4, done.stderr
    assert "was changed after it was exported" in done.stderr


@pytest.mark.parametrize(
    ("content", "status", "sentence"),
    [
        (b"", 4, "is empty"),
        (b"not an onnx file at all", 4, "cannot be read as ONNX"),
    ],
)
def test_a_file_that_is_no_onnx_is_refused_and_no_crash(
    command, tmp_path, content, status, sentence
):
    (tmp_path / "given.onnx").write_bytes(content)
    done = command("tensorrt", "--from", "given.onnx", "--model", "u2netp")
    assert done.returncode == status, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_process_that_built_an_engine_ends_in_peace(exported: Path, tmp_path: Path):
    """Some releases crash at the interpreter's end once a Runtime was made without a device."""
    code = (
        "from pathlib import Path; from u2export.core import registry;"
        "from u2export.core.models import MODELS;"
        "from u2export.core.requests import ExportSpec;"
        "from u2export.backends.tensorrt import BACKEND;"
        f"a = registry.open_artifact(Path({str(exported / 'u2netp-demo-fp32.onnx')!r}));"
        "BACKEND.export(a, ExportSpec(MODELS['u2netp-demo'], 320), Path('x.engine'));"
        "print('built')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stdout) == (0, "built\n"), done.stderr


def test_an_engine_is_bisected_by_outputs_marked_in_another_one(
    gpu, parent, folder, tmp_path, monkeypatch
):
    """RTX really builds the engine with 119 outputs more; what runs is acted, with a fault."""
    module, build_apart = "stage3.rebnconv2", build_in_subprocess

    def acted(order: EngineRequest, content: bytes) -> bytes:
        engine = build_apart(order, content)
        model = onnx.load_from_string(content)
        node = next(n for n in model.graph.node if n.name.startswith(f"{module}."))
        item = next(i for i in model.graph.initializer if i.name == node.input[1])
        item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) * 2, item.name))
        onnx.save(model, tmp_path / "marked.onnx")
        digest = hashlib.sha256(engine).hexdigest()
        gpu[1].sources[digest] = (tmp_path / "marked.onnx", order.profile)
        return engine

    monkeypatch.setattr(build, "build_in_subprocess", acted)
    engine = registry.open_artifact(folder / "u2netp-demo-fp32-64-bN.engine")
    x = preprocess(draw_image(1_000_004).picture, engine.facts.picture)
    found = bisect_artifact(weights.find(DEMO), engine, x, BUDGETS[Precision.FP32])
    assert (found.culprit, found.unmatched) == (module, ())
    assert len(found.modules) == 119
    parent.path.unlink()
    with pytest.raises(InputError, match="the ONNX artifact it was built from is not beside it"):
        bisect_artifact(weights.find(DEMO), engine, x, BUDGETS[Precision.FP32])


@pytest.mark.gpu
def test_a_whole_engine_has_no_culprit_on_a_real_gpu(exported: Path):
    engine = registry.open_artifact(exported / "u2netp-demo-fp16.engine")
    x = preprocess(draw_image(1_000_004).picture, engine.facts.picture)
    found = bisect_artifact(weights.find(DEMO), engine, x, BUDGETS[Precision.FP16])
    assert (found.culprit, found.unmatched) == ("", ())


@pytest.mark.gpu
def test_a_real_gpu_gives_what_pytorch_gives(exported: Path):
    with (
        registry.open_runner(registry.open_artifact(exported / "u2netp-demo-fp32.engine")) as ours,
        registry.open_runner(
            registry.open_artifact(exported / "u2netp-demo-fp32.safetensors")
        ) as reference,
    ):
        x = _noise(1, 320)
        np.testing.assert_allclose(ours(x), reference(x), atol=1e-3)
