"""PyTorch, the reference runtime: its artifact is the weights themselves, as safetensors."""

from __future__ import annotations

import importlib.metadata
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from u2export.core.arrays import Array
from u2export.core.artifact import Artifact, converted_facts
from u2export.core.backend import Backend, Runner
from u2export.core.digest import blank_digest, embed_digest
from u2export.core.enums import Device, Precision
from u2export.core.execution import UNKNOWN, Execution, Layer
from u2export.core.facts import FACTS_KEY, Facts
from u2export.core.requests import ExportSpec, RunSpec
from u2export.core.stored import StoredTensor, possible_precisions
from u2export.errors import ArtifactError, DependencyError, ExportError
from u2export.network import checkpoint
from u2export.network.u2net import U2Net, current_module
from u2export.system import hardware
from u2export.system.documents import first_line
from u2export.system.progress import say

_DTYPES = {
    Precision.FP32: torch.float32,
    Precision.FP16: torch.float16,
    Precision.BF16: torch.bfloat16,
}
_STORED = {"F32": Precision.FP32, "F16": Precision.FP16, "BF16": Precision.BF16}
_DTYPE_NAMES = {dtype: str(precision) for precision, dtype in _DTYPES.items()}
# Operations that move or convert values and compute nothing.
_DATA_MOVEMENT = frozenset(
    {"_to_copy", "alias", "cat", "clone", "contiguous", "copy_", "detach", "slice", "to", "view"}
)
_SETTINGS_LOCK = threading.Lock()  # for settings that belong to the process


def export(parent: Artifact, spec: ExportSpec, out: Path) -> Facts:
    """Write verified weights as float32 safetensors under the published names.

    Args:
        parent: the weights.
        spec: the request.
        out: path of the new file.

    Returns:
        The facts embedded in the file.

    Raises:
        ArtifactError: the weights are damaged or do not fit the model.
    """
    state = checkpoint.load_network(parent, say).state_dict()
    versions = {name: importlib.metadata.version(name) for name in ("torch", "u2export")}
    facts = converted_facts(parent, spec, versions)
    # One entry only: safetensors writes several in an order that changes from run to run.
    metadata = {FACTS_KEY: blank_digest() + facts.model_dump_json()}
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    # not its own way to write files, which only their owner may read
    out.write_bytes(safetensors.torch.save(tensors, metadata))
    embed_digest(out)
    return facts


class TorchRunner(Runner):
    """The reference network in PyTorch, with channels-last memory."""

    def __init__(self, artifact: Artifact, run_spec: RunSpec) -> None:
        """Load the weights onto the device.

        Raises:
            ArtifactError: the weights are damaged or do not fit the model.
            DependencyError: this PyTorch cannot use the device.
        """
        super().__init__(artifact.facts.size, None)
        self._run_spec = run_spec
        self._stored_precision = artifact.stored_precision
        self._dtype = _DTYPES[run_spec.precision or Precision.FP32]
        self._network = _load_on_device(artifact, run_spec.device, self._dtype)
        mode = "reduce-overhead" if run_spec.device is Device.CUDA else "default"
        self._forward = (
            torch.compile(self._network, mode=mode) if run_spec.compiled else self._network
        )

    def _infer(self, x: Array) -> Array:
        return self._compute(self._forward, x)

    def _compute(self, forward: Callable[[torch.Tensor], torch.Tensor], x: Array) -> Array:
        try:
            with torch.inference_mode(), _process_settings(self._run_spec):
                batch = torch.tensor(x).to(self._run_spec.device.value, self._dtype)
                batch = batch.contiguous(memory_format=torch.channels_last)
                result = forward(batch).to("cpu", torch.float32).contiguous()
                y: Array = result.numpy().copy()
        except RuntimeError as error:
            raise ExportError(f"torch {torch.__version__} failed: {first_line(error)}") from error
        return y

    def _on_device(self, x: Array, count: int) -> list[float]:
        if self._run_spec.device is not Device.CUDA:
            return []
        samples = []

        def timed_forward(batch: torch.Tensor) -> torch.Tensor:
            event = partial(torch.cuda.Event, enable_timing=True)
            begin, end = event(), event()
            result: torch.Tensor = self._forward(batch)
            for _ in range(count):
                begin.record()
                result = self._forward(batch)
                end.record()
                end.synchronize()
                samples.append(float(begin.elapsed_time(end)))
            return result

        self._compute(timed_forward, x)
        return samples

    def _executed(self) -> Execution:
        """Run once and record every operation that PyTorch dispatches, with its types.

        Of a compiled network this records the operations before compilation. The runtime's name
        in the result then says so.
        """
        layers: list[Layer] = []

        def recorded_forward(batch: torch.Tensor) -> torch.Tensor:
            with current_module(self._network) as stack, _OperationRecorder(stack, layers):
                result: torch.Tensor = self._network(batch)
            return result

        self._compute(recorded_forward, np.zeros((1, 3, self.size, self.size), np.float32))
        return Execution(
            runtime=f"torch {torch.__version__}"
            + (", before compilation" if self._run_spec.compiled else ""),
            device=self._run_spec.device,
            stored=self._stored_precision,
            layers=tuple(layers),
        )

    def _release(self) -> None:
        del self._network, self._forward


