"""Commands that measure and choose: `bench`, `recommend`, `auto`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from u2export.cli.options import (
    DEFAULT_MODEL,
    STDOUT,
    DeviceOption,
    ForeignModelOption,
    HtmlOption,
    JsonOption,
    MaxLatencyOption,
    MaxMaeOption,
    MaxMemoryOption,
    MaxSizeOption,
    MinIouOption,
    ModelOption,
    Panel,
    PicturesOption,
    ReferenceWeightsOption,
    RunPrecisionOption,
    ThreadsOption,
    WeightsOption,
    command_line,
    json_file,
    run_request,
    show,
    write_json,
)
from u2export.core.models import find_model
from u2export.system.progress import phases, say

if TYPE_CHECKING:  # imported when called: the help must be quick
    from u2export.benchmark.report import BenchmarkReport

DurationOption = Annotated[
    float,
    typer.Option(
        help="Seconds of steady measuring at most, all files together.",
        rich_help_panel=Panel.RUNTIME,
    ),
]


def bench(
    artifacts: Annotated[list[Path], typer.Argument(help="The model files to be measured.")],
    pictures: PicturesOption = None,
    batch: Annotated[
        str | None,
        typer.Option(
            help="Pictures a call, such as 1,4,8; by default the fewest.",
            rich_help_panel=Panel.INPUT,
        ),
    ] = None,
    duration: DurationOption = 30.0,
    reference: Annotated[
        str,
        typer.Option(
            help="What masks are compared with: 'torch' or a model file.",
            rich_help_panel=Panel.INPUT,
        ),
    ] = "torch",
    weights: ReferenceWeightsOption = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="The row that ratios are taken against; else the first.",
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            help="An earlier report of this machine to compare with.",
            rich_help_panel=Panel.LIMITS,
        ),
    ] = None,
    max_slowdown: Annotated[
        str,
        typer.Option(
            help="With --baseline: status 6 beyond this, such as 10%.",
            rich_help_panel=Panel.LIMITS,
        ),
    ] = "10%",
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    precision: RunPrecisionOption = None,
    model: ForeignModelOption = None,
    json_target: JsonOption = None,
    html: HtmlOption = None,
    csv: Annotated[
        Path | None,
        typer.Option(help="Write comma-separated values.", rich_help_panel=Panel.OUTPUT),
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write a Markdown table.", rich_help_panel=Panel.OUTPUT)
    ] = None,
) -> None:
    """Measure model files in turns and compare their masks; status 6 if one is wrong or fails."""
    from u2export.benchmark.measure import measure_artifacts
    from u2export.benchmark.outputs import raise_if_failed, write_reports
    from u2export.benchmark.plan import BenchmarkPlan, parse_batches, parse_slowdown
    from u2export.benchmark.report import read_report
    from u2export.benchmark.text import format_benchmark
    from u2export.images.inputs import image_files
    from u2export.system.files import check_writable

    max_share, earlier = parse_slowdown(max_slowdown), read_report(baseline) if baseline else None
    if earlier:
        _refuse_other_machine(earlier)
    plan = BenchmarkPlan(
        artifacts=tuple(artifacts),
        pictures=tuple(image_files(pictures or [])),
        reference=reference,
        weights=weights,
        model=model,
        run=run_request(device, threads, precision),
        batches=parse_batches(batch),
        seconds=duration,
        baseline=against,
        command=command_line(),
    )
    check_writable(json_file(json_target), html, csv, markdown)
    with phases() as phase:
        report, mask_pairs = measure_artifacts(plan, phase)
    show(format_benchmark(report), report.model_dump_json(indent=1), json_target)
    write_reports(report, mask_pairs, html_file=html, csv_file=csv, markdown_file=markdown)
    if earlier:
        _compare_with_baseline(report, earlier, max_share, printed=json_target != STDOUT)
    raise_if_failed(report)


def _refuse_other_machine(earlier: BenchmarkReport) -> None:
    from u2export.benchmark.baseline import check_comparable
    from u2export.system.hardware import describe_machine

    check_comparable(describe_machine(), earlier)


def _compare_with_baseline(
    report: BenchmarkReport, earlier: BenchmarkReport, max_share: float, *, printed: bool
) -> None:
    """Tell what became slower or is missing; a wrong mask matters more than a slowdown.

    Raises:
        ParityError: a row has the wrong mask or failed; or it became slower by more than
            allowed, or may have.
    """
    from u2export.benchmark import baseline
    from u2export.benchmark.outputs import raise_if_failed

    changes = baseline.compare_reports(report, earlier, max_share)
    lines = [baseline.format_change(change) for change in changes]
    lines += [
        f"{name}: in the baseline, and not measured now"
        for name in baseline.missing_rows(report, earlier)
    ]
    for line in lines:
        if printed:
            print(line)
        else:
            say(line)
    raise_if_failed(report)
    baseline.raise_if_slower(changes, max_share)


def recommend(
    report: Annotated[Path, typer.Argument(help="What `u2export bench --json` wrote.")],
    max_latency_ms: MaxLatencyOption = None,
    min_iou: MinIouOption = None,
    max_mae: MaxMaeOption = None,
    max_size_mb: MaxSizeOption = None,
    max_memory_mb: MaxMemoryOption = None,
    json_target: JsonOption = None,
) -> None:
    """Name the fastest file with the right mask that keeps all limits; status 6 if none does."""
    from u2export.benchmark import recommend
    from u2export.benchmark.limits import Limits
    from u2export.benchmark.recommend_report import format_recommendation
    from u2export.benchmark.report import read_report

    limits = Limits(
        max_latency_ms=max_latency_ms,
        min_iou=min_iou,
        max_mae=max_mae,
        max_size_mb=max_size_mb,
        max_memory_mb=max_memory_mb,
    )
    measured = read_report(report)
    recommendation = recommend.recommend(measured, limits)
    text = format_recommendation(measured, recommendation, limits)
    show(text, recommendation.model_dump_json(indent=1), json_target)
    recommend.raise_if_no_winner(recommendation)


def auto(
    model: ModelOption = None,
    weights: WeightsOption = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            help="Sides of the input to try, such as 320,256.", rich_help_panel=Panel.MODEL
        ),
    ] = None,
    pictures: PicturesOption = None,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            help="Try int8 too, calibrated with these, other pictures; repeatable.",
            rich_help_panel=Panel.INPUT,
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder for the winner.", rich_help_panel=Panel.OUTPUT),
    ] = Path("exported"),
    threads: ThreadsOption = None,
    duration: DurationOption = 30.0,
    max_latency_ms: MaxLatencyOption = None,
    min_iou: MinIouOption = None,
    max_mae: MaxMaeOption = None,
    max_size_mb: MaxSizeOption = None,
    max_memory_mb: MaxMemoryOption = None,
    json_target: JsonOption = None,
    html: HtmlOption = None,
) -> None:
    """Export every format, check, measure, and leave the best here; prints its path."""
    from u2export.auto import AutoRequest, choose_best, format_choice
    from u2export.benchmark.limits import Limits
    from u2export.benchmark.outputs import write_reports
    from u2export.benchmark.plan import parse_sizes
    from u2export.benchmark.recommend import raise_if_no_winner
    from u2export.images.inputs import image_files
    from u2export.system.files import check_writable

    request = AutoRequest(
        find_model(model or DEFAULT_MODEL),
        weights,
        fallback=model is None and weights is None,
        limits=Limits(
            max_latency_ms=max_latency_ms,
            min_iou=min_iou,
            max_mae=max_mae,
            max_size_mb=max_size_mb,
            max_memory_mb=max_memory_mb,
        ),
        sizes=parse_sizes(sizes),
        pictures=tuple(image_files(pictures or [])),
        calibration=tuple(image_files(calibration or [])),
        out=out,
        run=run_request(threads=threads),
        seconds=duration,
        command=command_line(),
    )
    check_writable(json_file(json_target), html)
    with phases() as phase:
        choice = choose_best(request, phase)
    say(format_choice(choice, request))
    write_json(choice.report.model_dump_json(indent=1), json_target)
    write_reports(choice.report, choice.mask_pairs, html_file=html)
    raise_if_no_winner(choice.recommendation)
    if json_target == STDOUT:
        say(str(choice.path), always=True)
    else:
        print(choice.path)
