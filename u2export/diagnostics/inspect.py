"""`u2export inspect`: what an artifact really runs on this machine, and how it was quantized."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from rich.table import Table

from u2export.core import registry
from u2export.core.enums import Precision
from u2export.core.execution import Execution, execution_mismatch
from u2export.core.facts import QuantizationFacts
from u2export.core.int8_record import Int8Record, read_int8_record
from u2export.core.requests import RunRequest
from u2export.errors import ArtifactError, DependencyError, ParityError, pip_command
from u2export.quantization import report
from u2export.reports.table import render_tables
from u2export.system.files import write_text

_TABLE_WIDTH = 110


class Inspection(BaseModel):
    """What ran, and whether it matches the request.

    Attributes:
        artifact: the model file.
        sha256: of each of its files; empty for a foreign file.
        asked: the requested precision; None for the artifact's own.
        threads: for computation.
        executed: the runtime's report.
        layers: share of the computing layers by precision and device.
        macs: share of the multiply-adds by precision and device.
        complaint: what did not match the request, as a sentence; empty if all matched.
    """

    model_config = ConfigDict(frozen=True)

    artifact: str
    sha256: dict[str, str]
    asked: Precision | None
    threads: int
    executed: Execution
    layers: dict[str, float]
    macs: dict[str, float]
    complaint: str


def inspect_artifact(
    path: Path, request: RunRequest | None = None, *, model: str | None = None
) -> Inspection:
    """Open an artifact, and let its runtime report what it really runs.

    Args:
        path: the model file.
        request: how to run it.
        model: for a foreign file, the name of its model.

    Returns:
        What ran. A mismatch with the request is reported here and raises nothing.

    Raises:
        U2ExportError: as `open_artifact` and `open_runner_unchecked` of `u2export.core.registry`
            say.
    """
    artifact = registry.open_artifact(path, model)
    run_spec = registry.resolve_run_spec(registry.load(artifact.backend), request)
    with registry.open_runner_unchecked(artifact, run_spec) as runner:
        execution = runner.executed()
    return Inspection(
        artifact=str(path),
        sha256=dict(artifact.files),
        asked=run_spec.precision,
        threads=run_spec.threads,
        executed=execution,
        layers=execution.share_of_layers(),
        macs=execution.share_of_macs(),
        complaint=execution_mismatch(execution, run_spec, path.name),
    )


def raise_if_mismatch(inspection: Inspection) -> None:
    """Raise an error if what ran does not match the request.

    Raises:
        ParityError: it does not; the message names the layers.
    """
    if inspection.complaint:
        raise ParityError(inspection.complaint)


def format_inspection(inspection: Inspection, *, layers: bool = False) -> str:
    """Format an inspection for a terminal.

    Args:
        inspection: what ran.
        layers: list every layer instead of the shares.
    """
    execution = inspection.executed
    table = render_tables(
        _layer_table(execution) if layers else _share_table(inspection), width=_TABLE_WIDTH
    )
    verdict = inspection.complaint or "what ran is what was asked"
    return (
        f"{inspection.artifact} in {execution.runtime}: {execution.summary()}\n{table}\n"
        f"{len(execution.arithmetic)} layers that compute; {verdict}"
    )


def _layer_table(execution: Execution) -> Table:
    table = Table("layer", "does", "precision", "on", "million multiply-adds")
    for layer in execution.layers:
        macs = f"{layer.macs / 1e6:.1f}" if layer.macs else ""
        table.add_row(layer.name, layer.kind, layer.precision, layer.device, macs)
    return table


def _share_table(inspection: Inspection) -> Table:
    table = Table("ran as", "layers", "multiply-adds")
    for arithmetic, layer_share in inspection.layers.items():
        macs = inspection.macs
        mac_share = f"{macs.get(arithmetic, 0.0):.1%}" if macs else "not told"
        table.add_row(arithmetic, f"{layer_share:.1%}", mac_share)
    return table


@dataclass(frozen=True)
class Int8Explanation:
    """How an int8 file was quantized.

    Attributes:
        path: the file.
        record: what the quantization did.
        request: what it had to meet.
    """

    path: Path
    record: Int8Record
    request: QuantizationFacts

    @property
    def text(self) -> str:
        """The explanation for a terminal."""
        return report.format_text(self.record, self.request)


def explain_int8(path: Path) -> Int8Explanation:
    """Read how an int8 artifact was quantized.

    Raises:
        InputError: the artifact is not quantized.
        ArtifactError: the artifact was changed.
    """
    artifact = registry.open_artifact(path)
    request = artifact.facts.quantization
    record = read_int8_record(artifact)
    if request is None:
        raise ArtifactError(f"{path} does not say what was asked of its 8 bits")
    return Int8Explanation(path, record, request)


def write_int8_page(explanation: Int8Explanation, path: Path) -> None:
    """Write the explanation as an HTML page.

    Raises:
        InputError: the file cannot be written.
        DependencyError: a package for the plots is not installed.
    """
    title = f"{explanation.path.name} in 8 bits"
    try:
        content = report.render_int8_page(explanation.record, explanation.request, title)
    except ModuleNotFoundError as error:
        raise DependencyError(f"the page needs {error.name}: {pip_command('parity')}") from error
    write_text(path, content)
