"""`hf-ext card render FOLDER`: write the card of a saved model again, from what lies in its folder."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ext.cli.options import option
from hf_ext.guards.exits import exit_status
from hf_ext.guards.inside import read_json
from hf_ext.guards.markdown import unescape
from hf_ext.hub.front_matter import names_in, sections_of
from hf_ext.method import method_of_models, trained_methods

if TYPE_CHECKING:
    from hf_ext.hub.front_matter import CardText

CARD, ARGUMENTS, REPORT, CORE_REPORT = "README.md", "training_args.json", "forgetting.json", "core.json"
RESULTS_HEADING, CORE_HEADING = "What it learned and what it forgot", "DCLM CORE"  # as in model_cards/base.jinja


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the parser of `hf-ext card`."""
    parser = subparsers.add_parser("card", help="write the model card of a saved folder again")
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    render = actions.add_parser(
        "render",
        help="write README.md from the folder's own files",
        description="Writes README.md of a saved model's folder again: settings from training_args.json, numbers from "
        "forgetting.json and core.json, everything else from the card that is there. Options win. No network, and no "
        "model is loaded.",
    )
    render.add_argument("folder", help="folder of the saved model")
    option(render, "--report", metavar="FILE", help="forgetting.json (default: the folder's, or its report/)")
    option(render, "--core-report", metavar="FILE", help="core.json (default: the folder's, or its report/ or core/)")
    option(render, "--run", dest="run_name", metavar="NAME", help="which run of the report this model is, if several")
    render.add_argument("--arm", dest="arm", help=argparse.SUPPRESS)
    methods = [method.name for method in trained_methods()]
    option(render, "--method", choices=methods, help="default: as the card or the settings tell")
    option(render, "--license", metavar="KEY", help="Hub licence key, such as apache-2.0")
    option(render, "--base-model", metavar="NAME", help="Hub name or folder of the model that was tuned")
    option(render, "--dataset", metavar="NAME", help="Hub name of the fine-tuning data")
    option(render, "--name", metavar="NAME", help="of the model, best its Hub name")
    option(render, "--force", action="store_true", help="overwrite what would be lost: a card not ours, a table")
    render.set_defaults(run=lambda o: exit_status(lambda: run_render(o), "hf-ext card render"))


