from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import POSIX
from PIL import Image
from safetensors.torch import save_file

from u2export.cli.app import _app_for, _name_of, app
from u2export.core.enums import Architecture
from u2export.images.synthetic import draw_image
from u2export.inference.segmenter import load
from u2export.network import checkpoint

ROOT = Path(__file__).resolve().parents[1]


def _fails(done: subprocess.CompletedProcess[str], status: int, sentence: str) -> None:
    assert done.returncode == status, done.stderr
    assert sentence in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert sum("error: " in line for line in done.stderr.splitlines()) == 1


def test_help_names_the_commands_and_is_quick(command):
    command("--help")
    begun = time.monotonic()
    done = command("--help")
    assert time.monotonic() - begun < 1.5  # 0.4 s on an idle machine; CI may be busy
    assert done.returncode == 0
    for word in ("onnx", "torch", "run", "weights"):
        assert word in done.stdout


def test_no_words_show_the_help(command):
    done = command()
    assert "Usage" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--model", "u2nett"], "no model is called 'u2nett': choose one of u2net, u2netp"),
        (["--size", "300"], "size must be a multiple of 32 from 32 to 2048, got 300"),
        (["--size", "0"], "size must be a multiple of 32 from 32 to 2048, got 0"),
        (["--batch", "0"], "batch must be 1 to 1024 or 'dynamic', got 0"),
        (["--batch", "many"], "batch must be 1 to 1024, 'dynamic' or MIN:OPT:MAX, got 'many'"),
        (["--opset", "11"], "opset must be 16 to 22, got 11"),
        (["--weights", "none.pth"], "there is no weights file at none.pth"),
        (["--weights", "random:x"], "random weights take a whole number"),
    ],
)
def test_a_request_that_cannot_be_met_is_status_2(command, tmp_path, words, sentence):
    _fails(command("onnx", *words), 2, sentence)
    assert not (tmp_path / "exported").exists()


def test_an_option_that_a_backend_lacks_is_refused(command):
    _fails(command("torch", "--fp16"), 2, "the torch backend exports fp32, not fp16")
    _fails(command("torch", "--batch", "8"), 2, "the torch backend has no --batch")


def test_an_explicit_model_never_falls_back(command):
    done = command("onnx", "--model", "u2netp")
    _fails(done, 3, "u2netp.pth is not here")
    assert "--weights" in done.stderr


def _weights_files(folder: Path) -> None:
    (folder / "empty.pth").touch()
    (folder / "bomb.pth").write_bytes(pickle.dumps(pytest.raises))
    save_file(checkpoint.random_state(Architecture.FULL, 0), folder / "full.safetensors")
    small = checkpoint.random_state(Architecture.SMALL, 0)
    save_file({k: v for k, v in small.items() if "side1" not in k}, folder / "part.safetensors")
    save_file({k: v.half() for k, v in small.items()}, folder / "half.safetensors")
    small["side1.weight"] = small["side1.weight"] * 1e9
    save_file(small, folder / "huge.safetensors")


@pytest.mark.parametrize(
    ("file", "status", "sentence"),
    [
        ("empty.pth", 4, "empty.pth is empty"),
        ("bomb.pth", 4, "could run code when loaded: refused"),
        ("full.safetensors", 4, "weights of the full U²-Net, not of the small one"),
        ("part.safetensors", 4, "missing side1.weight, side1.bias, nothing foreign"),
        ("huge.safetensors", 5, "side1.weight holds"),
    ],
)
def test_bad_weights_have_their_status_and_sentence(command, tmp_path, file, status, sentence):
    _weights_files(tmp_path)
    words = ("onnx", "--model", "u2netp", "--fp16", "--size", "32", "--weights", file)
    _fails(command(*words), status, sentence)
    assert not (tmp_path / "exported").exists()


