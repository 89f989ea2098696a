"""PyTorch: the reference. Its artifact is the weights themselves, as safetensors."""

from __future__ import annotations

import importlib.metadata
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from u2export import checkpoint
from u2export.artifact import FACTS_KEY, Artifact, Facts, embed_digest, no_digest
from u2export.backend import Array, Backend, Runner, facts_for
from u2export.errors import ArtifactError, DependencyError, ExportError
from u2export.executed import UNKNOWN, Executed, Layer
from u2export.machine import cuda
from u2export.progress import say
from u2export.spec import Device, ExportSpec, Precision, RunSpec
from u2export.u2net import located

TYPES = {
    Precision.FP32: torch.float32,
    Precision.FP16: torch.float16,
    Precision.BF16: torch.bfloat16,
}
NAMES = {kind: str(name) for name, kind in TYPES.items()}
_LOCK = threading.Lock()
# Operations that move or convert values and compute nothing.
MOVES = frozenset(
    {"_to_copy", "alias", "cat", "clone", "contiguous", "copy_", "detach", "slice", "to", "view"}
)


def export(parent: Artifact, spec: ExportSpec, out: Path) -> Facts:
    """Write verified weights as float32 safetensors under the published names.

    Raises:
        ArtifactError: the weights are damaged or do not fit.
    """
    state = checkpoint.network(parent, say).state_dict()
    tools = {name: importlib.metadata.version(name) for name in ("torch", "u2export")}
    facts = facts_for(parent, spec, tools)
    # One entry only: safetensors writes several in an order that changes from run to run.
    metadata = {FACTS_KEY: no_digest() + facts.model_dump_json()}
    save_file({k: v.contiguous() for k, v in state.items()}, out, metadata=metadata)
    embed_digest(out)
    return facts


class TorchRunner(Runner):
    """The reference network in PyTorch, channels last."""

    def __init__(self, artifact: Artifact, asked: RunSpec) -> None:
        """Load the weights.

        Raises:
            ArtifactError: they are damaged or do not fit the model.
        """
        super().__init__(artifact.facts.size, None)
        self._asked = asked
        self._stored = artifact.stored
        self._type = TYPES[asked.precision or Precision.FP32]
        network = checkpoint.network(artifact, say)
        try:
            network = network.to(asked.device.value, self._type)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise DependencyError(
                f"torch {torch.__version__} cannot use {asked.device}: {reason}"
            ) from error
        # torch's stubs know `memory_format` for tensors only
        self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        graphs = "reduce-overhead" if asked.device is Device.CUDA else "default"
        self._call = torch.compile(self._network, mode=graphs) if asked.compiled else self._network

    def _infer(self, x: Array) -> Array:
        return self._compute(self._call, x)

    def _compute(self, network: Callable[[torch.Tensor], torch.Tensor], x: Array) -> Array:
        try:
            with torch.inference_mode(), _settings(self._asked):
                batch = torch.tensor(x).to(self._asked.device.value, self._type)
                batch = batch.contiguous(memory_format=torch.channels_last)
                result = network(batch).to("cpu", torch.float32).contiguous()
                y: Array = result.numpy().copy()
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ExportError(f"torch {torch.__version__} failed: {reason}") from error
        return y

    def _on_device(self, x: Array, count: int) -> list[float]:
        if self._asked.device is not Device.CUDA:
            return []
        samples = []

        def timed(batch: torch.Tensor) -> torch.Tensor:
            event = partial(torch.cuda.Event, enable_timing=True)
            begin, end = event(), event()
            result: torch.Tensor = self._call(batch)
            for _ in range(count):
                begin.record()
                result = self._call(batch)
                end.record()
                end.synchronize()
                samples.append(float(begin.elapsed_time(end)))
            return result

        self._compute(timed, x)
        return samples

    def _executed(self) -> Executed:
        """Run once and note every operation PyTorch dispatches, with its types.

        A compiled network is noted as it is before its compilation, and that is said.
        """
        layers: list[Layer] = []

        def noted(batch: torch.Tensor) -> torch.Tensor:
            with located(self._network) as place, _Account(place, layers):
                result: torch.Tensor = self._network(batch)
            return result

        self._compute(noted, np.zeros((1, 3, self.size, self.size), np.float32))
        return Executed(
            runtime=f"torch {torch.__version__}"
            + (", before compilation" if self._asked.compiled else ""),
            device=self._asked.device,
            stored=self._stored,
            layers=tuple(layers),
        )

    def _release(self) -> None:
        del self._network, self._call


class _Account(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's hook has no types
    """Notes device, type and multiply-adds of every operation."""

    def __init__(self, place: list[str], layers: list[Layer]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._place, self._layers = place, layers

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        first = result[0] if isinstance(result, tuple) else result
        kind = str(func.overloadpacket).removeprefix("aten.")
        if isinstance(first, torch.Tensor) and args and isinstance(args[0], torch.Tensor):
            convolution = "conv" in kind
            self._layers.append(
                Layer(
                    name=f"{self._place[-1]}/{kind}",
                    kind=kind,
                    device=first.device.type,
                    precision=NAMES.get(args[0].dtype, UNKNOWN),
                    moves=kind in MOVES,
                    macs=args[1][0].numel() * first.numel() if convolution else 0,
                )
            )
        return result


@contextmanager
def _settings(asked: RunSpec) -> Iterator[None]:
    """Let this process's PyTorch compute as asked, and as before afterwards.

    Its number of threads, and whether cuDNN computes float32 in TF32 (as it does by default),
    belong to the process: another thread waits.
    """
    with _LOCK:
        threads = torch.get_num_threads()
        torch.set_num_threads(asked.threads)
        # both, since PyTorch refuses to be asked while they differ
        kinds: list[Any] = []
        if asked.device is Device.CUDA:
            kinds = [torch.backends.cudnn.conv, torch.backends.cudnn.rnn]  # type: ignore[attr-defined]  # not in its stubs
        before = [kind.fp32_precision for kind in kinds]
        for kind in kinds:
            kind.fp32_precision = "ieee"
        try:
            yield
        finally:
            for kind, precision in zip(kinds, before, strict=True):
                kind.fp32_precision = precision
            torch.set_num_threads(threads)


def open_runner(artifact: Artifact, asked: RunSpec) -> Runner:
    """Open weights on a device."""
    return TorchRunner(artifact, asked)


def missing_device(device: Device) -> str:
    """Say why this PyTorch cannot run on a device here."""
    if device is Device.CPU or torch.cuda.is_available():
        return ""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA: install a CUDA build of it"
    return cuda().reason or "PyTorch finds no GPU it can use"


def read_facts(path: Path) -> str | None:
    """Read the facts embedded in a safetensors file; None in a foreign file or a checkpoint."""
    if path.suffix.lower() != ".safetensors":
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(FACTS_KEY)
    except (safetensors.SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} is damaged or no safetensors file: {error}") from error
    return text[len(no_digest()) :] if text else None


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
    open=open_runner,
    read_facts=read_facts,
    run_precisions=(Precision.FP32, Precision.FP16, Precision.BF16),
    run_options=("compiled",),
    missing_device=missing_device,
)
