"""The wheel holds what it needs, and the project's other files name only what is there."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest brings it there
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
VERSION = PROJECT["version"]
EXTRAS = PROJECT["optional-dependencies"]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
# `pip install` of this project, such as '.[dev]' or "$file[export]"
PROJECT_EXTRAS = re.compile(r"(?:\.|\$\w+)\[([\w,-]+)\]")
# What every runner has, and what Python brings: nobody need install it.
SYSTEM_PROGRAMS = {"echo", "ls", "make", "python", "sudo", "useradd"}


def _build_wheel(source: Path, out: Path) -> Path:
    words = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(words, cwd=source, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def packed(wheel: Path) -> dict[str, bytes]:
    """The wheel's files: content by name."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(packed: dict[str, bytes]):
    ours = {
        path.relative_to(ROOT).as_posix(): path.read_bytes()
        for path in (ROOT / "u2export").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"u2export/py.typed", "u2export/parity/report.html.j2"} < ours.keys()
    found = {name: content for name, content in packed.items() if ".dist-info/" not in name}
    bundled = {name: found.pop(name) for name in list(found) if "/bundled/" in name}
    assert found == ours
    assert sorted(bundled) == [
        "u2export/bundled/u2netp-demo.json",
        "u2export/bundled/u2netp-demo.safetensors",
    ]


def test_the_bundled_weights_are_those_that_their_readme_names(packed: dict[str, bytes]):
    digest = hashlib.sha256(packed["u2export/bundled/u2netp-demo.safetensors"]).hexdigest()
    assert f"`{digest}`" in (ROOT / "weights/README.md").read_text("utf-8")


@pytest.mark.parametrize("name", ["LICENSE", "NOTICE"])
def test_the_wheel_holds_licence_and_notice(packed: dict[str, bytes], name: str):
    licences = f"u2export-{VERSION}.dist-info/licenses"
    assert packed[f"{licences}/{name}"] == (ROOT / name).read_bytes()


