"""PyTorch: the reference. Its artifact is the weights themselves, as safetensors."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file

from u2export import checkpoint
from u2export.artifact import FACTS_KEY, NO_DIGEST, Artifact, Facts, embed_digest
from u2export.backend import Array, Backend, Runner, facts_for
from u2export.errors import ArtifactError
from u2export.progress import say
from u2export.spec import Device, ExportSpec, Precision


def export(parent: Artifact, spec: ExportSpec, out: Path) -> Facts:
    """Write verified weights as float32 safetensors under the published names.

    Raises:
        ArtifactError: the weights are damaged or do not fit.
    """
    state = checkpoint.network(parent, say).state_dict()
    tools = {name: importlib.metadata.version(name) for name in ("torch", "u2export")}
    facts = facts_for(parent, spec, tools)
    # One entry only: safetensors writes several in an order that changes from run to run.
    metadata = {FACTS_KEY: NO_DIGEST + facts.model_dump_json()}
    save_file({k: v.contiguous() for k, v in state.items()}, out, metadata=metadata)
    embed_digest(out)
    return facts


class TorchRunner(Runner):
    """The reference network in PyTorch, float32, channels last."""

    def __init__(self, artifact: Artifact, device: Device, threads: int) -> None:
        """Load the weights.

        Raises:
            ArtifactError: they are damaged or do not fit the model.
        """
        super().__init__(artifact.facts.size, None)
        self._threads = threads
        network = checkpoint.network(artifact, say).to(device.value)
        # torch's stubs know `memory_format` for tensors only
        self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _infer(self, x: Array) -> Array:
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                batch = torch.tensor(x).to(memory_format=torch.channels_last)
                y: Array = self._network(batch).contiguous().numpy().copy()
        finally:
            torch.set_num_threads(before)
        return y

    def _release(self) -> None:
        del self._network


def open_runner(artifact: Artifact, device: Device, threads: int) -> Runner:
    """Open weights on a device."""
    return TorchRunner(artifact, device, threads)


def read_facts(path: Path) -> str | None:
    """Read the facts embedded in a safetensors file; None in a foreign file or a checkpoint."""
    if path.suffix.lower() != ".safetensors":
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(FACTS_KEY)
    except (safetensors.SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} is damaged or no safetensors file: {error}") from error
    return text[len(NO_DIGEST) :] if text else None


BACKEND = Backend(
    name="torch",
    suffixes=(".safetensors", ".pth"),
    parent=None,
    run_packages=("torch", "safetensors"),
    export_packages=("torch", "safetensors"),
    run_extra="export",
    export_extra="export",
    precisions=(Precision.FP32,),
    devices=(Device.CPU,),
    options=(),
    export=export,
    open=open_runner,
    read_facts=read_facts,
)
