"""Commands that check artifacts: inspect, sensitivity, parity, bisect, verify, replay."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from u2export.cli.options import (
    STDOUT,
    BudgetOption,
    CandidateWeightsOption,
    CompileOption,
    DeviceOption,
    ForeignModelOption,
    HtmlOption,
    JsonOption,
    Panel,
    PicturesOption,
    ReferenceWeightsOption,
    ResampleOption,
    RunPrecisionOption,
    ThreadsOption,
    command_line,
    json_file,
    run_request,
    show,
)
from u2export.core.enums import Precision, Resize
from u2export.errors import InputError
from u2export.system.progress import phases, say, track


def inspect(
    artifact: Annotated[Path, typer.Argument(help="An exported model file.")],
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    precision: RunPrecisionOption = None,
    compiled: CompileOption = False,
    model: ForeignModelOption = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Name every layer.", rich_help_panel=Panel.OUTPUT)
    ] = False,
    json_target: JsonOption = None,
) -> None:
    """Tell what really runs: device and arithmetic of every layer; status 6 if it was not asked."""
    from u2export.diagnostics.inspect import format_inspection, inspect_artifact, raise_if_mismatch

    request = run_request(device, threads, precision, compiled=compiled)
    with phases() as phase:
        phase("asking the runtime")
        inspection = inspect_artifact(artifact, request, model=model)
    text = format_inspection(inspection, layers=layers)
    show(text, inspection.model_dump_json(indent=1), json_target)
    raise_if_mismatch(inspection)


def sensitivity(
    artifact: Annotated[Path, typer.Argument(help="A model file exported with --int8.")],
    html: HtmlOption = None,
    json_target: JsonOption = None,
) -> None:
    """Tell which layers of an int8 file stayed in float32, and why; nothing is run."""
    from u2export.diagnostics.inspect import explain_int8, write_int8_page
    from u2export.system.files import check_writable

    check_writable(html, json_file(json_target))
    explanation = explain_int8(artifact)
    if html is not None:
        write_int8_page(explanation, html)
    show(explanation.text, explanation.record.model_dump_json(indent=1), json_target)


def parity(
    reference: Annotated[
        str, typer.Argument(help="A model file, or 'torch': the weights the candidates come from.")
    ],
    candidates: Annotated[
        list[Path] | None, typer.Argument(help="The model files to be checked.")
    ] = None,
    pictures: PicturesOption = None,
    cases: Annotated[
        str,
        typer.Option(
            help="quick, or all: more pictures and properties.", rich_help_panel=Panel.INPUT
        ),
    ] = "quick",
    budget: BudgetOption = None,
    emulate: Annotated[
        list[str] | None,
        typer.Option(
            help="Check fp16 or bf16 arithmetic as well, emulated; repeatable.",
            rich_help_panel=Panel.ADVANCED,
        ),
    ] = None,
    weights: ReferenceWeightsOption = None,
    model: ForeignModelOption = None,
    resample: ResampleOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing",
            help="A candidate that cannot run here is no failure.",
            rich_help_panel=Panel.RUNTIME,
        ),
    ] = False,
    json_target: JsonOption = None,
    junit: Annotated[
        Path | None, typer.Option(help="Write JUnit XML.", rich_help_panel=Panel.OUTPUT)
    ] = None,
    html: HtmlOption = None,
    github: Annotated[
        bool,
        typer.Option(
            "--github",
            help="Annotate a GitHub run and write its summary.",
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = False,
    replays: Annotated[
        Path,
        typer.Option(help="Folder for the replay files of failures.", rich_help_panel=Panel.OUTPUT),
    ] = Path("replays"),
) -> None:
    """Check whether model files are the same function as a reference, from file to mask."""
    from u2export.images.inputs import image_files
    from u2export.parity.check import check_parity
    from u2export.parity.outputs import (
        certify_passed,
        raise_if_failed,
        write_github,
        write_reports,
    )
    from u2export.parity.replay import write_replays
    from u2export.parity.request import ParityRequest, load_budgets
    from u2export.parity.text import format_report
    from u2export.system.files import check_writable

    if cases not in ("quick", "all"):
        raise InputError(f"cases must be quick or all, got {cases!r}")
    request = ParityRequest(
        reference=reference,
        candidates=tuple(candidates or ()),
        pictures=tuple(image_files(pictures or [])),
        thorough=cases == "all",
        budgets=load_budgets(budget),
        weights=weights,
        model=model,
        resample=Resize.named(resample) if resample else None,
        emulate=tuple(Precision.named(name) for name in emulate or []),
        run=run_request(device, threads),
        allow_missing=allow_missing,
        command=command_line(),
        budget_file=budget,
    )
    if github and json_target == STDOUT:
        raise InputError("--github prints to standard output too: give --json a file")
    check_writable(json_file(json_target), junit, html)
    report, shown_cases = check_parity(request, track)
    show(format_report(report), report.model_dump_json(indent=1), json_target)
    write_reports(report, shown_cases, junit_file=junit, html_file=html)
    if github:
        write_github(report, shown_cases)
    for sentence in certify_passed(request, report):
        say(sentence)
    for path in write_replays(request, report, shown_cases, replays):
        say(f"{path} holds the failure: u2export replay {path}")
    raise_if_failed(report)


def bisect(
    reference: Annotated[
        str,
        typer.Argument(help="'torch': the weights it was made from; or a model file of the same."),
    ],
    candidate: Annotated[Path, typer.Argument(help="A model file that failed.")],
    picture: Annotated[
        Path,
        typer.Option(help="A picture file on which it fails.", rich_help_panel=Panel.INPUT),
    ],
    weights: CandidateWeightsOption = None,
    model: ForeignModelOption = None,
    budget: BudgetOption = None,
    whole: Annotated[
        bool,
        typer.Option(
            "--whole",
            help="Measure every module, also after the first.",
            rich_help_panel=Panel.ADVANCED,
        ),
    ] = False,
    html: HtmlOption = None,
    json_target: JsonOption = None,
) -> None:
    """Name the first PyTorch module at which a model file leaves its reference; status 6 if any."""
    from u2export.parity.bisect import bisect_files, raise_if_culprit
    from u2export.parity.bisect_report import format_bisection
    from u2export.parity.error_growth import write_growth_page
    from u2export.parity.request import load_budgets
    from u2export.system.files import check_writable

    check_writable(html, json_file(json_target))
    with phases() as phase:
        phase("comparing module by module")
        bisection = bisect_files(
            reference,
            candidate,
            picture,
            weights=weights,
            model=model,
            budgets=load_budgets(budget),
            all_modules=whole,
        )
    show(format_bisection(bisection), bisection.model_dump_json(indent=1), json_target)
    if html:
        write_growth_page(bisection, f"{candidate.name} against {reference}", html)
    raise_if_culprit(bisection)


def verify(
    artifact: Annotated[Path, typer.Argument(help="An exported model file.")],
    budget: BudgetOption = None,
    json_target: JsonOption = None,
) -> None:
    """Check an artifact's bytes and its certificate of parity; nothing is run."""
    from u2export.parity.request import load_budgets
    from u2export.parity.verify import format_certificate, verify_artifact

    certificate = verify_artifact(artifact, load_budgets(budget))
    text = format_certificate(artifact, certificate)
    show(text, certificate.model_dump_json(indent=1), json_target)


def replay(
    file: Annotated[Path, typer.Argument(help="A replay file that a failed check left.")],
    device: DeviceOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Check a recorded failure again on this machine; status 6 if it fails here too."""
    from u2export.parity.replay import format_replay, raise_if_replay_failed, replay_failure

    with phases() as phase:
        phase("checking again")
        result = replay_failure(file, run_request(device, threads))
    print(format_replay(result))
    raise_if_replay_failed(result)
