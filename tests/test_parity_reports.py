from __future__ import annotations

import base64
import dataclasses
import errno
import io
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from u2export.compare.budgets import Budget
from u2export.compare.metrics import Difference, MaskComparison
from u2export.errors import InputError
from u2export.parity import github, html, junit
from u2export.parity.explanations import verdict_reason
from u2export.parity.report import CandidateResult, CaseResult, ParityReport, RuntimeInfo
from u2export.reports.heat_map import heat_map
from u2export.reports.mask_pair import MaskPair

BUDGET = Budget(
    raw_max=None, raw_mean=3e-3, mask_mae=2e-3, mask_iou=0.99, worst_iou=0.98, worst_boundary=0.8
)
CLOSE = Difference(raw_max=0.01, raw_mean=0.001, mask_mae=0.0006, mask_iou=0.9976)
FAR = Difference(
    raw_max=0.75,
    raw_mean=0.0625,
    raw_p999=0.625,
    raw_cosine=0.875,
    mask_mae=0.031,
    mask_iou=0.9034,
    mask_flipped=0.01234,
    boundary_f=0.8125,
)
HOSTILE = "<script>alert(1)</script> a|b,c: 100%\n::error::x"


def _case(name: str = "drawn 1", **facts: object) -> CaseResult:
    plain = {"kind": "drawn", "passed": True, "difference": CLOSE, "contrast": 1.0}
    return CaseResult(name=name, **{**plain, **facts})


def _failed(name: str = "cat.jpg") -> CaseResult:
    reasons = ("raw_mean 0.0625, allowed 0.003", "mask_iou 0.9034, at least 0.98")
    return _case(name, passed=False, difference=FAR, stage="infer", reasons=reasons)


def _judgement(subjects: int = 1) -> MaskComparison:
    return MaskComparison(
        pictures=1,
        subjects=subjects,
        raw_max=0.01,
        raw_mean=0.001,
        mask_mae=0.0006 if subjects else None,
        mask_iou=0.9976 if subjects else None,
        worst_iou=0.9951 if subjects else None,
    )


def _candidate(*cases: CaseResult, name: str = "good.onnx", **facts: object) -> CandidateResult:
    party = RuntimeInfo(
        name=name,
        backend="onnx",
        precision="fp16",
        files={name: "ab" * 32},
        weights="cd" * 32,
        runtime="onnxruntime 1.23.2",
        ran="stored fp16, computed fp32 on cpu",
    )
    plain = {"party": party, "budget": BUDGET, "judgement": _judgement()}
    return CandidateResult(cases=cases or (_case(),), **{**plain, **facts})


def _absent() -> CandidateResult:
    why = "TensorRT is not installed."
    absent = _candidate(name="gone.engine", judgement=None, missing=why)
    return absent.model_copy(update={"cases": ()})


def _report(*candidates: CandidateResult, **facts: object) -> ParityReport:
    return ParityReport(
        created="2025-01-02T03:04:05+00:00",
        command="u2export parity good.onnx",
        machine={"CPU": "a CPU with 8 cores"},
        versions={"numpy": "2.4.6"},
        reference=RuntimeInfo(
            name="u2netp.pth", backend="torch", precision="fp32", weights="cd" * 32
        ),
        candidates=candidates,
        **facts,
    )


PASSED = _report(
    _candidate(_case(), _case("batches", skipped="it takes one picture", passed=False))
)
FAILED = _report(_candidate(), _candidate(_case(), _failed(), name="bad.xml"))
MISSING = _report(_candidate(), _absent())
NOT_PASSED = {
    "a failed case": FAILED,
    "a missing candidate": MISSING,
    "no candidate": _report(),
    "all missing, which is allowed": _report(_absent(), allow_missing=True),
    "no subject": _report(_candidate(judgement=_judgement(subjects=0))),
    "nothing compared": _report(_candidate(judgement=None)),
    "over the budget of all pictures": _report(_candidate(reasons=("mask_mae 0.01",))),
    "a failed case without reason": _report(_candidate(_case(passed=False))),
    "two missing candidates of one name": _report(_absent(), _absent()),
}


def _shown(candidate: str = "good.onnx", case: str = "drawn 1") -> MaskPair:
    """A picture twice as wide as high, and masks of 64 pixels that differ in the right half."""
    picture = np.full((100, 200, 3), (10, 200, 30), np.uint8)
    reference = np.zeros((64, 64), np.float32)
    found = reference.copy()
    found[:, 32:] = 0.75
    return MaskPair(candidate, case, picture, reference, found)


