"""Whatever a file says of itself, a wrong one does not pass."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from attacks.judge import cheats
from attacks.table import picture

from u2export.compare.budgets import BUDGETS, budget_for
from u2export.compare.probe_images import degenerate_cases, synthetic_cases, unforeseen_cases
from u2export.core import registry
from u2export.core.enums import Precision
from u2export.core.facts import QUANTIZATION_KEY
from u2export.core.models import MODELS, PictureSpec
from u2export.core.requests import ExportSpec
from u2export.core.stored import StoredTensor, possible_precisions
from u2export.errors import ArtifactError
from u2export.export.build import build_artifact
from u2export.images.decode import open_image
from u2export.images.preprocess import preprocess
from u2export.network import weights
from u2export.parity.check import check_parity
from u2export.parity.lookalikes import NAME as LOOKALIKES
from u2export.parity.outputs import certify_passed
from u2export.parity.report import CandidateResult
from u2export.parity.request import ParityRequest

ONNX = "u2netp-demo-fp32-64-bN.onnx"
XML = "u2netp-demo-fp32-64-bN.xml"
LAX = {"calibration": [], "min_iou": 0.0, "max_mae": 1.0, "best_effort": True, "seed": 0}
NOTHING = {"in_float": 0, "mask_iou": 0.0, "worst_iou": 0.0, "mask_mae": 1.0}
RECORD = {
    "searched": [],
    "judged": [],
    "drawn": True,
    "in_float": [],
    "why": {},
    "share": 0.0,
    "curve": [],
    "result": NOTHING,
    "signed": NOTHING,
    "kept": False,
}
# What a manifest can say to be judged mildly.
LIES = {
    "int8": {"precision": "int8"},
    "int8 that may do anything": {"precision": "int8", "quantization": LAX},
    "int8 of the best effort": {
        "precision": "int8",
        "quantization": LAX,
        "build": {QUANTIZATION_KEY: json.dumps(RECORD), "int8_share": "0.0"},
    },
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
}
SPEC = PictureSpec(size=64)


@pytest.fixture(scope="module")
def honest(small: Path) -> Path:
    return small / ONNX


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def precision(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def judged(honest: Path, precision: str, tmp_path_factory) -> dict[str, CandidateResult]:
    """Every cheat and its honest twin, in float32 and with weights rounded to bfloat16.

    The bfloat16 files say the truth of their precision: they get the widest budget there is.
    """
    folder, names = tmp_path_factory.mktemp("cheats"), ["honest", *cheats.names()]
    for name in names:
        model = onnx.load(honest)
        if precision == "bf16":
            cheats.in_bfloat16(model)
        if name != "honest":
            cheats.apply(model, name)
        cheats.save(model, honest, folder / f"{name}.onnx", precision=precision)
    paths = tuple(folder / f"{name}.onnx" for name in names)
    report, _ = check_parity(ParityRequest("torch", paths))
    return dict(zip(names, report.candidates, strict=True))


def test_the_honest_twins_pass(judged, precision: str):
    result = judged["honest"]
    assert result.passed, [case for case in result.cases if not case.passed]
    assert result.party.precision == precision
    assert result.budget == BUDGETS[Precision.named(precision)]
    # what is as near as can be is not compared with mistakes
    found = [case.passed for case in result.cases if case.name == LOOKALIKES]
    assert found == ([True] if precision == "bf16" else [])


@pytest.mark.parametrize("name", cheats.names())
def test_a_cheat_fails(judged, name: str):
    expected = "refused" if name == "never the same twice" else "failed"
    assert judged[name].state == expected


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("swapped channels", "channels swapped after normalization"),
        ("half a pixel", "a shift by half a pixel"),
        ("no mean and deviation", "mean and standard deviation left out"),
        ("mirrored", "a mirrored picture"),
        ("upside down", "a picture upside down"),
    ],
)
def test_a_usual_mistake_is_named(judged, name: str, mistake: str):
    [case] = [case for case in judged[name].failed if case.name == LOOKALIKES]
    assert case.reasons[0].startswith(f"its maps look like those of {mistake}: ")


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("name", ["honest", *cheats.names()])
def test_a_precision_that_the_weights_do_not_have_is_refused(
    honest: Path, tmp_path: Path, name: str, lie: str
):
    """Also of an honest file: what it says would be believed elsewhere."""
    model = onnx.load(honest)
    if name != "honest":
        cheats.apply(model, name)
    cheats.save(model, honest, tmp_path / "a.onnx", **LIES[lie])
    artifact = registry.open_artifact(tmp_path / "a.onnx")
    random = name == "never the same twice"
    sentence = "it draws random numbers" if random else "but its weights are fp32"
    with pytest.raises(ArtifactError, match=sentence):
        registry.with_stored_precision(artifact)


@pytest.mark.parametrize("lie", LIES)
def test_the_command_refuses_it_too(command, honest: Path, tmp_path: Path, lie: str):
    model = onnx.load(honest)
    cheats.apply(model, "inverted")
    cheats.save(model, honest, tmp_path / "a.onnx", **LIES[lie])
    for words in (("parity", honest, "a.onnx"), ("verify", "a.onnx")):
        done = command(*words)
        assert done.returncode == 4, done.stderr
        assert "but its weights are fp32" in done.stderr


def _fixed_means() -> list[float]:
    """The means of the inputs of all pictures that every check uses."""
    cases = [*synthetic_cases(8), *degenerate_cases(large=False)]
    inputs = [preprocess(open_image(io.BytesIO(case.read())), SPEC) for case in cases]
    return [float(x.mean()) for x in inputs]


def test_a_file_that_is_right_for_known_pictures_only_fails(honest: Path, tmp_path: Path):
    model = onnx.load(honest)
    cheats.cheat_output(model, cheats.right_for(_fixed_means()))
    cheats.save(model, honest, tmp_path / "a.onnx")
    report, _ = check_parity(ParityRequest("torch", (tmp_path / "a.onnx",)))
    failed = [case.name for case in report.candidates[0].failed]
    assert failed
    assert all(name.startswith("drawn for these files") for name in failed)


def test_a_file_that_is_wrong_for_one_picture_fails_on_it(honest: Path, tmp_path: Path):
    picture(tmp_path / "mine.png")
    mean = float(preprocess(open_image(tmp_path / "mine.png"), SPEC).mean())
    model = onnx.load(honest)
    cheats.cheat_output(model, cheats.wrong_for(mean))
    cheats.save(model, honest, tmp_path / "a.onnx")
    request = ParityRequest("torch", (tmp_path / "a.onnx",), (tmp_path / "mine.png",))
    failed = [case.name for case in check_parity(request)[0].candidates[0].failed]
    assert "mine.png" in failed


@pytest.mark.parametrize(
    "lie",
    [
        {"inverted": True},
        {"resize": "bilinear"},
        {"mean": [0.0, 0.0, 0.0]},
        {"std": [1.0, 1.0, 1.0]},
    ],
    ids=str,
)
def test_other_preprocessing_than_the_references_fails_and_is_shown(
    honest: Path, tmp_path: Path, lie: dict[str, object]
):
    """The network is the honest one; whoever runs the file gets other masks."""
    cheats.save(onnx.load(honest), honest, tmp_path / "a.onnx", **lie)
    result = check_parity(ParityRequest("torch", (tmp_path / "a.onnx",)))[0].candidates[0]
    assert result.state == "failed"
    assert any(note.startswith(f"its {next(iter(lie))} is ") for note in result.notes)


def test_weights_that_only_lie_beside_the_layers_do_not_count(honest: Path, tmp_path: Path):
    model = onnx.load(honest)
    big = onnx.numpy_helper.from_array(np.zeros(10_000_000, np.int8), "unused")
    model.graph.initializer.append(big)
    onnx.save(model, tmp_path / "a.onnx")
    artifact = registry.open_artifact(tmp_path / "a.onnx", "u2netp-demo")
    found = registry.with_stored_precision(artifact)
    assert found.facts.precision is Precision.FP32


def test_pictures_follow_from_the_files():
    one, other = (
        [case.read() for case in unforeseen_cases(digest, 2)] for digest in ("0" * 64, "1" * 64)
    )
    assert one == [case.read() for case in unforeseen_cases("0" * 64, 2)]
    assert not set(one) & set(other)


def test_8_bits_that_are_only_stored_are_no_int8(command, honest: Path, tmp_path: Path):
    """Half of the arithmetic at least must run in 8 bits, whatever share the file says."""
    model = onnx.load(honest)
    cheats.store_in_8_bits(model)
    cheats.save(model, honest, tmp_path / "a.onnx", precision="int8", build={"int8_share": "0.0"})
    artifact = registry.open_artifact(tmp_path / "a.onnx")
    assert registry.with_stored_precision(artifact).facts.precision is Precision.INT8
    (tmp_path / "honest.onnx").write_bytes(honest.read_bytes())
    words = ("honest.onnx", "--model", "u2netp-demo", "--json", "p.json")
    done = command("parity", honest, "a.onnx", *words)
    assert done.returncode == 6, done.stderr
    assert "0.0% of the multiply-adds ran in int8 where 50.0% should" in done.stdout
    lying, other = json.loads((tmp_path / "p.json").read_text())["candidates"]
    assert [case["name"] for case in lying["cases"]] == ["computes what it says"]
    assert other["judgement"]["mask_iou"] == 1  # the others are judged all the same


@pytest.mark.parametrize("shape", [(3000, 3000)])
def test_layers_that_lead_nowhere_do_not_count(honest: Path, tmp_path: Path, shape):
    model = onnx.load(honest)
    big = onnx.numpy_helper.from_array(np.zeros(shape, np.float16), "big")
    model.graph.initializer.append(big)
    model.graph.node.append(onnx.helper.make_node("MatMul", ["big", "big"], ["nowhere"]))
    cheats.save(model, honest, tmp_path / "a.onnx", precision="fp16")
    with pytest.raises(ArtifactError, match="but its weights are fp32"):
        registry.with_stored_precision(registry.open_artifact(tmp_path / "a.onnx"))


def test_int8_beside_the_real_weights_does_not_count(honest: Path, tmp_path: Path):
    model = onnx.load(honest)
    cheats.hide_behind_8_bits(model)
    onnx.save(model, tmp_path / "a.onnx")
    artifact = registry.open_artifact(tmp_path / "a.onnx", "u2netp-demo")
    assert registry.with_stored_precision(artifact).facts.precision is Precision.FP32


def _mixed(int8: int, fp32: int) -> list[StoredTensor]:
    return [StoredTensor(Precision.INT8, int8), StoredTensor(Precision.FP32, fp32)]


def test_a_file_with_many_layers_in_float_may_say_int8():
    """Few weights can be most of the arithmetic, which its runtime tells."""
    assert possible_precisions(_mixed(40, 60)) == (Precision.FP32, Precision.INT8)
    assert possible_precisions(_mixed(60, 40)) == (Precision.INT8,)
    assert possible_precisions(_mixed(1, 99)) == (Precision.FP32,)


def test_facts_that_a_file_holds_twice_are_refused(honest: Path, tmp_path: Path):
    """One of two entries would be believed, and the runtime might take the other."""
    model = onnx.load(honest)
    model.metadata_props.append(next(p for p in model.metadata_props if p.key == "u2export"))
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(ArtifactError, match="holds its facts 2 times"):
        registry.load("onnx").read_facts(tmp_path / "a.onnx")


def test_a_row_that_says_that_a_ruined_mask_passed_never_wins(command, tmp_path: Path):
    kept = Path(__file__).parents[2] / "compatibility" / "data" / "bench.json"
    report = json.loads(kept.read_text())
    winner = json.loads(command("recommend", kept, "--json").stdout)["winner"]
    [row] = [row for row in report["rows"] if row["name"] == winner]
    row["mask"]["iou"] = 0.01
    (tmp_path / "b.json").write_text(json.dumps(report))
    done = command("recommend", "b.json", "--json", "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["winner"] != winner
    assert "its mask is wrong: IoU 0.01" in done.stdout


@pytest.mark.parametrize("batch", [4, 16])
def test_a_fixed_batch_is_judged_whole(small: Path, tmp_path: Path, batch: int):
    """The first picture of each batch is right."""
    spec = ExportSpec(MODELS["u2netp-demo"], 64, batch=batch)
    source = weights.find(MODELS["u2netp-demo"])
    artifact = build_artifact("onnx", spec, source, tmp_path)
    model = onnx.load(artifact.path)
    cheats.cheat_output(model, cheats.right_for_the_first)
    cheats.save(model, artifact.path, tmp_path / "a.onnx")
    paths = (artifact.path, tmp_path / "a.onnx")
    honest, wrong = check_parity(ParityRequest("torch", paths))[0].candidates
    assert honest.passed
    assert [case.name for case in wrong.failed] == ["a batch and its pictures alone"]


def test_weights_beside_the_file_must_be_in_the_manifest(command, honest: Path, tmp_path: Path):
    facts = json.loads(Path(f"{honest}.json").read_text())["facts"]
    model = onnx.load(honest)
    onnx.external_data_helper.convert_model_to_external_data(model, location="a.data")
    onnx.save(model, tmp_path / "made.onnx")
    assert (tmp_path / "a.data").stat().st_size > 1_000_000
    model = onnx.load(tmp_path / "made.onnx", load_external_data=False)
    cheats.save(model, honest, tmp_path / "a.onnx", **facts)
    picture(tmp_path / "p.png")
    for words in (("run", "a.onnx", "p.png"), ("verify", "a.onnx"), ("parity", "torch", "a.onnx")):
        done = command(*words)
        assert done.returncode == 4, done.stderr
        assert "its manifest does not list it: export it again" in done.stderr


@pytest.mark.parametrize(
    "lie",
    [{"channels": "BGR"}, {"scaling": "none"}, {"output_rule": "inverted"}, {"batch": 1}],
    ids=str,
)
def test_words_that_mislead_a_reader_are_refused(command, honest: Path, tmp_path: Path, lie):
    cheats.save(onnx.load(honest), honest, tmp_path / "a.onnx", **lie)
    done = command("parity", "torch", "a.onnx")
    assert done.returncode == 4, done.stdout
    assert len(done.stderr.splitlines()) == 1


# --- what int8 promised


def _promise(artifact, **promise: object):
    quantization = {"calibration": (), "seed": 0, "best_effort": False, **promise}
    facts = artifact.facts.model_copy(update={"precision": Precision.INT8})
    made = type(facts).model_validate({**facts.model_dump(), "quantization": quantization})
    return artifact.with_facts(
        **{name: getattr(made, name) for name in ("precision", "quantization")}
    )


def test_a_promise_tightens_the_budget_and_never_loosens_it(honest: Path):
    artifact, own = registry.open_artifact(honest), BUDGETS[Precision.INT8]
    lax = _promise(artifact, min_iou=0.0, max_mae=1.0)
    assert budget_for(lax) == own
    assert budget_for(_promise(artifact, min_iou=0.0, max_mae=1.0, best_effort=True)) == own
    strict = budget_for(_promise(artifact, min_iou=0.999, max_mae=1e-4))
    assert (strict.mask_iou, strict.mask_mae) == (0.999, 1e-4)
    assert strict.worst_iou == own.worst_iou
    users = {**BUDGETS, Precision.INT8: own.model_copy(update={"mask_iou": 0.5})}
    assert budget_for(_promise(artifact, min_iou=0.999, max_mae=1e-4), users).mask_iou == 0.5


def test_looser_budgets_of_the_user_are_said_first(command, small: Path, tmp_path: Path):
    shutil.copy(small / ONNX, tmp_path)
    shutil.copy(small / f"{ONNX}.json", tmp_path)
    (tmp_path / "b.json").write_text('{"fp32": {"raw_max": null, "mask_iou": 0.5}}')
    words = ("--budget", "b.json", "--json", "p.json", "--html", "p.html", "--junit", "p.xml")
    done = command("parity", "torch", ONNX, *words)
    assert done.returncode == 0, done.stderr
    looser = "raw_max any instead of 0.0003, mask_iou 0.5 instead of 0.999"
    sentence = f"judged by the looser budgets of b.json: fp32: {looser}"
    assert done.stdout.splitlines()[0] == sentence
    assert sentence in (tmp_path / "p.html").read_text()
    assert sentence in (tmp_path / "p.xml").read_text()
    done = command("verify", ONNX)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"{ONNX} passed by looser budgets: {looser}"
    assert "5 drawn, 18 degenerate" in done.stdout
    (tmp_path / "b.json").write_text('{"fp32": {"raw_max": 1e-9}}')
    done = command("verify", ONNX, "--budget", "b.json")
    assert (done.returncode, "exceeds the given budgets: raw_max" in done.stderr) == (6, True)


# --- certificates and manifests


@pytest.fixture(scope="module")
def certified_once(small: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("certified")
    for path in small.glob("u2netp-demo-fp32-64-bN.*"):
        shutil.copy(path, folder)
    request = ParityRequest("torch", (folder / ONNX, folder / XML))
    report, _ = check_parity(request)
    assert report.passed
    assert certify_passed(request, report) == []
    return folder


@pytest.fixture
def certified(certified_once: Path, tmp_path: Path) -> Path:
    """A folder of certified files, where commands run."""
    for path in certified_once.iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path


def test_a_certificate_is_held_to_the_projects_budget_and_not_to_its_own(command, certified: Path):
    def soften(manifest: dict) -> None:
        certificate = manifest["checks"]["certificate"]
        certificate["judgement"].update(mask_iou=0.5, worst_iou=0.5)
        certificate["budget"].update(mask_iou=0.1, worst_iou=0.1)

    assert command("verify", ONNX).returncode == 0
    cheats.change_manifest(certified / ONNX, soften)
    done = command("verify", ONNX)
    assert done.returncode == 6, done.stderr
    assert "passed only by budgets of its own: mask_iou 0.5000 (at least 0.999)" in done.stderr


@pytest.mark.parametrize(
    "change",
    [
        {"kinds": {"drawn": 5}},
        {"cases": 1},
        {"properties": []},
        {"precision": "int8"},
        {"judgement": {"raw_max": -5.0}},
        {"judgement": {"mask_mae": -1.0}},
        {"judgement": {"mask_iou": 7.0}},
        {"judgement": {"worst_iou": 1.0, "mask_iou": 0.9999}},
        {"judgement": {"raw_mean": 1e-6, "raw_max": 1e-7}},
        {"judgement": {"pictures": 1_000_000}},
    ],
    ids=str,
)
def test_figures_that_cannot_be(command, certified: Path, change: dict):
    def apply(manifest: dict) -> None:
        certificate = manifest["checks"]["certificate"]
        certificate["judgement"].update(change.get("judgement", {}))
        certificate.update({key: value for key, value in change.items() if key != "judgement"})

    cheats.change_manifest(certified / ONNX, apply)
    done = command("verify", ONNX)
    assert done.returncode == 4, done.stdout
    assert "certificate" in done.stderr


def test_looser_budgets_are_told_by_their_figures(command, certified: Path):
    """Not by what the certificate says of them."""
    cheats.change_manifest(
        certified / ONNX,
        lambda m: m["checks"]["certificate"]["budget"].update(mask_iou=0.5),
    )
    done = command("verify", ONNX)
    assert done.returncode == 0, done.stderr
    first = f"{ONNX} passed by looser budgets: mask_iou 0.5 instead of 0.999"
    assert done.stdout.splitlines()[0] == first


def test_a_certificate_of_another_file_counts_for_nothing(command, certified: Path):
    model = onnx.load(certified / ONNX)
    cheats.apply(model, "inverted")
    cheats.save(model, certified / ONNX, certified / "inverted.onnx")
    checks = json.loads((certified / f"{ONNX}.json").read_text())["checks"]
    cheats.change_manifest(certified / "inverted.onnx", lambda m: m.update(checks=checks))
    done = command("verify", "inverted.onnx")
    assert done.returncode == 4, done.stderr
    assert "is for other bytes: judge it anew" in done.stderr


@pytest.mark.parametrize("words", [("run",), ("parity", "torch"), ("verify",), ("inspect",)])
def test_zeroed_weights_that_the_manifest_leaves_out(command, certified: Path, words):
    weights = (certified / XML).with_suffix(".bin")
    content = bytearray(weights.read_bytes())
    content[:128] = bytes(128)  # 32 weights
    weights.write_bytes(content)
    cheats.change_manifest(certified / XML, lambda m: m["files"].pop(weights.name))
    picture(certified / "p.png")
    done = command(*words, XML, *(["p.png"] if words == ("run",) else []))
    assert done.returncode == 4, done.stderr
    assert "its manifest does not list it: export it again" in done.stderr
    assert not (certified / "p-mask.png").exists()


@pytest.mark.parametrize("file", [ONNX, XML])
@pytest.mark.parametrize("words", [("run",), ("parity", "torch"), ("verify",)])
@pytest.mark.parametrize("facts", [{"resize": "bilinear"}, {"precision": "int8"}], ids=str)
def test_a_manifest_that_contradicts_the_file(command, certified: Path, file, words, facts):
    cheats.change_manifest(certified / file, lambda m: m["facts"].update(facts))
    picture(certified / "p.png")
    done = command(*words, file, *(["p.png"] if words == ("run",) else []))
    assert done.returncode == 4, done.stderr
    assert (
        f"other facts inside than its manifest does, such as its {next(iter(facts))}" in done.stderr
    )


def test_a_model_of_another_release(command, certified: Path):
    cheats.save(onnx.load(certified / ONNX), certified / ONNX, certified / "a.onnx", model="u2net9")
    done = command("parity", "torch", "a.onnx")
    assert (done.returncode, "no model is called 'u2net9'" in done.stderr) == (2, True), done.stderr


def test_a_digest_inside_that_no_longer_fits(command, certified: Path):
    """The manifest was made to fit the changed bytes, the file itself was not."""
    path = certified / ONNX
    content = bytearray(path.read_bytes())
    at = content.find(b"rebnconv") + 200
    content[at] ^= 1
    path.write_bytes(content)
    digest = cheats.file_sha256(path)
    cheats.change_manifest(path, lambda m: m["files"].update({ONNX: digest}))
    picture(certified / "p.png")
    for words in (("run", ONNX, "p.png"), ("verify", ONNX)):
        done = command(*words)
        assert done.returncode == 4, done.stderr
        assert "was changed after it was exported" in done.stderr
