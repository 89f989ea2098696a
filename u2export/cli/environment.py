"""Commands on this machine: `doctor`, `backends`, `weights`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from u2export.cli.options import JsonOption, Panel, show, with_verbosity
from u2export.core import plugins
from u2export.core.models import MODELS, find_model
from u2export.system.progress import phases, say

weights_app = typer.Typer(no_args_is_help=True, help="List, fetch and verify weights.")


def doctor(
    json_target: JsonOption = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            help="Status 3 unless this backend can export and run here; repeatable.",
            rich_help_panel=Panel.RUNTIME,
        ),
    ] = None,
) -> None:
    """Tell what this machine can export and run, and what is missing for the rest."""
    from u2export.diagnostics import doctor

    with phases() as phase:
        report = doctor.examine_machine(phase)
    show(doctor.format_report(report), report.model_dump_json(indent=1), json_target)
    doctor.require_backends(report, require or [])


def backends(json_target: JsonOption = None) -> None:
    """List the backends: what each writes, and whether it can export and run here."""
    from u2export.diagnostics import doctor

    reports = [doctor.examine_backend(name, probe=False) for name in plugins.names()]
    documents = [report.model_dump(mode="json") for report in reports]
    show(doctor.format_backends(reports), json.dumps(documents, indent=1), json_target)


def list_weights(json_target: JsonOption = None) -> None:
    """List the models, and where their weights are on this machine."""
    from u2export.network import weights

    paths = {name: weights.local_path(model) for name, model in MODELS.items()}
    lines = [
        f"{name:<16} {model.architecture:<6} {model.task:<9} {paths[name] or 'not here'}"
        for name, model in MODELS.items()
    ]
    documents = [
        {
            "model": name,
            "architecture": str(model.architecture),
            "task": str(model.task),
            "path": str(paths[name]) if paths[name] else None,
        }
        for name, model in MODELS.items()
    ]
    show("\n".join(lines), json.dumps(documents, indent=1), json_target)


def fetch_weights(model: Annotated[str, typer.Argument(help="The model's name.")]) -> None:
    """Fetch a model's weights, verify them, and print where they are."""
    from u2export.network import weights

    found = weights.find(find_model(model))
    say(f"{found.path.name} has sha256 {found.facts.weights.sha256}")
    print(found.path)


def verify_weights(file: Annotated[Path, typer.Argument(help="A weights file.")]) -> None:
    """Print the sha256 of a weights file and the model it belongs to; status 4 if it is unknown."""
    from u2export.network import weights

    sha256, model = weights.identify(file)
    print(f"{sha256}  {model.name}")


for _name, _function in (
    ("list", list_weights),
    ("fetch", fetch_weights),
    ("verify", verify_weights),
):
    weights_app.command(_name)(with_verbosity(_function))