# --- the verdict in words ------------------------------------------------------------------------


def test_a_pass_is_said_with_the_number_of_cases_that_it_rests_on():
    assert verdict_reason(PASSED) == "good.onnx stayed within budget: 1 case passed, 1 skipped"


def test_a_failure_names_the_candidate_the_first_case_and_its_stage():
    assert verdict_reason(FAILED) == (
        "bad.xml: 1 of 2 cases failed, the first is 'cat.jpg' at stage 'infer'"
    )


def test_a_missing_candidate_is_a_failure_unless_that_is_allowed():
    assert verdict_reason(MISSING) == "gone.engine: could not be judged: TensorRT is not installed"
    assert verdict_reason(MISSING.model_copy(update={"allow_missing": True})) == (
        "good.onnx stayed within budget: 1 case passed; missing, which was allowed: gone.engine"
    )


def test_judging_nothing_is_called_a_proof_of_nothing():
    nothing = "nothing was judged, which proves nothing: "
    assert verdict_reason(_report()) == nothing + "there is no candidate"
    absent = _report(_absent(), allow_missing=True)
    assert verdict_reason(absent) == nothing + "every candidate is missing"
    assert "no picture with a subject" in verdict_reason(NOT_PASSED["no subject"])


def test_what_fails_over_all_pictures_is_said_although_each_case_passed():
    assert (
        verdict_reason(NOT_PASSED["over the budget of all pictures"]) == "good.onnx: mask_mae 0.01"
    )


def test_of_many_failed_candidates_three_are_named():
    many = _report(*(_candidate(_failed(), name=f"{i}.onnx") for i in range(5)))
    assert verdict_reason(many).count("cases failed") == 0
    assert verdict_reason(many).count("1 of 1 case failed") == 3
    assert verdict_reason(many).endswith("; and 2 more")


# --- GitHub --------------------------------------------------------------------------------------


def test_a_pass_is_one_notice():
    assert github.workflow_commands(PASSED) == [
        "::notice title=parity check passed::"
        "good.onnx stayed within budget: 1 case passed, 1 skipped"
    ]


def test_each_failed_candidate_and_each_failed_case_is_an_error_candidates_first():
    report = _report(_candidate(_failed(), name="a"), _candidate(_failed("dog"), name="b"))
    assert github.workflow_commands(report) == [
        "::error title=a failed::1 of 1 case failed, the first is 'cat.jpg' at stage 'infer'",
        "::error title=b failed::1 of 1 case failed, the first is 'dog' at stage 'infer'",
        "::error title=a failed on cat.jpg at stage 'infer'::"
        "raw_mean 0.0625, allowed 0.003; mask_iou 0.9034, at least 0.98",
        "::error title=b failed on dog at stage 'infer'::"
        "raw_mean 0.0625, allowed 0.003; mask_iou 0.9034, at least 0.98",
    ]


@pytest.mark.parametrize("report", NOT_PASSED.values(), ids=NOT_PASSED)
def test_what_did_not_pass_always_gives_an_error_and_never_a_notice(report: ParityReport):
    found = github.workflow_commands(report)
    assert found
    assert all(line.startswith("::error title=") for line in found)


def test_a_hostile_name_stays_one_command_on_one_line():
    case = _case(HOSTILE, passed=False, reasons=("50%\r\n::warning::y, z",))
    line = github.workflow_commands(_report(_candidate(case)))[1]
    assert line == (
        "::error title=good.onnx failed on <script>alert(1)</script> a|b%2Cc%3A 100%25%0A"
        "%3A%3Aerror%3A%3Ax::50%25%0D%0A::warning::y, z"
    )


@pytest.mark.parametrize(
    "write",
    [
        github.step_summary,
        lambda r: "".join(github.workflow_commands(r)),
        lambda r: html.parity_page(r, []),
    ],
    ids=["summary", "annotations", "page"],
)
def test_a_file_name_that_is_no_text_still_gives_text_that_can_be_written(write):
    text = write(_report(_candidate(_case("photo\udcff.jpg", passed=False))))
    assert b"photo?.jpg" in text.encode()


