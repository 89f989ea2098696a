"""Generate the reference pages that come from code: commands, and schemas of files.

    python docs/generate_reference.py [--check]

`--check` writes nothing and exits with 1 where a page is stale.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

from u2export.core import plugins

REFERENCE = Path(__file__).resolve().parent / "reference"
NOTICE = "<!-- made by docs/generate_reference.py: edit the code, then `make docs-reference` -->"
_OWN = "u2export."
_OTHER_OPTIONS = "Options"
_TYPES = {Path: "PATH", int: "INTEGER", float: "NUMBER", str: "TEXT"}
_COLUMN_END = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True)
class Schema:
    """A document on disk: a title, what writes it, and the model that describes it."""

    title: str
    written: str
    model: str


SCHEMAS = (
    Schema(
        "Manifest",
        "Every export writes it beside the model file, as `FILE.json`.",
        "u2export.core.artifact.Manifest",
    ),
    Schema(
        "Certificate",
        "A passed `u2export parity` writes it into the manifest, as `checks.certificate`.",
        "u2export.parity.certificate.Certificate",
    ),
    Schema(
        "Record of 8 bits",
        "An int8 export writes it into the facts. `u2export sensitivity --json` prints it.",
        "u2export.core.int8_record.Int8Record",
    ),
    Schema(
        "Parity report",
        "`u2export parity --json` writes it.",
        "u2export.parity.report.ParityReport",
    ),
    Schema(
        "Replay record",
        "A replay file holds it as `replay.json`.",
        "u2export.parity.replay.ReplayRecord",
    ),
    Schema(
        "Bisection",
        "`u2export bisect --json` writes it.",
        "u2export.parity.bisect.Bisection",
    ),
    Schema(
        "Benchmark report",
        "`u2export bench --json` and `u2export auto --json` write it.",
        "u2export.benchmark.report.BenchmarkReport",
    ),
    Schema(
        "Recommendation",
        "`u2export recommend --json` writes it.",
        "u2export.benchmark.recommend.Recommendation",
    ),
    Schema(
        "Inspection",
        "`u2export inspect --json` writes it.",
        "u2export.diagnostics.inspect.Inspection",
    ),
    Schema(
        "Doctor report",
        "`u2export doctor --json` writes it.",
        "u2export.diagnostics.doctor.DoctorReport",
    ),
)


def pages() -> dict[Path, str]:
    """Give every generated page with its content."""
    return {
        REFERENCE / "commands.md": commands_page(),
        REFERENCE / "schemas.md": schemas_page(),
    }


def commands_page() -> str:
    """Describe every command with its arguments and options."""
    lines = ["# Commands", "", NOTICE, ""]
    lines += [
        "Results go to standard output, one path a line. Everything else goes to standard error.",
        "",
    ]
    root = root_command()
    commands = list(all_commands(root))
    shared = set.intersection(*({one.name for one in _options(each)} for _, each in commands))
    everywhere = [one for one in _options(commands[0][1]) if one.name in shared]
    lines += ["These options come before the command's name.", ""]
    lines += [*_option_tables(_options(root)), ""]
    lines += ["Every command takes these.", "", *_option_tables(everywhere), ""]
    for name, command in commands:
        lines += _command_section(name, command, shared)
    return "\n".join(lines).rstrip() + "\n"


def root_command() -> Any:
    """Give `u2export` itself, as it parses."""
    from u2export.cli.app import app

    return typer.main.get_command(app)


def all_commands(root: Any) -> Iterator[tuple[str, Any]]:
    """Yield every command of this package with its full name; plugins' commands are left out."""
    for name in root.commands:
        entry = plugins.entries().get(name)
        if entry is not None and not entry.value.startswith(_OWN):
            continue
        _, command, _ = root.resolve_command(None, [name])
        children = getattr(command, "commands", {})
        for child in children:
            yield f"{name} {child}", children[child]
        if not children:
            yield name, command


def _command_section(name: str, command: Any, shared: set[str]) -> list[str]:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in _options(command) if one.name not in shared]
    usage = ["u2export", name, *map(_argument_usage, arguments)]
    usage += [_flag_and_value(option) for option in options if option.required]
    usage.append("[OPTIONS]")
    text = [_sentence(part) for part in (command.help or "").split("\n\n")]
    lines = [f"## {name}", "", "\n\n".join(text), "", "```text", " ".join(usage), "```", ""]
    if arguments:
        rows = [(f"`{_upper(one)}`", _sentence(one.help)) for one in arguments]
        lines += [*_table(("argument", "meaning"), rows), ""]
    return [*lines, *_option_tables(options), ""] if options else lines


def _options(command: Any) -> list[Any]:
    return [one for one in command.params if one.param_type_name == "option" and not one.hidden]


def _argument_usage(argument: Any) -> str:
    text = _upper(argument) + ("..." if argument.nargs == -1 else "")
    return text if argument.required else f"[{text}]"


def _upper(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.strip("_").upper())


