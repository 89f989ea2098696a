"""What only some backends do: precisions, devices and options of PyTorch and onnxruntime."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from conftest import SMALL
from onnx import TensorProto, helper
from overlap import Overlap

from u2export.backends import torch as torch_backend
from u2export.backends.onnx import backend as onnx_backend
from u2export.backends.onnx.profile import parse_kernel
from u2export.core import registry
from u2export.core.enums import Device, Precision
from u2export.core.models import PictureSpec
from u2export.core.requests import RunRequest
from u2export.diagnostics.inspect import inspect_artifact
from u2export.errors import (
    ArtifactError,
    DependencyError,
    ExportError,
    InputError,
    ParityError,
)
from u2export.images.preprocess import preprocess
from u2export.images.synthetic import draw_image
from u2export.system import hardware

GPU = hardware.Gpu("Acted GPU", (8, 6))


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return preprocess(draw_image(1_000_004).picture, PictureSpec())


@pytest.fixture
def reference(exported: Path):
    return registry.open_artifact(exported / "u2netp-demo-fp32.safetensors")


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16])
def test_pytorch_computes_in_what_is_demanded(reference, picture, precision):
    with (
        registry.open_runner(reference, RunRequest(precision=precision)) as low,
        registry.open_runner(reference) as full,
    ):
        account = low.executed()
        difference = np.abs(low(picture) - full(picture))
    assert account.share_of_macs() == {f"{precision} on cpu": 1.0}
    assert {layer.precision for layer in account.arithmetic} == {str(precision)}
    # 2^-9 and 2^-12 are half a unit in the last place near 1; the maps differ by more than nothing
    assert difference.max() > 1e-5
    assert difference.mean() < 0.02


def test_pytorch_names_its_modules(reference):
    with registry.open_runner(reference) as runner:
        names = [layer.name for layer in runner.executed().layers if layer.macs]
    modules = [name.split("/")[0] for name in names]
    assert modules[0] == "stage1.rebnconvin.conv_s1"
    assert "stage2d.rebnconv1d.conv_s1" in modules


def test_compiling_is_asked_of_pytorch_and_of_nobody_else(reference, exported: Path, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda network, mode: asked.append(mode) or network)
    registry.open_runner(reference, RunRequest(compiled=True)).close()
    assert asked == ["default"]
    with pytest.raises(InputError, match="the onnx backend has no option compiled"):
        registry.open_runner(
            registry.open_artifact(exported / "u2netp-demo-fp32.onnx"), RunRequest(compiled=True)
        )


@pytest.mark.parametrize(
    ("suffix", "precision", "sentence"),
    [
        (".onnx", Precision.BF16, "the onnx backend computes in fp32, fp16, int8, not in bf16"),
        (".engine", Precision.FP16, "computes in what the file holds, not in fp16"),
    ],
)
def test_a_precision_that_a_runtime_never_has_is_refused(exported, suffix, precision, sentence):
    artifact = registry.open_artifact(exported / f"u2netp-demo-fp32{suffix}")
    with pytest.raises(InputError, match=sentence):
        registry.open_runner(artifact, RunRequest(precision=precision))


def test_half_precision_that_onnxruntime_computes_in_float32_is_told(exported: Path):
    """Its CPU provider has no half-precision convolution: stored is not computed."""
    artifact = registry.open_artifact(exported / "u2netp-demo-fp16.onnx")
    with registry.open_runner(artifact) as runner:
        account = runner.executed()
    assert account.summary() == "stored fp16, computed fp32 on cpu"
    with pytest.raises(ParityError, match=r"asked to compute in fp16 on cpu, but \d+ of \d+"):
        registry.open_runner(artifact, RunRequest(precision=Precision.FP16))
    assert inspect_artifact(artifact.path).complaint == ""


def test_onnxruntimes_silent_fallback_to_the_cpu_is_refused(exported: Path, monkeypatch):
    """As with a CUDA build whose libraries are missing: it says so in its log and goes on."""
    providers = [*ort.get_available_providers(), "CUDAExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: providers)
    monkeypatch.setattr(hardware, "query_cuda", lambda: hardware.CudaDriver((GPU,), "12.8"))
    artifact = registry.open_artifact(exported / "u2netp-demo-fp32.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DependencyError, match="fell back to CPUExecutionProvider"):
            registry.open_runner(artifact, RunRequest(Device.CUDA))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine's PyTorch has a GPU")
def test_a_build_without_cuda_says_what_to_install(exported: Path):
    if torch.version.cuda is None:
        assert "was built without CUDA" in torch_backend.unavailable_reason(Device.CUDA)
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        told = onnx_backend.unavailable_reason(Device.CUDA)
        assert 'pip install "u2export[onnxruntime-gpu]"' in told


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [None, Precision.FP16, Precision.BF16])
def test_pytorch_on_cuda_computes_there_in_what_is_asked(reference, picture, precision):
    with (
        registry.open_runner(reference, RunRequest(Device.CUDA, precision=precision)) as there,
        registry.open_runner(reference) as here,
    ):
        assert there.executed().share_of_macs() == {f"{precision or 'fp32'} on cuda": 1.0}
        assert np.abs(there(picture) - here(picture)).mean() < (0.02 if precision else 1e-5)


@pytest.mark.gpu
def test_pytorch_on_cuda_is_timed_by_its_events(reference, picture):
    with registry.open_runner(reference, RunRequest(Device.CUDA)) as runner:
        found = runner.on_device(picture, 20)
        begun = time.perf_counter()
        runner(picture)
        whole = 1e3 * (time.perf_counter() - begun)
    assert len(found) == 20
    assert 0 < float(np.median(found)) < whole


@pytest.mark.gpu
def test_onnxruntime_on_cuda_computes_there(exported: Path, picture):
    artifact = registry.open_artifact(exported / "u2netp-demo-fp16.onnx")
    if onnx_backend.unavailable_reason(Device.CUDA):
        pytest.skip(onnx_backend.unavailable_reason(Device.CUDA))
    with registry.open_runner(artifact, RunRequest(Device.CUDA)) as runner:
        assert runner.executed().share_of_macs() == {"fp16 on cuda": 1.0}


@pytest.mark.parametrize(
    ("threads", "streams", "at_once", "pool"),
    [(1, 1, 1, 1), (1, 2, 1, 1), (2, 1, 1, 2), (2, 2, 1, 2), (4, 4, 2, 3), (8, 2, 2, 7)],
)
def test_a_call_of_onnxruntime_has_two_threads_where_there_are(
    quick: Path, threads: int, streams: int, at_once: int, pool: int
):
    """Each of the calls at once adds its own thread to the pool, which counts one of them."""
    with registry.open_runner(
        registry.open_artifact(quick), RunRequest(threads=threads, streams=streams)
    ) as runner:
        session = runner._session
        options = session.get_session_options()
        assert options.intra_op_num_threads == pool
        assert pool - 1 + at_once == threads
        noted, x = Overlap(), np.zeros((1, 3, SMALL, SMALL), np.float32)

        class Watched:
            def run(self, *given: object) -> object:
                noted.wait(0.1)
                return session.run(*given)

        runner._session = Watched()
        assert len(list(runner.stream([x] * 5))) == 5
        assert noted.most == at_once


# --- a file as it is, instead of weights --------------------------------------------------------


@pytest.fixture
def foreign(exported: Path, tmp_path: Path) -> Path:
    """An ONNX file that says nothing about itself."""
    model = onnx.load(exported / "u2netp-demo-fp32.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "theirs.onnx")
    return tmp_path / "theirs.onnx"


def test_a_foreign_onnx_file_is_converted_as_it_is(command, foreign: Path, exported, tmp_path):
    done = command("openvino", "--from", foreign, "--model", "u2netp")
    assert (done.returncode, done.stdout) == (0, "exported/theirs.xml\n"), done.stderr
    found = registry.open_artifact(tmp_path / "exported/theirs.xml")
    assert found.facts.weights.origin == "custom"
    assert found.checks["executed"]["raw_max"] < 1e-4
    x = np.zeros((1, 3, 320, 320), np.float32)
    ours = registry.open_artifact(exported / "u2netp-demo-fp32.onnx")
    with registry.open_runner(found) as one, registry.open_runner(ours) as two:
        np.testing.assert_allclose(one(x), two(x), atol=1e-4)


@pytest.fixture
def foreign_half(exported: Path, tmp_path: Path) -> Path:
    model = onnx.load(exported / "u2netp-demo-fp16.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "half.onnx")
    return tmp_path / "half.onnx"


def test_a_foreign_half_precision_file_is_taken_as_what_it_is(command, foreign_half: Path):
    told = command("inspect", foreign_half, "--model", "u2netp")
    assert told.returncode == 0, told.stderr
    assert "stored unknown, computed fp32 on cpu" in told.stdout
    found = registry.with_runtime_facts(registry.open_artifact(foreign_half, "u2netp"))
    assert found.facts.precision is Precision.FP16


def test_a_file_that_takes_half_precision_pictures_is_refused(exported: Path, tmp_path: Path):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["N", 3, 320, 320])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["N", 3, 320, 320])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, tmp_path / "h.onnx")
    artifact = registry.open_artifact(tmp_path / "h.onnx", "u2netp")
    with pytest.raises(ArtifactError, match=r"takes tensor\(float16\); it must take float32"):
        registry.open_runner(artifact)


def test_a_kernel_of_unusual_types_is_not_taken_for_a_move():
    notes = {
        "op_name": "MatMul",
        "provider": "CPUExecutionProvider",
        "input_type_shape": [{"double": [2, 2]}, {"double": [2, 2]}],
        "output_type_shape": [{"double": [2, 2]}],
    }
    layer = parse_kernel("m_kernel_time", notes)
    assert (layer.precision, layer.moves) == ("fp64", False)
    silent = parse_kernel("m", {**notes, "input_type_shape": [], "output_type_shape": []})
    assert (silent.precision, silent.moves) == ("unknown", False)


@pytest.mark.parametrize("suffix", ["onnx", "xml", "safetensors"])
def test_a_runtime_that_fails_while_computing_is_our_error(exported, picture, monkeypatch, suffix):
    artifact = registry.open_artifact(exported / f"u2netp-demo-fp32.{suffix}")

    def fail(*args: object, **named: object) -> None:
        raise RuntimeError("out of memory\nat some place of its source")

    with registry.open_runner(artifact) as runner:
        if suffix == "onnx":
            monkeypatch.setattr(runner, "_session", SimpleNamespace(run=fail))
        elif suffix == "xml":
            runner._idle_requests.get()
            runner._idle_requests.put(SimpleNamespace(infer=fail))
        else:
            monkeypatch.setattr(runner, "_forward", fail)
        with pytest.raises(ExportError, match="failed: "):
            runner(picture)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["openvino", "--from", "theirs.onnx"], "says nothing about its preprocessing"),
        (["openvino", "--from", "none.onnx"], "there is no artifact at none.onnx"),
        (
            ["openvino", "--from", "theirs.onnx", "--model", "u2netp", "--fp16"],
            "--from converts the file as it is: leave --fp16 out",
        ),
        (
            ["tensorrt", "--from", "theirs.onnx", "--model", "u2netp", "--batch", "4"],
            "--from converts the file as it is: leave --batch out",
        ),
    ],
)
def test_a_conversion_that_cannot_be_is_status_2(command, foreign: Path, words, sentence):
    done = command(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr
    assert not (foreign.parent / "exported").exists()