def test_the_summary_has_a_row_a_candidate_with_its_figures_beside_the_bounds():
    text = github.step_summary(FAILED.model_copy(update={"candidates": FAILED.candidates[1:]}))
    assert text.startswith("## ❌ Parity check FAILED\n\nWhy: bad.xml: 1 of 2 cases failed")
    assert (
        "\n| bad.xml | **FAILED** | fp16 | executed | 1 of 2 | cat.jpg "
        "| 0.0006 (at most 0.002) | 0.9976 (at least 0.99) |\n"
    ) in text


def test_the_summary_lists_failed_cases_first_in_a_collapsed_table():
    rows = github.step_summary(FAILED).split("<details><summary>All cases (3)</summary>\n\n")[1]
    assert rows.splitlines()[2:5] == [
        "| **FAILED** | bad.xml | cat.jpg | infer "
        "| raw_mean 0.0625, allowed 0.003; mask_iou 0.9034, at least 0.98 |",
        "| passed | good.onnx | drawn 1 |  |  |",
        "| passed | bad.xml | drawn 1 |  |  |",
    ]
    assert rows.endswith("\n\n</details>\n")


def test_a_summary_of_a_pass_says_so_and_gives_the_skipped_cases_reason():
    text = github.step_summary(PASSED)
    assert text.startswith("## ✅ Parity check passed\n")
    assert "\n| skipped | good.onnx | batches |  | it takes one picture |\n" in text


def test_markdown_is_escaped_and_a_name_stays_in_its_cell():
    text = github.step_summary(_report(_candidate(_case(HOSTILE), _case("_a_ raw_max [x](y)"))))
    assert r"| \<script\>alert(1)\</script\> a\|b,c: 100% ::error::x |" in text
    assert r"| \_a\_ raw_max \[x\](y) |" in text


def test_a_summary_draws_the_masks_side_by_side_and_where_they_differ():
    text = github.step_summary(FAILED, [_shown("bad.xml", "drawn 2")])
    lines = text.split("bad.xml on drawn 2:\n\n```text\n")[1].split("\n```")[0].splitlines()
    assert len(lines) == 1 + 18
    # the reference is empty; the candidate's right half is 0.75, whose square root is 0.87
    right = "▓" * 18
    apart = "▓" * 18
    assert lines[1] == " " * 36 + "  " + " " * 18 + right + "  " + " " * 18 + apart
    faint = dataclasses.replace(_shown(), candidate_mask=_shown().candidate_mask / 3)
    drawn = github.step_summary(FAILED, [faint]).split("```text\n")[1].splitlines()
    # a difference of 0.25 is drawn by its root, 0.5, so that it is seen
    assert drawn[1].split() == ["░" * 18, "▒" * 18]
    small = MaskPair("a", "b", np.zeros((3, 3, 3), np.uint8), *(np.ones((3, 3), np.float32),) * 2)
    drawn = github.step_summary(FAILED, [small]).split("```text\n")[1].splitlines()
    assert drawn[1].split() == ["█" * 36] * 2
    sizes = MaskPair("a", "b", small.picture, small.reference_mask, np.ones((2, 2), np.float32))
    assert "the masks are of different sizes" in github.step_summary(FAILED, [sizes])


def test_only_the_first_few_cases_are_drawn():
    assert github.step_summary(FAILED, [_shown()] * 9).count("```text") == 4


def test_a_summary_of_very_many_cases_stays_below_what_github_takes():
    cases = [_case(f"{i} {'x' * 100}", reasons=("y" * 150,)) for i in range(5000)]
    text = github.step_summary(_report(_candidate(*cases, _failed("the failed one"))))
    assert len(text.encode()) < 1024 * 1024
    assert "| **FAILED** | good.onnx | the failed one |" in text
    assert "\nand 4001 more\n" in text


# --- JUnit ---------------------------------------------------------------------------------------


def _read(report: ParityReport, folder: Path) -> ElementTree.Element:
    junit.write_junit(report, folder / "out" / "parity.xml")
    assert [path.name for path in (folder / "out").iterdir()] == ["parity.xml"]
    return ElementTree.parse(folder / "out" / "parity.xml").getroot()


def _totals(element: ElementTree.Element) -> list[int]:
    return [int(element.attrib[name]) for name in ("tests", "failures", "errors", "skipped")]


def _outcomes(root: ElementTree.Element) -> dict[str, str]:
    """What each test gave, by its name; nothing where it passed."""
    marks = {"failure", "error", "skipped"}
    return {
        test.attrib["name"]: " ".join(child.tag for child in test if child.tag in marks)
        for test in root.iter("testcase")
    }