def _load_on_device(artifact: Artifact, device: Device, dtype: torch.dtype) -> U2Net:
    network = checkpoint.load_network(artifact, say)
    try:
        network = network.to(device.value, dtype)
    except RuntimeError as error:
        raise DependencyError(
            f"torch {torch.__version__} cannot use {device}: {first_line(error)}"
        ) from error
    # torch's stubs know `memory_format` for tensors only
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


class _OperationRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's hook has no types
    """Records device, type and multiply-adds of every operation."""

    def __init__(self, module_stack: list[str], layers: list[Layer]) -> None:
        """Record into `layers`, under the name at the top of `module_stack`."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._module_stack, self._layers = module_stack, layers

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation; record it if it maps a tensor to a tensor."""
        result = func(*args, **(kwargs or {}))
        output = result[0] if isinstance(result, tuple) else result
        if isinstance(output, torch.Tensor) and args and isinstance(args[0], torch.Tensor):
            kind = str(func.overloadpacket).removeprefix("aten.")
            # a convolution's second argument is its kernel, (out, in, height, width)
            macs = args[1][0].numel() * output.numel() if "conv" in kind else 0
            self._layers.append(
                Layer(
                    name=f"{self._module_stack[-1]}/{kind}",
                    kind=kind,
                    device=output.device.type,
                    precision=_DTYPE_NAMES.get(args[0].dtype, UNKNOWN),
                    moves=kind in _DATA_MOVEMENT,
                    macs=macs,
                )
            )
        return result


@contextmanager
def _process_settings(run_spec: RunSpec) -> Iterator[None]:
    """Set the process's PyTorch to the request, and set it back afterwards.

    Two settings belong to the process: the number of threads, and whether cuDNN computes float32
    in TF32, as it does by default. Other threads wait meanwhile.
    """
    with _SETTINGS_LOCK:
        threads = torch.get_num_threads()
        torch.set_num_threads(run_spec.threads)
        # both, since PyTorch refuses to report the precision while they differ
        cudnn_parts: list[Any] = []
        if run_spec.device is Device.CUDA:
            cudnn_parts = [torch.backends.cudnn.conv, torch.backends.cudnn.rnn]  # type: ignore[attr-defined]  # not in its stubs
        previous = [part.fp32_precision for part in cudnn_parts]
        for part in cudnn_parts:
            part.fp32_precision = "ieee"
        try:
            yield
        finally:
            for part, precision in zip(cudnn_parts, previous, strict=True):
                part.fp32_precision = precision
            torch.set_num_threads(threads)


def unavailable_reason(device: Device) -> str:
    """Say why this PyTorch cannot run on a device here; empty if it can."""
    if device is Device.CPU or torch.cuda.is_available():
        return ""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA: install a CUDA build of it"
    return hardware.query_cuda().reason or "PyTorch finds no GPU it can use"


def read_facts(path: Path) -> str | None:
    """Read the facts embedded in a safetensors file.

    Returns:
        Their text; None for a foreign file or a checkpoint.

    Raises:
        ArtifactError: the file is damaged or no safetensors file.
    """
    if path.suffix.lower() != ".safetensors":
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(FACTS_KEY)
    except (safetensors.SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} is damaged or no safetensors file: {error}") from error
    return text[len(blank_digest()) :] if text else None


def stored_precisions(path: Path) -> tuple[Precision, ...]:
    """Find the precision of most values in a safetensors file; a checkpoint is read as float32.

    Raises:
        ArtifactError: the file is damaged or no safetensors file.
    """
    if path.suffix.lower() != ".safetensors":
        return (Precision.FP32,)
    try:
        with safetensors.safe_open(path, "pt") as file:
            slices = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118  # no mapping
            return possible_precisions(
                [
                    StoredTensor(_STORED[one.get_dtype()], math.prod(one.get_shape()))
                    for one in slices
                    if one.get_dtype() in _STORED
                ]
            )
    except (safetensors.SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} is damaged or no safetensors file: {error}") from error


BACKEND = Backend(
    name="torch",
    suffixes=(".safetensors", ".pth"),
    parent=None,
    run_packages=("torch", "safetensors"),
    export_packages=("torch", "safetensors"),
    run_extra="export",
    export_extra="export",
    precisions=(Precision.FP32,),
    devices=(Device.CPU, Device.CUDA),
    export=export,
    open_runner=TorchRunner,
    read_facts=read_facts,
    run_precisions=(Precision.FP32, Precision.FP16, Precision.BF16),
    run_options=("compiled",),
    stored_precisions=stored_precisions,
    unavailable_reason=unavailable_reason,
    plot_colour="#d98a4e",
)
