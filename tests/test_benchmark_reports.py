from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections.abc import Callable
from functools import lru_cache
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from u2export.benchmark import csv_table, html, markdown, text
from u2export.benchmark.report import BenchmarkReport, Latency, MaskAccuracy, Ratio, Row, Throughput
from u2export.reports.mask_pair import MaskPair

HOSTILE = "<script>alert(1)</script> a|b\n[red]=*x*`_y_ $z$ &lt; \x1b[31m \udcff \u202e"
SIZE = 40  # pixels of the shown masks


def _row(name: str, **facts: object) -> Row:
    plain = {"file": name, "backend": "onnx", "precision": "fp32"}
    return Row(name=name, **{**plain, **facts})


def _latency(median: float, **facts: object) -> Latency:
    """Samples in two blocks, and an interval of 1 ms below and 2 ms above."""
    blocks = ((median, median), (median,))
    return Latency(median=median, low=median - 1, high=median + 2, blocks=blocks, **facts)


def _mask(worst: float, **facts: object) -> MaskAccuracy:
    plain = {"passed": True, "pictures": 2, "mae": 0.001, "iou": 0.999, "worst_iou": worst}
    return MaskAccuracy(**{**plain, **facts})


def _wrong() -> MaskAccuracy:
    reasons = ("mask_iou 0.9, at least 0.98",)
    return _mask(0.9, passed=False, reasons=reasons, worst_picture="cat.jpg")


def _report(*rows: Row, **facts: object) -> BenchmarkReport:
    plain = {
        "created": "2025-01-02T03:04:05+00:00",
        "command": "u2export bench *.onnx",
        "machine": {"CPU": "a CPU with 8 cores"},
        "versions": {"numpy": "2.4.6"},
        "reference": "u2netp.pth",
        "pictures": ("cat.jpg", "dog.jpg"),
        "baseline": "base.onnx",
        "calibration_ms": 12.34,
        "seconds": 61.0,
        "stable": True,
    }
    return BenchmarkReport(rows=rows, **{**plain, **facts})


BASE = _row(
    "base.onnx",
    latency=_latency(100, p90=110, p95=120),
    throughput=Throughput(pictures=10.5, how="2 streams"),
    mask=_mask(1.0),
    memory_mb=400,
    size_mb=4.5,
    stages={"decode": 4, "infer": 100, "encode": 6},
    files={"base.onnx": "ab" * 32},
    ran="stored fp32, computed fp32 on cpu",
)
GOOD = _row(
    "good.xml", latency=_latency(80), mask=_mask(0.99), memory_mb=100, size_mb=2.25,
    stages={"decode": 4, "infer": 80, "encode": 6}, notes=("It was cold.",),
)  # fmt: skip
WRONG = _row("wrong.xml", latency=_latency(20), mask=_wrong(), memory_mb=50, size_mb=1.125)
BATCH = _row(
    "good.xml b4", latency=_latency(360), batch=4, unjudged="batches are not compared"
)  # fmt: skip
GONE = _row("gone.engine", failed="there is no NVIDIA GPU")
RATIOS = (
    Ratio(name="good.xml", ratio=0.8, low=0.75, high=0.85, verdict="faster"),
    Ratio(name="wrong.xml", ratio=0.2, low=0.19, high=0.21, verdict="faster"),
)
FULL = _report(BASE, GOOD, WRONG, BATCH, GONE, ratios=RATIOS, notes=("The fan was loud.",))
POOR = {
    "no row": _report(),
    "all failed": _report(_row("a", failed="no"), _row("b", failed="no")),
    "no mask": _report(_row("a", latency=_latency(5))),
    "neither time nor mask": _report(_row("a")),
    "a mask without figures": _report(
        _row("a", latency=_latency(5), mask=MaskAccuracy(passed=True))
    ),
    "a mask without time": _report(_row("a", mask=_mask(0.99))),
    "wrong without reason": _report(
        _row("a", latency=_latency(5), mask=MaskAccuracy(passed=False))
    ),
    "one row": _report(BASE),
    "hardly any facts": _report(_row("a", failed="no"), machine={}, versions={}, pictures=()),
    "hostile names": _report(
        _row(HOSTILE, latency=_latency(5), mask=_mask(0.99, worst_picture=HOSTILE), ran=HOSTILE,
             memory_mb=1, size_mb=1, stages={"infer": 5, HOSTILE: 1}, files={HOSTILE: HOSTILE},
             notes=(HOSTILE,), runtime=HOSTILE, throughput=Throughput(pictures=1, how=HOSTILE)),
        _row(HOSTILE + "2", failed=HOSTILE),
        _row(HOSTILE + "3", latency=_latency(3),
             mask=MaskAccuracy(passed=False, reasons=(HOSTILE,))),
        _row(HOSTILE + "4", latency=_latency(9), unjudged=HOSTILE),
        ratios=(Ratio(name=HOSTILE, ratio=1, low=1, high=1, verdict=HOSTILE),),
        command=HOSTILE, reference=HOSTILE, baseline=HOSTILE + "3", pictures=(HOSTILE,),
        machine={HOSTILE: HOSTILE}, versions={HOSTILE: HOSTILE}, notes=(HOSTILE,),
    ),
}  # fmt: skip
FORMS: dict[str, Callable[[BenchmarkReport], str]] = {
    "text": text.format_benchmark,
    "markdown": markdown.markdown_page,
    "sheet": csv_table.csv_text,
    "page": lambda report: html.benchmark_page(report, []),
}