def test_a_file_of_the_wrong_hash_under_a_models_name_is_status_4(command, tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/u2netp.pth").write_bytes(b"not it")
    _fails(command("onnx"), 4, "is not u2netp's file")


@pytest.mark.parametrize("suffix", [".onnx", ".fp16.onnx"])
def test_fp16_of_an_exported_file_is_refused(command, exported, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    shutil.copy(exported / "u2netp-demo-fp16.onnx", path)
    done = command("onnx", "--model", "u2netp", "--fp16", "--weights", path)
    _fails(done, 2, "is an exported ONNX file, not weights")


def test_an_output_that_cannot_be_written_is_status_2(command, tmp_path):
    (tmp_path / "file").touch()
    words = ("onnx", "--model", "u2netp", "--weights", "random:0", "--size", "32")
    _fails(command(*words, "--out", "file/sub"), 2, "cannot be written")


def test_the_bare_command_falls_back_to_the_demo_weights_and_says_so(command, tmp_path):
    done = command("onnx", "--fp16")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "exported/u2netp-demo-fp16.onnx\n"
    assert done.stderr.count("\n") == 1
    assert "bundled u2netp-demo weights, which are not for photographs" in done.stderr
    manifest = json.loads((tmp_path / "exported/u2netp-demo-fp16.onnx.json").read_text())
    assert set(manifest["checks"]) == {"ran", "executed", "emulated_fp16"}
    assert manifest["checks"]["emulated_fp16"]["mask_iou"] > 0.99


def test_two_exports_are_equal_to_the_byte(command, tmp_path, exported):
    words = ("onnx", "--model", "u2netp-demo", "--fp16", "--out")
    assert command(*words, "elsewhere", retraced=True).returncode == 0
    for name in ("u2netp-demo-fp16.onnx", "u2netp-demo-fp16.onnx.json"):
        one, two = (
            hashlib.sha256((folder / name).read_bytes()).hexdigest()
            for folder in (tmp_path / "elsewhere", exported)
        )
        assert one == two, name


@POSIX
def test_progress_is_shown_on_a_terminal_only(tmp_path):
    words = ["onnx", "--model", "u2netp", "--weights", "random:0", "--size", "32"]
    import pty  # not on Windows

    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "u2export", *words], cwd=tmp_path, stdout=subprocess.PIPE,
        stderr=follower,
    )  # fmt: skip
    os.close(follower)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal's end, once the program has left
        while piece := os.read(leader, 4096):
            shown += piece
    stdout, _ = process.communicate()
    os.close(leader)
    assert b"converting random:0 to u2netp-random0" in shown
    assert b"comparing" in shown
    assert stdout == b"exported/u2netp-random0-fp32-32.onnx\n"


def test_random_weights_are_named_as_such(command, tmp_path, folder_of_traces):
    words = ("onnx", "--model", "u2netp", "--weights", "random:3", "--size", "64")
    before = set(folder_of_traces.iterdir())
    done = command(*words)
    assert set(folder_of_traces.iterdir()) > before  # or tests trace anew, unnoticed
    assert done.stdout == "exported/u2netp-random3-fp32-64.onnx\n", done.stderr
    facts = json.loads((tmp_path / "exported/u2netp-random3-fp32-64.onnx.json").read_text())[
        "facts"
    ]
    assert facts["weights"]["origin"] == "random"


@pytest.fixture
def artifact(exported: Path) -> Path:
    return exported / "u2netp-demo-fp32.onnx"


def test_run_writes_masks_and_prints_their_paths(command, artifact, tmp_path, picture_file):
    done = command("run", artifact, picture_file)
    assert (done.returncode, done.stdout) == (0, "masks/drawn.png\n"), done.stderr
    mask = Image.open(tmp_path / "masks/drawn.png")
    truth = np.asarray(draw_image(1_000_310, (200, 150)).mask) >= 128
    assert (mask.mode, mask.size) == ("L", (200, 150))
    found = np.asarray(mask) >= 128
    assert (found & truth).sum() / (found | truth).sum() > 0.8


def test_run_writes_cut_outs(command, artifact, tmp_path, picture_file):
    done = command("run", artifact, picture_file, "--cutout", "--out", "cut.png")
    assert done.stdout == "cut.png\n", done.stderr
    cut = Image.open(tmp_path / "cut.png")
    assert (cut.mode, cut.size) == ("RGBA", (200, 150))
    values = np.asarray(cut)
    seen = values[..., 3] > 0
    assert seen.any()
    with Image.open(picture_file) as picture:
        np.testing.assert_array_equal(values[seen][:, :3], np.asarray(picture)[seen])
    assert not values[~seen].any()


