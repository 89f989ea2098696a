"""Every command and example of README and documentation works, or at least parses.

A fenced `sh` block is run line by line in one folder, with small stand-ins for what it names:

* weights `u2netp` become the bundled demo weights, and exports are of 64 pixels;
* `photo.jpg`, `photos/` and the other folders hold synthetic pictures.

A line is only parsed where it ends in a comment such as `# needs a GPU`, `# needs a network` or
`# needs a cluster`, where `<!-- parsed only: why -->` stands before its block, or where it pipes
into another program. `# prints PATH` and `# exit status N` are checked.
"""

from __future__ import annotations

import ast
import gc
import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import measure_house
import pytest
import typer

from u2export import cli, errors
from u2export.cli.options import with_json_target
from u2export.compare.budgets import BUDGETS, read_budgets
from u2export.core import plugins, registry
from u2export.core.enums import Device, Precision
from u2export.core.models import MODELS
from u2export.core.requests import ExportSpec, RunSpec
from u2export.images.synthetic import draw_image
from u2export.system import progress

ROOT = measure_house.ROOT
PAGES = [measure_house.README, *measure_house.doc_pages()]
SIDE = 64
BLOCK = re.compile(
    r"^(?:<!-- parsed only: (?P<why>[^>]+) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
NEEDS = re.compile(r"# needs (?:a|an) (GPU|network|cluster)\b")
PRINTS = re.compile(r"# prints (\S+)")
STATUS = re.compile(r"# exit status (\d+)")
MODEL_FILE = re.compile(r"\bu2netp-(fp32|fp16|bf16|int8)\b")
ASSIGNMENT = re.compile(r"([A-Z][A-Z0-9_]*)=(.*)")
VARIABLE = re.compile(r"U2EXPORT_[A-Z]+")
INTERNAL = {"U2EXPORT_SETTLED"}  # one process of u2export sets it for another
# What `make_folder` draws: folders with the names of their pictures.
FOLDERS = {
    "photos": ["0.jpg", "1.jpg"],
    "tests/photos": ["0.jpg"],
    "others": ["0.jpg"],
    "holiday": ["sea.jpg", "hills/top.jpg"],
    "shop": ["shoes/red.jpg"],
    "inbox": ["0.jpg"],
}
EXPORTS = ("onnx", "openvino", "tensorrt")  # backends whose command takes a size


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    parsed_only: bool


@dataclass(frozen=True)
class Line:
    """A line of a shell block: its commands joined by pipes, each as words."""

    text: str
    commands: tuple[tuple[str, ...], ...]

    @property
    def runs(self) -> bool:
        """Whether it can run here, alone and quickly."""
        return len(self.commands) == 1 and not NEEDS.search(self.text)


def blocks(page: Path, *languages: str) -> list[Block]:
    found = BLOCK.finditer(page.read_text("utf-8"))
    every = [Block(one["language"], one["text"], one["why"] is not None) for one in found]
    return [block for block in every if block.language in languages]


def lines(text: str) -> Iterator[Line]:
    joined = re.sub(r"\\\n|(?<=\|)\n", " ", text)
    for line in filter(str.strip, joined.splitlines()):
        commands: list[list[str]] = [[]]
        words = shlex.shlex(line, posix=True, punctuation_chars="|<>;&")
        words.whitespace_split = True
        for word in words:
            if word == "|":
                commands.append([])
            else:
                commands[-1].append(word)
        yield Line(line, tuple(map(tuple, commands)))


def shell_lines(page: Path) -> list[tuple[Block, Line]]:
    return [(block, line) for block in blocks(page, "sh") for line in lines(block.text)]


def pages_with(*languages: str) -> list[Any]:
    found = [page for page in PAGES if blocks(page, *languages)]
    return [pytest.param(page, id=page.stem) for page in found]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """The script that generates the reference."""
    path = ROOT / "docs" / "generate_reference.py"
    spec = importlib.util.spec_from_file_location("generate_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def root_command(generator: ModuleType) -> Any:
    return generator.root_command()


@pytest.mark.parametrize("page", pages_with("sh"))
def test_every_command_parses(page: Path, root_command: Any):
    for _, line in shell_lines(page):
        for words in line.commands:
            check_command(list(words), root_command)


def check_command(words: list[str], root_command: Any) -> None:
    """Fail unless a command is one that exists, with options that exist."""
    while match := ASSIGNMENT.fullmatch(words[0]):
        assert match[1] in source_variables()
        words = words[1:]
    program, words = words[0], words[1:]
    if program == "u2export":
        parse(root_command, before_redirection(words))
    elif program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "pip":
        assert words[0] == "install"
        assert set(re.findall(r"\[(.*)\]", words[1])) <= extras()
    elif program in ("python", "pytest"):
        assert (ROOT / words[0]).is_file()
    else:
        assert program == "ffmpeg", f"no way to check {program}"


def parse(command: Any, words: list[str], parent: Any = None) -> None:
    """Parse words as the command line does, to the last command; nothing is run."""
    try:
        context = command.make_context("u2export", with_json_target(words), parent=parent)
    except typer.Exit:  # `--version` prints and leaves
        return
    if hasattr(command, "commands"):
        rest = [*context._protected_args, *context.args]
        _, inner, rest = command.resolve_command(context, rest)
        parse(inner, rest, context)


def before_redirection(words: list[str]) -> list[str]:
    ends = [words.index(sign) for sign in ("<", ">") if sign in words]
    return words[: min(ends, default=len(words))]


def extras() -> set[str]:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    section = text.split("[project.optional-dependencies]\n")[1].split("\n[")[0]
    return set(re.findall(r"^([\w-]+) = \[", section, re.MULTILINE))


def source_variables() -> set[str]:
    """Names of environment variables that the package reads."""
    return {
        name
        for path in measure_house.modules()
        for name in VARIABLE.findall(path.read_text("utf-8"))
    } - INTERNAL


def test_an_unknown_option_is_found(root_command: Any, capsys: pytest.CaptureFixture[str]):
    for words in (["run", "a.onnx", "b.jpg", "--cut-out"], ["onnx", "--presicion", "fp16"]):
        with pytest.raises(Exception, match="No such option") as found:
            parse(root_command, words)
        assert words[-1] in str(found.value) or words[-2] in str(found.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the examples name."""
    folder = tmp_path_factory.mktemp("docs")
    picture = folder / "photo.jpg"
    draw_image(1_000_310, (96, 72)).picture.save(picture)
    for number, path in enumerate(f"{top}/{name}" for top in FOLDERS for name in FOLDERS[top]):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        draw_image(1_000_311 + number, (96, 72)).picture.save(folder / path)
    frames = [draw_image(seed, (96, 72)).picture for seed in (1_000_325, 1_000_326)]
    frames[0].save(folder / "party.gif", save_all=True, append_images=frames[1:])
    (folder / "weights").mkdir()
    bundled = ROOT / "weights" / MODELS["u2netp-demo"].file
    for name in ("mine.safetensors", "weights/u2netp.pth"):
        shutil.copy(bundled, folder / name)
    report = "amd-epyc-2cpus-u2netp-2026-11-25.json"
    shutil.copy(ROOT / "benchmarks" / "results" / report, folder / "b.json")
    return folder


@pytest.fixture(scope="module")
def finished() -> set[tuple[str, ...]]:
    """The commands that ran already; pages repeat each other."""
    return set()


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Run the command line in this process; give the exit status."""

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["u2export", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    threshold, verbosity = gc.get_threshold(), progress.verbosity()
    yield run
    progress.set_verbosity(verbosity)
    gc.set_threshold(*threshold)
    gc.unfreeze()
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("page", pages_with("sh"))
def test_every_command_runs(
    page: Path,
    folder: Path,
    finished: set[tuple[str, ...]],
    main: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(folder)
    provide_exports(page, folder, main, finished)
    for block in blocks(page, "sh"):
        for line in lines(block.text):
            if line.runs and not block.parsed_only:
                run_line(line, main, finished, monkeypatch, capsys)


def provide_exports(
    page: Path, folder: Path, main: Callable[..., int], finished: set[tuple[str, ...]]
) -> None:
    """Export the files that a page's commands and examples name."""
    text = "".join(block.text for block in blocks(page, "sh", "python") if not block.parsed_only)
    for backend, suffix in (("onnx", "onnx"), ("openvino", "xml")):
        words = (backend, "--model", "u2netp-demo", "--fp16", "--size", str(SIDE))
        if f"u2netp-fp16.{suffix}" in text and words not in finished:
            assert main(*words) == 0
            finished.add(words)


def run_line(
    line: Line,
    main: Callable[..., int],
    finished: set[tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Run a line unless it ran before; check what its comment says."""
    words = line.commands[0]
    with monkeypatch.context() as patch:
        while match := ASSIGNMENT.fullmatch(words[0]):
            patch.setenv(match[1], match[2])
            words = words[1:]
        if words[0] != "u2export":
            return
        words = small_words(words[1:])
        if words in finished or not can_export(words[0]):
            return
        capsys.readouterr()
        status = redirected(words) if {"<", ">"} & {*words} else main(*words)
    printed = capsys.readouterr()
    expected = STATUS.search(line.text)
    assert status == int(expected[1] if expected else 0), f"{line.text}\n{printed.err}"
    if told := PRINTS.search(line.text):
        assert [Path(word) for word in printed.out.split()] == [Path(small_name(told[1]))]
    finished.add(words)


def can_export(command: str) -> bool:
    """Whether what a backend's command needs is installed; TensorRT is not for every system."""
    if command not in plugins.names():
        return True
    return not registry.missing_packages(registry.load(command), export=True)


def redirected(words: tuple[str, ...]) -> int:
    """Run a command with its standard input and output in files."""
    taken, given = (words[words.index(sign) + 1] for sign in ("<", ">"))
    command = [sys.executable, "-m", "u2export", *before_redirection([*words])]
    with open(taken, "rb") as source, open(given, "wb") as target:
        return subprocess.run(command, stdin=source, stdout=target, check=False).returncode


def small_words(words: tuple[str, ...]) -> tuple[str, ...]:
    """The same command with the demo weights, at a small size."""
    small = tuple("u2netp-demo" if word == "u2netp" else small_name(word) for word in words)
    return (*small, "--size", str(SIDE)) if small[0] in EXPORTS else small


def small_name(name: str) -> str:
    return MODEL_FILE.sub(rf"u2netp-demo-\1-{SIDE}", name)


@pytest.mark.parametrize("page", pages_with("python"))
def test_every_example_runs(
    page: Path,
    folder: Path,
    finished: set[tuple[str, ...]],
    main: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(folder)
    provide_exports(page, folder, main, finished)
    for block in blocks(page, "python"):
        import_names(block.text)
        code = compile(small_name(block.text), str(page), "exec")
        if block.parsed_only:
            continue
        names: dict[str, Any] = {"__name__": "example"}
        exec(code, names)
        for name in filter(lambda name: name.startswith("test_"), list(names)):
            names[name]()
        if "BACKEND" in names:
            check_backend(names["BACKEND"], folder)


def import_names(text: str) -> None:
    """Import what an example imports."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for one in node.names:
                importlib.import_module(one.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, one.name) for one in node.names)


def check_backend(backend: Any, folder: Path) -> None:
    """Export and run with a backend; it must give what its parent gives."""
    import numpy as np

    name = f"u2netp-demo-fp32-{SIDE}"
    parent = registry.open_artifact(folder / "exported" / f"{name}.onnx")
    path = folder / f"{name}{backend.suffixes[0]}"
    facts = backend.export(parent, ExportSpec(MODELS["u2netp-demo"], SIDE), path)
    assert backend.read_facts(path) == facts.model_dump_json()
    x = np.random.default_rng(0).standard_normal((1, 3, SIDE, SIDE)).astype(np.float32)
    with registry.open_runner(parent) as runner:
        expected = runner(x)
    artifact = registry.open_artifact(folder / "exported" / f"{name}.onnx")
    moved = type(artifact)(path, backend.name, facts)
    with backend.open_runner(moved, RunSpec(Device.CPU, 1)) as runner:
        np.testing.assert_allclose(runner(x), expected, atol=1e-5)
        assert runner.executed().device is Device.CPU


def test_the_reference_is_what_the_code_says(generator: ModuleType):
    for path, text in generator.pages().items():
        assert path.read_text("utf-8") == text, "run make docs-reference"


def test_the_action_takes_what_the_page_gives_it():
    [block] = blocks(ROOT / "docs" / "how-to" / "parity-in-ci.md", "yaml")
    action = (ROOT / "action.yml").read_text("utf-8")
    inputs = action.split("\ninputs:\n")[1].split("\nruns:\n")[0]
    given = re.findall(r"^    (\w+):", block.text, re.MULTILINE)
    assert given
    assert set(given) <= set(re.findall(r"^  (\w+):", inputs, re.MULTILINE))


def test_the_entry_point_of_the_example_is_of_the_group():
    page = ROOT / "docs" / "how-to" / "own-backend.md"
    [block] = blocks(page, "toml")
    assert f'[project.entry-points."{plugins.GROUP}"]' in block.text
    assert 'name="ort"' in blocks(page, "python")[0].text
    assert re.search(r'^ort = "\w+:BACKEND"$', block.text, re.MULTILINE)


def table(page: str, head: str) -> list[list[str]]:
    """The rows of a page's table whose first line begins with these cells."""
    text = (ROOT / page).read_text("utf-8")
    _, _, rest = text.partition(f"| {head} |")
    assert rest, f"{page} has no table with {head}"
    rows = rest.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in rows]


def test_the_exit_statuses_are_those_of_the_errors():
    rows = table("docs/reference/exit-statuses.md", "status | meaning | error")
    stated = {row[2].strip("`"): int(row[0]) for row in rows if len(row) > 2 and row[2]}
    classes = [one for one in vars(errors).values() if isinstance(one, type)]
    actual = {one.__name__: one.exit_status for one in classes if one is not errors.U2ExportError}
    assert stated == actual


def test_the_budgets_are_those_that_are_used():
    rows = table("docs/how-to/parity-in-ci.md", "precision | mask MAE | mask IoU | worst IoU")
    stated = {row[0]: tuple(map(float, row[1:])) for row in rows}
    fields = ("mask_mae", "mask_iou", "worst_iou")
    actual = {str(p): tuple(getattr(b, name) for name in fields) for p, b in BUDGETS.items()}
    assert stated == actual


def test_the_example_of_a_budget_file_is_one(tmp_path: Path):
    [block] = blocks(ROOT / "docs" / "how-to" / "parity-in-ci.md", "json")
    path = tmp_path / "budget.json"
    path.write_text(block.text)
    named = json.loads(block.text)["fp16"]
    assert named.items() <= read_budgets(path)[Precision.FP16].model_dump().items()


def test_the_models_are_those_there_are():
    rows = table("docs/reference/formats.md", "`--model` | network | finds | input | weights")
    assert {row[0].strip("`"): int(row[3]) for row in rows} == {
        name: model.picture.size for name, model in MODELS.items()
    }


@pytest.mark.parametrize("page", ["README.md", "docs/reference/formats.md"])
def test_the_formats_are_those_that_backends_write(page: str):
    rows = table(page, "command | writes")
    names = [name for name, entry in plugins.entries().items() if "u2export." in entry.value]
    assert {row[0].strip("`").removeprefix("u2export ") for row in rows} == {*names}
    column = 2 if page == "README.md" else 3
    for row in rows:
        backend = registry.load(row[0].strip("`").removeprefix("u2export "))
        assert backend.suffixes[0] in row[1]
        exported = row[column].split(";")[0]  # what runs in another precision comes after it
        stated = {Precision(name) for name in re.findall(r"fp32|(?<!in )fp16|bf16|int8", exported)}
        assert stated == {*backend.precisions}


@pytest.mark.parametrize("page", ["reference/exit-statuses.md", "how-to/offline.md"])
def test_the_environment_variables_are_those_that_are_read(page: str):
    rows = table(f"docs/{page}", "variable | effect")
    stated = {VARIABLE.findall(row[0])[0] for row in rows}
    assert stated == source_variables()


def test_every_extra_is_described():
    rows = table("docs/index.md", "extra | brings")
    assert {row[0].strip("`") for row in rows} == extras() - {"dev", "docs", "fuzz", "torch"}


def test_the_readme_links_to_files_that_exist():
    links = re.findall(r"\]\(([^)#]+)", measure_house.README.read_text("utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_site_loads_nothing_from_elsewhere(tmp_path: Path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) > len(measure_house.doc_pages())  # and the page for what is not found
    foreign = re.compile(
        r"<(?:script|img|iframe|link(?![^>]*rel=\"?(?:canonical|prev|next)))\b[^>]*"
        r"(?:src|href)=[\"']?(?:https?:)?//[^>]*>|fonts\.g(?:oogleapis|static)"
    )
    for page in pages:
        assert not foreign.search(page.read_text("utf-8")), page
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"url\([\"']?https?:", sheet.read_text("utf-8")), sheet