class _Page(HTMLParser):
    """A page's tags with their attributes, its plots by key, its headline, and its text."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.plots: dict[str, Any] = {}
        self.words: list[str] = []
        self.heading = ""
        self.feed(content)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in {"meta", "link", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        attributes = self.tags[-1][1] if self.tags else {}
        if self.open and self.open[-1] == "script":
            if attributes.get("type") == "application/json":
                self.plots[attributes["id"].removeprefix("plot-")] = json.loads(data)
        elif self.open and self.open[-1] != "style":
            self.words += data.split()
            self.heading += data if self.open[-1] == "h1" else ""

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def traces(self, plot: str) -> dict[str, Any]:
        return {trace["name"]: trace for trace in self.plots[plot]["data"]}


@lru_cache
def _full() -> _Page:
    return _Page(html.benchmark_page(FULL, []))


# --- every form ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("report", POOR.values(), ids=POOR)
def test_a_report_that_knows_little_or_has_hostile_names_is_written_and_can_be_saved(report, form):
    written = form(report)
    assert written.encode("utf-8")
    assert "\x1b" not in written.replace(html.get_plotlyjs(), "")
    assert "\udcff" not in written


@pytest.mark.parametrize(
    "write",
    [
        text.format_benchmark,
        markdown.markdown_page,
        lambda r: _Page(html.benchmark_page(r, [])).text,
    ],
)
@pytest.mark.parametrize("form", ["all failed", "no mask", "neither time nor mask"])
def test_without_a_right_mask_there_is_said_to_be_no_winner(form, write):
    told = write(POOR[form])
    assert "no row was measured and has the right mask: there is no winner" in told
    assert "fastest" not in told


def test_a_fast_row_with_a_wrong_mask_never_wins_and_is_never_highlighted():
    assert "\nfastest with the right mask: good.xml, 80 ms a picture\n" in text.format_benchmark(
        FULL
    )
    written = markdown.markdown_page(FULL)
    assert written.startswith(
        "## Benchmark: fastest with the right mask: good.xml, 80 ms a picture\n"
    )
    assert [line for line in written.splitlines() if "**right**" in line] == [
        "| good.xml | 80 (79–82) | 0.8 (0.75–0.85) faster |  | 100 | 2.25 | 0.9900 | **right** |  |"
    ]
    assert _full().heading.strip() == "★ fastest with the right mask: good.xml, 80 ms a picture"
    for plot in ("latency", "memory", "files", "trade"):
        traces = _full().traces(plot)
        assert traces["fastest with the right mask"]["ids"] == ["good.xml"]
        assert traces["WRONG MASK"]["ids"] == ["wrong.xml"]
    best = [one["text"] for one in _full().plots["latency"]["layout"]["annotations"]
            if one["text"].startswith("<b>")]  # fmt: skip
    assert best == ["<b>2  ★ good.xml: 80 ms</b>"]
    assert "wrong.xml takes only 20 ms, but its mask is wrong" in _full().text


# --- the terminal --------------------------------------------------------------------------------


def test_the_terminal_tells_time_ratio_and_verdict_of_each_row():
    lines = [re.split(r"\s*│\s*", line) for line in text.format_benchmark(FULL).splitlines()]
    rows = {cells[1]: cells[2:-1] for cells in lines if len(cells) > 3 and cells[1]}
    assert rows["base.onnx"][:7] == [
        "100 (99–102)", "baseline", "10.5", "400", "4.5", "1.0000", "right"
    ]  # fmt: skip
    assert rows["good.xml"][0] == "80 (79–82)"
    # 360 ms a call of four pictures, 359 to 362
    assert rows["good.xml b4"][0] == "90 (89.8–90.5)"
    assert rows["wrong.xml"][5:7] == ["0.9000", "WRONG MASK"]
    assert rows["gone.engine"][:6] == [""] * 6
    assert rows["gone.engine"][6].startswith("failed:")


def test_below_the_table_stand_wrong_and_failed_rows_percentiles_and_notes():
    assert text.format_benchmark(FULL).split("└")[1].splitlines()[1:] == [
        "fastest with the right mask: good.xml, 80 ms a picture",
        "wrong.xml has the WRONG MASK: mask_iou 0.9, at least 0.98; worst on 'cat.jpg'",
        "gone.engine failed: there is no NVIDIA GPU",
        "base.onnx: p90 110 ms, p95 120 ms a picture",
        "good.xml: It was cold.",
        "The fan was loud.",
    ]


def test_the_terminals_table_is_never_wider_than_118_characters():
    wide = _row("x" * 300, ran="y" * 300, failed="z" * 300)
    table = text.format_benchmark(_report(*FULL.rows, wide, ratios=RATIOS)).split("└")[0]
    # the first line is no part of the table
    assert {len(line) for line in table.splitlines()[1:]} <= {0, 118}
    assert "".join(re.findall(r"│(x+) ", table)) == "x" * 300


def test_an_unstable_measurement_is_said_to_be_one():
    sentence = "The intervals are wider than they should be"
    unstable = FULL.model_copy(update={"stable": False})
    for form in (text.format_benchmark, markdown.markdown_page, FORMS["page"]):
        assert sentence in form(unstable)
        assert sentence not in form(FULL)


def test_brackets_in_a_name_are_no_markup_for_the_terminal():
    assert "│[red]a[/]" in text.format_benchmark(_report(_row("[red]a[/]", failed="[/x]")))


def test_figures_have_three_digits_and_never_an_exponent():
    values = [0.123456, 1.005, 86, 86.44, 999.4, 999.5, 1234.56, 0, None]
    assert [text.format_number(value) for value in values] == [
        "0.123", "1", "86", "86.4", "999", "1000", "1235", "0", ""
    ]  # fmt: skip


# --- Markdown ------------------------------------------------------------------------------------


@pytest.mark.parametrize("report", [FULL, *POOR.values()], ids=["full", *POOR])
def test_each_line_of_the_markdown_table_has_nine_cells(report: BenchmarkReport):
    lines = [line for line in markdown.markdown_page(report).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(report.rows)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {10}


def test_markdown_shows_a_hostile_name_as_it_is():
    name = r"\<script\>alert(1)\</script\> a\|b \[red\]=\*x\*\`\_y\_ \$z\$ \&lt; ?\[31m ? ?"
    assert f"| {name} | 5 (4–7) |" in markdown.markdown_page(POOR["hostile names"])


def test_the_headline_names_no_winner_alone_where_others_cannot_be_told_from_it():
    close = _row("n.onnx", latency=_latency(80.5), mask=_mask(0.99))
    slow = _row("slow.onnx", latency=_latency(160), mask=_mask(0.99))
    wrong = _row("fooled.onnx", latency=_latency(80), mask=_wrong())
    assert text.headline(_report(slow, close, GOOD, wrong)) == (
        "fastest with the right mask: good.xml, 80 ms a picture; as fast within the noise: n.onnx"
    )
    assert "noise" not in text.headline(_report(slow, GOOD, wrong))


def test_markdown_tells_machine_versions_calibration_date_and_command():
    assert markdown.markdown_page(FULL).endswith(
        "\n- Machine: CPU a CPU with 8 cores\n- Versions: numpy 2.4.6\n"
        "- Calibration: a fixed piece of work took 12.3 ms; the measurement took 61 s\n"
        "- Date: 2025-01-02T03:04:05+00:00\n- Command: u2export bench \\*.onnx\n"
    )


# --- comma-separated values ----------------------------------------------------------------------


def _read(report: BenchmarkReport) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_table.csv_text(report)), strict=True))


def test_the_sheet_has_the_figures_unrounded_and_nothing_where_there_is_none():
    base, good, wrong, batch, gone = _read(FULL)
    assert base["name"] == "base.onnx"
    assert float(base["latency_median_ms"]) == 100
    assert (float(base["latency_low_ms"]), float(base["latency_high_ms"])) == (99, 102)
    assert (base["latency_p90_ms"], base["latency_p99_ms"]) == ("110.0", "")
    assert (base["latency_samples"], base["pictures_per_second"]) == ("3", "10.5")
    assert [base[f"stage_{name}_ms"] for name in ("decode", "infer", "postprocess")] == [
        "4.0", "100.0", ""
    ]  # fmt: skip
    assert base["sha256"] == "base.onnx " + "ab" * 32
    assert (good["ratio_to_baseline"], good["ratio_verdict"]) == ("0.8", "faster")
    assert (float(good["memory_mb"]), float(good["files_mb"])) == (100, 2.25)
    assert [wrong[name] for name in ("verdict", "mask_worst_iou", "mask_worst_picture")] == [
        "wrong", "0.9", "cat.jpg"
    ]  # fmt: skip
    assert (float(batch["picture_median_ms"]), float(batch["latency_median_ms"])) == (90, 360)
    assert (gone["verdict"], gone["why"]) == ("failed", "there is no NVIDIA GPU")
    assert gone["latency_median_ms"] == gone["memory_mb"] == gone["mask_iou"] == ""


@pytest.mark.parametrize("report", POOR.values(), ids=POOR)
def test_the_sheet_has_one_line_a_row_with_the_same_columns(report: BenchmarkReport):
    lines = list(csv.reader(io.StringIO(csv_table.csv_text(report)), strict=True))
    assert len(lines) == len(csv_table.csv_text(report).splitlines()) == 1 + len(report.rows)
    assert {len(line) for line in lines} == {len(lines[0])}


def test_a_name_that_a_spreadsheet_would_compute_is_made_a_text():
    assert _read(_report(_row("=1+2"), _row("a=1")))[0]["name"] == "'=1+2"
    assert _read(_report(_row("=1+2"), _row("a=1")))[1]["name"] == "a=1"


# --- the page ------------------------------------------------------------------------------------


def test_the_bars_are_the_medians_with_their_intervals_shortest_on_top():
    traces = _full().traces("latency")
    assert {name: trace["x"] for name, trace in traces.items()} == {
        "fastest with the right mask": [80],
        "right mask": [100],
        "WRONG MASK": [20],
        "mask not compared": [90],
    }
    places = {trace["ids"][0]: trace["y"] for trace in traces.values()}
    assert places == {
        "wrong.xml": [0],
        "good.xml": [1],
        "good.xml b4": [2],
        "base.onnx": [3],
    }
    low, high = _full().plots["latency"]["layout"]["yaxis"]["range"]
    assert low > 3
    assert high < 0
    good = traces["fastest with the right mask"]["error_x"]
    assert (good["arrayminus"], good["array"]) == ([1], [2])
    batch = traces["mask not compared"]["error_x"]
    assert (batch["arrayminus"], batch["array"]) == ([0.25], [0.5])


def test_a_wrong_mask_is_told_by_more_than_a_colour():
    traces = _full().traces("latency")
    assert traces["WRONG MASK"]["marker"]["pattern"]["shape"] == "/"
    assert traces["right mask"]["marker"]["pattern"]["shape"] == ""
    labels = [one["text"] for one in _full().plots["latency"]["layout"]["annotations"]]
    assert labels[0] == "1  ✘ wrong.xml: 20 ms"
    assert labels[3] == "4  base.onnx: 100 ms"


def test_an_error_of_zero_is_drawn_at_the_floor_of_the_logarithmic_axis():
    traces = _full().traces("trade")
    assert _full().plots["trade"]["layout"]["yaxis"]["type"] == "log"
    assert (traces["right mask"]["x"], traces["right mask"]["y"]) == ([100], [1e-6])
    assert traces["WRONG MASK"]["y"] == [pytest.approx(0.1)]
    assert "mask not compared" not in traces


def test_only_right_masks_make_the_front_of_best_trade_offs():
    front = _full().traces("trade")["best trade-offs"]
    assert (front["x"], front["y"]) == ([80, 100], [pytest.approx(0.01), 1e-6])


def test_a_marker_is_the_larger_the_more_memory_its_row_needs():
    traces = _full().traces("trade")
    wrong, good, base = (
        traces[name]["marker"]["size"][0]
        for name in ("WRONG MASK", "fastest with the right mask", "right mask")
    )
    assert wrong < good < base


def test_the_stages_are_stacked_in_the_order_of_the_way():
    plot = _full().plots["stages"]
    assert plot["layout"]["barmode"] == "stack"
    assert [(trace["name"], trace["x"]) for trace in plot["data"]] == [
        ("decode", [4, 4]),
        ("infer", [80, 100]),
        ("encode", [6, 6]),
    ]
    labels = [one["text"] for one in plot["layout"]["annotations"]]
    assert labels == ["<b>2  ★ good.xml: 90 ms</b>", "4  base.onnx: 110 ms"]


def test_memory_and_files_are_drawn_where_they_are_known():
    assert _full().traces("memory")["right mask"]["x"] == [400]
    assert _full().traces("files")["WRONG MASK"]["x"] == [1.125]
    assert "mask not compared" not in _full().traces("memory")
    assert "gpu" not in _full().plots
    gpu = _Page(html.benchmark_page(_report(_row("a", latency=_latency(5), gpu_mb=700)), []))
    assert gpu.traces("gpu")["mask not compared"]["x"] == [700]


def test_a_failed_row_has_no_bar_but_its_reason():
    assert "gone.engine" not in json.dumps(_full().plots)
    assert "Not measured gone.engine : there is no NVIDIA GPU" in _full().text


def test_the_page_has_the_figures_in_a_table_too_and_what_was_run_where():
    told = _full().text
    for fact in (
        "80 (79–82) 0.8 (0.75–0.85) faster",
        "1.25 times as fast as base.onnx",
        "110 / 120 / –",
        "10.5 with 2 streams",
        "Created 2025-01-02T03:04:05+00:00 Command u2export bench *.onnx Reference u2netp.pth",
        "Calibration a fixed piece of work took 12.3 ms Took 61 s",
        "CPU a CPU with 8 cores numpy 2.4.6",
        "base.onnx " + "ab" * 32,
    ):
        assert fact in told
    assert "Joules" not in told  # nobody measured them


def test_the_page_asks_nothing_from_outside():
    page = _Page(html.benchmark_page(FULL, [_shown()]))
    addresses = [a[name] for _, a in page.tags for name in ("src", "href", "data") if name in a]
    assert addresses
    assert all(address.startswith("data:") for address in addresses)
    assert not {"iframe", "object", "base", "form", "a"} & {tag for tag, _ in page.tags}
    policy = next(meta for meta in page.named("meta") if "http-equiv" in meta)["content"]
    assert policy.startswith("default-src 'none'; ")
    assert "http" not in policy
    assert "http" not in html.benchmark_page(FULL, [_shown()]).replace(
        html.get_plotlyjs(), ""
    ).replace("http-equiv", "")


def test_plotly_is_in_the_page_once_and_not_at_all_where_there_is_nothing_to_draw():
    assert html.benchmark_page(FULL, []).count(html.get_plotlyjs()) == 1
    nothing = html.benchmark_page(POOR["all failed"], [])
    assert len(nothing) < 20_000
    assert "Nothing was measured, so there is nothing to draw" in _Page(nothing).text


def test_a_hostile_name_is_text_in_the_page_and_in_its_plots():
    shown = _shown(HOSTILE, HOSTILE)
    page = _Page(html.benchmark_page(POOR["hostile names"], [shown]))
    # the plots, plotly.js, and what draws them
    assert len(page.named("script")) == len(page.plots) + 2
    assert all("src" not in script for script in page.named("script"))
    assert "<script>alert(1)</script> a|b" in page.text
    # plotly reads tags and entities in its labels
    for plot in page.plots.values():
        labels = [one["text"] for one in plot["layout"].get("annotations", ())]
        labels += [label for trace in plot["data"] for label in trace.get("hovertext", ())]
        tags = {tag for label in labels for tag in re.findall(r"<[^>]*>", label)}
        assert tags <= {"<b>", "</b>", "<br>"}


def test_the_page_has_a_language_fits_a_telephone_and_tells_its_plots_in_words():
    page = _full()
    assert page.named("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.named(
        "meta"
    )
    words = [div["aria-label"] for div in page.named("div") if div.get("role") == "img"]
    assert len(words) == len(page.plots) == 5
    assert words[0].startswith("Time of a picture, ms; 1 ✘ wrong.xml: 20 ms; 2 ★ good.xml: 80 ms")
    for plot in page.plots.values():
        assert "width" not in plot["layout"]
        assert plot["layout"]["paper_bgcolor"] == plot["layout"]["plot_bgcolor"] == "rgba(0,0,0,0)"


# --- masks ---------------------------------------------------------------------------------------


def _shown(candidate: str = "wrong.xml", case: str = "cat.jpg", side: int = SIZE) -> MaskPair:
    """A picture twice as wide as high, and masks that differ in the right half."""
    reference = np.zeros((SIZE, SIZE), np.float32)
    found = np.zeros((side, side), np.float32)
    found[:, side // 2 :] = 1
    return MaskPair(
        candidate, case, np.full((50, 100, 3), (10, 200, 30), np.uint8), reference, found
    )


def _images(page: _Page) -> list[Image.Image]:
    sources = [attributes["src"] for attributes in page.named("img")]
    return [Image.open(io.BytesIO(base64.b64decode(one.split(",")[1]))) for one in sources]


def test_masks_stand_side_by_side_with_their_difference_and_names():
    page = _Page(html.benchmark_page(FULL, [_shown()]))
    picture, reference, found, apart = _images(page)
    assert {image.size for image in _images(page)} == {(320, 160)}
    assert picture.getpixel((160, 80)) == (10, 200, 30)
    assert (reference.getpixel((80, 80)), reference.getpixel((240, 80))) == (0, 0)
    assert (found.getpixel((80, 80)), found.getpixel((240, 80))) == (0, 255)
    assert apart.getpixel((80, 80)) == (0, 0, 0)
    assert min(apart.getpixel((240, 80))) > 150
    assert [image["alt"] for image in page.named("img")] == [
        "cat.jpg, wrong.xml: picture",
        "cat.jpg, wrong.xml: reference's mask",
        "cat.jpg, wrong.xml: candidate's mask",
        "cat.jpg, wrong.xml: difference",
    ]
    assert "✘ WRONG MASK wrong.xml on cat.jpg They differ by 1 at most and by 0.5" in page.text


def test_masks_of_different_sizes_or_of_no_number_are_shown_all_the_same():
    page = _Page(html.benchmark_page(POOR["no row"], [_shown(side=20)]))
    assert len(_images(page)) == 3
    assert "The masks are of different sizes." in page.text
    lost = _shown()
    lost.candidate_mask[:] = np.nan
    assert _images(_Page(html.benchmark_page(FULL, [lost])))[2].getextrema() == (0, 0)