def test_unreadable_pictures_are_reported_and_the_rest_done(command, artifact, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    good = draw_image(1_000_001, (60, 40)).picture
    good.save(folder / "a.jpg")
    good.save(folder / "a.png")
    (folder / "note.png").write_text("not a picture")
    (folder / "empty.jpg").touch()
    whole = (folder / "a.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 3])
    (folder / "ignored.txt").touch()
    done = command("run", artifact, folder, tmp_path / "absent.png", "--out", "out")
    assert done.returncode == 7
    assert done.stdout.split() == ["out/a.jpg.png", "out/a.png.png"]
    for name in ("note.png", "empty.jpg", "cut.jpg", "absent.png"):
        assert any(name in line for line in done.stderr.splitlines())
    last = done.stderr.splitlines()[-1]
    assert "4 of 6 pictures failed (" in last
    assert last.endswith("absent.png); the rest were written")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.jpg.png", "a.png.png"]


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["none.onnx", "p.png"], 2, "there is no artifact at none.onnx"),
        (["ARTIFACT", "empty-folder"], 2, "the folder empty-folder holds no pictures"),
        (["ARTIFACT", "p.png", "--device", "tpu"], 2, "device must be one of cpu, cuda"),
        (["ARTIFACT", "p.png", "--device", "cuda"], 3, "cannot run on cuda here"),
        (["ARTIFACT", "p.png", "--device", "gpu"], 3, "not on gpu"),
        (["ARTIFACT", "p.png", "--threads", "0"], 2, "threads must be 1 to 1024, got 0"),
        (["ARTIFACT", "p.png", "--threads", "100000"], 2, "threads must be 1 to 1024"),
        (["ARTIFACT", "p.png", "--resample", "nearest"], 2, "resize must be one of authors"),
        (["ARTIFACT", "p.png", "--model", "u2net"], 2, "is u2netp-demo, not u2net"),
        (["ARTIFACT", "p.png", "--out", "p.png"], 2, "p.png is one of the pictures"),
        (["ARTIFACT", "p.png", "p2/p.png"], 2, "would both be written to"),
        (["ARTIFACT", "p.png", "q.png", "--out", "one.png"], 2, "do not fit into the one file"),
        (["ARTIFACT", "p.png", "--out", "p.png/x/y.png"], 2, "cannot be written"),
        (["foreign.onnx", "p.png"], 2, "name the model it was made from"),
        (["garbage.onnx", "p.png", "--model", "u2netp"], 4, "cannot be read as ONNX"),
        (["note.xyz", "p.png"], 2, "no installed backend opens files ending in '.xyz'"),
    ],
)
def test_bad_runs_have_their_status_and_sentence(
    command, artifact, tmp_path, words, status, sentence
):
    for name in ("p.png", "q.png", "p2/p.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        draw_image(1_000_001, (20, 20)).picture.save(tmp_path / name)
    before = (tmp_path / "p.png").read_bytes()
    (tmp_path / "empty-folder").mkdir()
    (tmp_path / "garbage.onnx").write_bytes(b"garbage")
    (tmp_path / "note.xyz").write_bytes(b"garbage")
    _foreign(artifact, tmp_path / "foreign.onnx")
    words = [str(artifact) if word == "ARTIFACT" else word for word in words]
    _fails(command("run", *words), status, sentence)
    assert (tmp_path / "p.png").read_bytes() == before


def _foreign(ours: Path, path: Path) -> None:
    """The same network as somebody else would have exported it: other names, no facts."""
    import onnx

    model = onnx.load(ours)
    del model.metadata_props[:]
    for node in model.graph.node:
        node.input[:] = ["input.1" if name == "input" else name for name in node.input]
    model.graph.input[0].name = "input.1"
    onnx.save(model, path)


def test_a_foreign_file_runs_with_its_model_named(command, artifact, tmp_path, picture_file):
    _foreign(artifact, tmp_path / "foreign.onnx")
    done = command("run", "foreign.onnx", picture_file, "--model", "u2netp", "--out", "f.png")
    assert done.returncode == 0, done.stderr
    command("run", artifact, picture_file, "--out", "o.png")
    assert (tmp_path / "f.png").read_bytes() == (tmp_path / "o.png").read_bytes()


def test_a_foreign_file_of_another_size_is_refused(command, artifact, tmp_path, picture_file):
    _foreign(artifact, tmp_path / "foreign.onnx")
    words = ("run", "foreign.onnx", picture_file, "--model", "u2net_portrait")
    _fails(command(*words), 4, "not pictures of 3x512x512")


@pytest.mark.parametrize("name", ["u2netp-demo-fp32.onnx", "u2netp-demo-fp32.safetensors"])
def test_a_lone_copy_runs_as_the_artifact_does(command, exported, tmp_path, picture_file, name):
    shutil.copy(exported / name, tmp_path)
    lone = command("run", name, picture_file, "--out", "lone.png")
    assert lone.returncode == 0, lone.stderr
    command("run", exported / name, picture_file, "--out", "whole.png")
    assert (tmp_path / "lone.png").read_bytes() == (tmp_path / "whole.png").read_bytes()


def test_a_changed_byte_in_an_artifact_is_status_4(command, artifact, tmp_path, picture_file):
    copy = tmp_path / artifact.name
    content = bytearray(artifact.read_bytes())
    content[len(content) // 2] ^= 1
    copy.write_bytes(content)
    shutil.copy(f"{artifact}.json", f"{copy}.json")
    _fails(command("run", copy, picture_file), 4, "was changed after it was exported")


def test_a_manifest_of_a_newer_schema_is_status_4(command, artifact, tmp_path, picture_file):
    copy = tmp_path / artifact.name
    shutil.copy(artifact, copy)
    manifest = json.loads(Path(f"{artifact}.json").read_text())
    Path(f"{copy}.json").write_text(json.dumps({**manifest, "schema_version": 9}))
    _fails(command("run", copy, picture_file), 4, "has schema 9, this u2export reads up to 1")


def test_a_missing_runtime_is_status_3_with_the_line_to_type(artifact, picture_file, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util, sys\n"
        "real = importlib.util.find_spec\n"
        "sys.modules['onnxruntime'] = None\n"
        "def find(name, package=None):\n"
        "    return None if name == 'onnxruntime' else real(name, package)\n"
        "importlib.util.find_spec = find\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "u2export", "run", artifact, picture_file],
        capture_output=True, text=True, cwd=tmp_path, check=False,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    _fails(done, 3, "onnxruntime")
    assert 'pip install "u2export[onnxruntime]"' in done.stderr


def test_a_picture_over_the_limit_is_refused_unless_asked_for(command, artifact, tmp_path):
    Image.new("L", (400, 300)).save(tmp_path / "big.png")
    refused = command("run", artifact, "big.png", "--max-pixels", "100000")
    assert refused.returncode == 7
    assert "raise --max-pixels" in refused.stderr
    assert command("run", artifact, "big.png", "--max-pixels", "120000").returncode == 0


def test_weights_are_listed_and_verified(command, tmp_path):
    done = command("weights", "list")
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "u2net", "u2netp", "u2net_human_seg", "u2net_portrait", "u2netp-demo",
    ]  # fmt: skip
    demo = ROOT / "weights/u2netp-demo.safetensors"
    verified = command("weights", "verify", demo)
    assert verified.stdout == f"{hashlib.sha256(demo.read_bytes()).hexdigest()}  u2netp-demo\n"
    (tmp_path / "x.pth").write_bytes(b"x")
    _fails(command("weights", "verify", "x.pth"), 4, "is no model's published file")
    _fails(command("weights", "fetch", "u2netp"), 3, "U2EXPORT_OFFLINE")


def test_python_gives_the_same_mask_as_the_command(command, artifact, tmp_path, picture_file):
    command("run", artifact, picture_file, "--out", "c.png")
    with load(artifact) as segment:
        mask = segment(Image.open(picture_file))
    np.testing.assert_array_equal(np.asarray(mask), np.asarray(Image.open(tmp_path / "c.png")))


def test_running_an_onnx_artifact_imports_no_torch_and_stays_small(
    artifact, picture_file, tmp_path
):
    code = (
        "import sys; from u2export.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "peak = next(l for l in open('/proc/self/status') if l.startswith('VmHWM'))\n"
        "print('torch' in sys.modules, peak.split()[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", str(artifact), str(picture_file)],
        capture_output=True, text=True, cwd=tmp_path, check=True,
    )  # fmt: skip
    torch_loaded, peak_kib = done.stdout.split()[-2:]
    assert torch_loaded == "False"
    assert int(peak_kib) < 350 * 1024


@POSIX
def test_a_full_disk_leaves_the_old_artifact(command, tmp_path):
    words = ("onnx", "--model", "u2netp", "--weights", "random:0", "--size", "32")
    assert command(*words).returncode == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "exported").glob("u2*")}

    def limit() -> None:
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    done = subprocess.run(
        [sys.executable, "-m", "u2export", *words], preexec_fn=limit, cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    _fails(done, 5, "could not be written")
    assert {p.name: p.read_bytes() for p in (tmp_path / "exported").glob("u2*")} == before
    assert not list((tmp_path / "exported").glob(".*partial"))


def test_torch_is_not_needed_to_be_quiet(command, tmp_path):
    torch.save({"state_dict": checkpoint.random_state(Architecture.SMALL, 1)}, tmp_path / "w.pth")
    done = command("torch", "--model", "u2netp", "--weights", "w.pth")
    assert done.stdout == "exported/u2netp-fp32.safetensors\n"
    assert done.stderr.splitlines() == [
        "u2export: w.pth: the weights were taken from its entry 'state_dict'"
    ]


UNNEEDED = {
    "openvino_telemetry",
    "torch",
    "onnx",
    "scipy",
    "psutil",
    "rich",
    "u2export.quantization",
}


@pytest.mark.parametrize("ending", ["onnx", "xml"])
def test_a_run_imports_only_what_it_needs(ending: str, small, picture_file, tmp_path):
    path = next(small.glob(f"*.{ending}"))
    code = (
        "import sys; from u2export.cli.app import main\n"
        "try: main()\n"
        f"finally: print(sorted(set(sys.modules) & {UNNEEDED!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", str(path), str(picture_file)],
        capture_output=True, text=True, cwd=tmp_path, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[1:] == ["[]"], done.stderr


def test_of_the_commands_only_the_called_one_is_built():
    for name in ("run", "onnx"):
        assert [_name_of(one) for one in _app_for([name]).registered_commands] == [name]
    for words in (["weights"], ["ru"], ["--help"], []):
        assert _app_for(words) is app
    assert len(app.registered_commands) > 10
