"""What every command has alike: version, short options, verbosity, JSON, completion, panels."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from u2export.cli.app import app
from u2export.cli.options import with_json_target
from u2export.images.synthetic import draw_image


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version_is_that_of_the_installed_package(command, option: str):
    done = command(option)
    version = importlib.metadata.version("u2export")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"u2export {version}\n", "")


@pytest.mark.parametrize("option", [["--precision", "fp16"], ["--fp16"]])
def test_a_precision_has_a_long_and_a_short_form(command, option: list[str]):
    done = command("onnx", "-m", "u2netp-demo", "--size", "32", "-o", "made", *option)
    assert (done.returncode, done.stdout) == (0, "made/u2netp-demo-fp16-32.onnx\n"), done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["onnx", "--precision", "fp16", "--int8"], "ask for one at a time"),
        (["onnx", "--precision", "half"], "precision must be one of fp32, fp16, bf16, int8"),
        (["torch", "--precision", "int8"], "the torch backend exports fp32, not int8"),
        (["auto", "--sizes", "abc"], "sizes are whole numbers above 0, such as 320,256"),
        (["tensorrt", "--calibration", "."], "--calibration goes with --int8: add it"),
        (["onnx", "--calibration", "."], "--calibration goes with --int8 or --bf16: add it"),
        (["doctor", "-q", "-v"], "--quiet and --verbose contradict each other"),
    ],
)
def test_options_that_contradict_each_other_are_status_2(command, words, sentence):
    done = command(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr


@pytest.mark.parametrize(
    ("words", "said", "near"),  # every Click puts them a little differently
    [
        (["onx"], "no such command 'onx'", "'onnx'"),
        (["weights", "lst"], "no such command 'lst'", "lst"),
        (["onnx", "--precison", "fp16"], "no such option", "--precision"),
        (["onnx", "--device", "cpu"], "no such option", "see python -m u2export onnx --help"),
        (["run"], "missing argument 'artifact'", "see python -m u2export run --help"),
        (["inspect", "a.onnx", "b.onnx"], "got unexpected extra argument", "b.onnx"),
        (["run", "a", "b", "-j", "x"], "invalid value for '--threads' / '-j': ", "run --help"),
        (["o\x1b[31m\nn"], r"no such command", r"\x1b[31m"),
    ],
)
def test_words_that_no_command_takes_are_one_line_and_status_2(command, words, said, near):
    done = command(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"u2export: error: {said}")
    assert near in done.stderr
    assert done.stderr.removesuffix("\n").isprintable()  # so it is one line


@pytest.mark.parametrize("words", [[], ["weights"]])
def test_a_group_alone_shows_its_help(command, words):
    done = command(*words)
    assert "Usage: " in done.stdout
    assert (done.returncode, done.stderr) == (2, "")


def test_the_same_precision_twice_is_one_request(command):
    done = command("onnx", "-m", "u2netp-demo", "--size", "32", "--precision", "fp16", "--fp16")
    assert done.returncode == 0, done.stderr


def test_quiet_leaves_errors_only(command, quick: Path, tmp_path: Path):
    (tmp_path / "note.png").write_text("no picture")
    done = command("run", quick, "note.png", "-q")
    lines = done.stderr.splitlines()
    assert (done.returncode, len(lines)) == (7, 2)
    assert all(line.startswith("u2export: error: ") for line in lines)


def test_quiet_leaves_notes_out(command, tmp_path: Path):
    loud = command("onnx", "--size", "32", "-o", "a")
    quiet = command("onnx", "--size", "32", "-o", "b", "-q")
    assert "not for photographs" in loud.stderr
    assert (quiet.returncode, quiet.stderr) == (0, "")


def test_verbose_names_phases_where_there_is_no_terminal(command):
    done = command("onnx", "-m", "u2netp-demo", "--size", "32", "-v")
    assert "converting u2netp-demo.safetensors to u2netp-demo-fp32-32.onnx" in done.stderr
    failed = command("run", "absent.onnx", "p.png", "--verbose")
    assert failed.returncode == 2
    assert "Traceback" in failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("u2export: error: ")


@pytest.mark.parametrize(
    ("words", "complete"),
    [
        (["inspect", "a.onnx", "--json"], ["inspect", "a.onnx", "--json", "-"]),
        (["inspect", "--json", "a.onnx"], ["inspect", "--json", "-", "a.onnx"]),
        (["bench", "--json", "a.onnx", "b.onnx"], ["bench", "--json", "-", "a.onnx", "b.onnx"]),
        (["doctor", "--json", "-"], ["doctor", "--json", "-"]),
        (["doctor", "--json", "x.json"], ["doctor", "--json", "x.json"]),
        (["doctor", "--json", "--require", "onnx"], ["doctor", "--json", "-", "--require", "onnx"]),
        (["doctor", "--json=x"], ["doctor", "--json=x"]),
    ],
)
def test_json_takes_a_file_of_its_own_ending_and_nothing_else(words, complete):
    assert with_json_target(words) == complete


def test_json_means_the_same_everywhere(command, quick: Path, tmp_path: Path):
    for words in (["backends"], ["weights", "list"], ["inspect", quick]):
        printed = command(*words, "--json")
        written = command(*words, "--json", "out.json")
        assert written.stdout, "the text for people is printed beside the file"
        dashed = command(*words, "--json", "-")
        texts = (printed.stdout, (tmp_path / "out.json").read_text(), dashed.stdout)
        first, second, third = (_without_layers(json.loads(text)) for text in texts)
        assert first == second == third


def _without_layers(report: Any) -> Any:
    """The report less the executed layers: onnxruntime orders them anew in every process."""
    if isinstance(report, dict) and "executed" in report:
        assert report["executed"].pop("layers")
    return report


def test_json_of_parity_and_bench_goes_to_standard_output_alone(command, quick: Path):
    checked = command("parity", "torch", quick, "--json")
    assert json.loads(checked.stdout)["candidates"][0]["party"]["backend"] == "onnx"
    measured = command("bench", quick, "--json", "-", "--duration", "1")
    assert json.loads(measured.stdout)["rows"][0]["backend"] == "onnx"


def test_a_broken_picture_is_told_from_a_typing_error(command, quick: Path, tmp_path: Path):
    draw_image(1_000_001, (20, 20)).picture.save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no picture")
    assert command("run", quick, "good.png").returncode == 0
    mixed = command("run", quick, "good.png", "bad.png")
    assert (mixed.returncode, mixed.stdout) == (7, "masks/good.png\n")
    assert command("run", quick, "good.png", "--refine", "x").returncode == 2


def test_bash_is_told_how_to_complete_commands(tmp_path: Path):
    words = "u2export pari"
    done = subprocess.run(
        [sys.executable, "-c", "from u2export.cli import main; main()"],
        env={
            **os.environ,
            "_U2EXPORT_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": "1",
        },
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert "parity" in done.stdout, done.stderr


@pytest.mark.parametrize("name", ["run", "parity", "bench", "onnx"])
def test_options_stand_in_panels(command, name: str):
    text = command(name, "--help").stdout
    for panel in ("Output", "Model"):
        assert f"─ {panel} ─" in text
    for option in ("--quiet", "--verbose"):
        assert option in text


def test_every_command_takes_the_short_forms_of_what_it_takes():
    short = {"--out": "-o", "--model": "-m", "--threads": "-j", "--quiet": "-q", "--verbose": "-v"}
    import typer.main

    group = typer.main.get_command(app)
    for name, built in group.commands.items():
        for parameter in built.params:
            for option in parameter.opts:
                if option in short and name not in ("weights",):
                    assert short[option] in parameter.opts, f"{name} {option}"