def run_render(options: argparse.Namespace) -> int:
    """
    Write the card; print where it is and what is still unknown.

    Raises:
        FileNotFoundError: if there is no such folder or report.
        ValueError: if the folder holds no model, a file in it cannot be read, the method cannot be told, or something
            would be lost without `--force`.
    """
    from hf_ext.hub.cards import write_model_card

    if options.arm is not None:
        print("hf-ext card render: --arm is now called --run; --arm goes with the next version", file=sys.stderr)
    folder = Path(options.folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {options.folder!r}")
    # the last is of several adapters beside each other
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json", "gate/config.json")):
        raise ValueError(f"{options.folder!r} holds no saved model: neither config.json nor adapter_config.json")
    metadata, body, _ = read_card(folder)
    arguments = read_json(folder / ARGUMENTS) if (folder / ARGUMENTS).is_file() else {}
    report = _report(folder, options.report)
    core_report = _core_report(folder, options.core_report)
    if not options.force:
        _refuse_losses(metadata, body, report, core_report)
    tags = names_in(metadata.get("tags"))
    method = options.method or method_of(tags, arguments)
    method_names = {record.name for record in trained_methods()}
    has_own_usage = method_of_models(method).task != "text-generation"
    licence = options.license or _licence(arguments.get("model_license")) or _licence(metadata.get("license"))
    path = write_model_card(
        folder,
        method=method,
        base_model=options.base_model or _base_model(folder, metadata),
        license=licence,
        settings=settings_of(method, arguments, body),
        dataset_name=options.dataset or next(iter(names_in(metadata.get("datasets"))), None),
        report=report,
        run=options.run_name or options.arm,
        core_report=core_report,
        tags=[tag for tag in tags if tag not in method_names],
        usage=_usage(body) if has_own_usage else None,
        model_name=options.name or next(iter(names_in(arguments.get("hub_model_id"))), None) or _title(body),
        # --force gives up a card that is not ours; one of ours is merged all the same, with what was added to it.
        overwrite=options.force and "hf-ext" not in tags,
    )
    new_metadata = read_card(folder).metadata
    unknown = [name for name in ("license", "base_model") if _licence(new_metadata.get(name)) is None]
    tables = {"forgetting": report, "CORE": core_report}
    words = "".join(f", with the {name} table" for name, measured in tables.items() if measured is not None)
    print(f"card: {path} ({method}{words})")
    for name in unknown:
        print(f"not known: {name.replace('_', ' ')}; give it with --{name.replace('_', '-')}")
    return 0


def read_card(folder: Path) -> CardText:
    """
    The card in a folder; empty where there is none.

    Raises:
        ValueError: if its metadata is no YAML mapping.
    """
    from hf_ext.hub.front_matter import read_card as read

    return read(folder / CARD)


def method_of(tags: Collection[str], arguments: Mapping[str, Any]) -> str:
    """
    The method, from the card's tags, else from the settings that only it has.

    Raises:
        ValueError: if neither tags nor settings tell the method.
    """
    methods = [method for method in trained_methods() if not method.variant_of]
    tagged = [method.name for method in methods if method.name in tags]
    if len(tagged) == 1:
        return tagged[0]
    # A method that is built on another one has that one's settings too: the most settings tell it.
    telling = [method for method in methods if arguments.keys() >= {*method.telltale_settings}]
    likeliest = max(telling, key=lambda method: len(method.telltale_settings), default=None)
    if likeliest is None or not likeliest.telltale_settings:
        names = ", ".join(method.name for method in methods)
        raise ValueError(f"the folder does not tell which method trained it; give --method, one of {names}")
    return likeliest.name


def settings_of(method: str, arguments: Mapping[str, Any], body: str) -> dict[str, Any]:
    """The card's settings table: the method's own and the common ones, then rows that only the old card has."""
    import hf_ext
    from hf_ext.trainers.base.card import card_settings

    record = method_of_models(method)
    setting_names = card_settings(record, getattr(hf_ext, record.config))
    table = dict(sections_of(body)).get("Training settings", "")
    cells = re.findall(r"^\| ((?:\\.|[^|\\])+) \| ((?:\\.|[^|\\])*) \|$", table, re.MULTILINE)
    old_settings = {unescape(name): unescape(value) for name, value in cells[1:]}  # after the header
    return {
        **{name: arguments[name] for name in setting_names if name in arguments},
        **_without(old_settings, arguments, setting_names),
    }


def _without(old_settings: dict[str, str], arguments: Mapping[str, Any], setting_names: list[str]) -> dict[str, str]:
    return {name: value for name, value in old_settings.items() if name not in arguments or name not in setting_names}


def _report(folder: Path, report_path: str | None) -> Any:
    """The forgetting report: the one named, else the folder's own, else `None`."""
    from hf_ext.evaluation.report import ForgettingReport

    return _read_report(ForgettingReport, REPORT, [folder, folder / "report"], report_path)


def _core_report(folder: Path, report_path: str | None) -> Any:
    """The CORE report: the one named, else the folder's own, else `None`."""
    from hf_ext.evaluation.core.report import CoreReport

    return _read_report(CoreReport, CORE_REPORT, [folder, folder / "report", folder / "core"], report_path)


def _read_report(kind: type, file_name: str, folders: list[Path], report_path: str | None) -> Any:
    places = [folder / file_name for folder in folders]
    if report_path is not None:
        places = [Path(report_path) / file_name if Path(report_path).is_dir() else Path(report_path)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        if report_path is not None:
            raise FileNotFoundError(f"there is no report {report_path!r}")
        return None
    try:
        return kind.from_dict(read_json(path))  # type: ignore[attr-defined]
    except (KeyError, TypeError, AttributeError) as error:
        name = "CORE" if file_name == CORE_REPORT else "forgetting"
        raise ValueError(f"{path.name} is no {name} report: {type(error).__name__} {error}") from error


def _refuse_losses(metadata: Mapping[str, Any], body: str, report: Any, core_report: Any) -> None:
    if (metadata or body.strip()) and "hf-ext" not in names_in(metadata.get("tags")):
        raise ValueError(f"{CARD} was not written by hf-ext; --force overwrites it")
    headings = {heading for heading, _ in sections_of(body)}
    had_core = CORE_HEADING in headings
    had_forgetting = RESULTS_HEADING in headings or (bool(metadata.get("model-index")) and not had_core)
    for name, option_name, file_name, is_lost in (
        ("forgetting", "--report", REPORT, had_forgetting and report is None),
        ("CORE", "--core-report", CORE_REPORT, had_core and core_report is None),
    ):
        if is_lost:
            raise ValueError(
                f"{CARD} has a {name} table, and no {file_name} was found to write it again; give {option_name}, or "
                "--force to lose it"
            )


def _base_model(folder: Path, metadata: Mapping[str, Any]) -> str | None:
    names = names_in(metadata.get("base_model"))
    if names:
        return names[0]  # the others of a list stay in the card
    for name, key in (("adapter_config.json", "base_model_name_or_path"), ("config.json", "_name_or_path")):
        value = read_json(folder / name).get(key) if (folder / name).is_file() else None
        if isinstance(value, str) and value:
            return value
    return None


def _licence(value: Any) -> str | list[str] | None:
    """A licence key or a list of them, where it is known."""
    names = names_in(value)
    return (names if isinstance(value, list) else names[0]) if names and names != ["unknown"] else None


def _usage(body: str) -> str | None:
    """What the old card says under `## Use`; of a method that makes no generator nothing else tells."""
    _, _, text = dict(sections_of(body)).get("Use", "").partition("\n")
    return text.strip() or None


def _title(body: str) -> str | None:
    title = re.search(r"^# (.+)$", body, re.MULTILINE)
    return unescape(title[1].strip()) if title else None