def _option_tables(options: Sequence[Any]) -> list[str]:
    """Make a table for each panel that options are shown in."""
    panels: dict[str, list[Any]] = {}
    for option in options:
        panel = option.rich_help_panel or _OTHER_OPTIONS
        panels.setdefault(str(getattr(panel, "value", panel)), []).append(option)
    lines: list[str] = []
    for panel, members in panels.items():
        rows = [(_option_names(one), _sentence(one.help) + _default(one)) for one in members]
        titled = [f"**{panel}**", ""] if len(panels) > 1 else []
        lines += [*titled, *_table(("option", "meaning"), rows), ""]
    return lines[:-1]


def _option_names(option: Any) -> str:
    *short, last = sorted([*option.opts, *option.secondary_opts], key=len)
    return ", ".join(f"`{name}`" for name in [*short, _with_value(last, option)])


def _flag_and_value(option: Any) -> str:
    return _with_value(max(option.opts, key=len), option)


def _with_value(name: str, option: Any) -> str:
    if option.is_flag or getattr(option, "count", False):
        return name
    return f"{name} {option.metavar or _value_type(option)}"


def _value_type(option: Any) -> str:
    annotation = getattr(getattr(option, "type_descriptor", None), "annotation", str)
    inner = typing.get_args(annotation) or (annotation,)
    return _TYPES.get(inner[0], "TEXT")


def _default(option: Any) -> str:
    value = option.default
    if option.is_flag or value is None or value == [] or not option.show_default:
        return ""
    return f" Default: `{value}`."


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split())


def schemas_page() -> str:
    """Describe every document that is written as JSON."""
    lines = [
        "# Manifest and report schemas",
        "",
        NOTICE,
        "",
        "Every document is JSON. Fields keep their names and meanings within a schema version.",
        "A reader refuses a document of a newer version. Every field is always written.",
        "",
    ]
    shown: set[type[BaseModel]] = set()
    for schema in SCHEMAS:
        model = _load(schema.model)
        lines += [f"## {schema.title}", "", schema.written, "", *_model_section(model)]
        for each in _nested(model)[1:]:
            if each not in shown:
                shown.add(each)
                lines += [f"### {each.__name__}", "", *_model_section(each)]
    return "\n".join(lines).rstrip() + "\n"


def _load(path: str) -> type[BaseModel]:
    module, name = path.rsplit(".", 1)
    model: type[BaseModel] = getattr(importlib.import_module(module), name)
    return model


def _nested(model: type[BaseModel]) -> list[type[BaseModel]]:
    """List a model and the models its fields hold, each once."""
    found = [model]
    for field in model.model_fields.values():
        for inner in _models_in(field.annotation):
            found += [each for each in _nested(inner) if each not in found]
    return found


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _models_in(inner)


def _model_section(model: type[BaseModel]) -> list[str]:
    summary, meanings = split_docstring(inspect.getdoc(model) or "")
    rows = [
        (f"`{name}`", type_text(field.annotation), meanings.get(name, ""))
        for name, field in model.model_fields.items()
    ]
    table = _table(("field", "type", "meaning"), rows)
    return [summary, "", *table, ""]


def split_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Split a Google docstring into its prose and its attributes' meanings."""
    prose, _, rest = text.partition("Attributes:\n")
    meanings: dict[str, str] = {}
    name = ""
    for line in rest.splitlines():
        start = re.match(r"    (\w+): (.*)", line)
        if start:
            name = start[1]
            meanings[name] = start[2]
        elif line.startswith("     ") and name:
            meanings[name] += f" {line.strip()}"
        elif line.strip():
            break
    return " ".join(prose.split()), {key: _capital(value) for key, value in meanings.items()}


def _capital(text: str) -> str:
    word = text.split(" ", 1)[0]
    return text[:1].upper() + text[1:] if word.isalpha() else text


def type_text(annotation: Any) -> str:
    """Say in words what JSON holds for a type."""
    plain = {str: "text", int: "integer", float: "number", bool: "true or false"}
    if annotation in plain:
        return plain[annotation]
    if annotation in (None, type(None)):
        return "null"
    if annotation is Any:
        return "any"
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_text(inner[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(type_text, inner)))
    if origin in (dict, Mapping):
        return f"object of {type_text(inner[1])}"
    if origin is tuple and inner[-1] is not Ellipsis:
        return f"list of {len(inner)}: {', '.join(dict.fromkeys(map(type_text, inner)))}"
    if origin in (tuple, list, Sequence):
        return f"list of {type_text(inner[0])}"
    return _class_text(annotation)


def _class_text(annotation: Any) -> str:
    if issubclass(annotation, Enum):
        return ", ".join(f"`{member.value}`" for member in annotation)
    if issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    raise TypeError(f"no words for the type {annotation}")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", "|" + " - |" * len(heads)]
    return lines + [f"| {' | '.join(map(_cell, row))} |" for row in rows]


def _cell(text: str) -> str:
    text = _COLUMN_END.sub(r"\\|", text)
    return text if "`" in text else text.replace("<", "&lt;")


def main() -> int:
    """Write the pages, or tell which are stale."""
    stale = [path for path, text in pages().items() if not _is_current(path, text)]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path} is stale: run make docs-reference", file=sys.stderr)
        return 1 if stale else 0
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(path)
    return 0


def _is_current(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