def test_a_passed_report_has_a_test_for_each_metric_and_the_right_totals(tmp_path: Path):
    root = _read(PASSED, tmp_path)
    assert _totals(root) == [7, 0, 0, 1]
    assert _totals(root[0]) == [7, 0, 0, 1]
    assert _outcomes(root) == {
        "drawn 1: raw_max": "",
        "drawn 1: raw_mean": "",
        "drawn 1: mask_mae": "",
        "drawn 1: mask_iou": "",
        "drawn 1: boundary_f": "",
        "batches": "skipped",
        "all pictures": "",
    }
    assert {test.attrib["classname"] for test in root.iter("testcase")} == {"good.onnx"}
    assert root.find(".//skipped").attrib["message"] == "it takes one picture"


def test_only_the_metrics_that_the_reasons_name_fail(tmp_path: Path):
    root = _read(FAILED, tmp_path)
    assert _totals(root) == [17, 2, 0, 0]
    assert [suite.attrib["name"] for suite in root] == ["good.onnx", "bad.xml"]
    assert [_totals(suite) for suite in root] == [[6, 0, 0, 0], [11, 2, 0, 0]]
    failing = [name for name, outcome in _outcomes(root).items() if outcome == "failure"]
    assert failing == ["cat.jpg: raw_mean", "cat.jpg: mask_iou"]
    failure = root.find(".//testcase[@name='cat.jpg: mask_iou']/failure")
    assert failure.attrib == {"message": "mask_iou 0.9034, at least 0.98", "type": "infer"}


@pytest.mark.parametrize("difference", [FAR, None])
def test_a_failure_that_names_no_metric_is_a_test_of_its_stage(tmp_path: Path, difference):
    reasons = ("inputs differ by 0.3 at most",)
    case = _case(passed=False, difference=difference, stage="preprocess", reasons=reasons)
    root = _read(_report(_candidate(case)), tmp_path)
    assert _totals(root) == [7 if difference else 2, 1, 0, 0]
    assert _outcomes(root)["drawn 1: preprocess"] == "failure"
    assert root.find(".//failure").text == "inputs differ by 0.3 at most"


def test_a_passed_case_without_figures_is_one_test_of_its_name(tmp_path: Path):
    root = _read(_report(_candidate(_case("the same twice", difference=None))), tmp_path)
    assert _outcomes(root) == {"the same twice": "", "all pictures": ""}


def test_a_missing_candidate_is_an_error_and_where_that_is_allowed_it_is_skipped(tmp_path: Path):
    assert _outcomes(_read(MISSING, tmp_path))["gone.engine"] == "error"
    allowed = _read(MISSING.model_copy(update={"allow_missing": True}), tmp_path)
    assert _totals(allowed) == [7, 0, 0, 1]
    assert "TensorRT is not installed" in allowed.find(".//skipped").attrib["message"]


@pytest.mark.parametrize("report", NOT_PASSED.values(), ids=NOT_PASSED)
def test_what_did_not_pass_never_gives_a_file_without_failure_or_error(report, tmp_path: Path):
    assert not report.passed
    root = _read(report, tmp_path)
    _, failures, errors, _ = _totals(root)
    assert failures + errors > 0
    assert len(root.findall(".//failure")) == failures
    assert len(root.findall(".//error")) == errors


def test_candidates_of_one_name_stay_apart(tmp_path: Path):
    root = _read(_report(_candidate(), _candidate()), tmp_path)
    assert [_totals(suite) for suite in root] == [[6, 0, 0, 0], [6, 0, 0, 0]]


def test_names_that_xml_cannot_hold_still_give_a_file_that_can_be_read(tmp_path: Path):
    case = _case("a\x00b\x1b<c>&\"'\n\udcff", difference=None)
    root = _read(_report(_candidate(case)), tmp_path)
    assert root.find(".//testcase").attrib["name"] == "a\ufffdb\ufffd<c>&\"'\n\ufffd"


def test_junit_goes_into_a_pipe_and_leaves_the_pipe(tmp_path: Path):
    pipe = tmp_path / "pipe.xml"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    junit.write_junit(PASSED, pipe)
    assert os.read(reading, 1 << 20).rstrip().endswith(b"</testsuites>")
    os.close(reading)
    assert pipe.is_fifo()


def test_an_older_file_is_replaced_at_once_and_never_written_into(tmp_path: Path):
    target, older = tmp_path / "parity.xml", tmp_path / "older.xml"
    target.write_text("older")
    older.hardlink_to(target)
    junit.write_junit(PASSED, target)
    assert older.read_text() == "older"
    assert ElementTree.parse(target).getroot().tag == "testsuites"


