"""What an artifact really does on this machine: the account behind `u2export inspect`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table

from u2export import registry
from u2export.artifact import QuantizationFacts, write_text
from u2export.errors import ArtifactError, DependencyError, ParityError
from u2export.executed import Executed, complaint
from u2export.quant import account as accounts
from u2export.quant import shown
from u2export.quant.account import Account
from u2export.spec import Device, Precision

_WIDTH = 110


class Inspection(BaseModel):
    """What ran, and whether it is what was asked.

    Attributes:
        artifact: the model file.
        sha256: of each of its files; empty for a foreign one.
        asked: the precision demanded; None where the artifact's own was.
        threads: for computation.
        executed: the runtime's account.
        layers: share of the computing layers by precision and device.
        macs: share of the multiply-adds by precision and device.
        complaint: what ran otherwise than asked, as a sentence; empty where nothing did.
    """

    model_config = ConfigDict(frozen=True)

    artifact: str
    sha256: dict[str, str]
    asked: Precision | None
    threads: int
    executed: Executed
    layers: dict[str, float]
    macs: dict[str, float]
    complaint: str


def inspect(
    path: Path,
    *,
    model: str | None = None,
    device: Device | None = None,
    threads: int | None = None,
    precision: Precision | None = None,
    compiled: bool = False,
) -> Inspection:
    """Open an artifact and ask its runtime what it really runs.

    Args:
        path: the model file.
        model: for a foreign file, the model it was made from.
        device: where to compute; by default the backend's first.
        threads: for computation; by default all that this process may use.
        precision: to demand of the arithmetic; by default what the artifact says.
        compiled: let PyTorch compile the network.

    Raises:
        U2ExportError: as `open_artifact` and `open_runner` of `u2export.registry` say, but that
            something else ran than was asked is told in the result.
    """
    artifact = registry.open_artifact(path, model)
    asked = registry.run_spec(
        registry.load(artifact.backend), device, threads, precision=precision, compiled=compiled
    )
    with registry.open_unverified(artifact, asked) as runner:
        executed = runner.executed()
    return Inspection(
        artifact=str(path),
        sha256=dict(artifact.files),
        asked=precision,
        threads=asked.threads,
        executed=executed,
        layers=executed.share_of_layers(),
        macs=executed.share_of_macs(),
        complaint=complaint(executed, asked, path.name),
    )


@dataclass(frozen=True)
class Told:
    """What an int8 file tells of how it came about."""

    path: Path
    account: Account
    asked: QuantizationFacts

    @property
    def text(self) -> str:
        """For a terminal."""
        return shown.text(self.account, self.asked)


def quantization(path: Path) -> Told:
    """Read how an int8 artifact was brought to 8 bits.

    Raises:
        InputError: it was not.
        ArtifactError: it was changed.
    """
    artifact = registry.open_artifact(path)
    asked = artifact.facts.quantization
    found = accounts.of(artifact)
    if asked is None:
        raise ArtifactError(f"{path} does not say what was asked of its 8 bits")
    return Told(path, found, asked)


def show_quantization(told: Told, path: Path) -> None:
    """Write the account as a page.

    Raises:
        InputError: the place cannot be written.
        DependencyError: what the plots need is not installed.
    """
    try:
        content = shown.page(told.account, told.asked, f"{told.path.name} in 8 bits")
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"the page needs {error.name}: pip install 'u2export[parity]'"
        ) from error
    write_text(path, content)


def demand(inspection: Inspection) -> None:
    """Refuse what ran otherwise than asked.

    Raises:
        ParityError: with the layers that did.
    """
    if inspection.complaint:
        raise ParityError(inspection.complaint)


def table(inspection: Inspection, *, layers: bool = False) -> str:
    """The account for people: shares, or every layer."""
    executed = inspection.executed
    console = Console(width=_WIDTH, color_system=None)
    if layers:
        shown = Table("layer", "does", "precision", "on", "million multiply-adds")
        for layer in executed.layers:
            macs = f"{layer.macs / 1e6:.1f}" if layer.macs else ""
            shown.add_row(layer.name, layer.kind, layer.precision, layer.device, macs)
    else:
        shown = Table("ran as", "layers", "multiply-adds")
        for what, share in inspection.layers.items():
            part = f"{inspection.macs.get(what, 0.0):.1%}" if inspection.macs else "not told"
            shown.add_row(what, f"{share:.1%}", part)
    with console.capture() as capture:
        console.print(shown)
    verdict = inspection.complaint or "what ran is what was asked"
    return (
        f"{inspection.artifact} in {executed.runtime}: {executed.summary()}\n{capture.get()}"
        f"{len(executed.arithmetic)} layers that compute; {verdict}"
    )