def test_an_installed_wheel_finds_its_own_weights(wheel: Path, tmp_path: Path):
    target = tmp_path / "installed"
    words = ["install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, capture_output=True)
    code = (
        "import importlib.metadata, json, u2export\n"
        "from u2export.core.models import MODELS\n"
        "from u2export.network import weights\n"
        "demo = MODELS['u2netp-demo']\n"
        "path = weights.bundled_path(demo)\n"
        "version = importlib.metadata.version('u2export')\n"
        "print(json.dumps([u2export.__file__, str(path), weights.identify(path)[1].name, version]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(target)!r})\n{code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    module, path, model, version = json.loads(done.stdout)
    assert Path(module).is_relative_to(target)
    assert Path(path).is_relative_to(target)
    assert (model, version) == ("u2netp-demo", VERSION)


def _instructions() -> list[tuple[str, list[str]]]:
    """The Dockerfile's instructions: a name, and words without options."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)
    lines = [line.split(maxsplit=1) for line in text.replace("\\\n", " ").splitlines() if line]
    return [(name, rest.split()) for name, rest in lines]


def _copied() -> list[tuple[list[str], str]]:
    """What the Dockerfile takes from the checkout: sources and target of each COPY."""
    copies = [words for name, words in _instructions() if name == "COPY"]
    return [(words[:-1], words[-1]) for words in copies if not words[0].startswith("--from=")]


def test_the_wheel_builds_from_what_the_dockerfile_copies(wheel: Path, tmp_path: Path):
    source = tmp_path / "src"
    for names, target in _copied():
        for name in names:
            to = source / target
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, to, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                to.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, to)
    assert _build_wheel(source, tmp_path / "dist").read_bytes() == wheel.read_bytes()


def test_what_the_dockerfile_copies_is_not_ignored():
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert patterns[0] == "*"
    taken = [line.removeprefix("!") for line in patterns if line.startswith("!")]
    for names, _ in _copied():
        assert [
            name for name in names if not any(fnmatch.fnmatch(name, one) for one in taken)
        ] == []


def test_the_dockerfile_installs_extras_that_are_there_and_runs_as_nobody_special():
    found = _instructions()
    stages = [words[2] for name, words in found if name == "FROM" and "AS" in words]
    sources = [words[0] for name, words in found if name == "COPY" and "--from" in words[0]]
    assert sources == [f"--from={stage}" for stage in stages]
    commands = [" ".join(words) for name, words in found if name == "RUN"]
    extras = [one for command in commands for one in PROJECT_EXTRAS.findall(command)]
    assert extras == ["onnxruntime,openvino"]
    assert set(extras[0].split(",")) <= EXTRAS.keys()
    last = dict(found)
    assert int(last["USER"][0]) > 0
    assert json.loads(" ".join(last["ENTRYPOINT"])) == [next(iter(PROJECT["scripts"]))]
    assert last["WORKDIR"] == ["/data"]


def _steps(workflow: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each job of a workflow with each of its steps."""
    for job in yaml.safe_load(workflow.read_text("utf-8"))["jobs"].values():
        for step in job["steps"]:
            yield job, step


def _commands(workflow: Path) -> Iterator[list[str]]:
    """The commands that a workflow runs, as words; an expression is one word."""
    for _, step in _steps(workflow):
        script = re.sub(r"\$\{\{.*?\}\}", "EXPRESSION", step.get("run", ""))
        for line in filter(None, script.splitlines()):
            words = shlex.split(line, comments=True)
            if "=" not in words[0]:  # else it sets a variable
                yield words


def test_there_are_workflows_for_tests_documentation_and_wheels():
    assert [path.name for path in WORKFLOWS] == ["docs.yml", "test.yml", "wheel.yml"]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_read_and_nothing_else(workflow: Path):
    told = yaml.safe_load(workflow.read_text("utf-8"))
    assert told["permissions"] == {"contents": "read"}
    assert [name for name, job in told["jobs"].items() if "permissions" in job] == []
    used = [step["uses"] for _, step in _steps(workflow) if "uses" in step]
    assert used
    assert [name for name in used if not re.fullmatch(r"actions/[\w-]+@v\d+", name)] == []


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_what_a_workflow_runs_is_there(workflow: Path):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for words in _commands(workflow):
        assert words[0] in {*SYSTEM_PROGRAMS, *PROJECT["scripts"]}, words
        if words[0] == "make":
            assert words[1] in targets
        for extras in PROJECT_EXTRAS.findall(" ".join(words)):
            assert set(extras.split(",")) <= EXTRAS.keys()
        for word in words:
            name = word.removeprefix("$GITHUB_WORKSPACE/")
            if name != word or word.endswith((".py", ".sh")):
                assert (ROOT / name).is_file()


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_the_programs_that_a_workflow_runs_are_installed_before(workflow: Path):
    """`python -m NAME` needs NAME: of Python itself, of an extra, or installed by the job."""
    for job in yaml.safe_load(workflow.read_text("utf-8"))["jobs"].values():
        script = "\n".join(step.get("run", "") for step in job["steps"])
        installed = {
            word for line in re.findall(r"pip install (.*)", script) for word in line.split()
        }
        if any("dev" in one.split(",") for one in PROJECT_EXTRAS.findall(script)):
            installed |= {re.split(r"[\[>]", one)[0] for one in EXTRAS["dev"]}
        asked = set(re.findall(r"python -m (\w+)", script))
        assert asked <= installed | {"pip", "venv"}


def test_python_versions_that_are_promised_are_tested():
    prefix = "Programming Language :: Python :: 3."
    promised = {
        name.removeprefix(prefix) for name in PROJECT["classifiers"] if name.startswith(prefix)
    }
    told = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text("utf-8"))
    rows = told["jobs"]["tests"]["strategy"]["matrix"]["include"]
    tested = {row["python"].removeprefix("3.") for row in rows if row["required"]}
    assert tested <= promised
    assert {min(promised, key=int), max(promised, key=int)} <= tested
    assert PROJECT["requires-python"] == f">=3.{min(promised, key=int)}"


def test_issue_forms_have_what_github_asks_for():
    """Source: GitHub's documentation, syntax for issue forms and for the form schema."""
    forms = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
    assert [path.name for path in forms] == ["bug.yml", "config.yml", "feature.yml"]
    for path in forms:
        told = yaml.safe_load(path.read_text("utf-8"))
        if path.name == "config.yml":
            assert told == {"blank_issues_enabled": False}
            continue
        assert {"name", "description", "body"} <= told.keys()
        fields = [one for one in told["body"] if one["type"] != "markdown"]
        names = [one["id"] for one in fields]
        assert len(set(names)) == len(names)
        for one in fields:
            assert one["type"] in {"textarea", "dropdown", "checkboxes", "input"}
            assert one["attributes"]["label"]


def test_hooks_run_tools_that_the_developers_have():
    told = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    hooks = [hook for repository in told["repos"] for hook in repository["hooks"]]
    assert [hook["id"] for hook in hooks] == ["ruff", "ruff-format", "mypy"]
    tools = {re.split(r"[\[>]", one)[0] for one in EXTRAS["dev"]}
    assert {hook["entry"].split()[0] for hook in hooks} <= tools


def test_the_citation_is_of_this_version_and_names_the_paper():
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert (told["cff-version"], told["type"]) == ("1.2.0", "software")
    assert (told["version"], told["license"]) == (VERSION, PROJECT["license"])
    (paper,) = told["references"]
    notice = (ROOT / "NOTICE").read_text("utf-8")
    authors = [f"{one['given-names']} {one['family-names']}" for one in paper["authors"]]
    assert f"{', '.join(authors)}:\n" in notice
    arxiv = paper["identifiers"][0]["value"].replace(":", " ")
    said = f"{paper['journal']} {paper['volume']} ({paper['year']}), {paper['start']}, {arxiv}."
    assert f'"{paper["title"]}",' in notice
    assert said in notice


def test_the_changelog_tells_of_this_version():
    """Source: Keep a Changelog 1.1.0: newest first, ISO dates, six kinds of change."""
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    found = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\S+)$", text, re.MULTILINE)
    assert len(found) == len(re.findall(r"^## ", text, re.MULTILINE))
    assert VERSION in dict(found)
    numbers = [tuple(map(int, version.split("."))) for version, _ in found]
    assert numbers == sorted(numbers, reverse=True)
    days = [date.fromisoformat(day) for _, day in found if day != "Unreleased"]
    assert days == sorted(days, reverse=True)
    assert len(days) >= len(found) - 1
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", text, re.MULTILINE)) <= kinds


@pytest.mark.parametrize("name", ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_between_the_projects_pages_lead_somewhere(name: str):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text("utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_what_is_to_be_typed_for_pip_suits_every_shell():
    """To the shell of Windows a single quotation mark is a part of the name."""
    texts = [*(ROOT / "u2export").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    told = [line for path in texts for line in path.read_text("utf-8").splitlines()]
    assert sum('pip install "' in line for line in told) > 5
    assert [line for line in told if re.search(r"'[\w{}.]+\[[\w{},.-]+\]'", line)] == []