def test_a_full_disk_leaves_the_older_file_and_nothing_else(tmp_path: Path, monkeypatch):
    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    target = tmp_path / "parity.xml"
    target.write_text("older")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"parity\.xml cannot be written: No space left"):
        junit.write_junit(PASSED, target)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [
        ("parity.xml", "older")
    ]


def test_a_place_that_cannot_be_written_is_said_in_a_sentence_and_nothing_is_left(tmp_path: Path):
    taken = tmp_path / "taken.xml"
    taken.mkdir()
    with pytest.raises(InputError, match=r"taken\.xml cannot be written: Is a directory"):
        junit.write_junit(PASSED, taken)
    assert list(tmp_path.iterdir()) == [taken]


# --- the page ------------------------------------------------------------------------------------


class _Page(HTMLParser):
    """A page's tags with their attributes, what is open at each, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in {"meta", "link", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def sources(self) -> list[str]:
        return [attributes["src"] for tag, attributes in self.tags if tag == "img"]


def _decoded(source: str) -> Image.Image:
    kind, content = source.split(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_the_page_begins_with_the_verdict_in_words_and_why():
    passed, failed = _Page(html.parity_page(PASSED, [])), _Page(html.parity_page(FAILED, []))
    assert "✔ passed good.onnx stayed within budget: 1 case passed, 1 skipped." in passed.text
    assert "FAILED" not in passed.text
    assert f"✘ FAILED {verdict_reason(FAILED)}." in failed.text


@pytest.mark.parametrize("report", NOT_PASSED.values(), ids=NOT_PASSED)
def test_a_page_of_what_did_not_pass_says_failed_and_is_well_formed(report: ParityReport):
    page = _Page(html.parity_page(report, []))
    assert page.open == []
    assert page.text.startswith("FAILED: parity check against u2netp.pth ✘ FAILED ")


def test_a_missing_candidate_is_shown_as_one_that_was_not_run():
    text = _Page(html.parity_page(MISSING, [])).text
    assert "? missing gone.engine could not be judged: TensorRT is not installed" in text
    assert "What ran nothing How not run" in text


def test_the_worst_pictures_figures_stand_beside_the_budget():
    text = _Page(html.parity_page(FAILED, [])).text
    assert "Worst picture cat.jpg" in text
    for row in (
        "0 is equal 0.031 0.0006 at most 0.002 over all",
        "1 is equal 0.9034 ✘ over budget 0.9976, worst 0.9951 at least 0.98 each, 0.99 over all",
        "0 % is equal 1.234% no bound",
        "1 is equal 0.8125 at least 0.8 each",
        "output 0.75 0.01 no bound",
        "output 0.0625 ✘ over budget 0.001 at most 0.003 each",
        "differ by less 0.625 no bound",
        "1 is equal 0.875000 no bound",
    ):
        assert row in text
    assert text.count("over budget") == 2


def test_masks_of_a_picture_without_subject_are_said_not_to_be_judged():
    text = _Page(html.parity_page(_report(_candidate(_case(contrast=0.01))), [])).text
    assert "0.9976 (no subject: not judged)" in text
    assert "0.001 (no subject" not in text


def test_cases_are_told_with_stage_and_reasons_failed_first_and_skipped_last():
    bad = _candidate(*PASSED.candidates[0].cases[::-1], _failed())
    rows = _Page(html.parity_page(_report(bad), [])).text.split("differs Why ")[1]
    assert rows.startswith(
        "✘ FAILED good.onnx cat.jpg drawn infer raw_mean 0.0625, allowed 0.003; "
        "mask_iou 0.9034, at least 0.98 "
        "✔ passed good.onnx drawn 1 drawn "
        "– skipped good.onnx batches drawn it takes one picture What was run"
    )


def test_the_page_tells_what_was_run_where_and_with_which_files():
    text = _Page(html.parity_page(PASSED, [])).text
    for fact in (
        "Created 2025-01-02T03:04:05+00:00",
        "Command u2export parity good.onnx",
        "CPU a CPU with 8 cores",
        "numpy 2.4.6",
        "Precision fp16 Runtime onnxruntime 1.23.2",
        "What ran stored fp16, computed fp32 on cpu How executed",
        f"Candidate good.onnx file good.onnx: {'ab' * 32} weights {'cd' * 32}",
    ):
        assert fact in text


def test_the_page_refers_to_nothing_outside_and_runs_nothing():
    text = html.parity_page(FAILED, [_shown()])
    assert "http" not in text
    assert "//" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    page = _Page(text)
    assert not {"script", "iframe", "object"} & {tag for tag, _ in page.tags}
    addresses = {a[name] for _, a in page.tags for name in ("src", "href") if name in a}
    assert all(address.startswith("data:") for address in addresses)
    assert not re.findall(r"url\(|@import", text)


def test_a_hostile_name_is_text_wherever_it_is_shown():
    bad = _case(HOSTILE, passed=False, stage="<b>", reasons=('"><img src=x onerror=y>',))
    party = RuntimeInfo(
        name="<i>", backend="<i>", precision="<i>", runtime="<i>", files={"<i>": "<i>"}
    )
    one = _candidate(bad, party=party, notes=("<i>",))
    page = _Page(html.parity_page(_report(one), [_shown("<i>", HOSTILE)]))
    assert not {"script", "i", "b"} & {tag for tag, _ in page.tags}
    assert all(source.startswith("data:image/png") for source in page.sources())
    assert "<script>alert(1)</script> a|b,c: 100% ::error::x" in page.text


def test_each_shown_case_has_its_picture_both_masks_and_the_difference_in_one_size():
    page = _Page(html.parity_page(PASSED, [_shown(), _shown()]))
    images = [_decoded(source) for source in page.sources()]
    assert [image.size for image in images] == [(320, 160)] * 8
    picture, reference, found, _ = images[:4]
    assert picture.getpixel((160, 80)) == (10, 200, 30)
    assert (reference.getpixel((80, 80)), reference.getpixel((240, 80))) == (0, 0)
    assert (found.getpixel((80, 80)), found.getpixel((240, 80))) == (0, 191)
    assert "200 × 100 pixels. The masks differ by 0.75 at most and 0.375 on average" in page.text
    assert "50.000% of the pixels changed sides" in page.text


def test_the_heat_map_is_black_where_masks_agree_and_brighter_the_further_they_are_apart():
    reference = np.zeros((4, 4), np.float32)
    found = np.repeat(np.array([[0, 1 / 16, 9 / 16, 1]], np.float32), 4, axis=0)
    drawn = heat_map(reference, found, (4, 4))
    colours = [drawn.getpixel((x, 0)) for x in range(4)]
    assert colours[0] == (0, 0, 0)
    assert colours[3] == (252, 253, 191)
    assert np.abs(np.subtract(colours[1:3], [(80, 18, 123), (251, 136, 97)])).max() <= 2
    brightness = [sum(colour) for colour in colours]
    assert brightness == sorted(set(brightness))


def test_a_single_pixel_that_differs_is_still_seen_when_the_heat_map_is_reduced():
    reference = np.zeros((1000, 1000), np.float32)
    for place in range(300, 310):
        found = reference.copy()
        found[place, place] = 1
        assert np.asarray(heat_map(reference, found, (320, 240))).max() == 253


def test_the_page_tells_of_a_shown_case_whether_it_passed():
    text = _Page(html.parity_page(FAILED, [_shown("bad.xml", "cat.jpg"), _shown("bad.xml")])).text
    assert "✘ FAILED bad.xml on cat.jpg" in text
    assert "First differs at stage 'infer': raw_mean 0.0625, allowed 0.003;" in text
    assert "✔ passed bad.xml on drawn 1" in text


@pytest.mark.parametrize(("shape", "size"), [((1, 1), (320, 320)), ((300, 1), (64, 320))])
def test_a_picture_of_hardly_any_pixels_is_shown_large_enough_to_be_seen(shape, size):
    masks = np.zeros((64, 64), np.float32)
    tiny = MaskPair("good.onnx", "1xN", np.zeros((*shape, 3), np.uint8), masks, masks)
    sizes = {_decoded(source).size for source in _Page(html.parity_page(PASSED, [tiny])).sources()}
    assert sizes == {size}


def test_masks_of_different_sizes_are_shown_without_a_difference():
    masks = np.zeros((64, 64), np.float32), np.zeros((32, 32), np.float32)
    shown = MaskPair("good.onnx", "drawn 1", np.zeros((9, 9, 3), np.uint8), *masks)
    page = _Page(html.parity_page(PASSED, [shown]))
    assert len(page.sources()) == 3
    assert "the masks are of different sizes" in page.text
