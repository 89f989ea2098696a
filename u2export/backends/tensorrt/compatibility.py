"""Whether an engine can run on this machine: its version of TensorRT, and its GPU."""

from __future__ import annotations

from u2export.backends.tensorrt import flavours
from u2export.backends.tensorrt.flavours import MODULES, RTX, gpu_generations
from u2export.core.artifact import Artifact
from u2export.core.requests import RunSpec
from u2export.errors import ArtifactError
from u2export.system import hardware


def check_version(artifact: Artifact, flavour: str, version: str) -> None:
    """Check that an engine was built by the installed version of its flavour.

    Raises:
        ArtifactError: it was built by another version.
    """
    name = MODULES[flavour][0]
    build_version = artifact.facts.tools.get(name)
    if build_version is not None and build_version != version:
        raise ArtifactError(
            f"{artifact.path} was built by {name} {build_version}, here is {version}: "
            "export it again"
        )


def unsupported_reason(artifact: Artifact, run_spec: RunSpec) -> str:
    """Say why an engine cannot run on this machine's GPU, as a phrase; empty if it can."""
    gpu = hardware.query_cuda().gpus[0]
    capability = ".".join(map(str, gpu.capability))
    generation = "SM" + "".join(map(str, gpu.capability))
    build = artifact.facts.build
    built_for = build.get("capability")
    if built_for is not None and built_for != capability:
        return (
            f"it was built for compute capability {built_for}, here is {gpu.name} with {capability}"
        )
    targets = build.get("targets")
    if targets is not None and generation not in targets.split(","):
        return f"it was built for {targets}, here is {gpu.name} ({generation})"
    if build.get("flavour") == RTX:
        library, _ = flavours.load_library(RTX)
        if generation not in gpu_generations(library):
            return (
                f"the rtx flavour has no code for {gpu.name} ({generation}): use --flavour tensorrt"
            )
    return ""
