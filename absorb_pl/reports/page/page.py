"""The page as one file: its template, style, scripts and the study's packed tables."""

import base64
import json
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from absorb_pl import __version__
from absorb_pl.data.drafts import whole_file
from absorb_pl.reports.names import short_names
from absorb_pl.reports.page.packing import pack
from absorb_pl.rules.registry import known_rules, rule_named

PAGE = "report.html"
"""Name of the page's file in a run folder."""

_MODULES = ("dom", "format", "data", "state", "charts", "tables", "saes", "sae", "letter", "latent", "compare", "about")
_LIBRARIES = ("d3.min.js", "plot.umd.min.js", "tabulator.min.js")
_STUDY = ("summary", "letters", "shuffles", "crossfit", "comparison")
_TABLES_OF_SAE = ("k_sparse", "latents", "sensitivity")
_OF_WORD = (
    "row", "label", "is_absorption", "unmet", "absorption_fraction", "top_latent", "top_score", "top_probe_cos",
    "second_latent", "second_score", "main_activation", "main_max", "probe_projection", "main_projection",
    "all_projection", "feature_size", "own_part", "others_part", "usual_part",
)  # fmt: skip


def write_page(
    folder: Path,
    tables: Mapping[str, pd.DataFrame],
    config: Mapping[str, Any],
    name: str = PAGE,
) -> Path:
    """Write the page of a study.

    Args:
        folder: Folder of the file.
        tables: The study's tables.
        config: Its settings, plain values only.
        name: Name of the file.

    Returns:
        The file.

    Raises:
        OutputFolderError: The folder cannot be written.
    """
    file = folder / name
    with whole_file(file) as part:
        part.write_text(page_of(tables, config), encoding="utf-8")
    return file


def page_of(tables: Mapping[str, pd.DataFrame], config: Mapping[str, Any]) -> str:
    """The page of a study, as HTML.

    It needs no network and no server. What it shows of the whole study is read at once; the words of an SAE when it is
    looked at. Rates keep all their digits, the evidence on words five significant ones.

    Args:
        tables: The study's tables; those that are missing are left out.
        config: Its settings, plain values only.
    """
    summary = tables["summary"]
    names = list(summary["sae"].unique())
    about = {
        "model": str(config.get("model") or ""),
        "version": __version__,
        "config": json.loads(json.dumps(config, default=str)),
        "saes": [{"name": name, "short": short} for name, short in short_names(names).items()],
        "rules": [_about_rule(name, config["rules"].get(name, {})) for name in summary["rule"].unique()],
    }
    study = {name: tables[name] for name in _STUDY if len(tables.get(name, ()))}
    study |= _texts(tables)
    blocks = {"study": pack(study, about)}
    by_sae = {name: _by_sae(tables[name]) for name in ("words", "firings", *_TABLES_OF_SAE) if name in tables}
    for number, name in enumerate(names):
        blocks[f"sae-{number}"] = pack(_tables_of(name, by_sae, tables), exact=False)
    return _html(f"Absorption · {about['model']}", blocks)


def _about_rule(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the page says of a rule; of one that this process does not know, its name and settings."""
    about = {"name": name, "settings": json.loads(json.dumps(settings, default=str)), "about": "", "sentences": {}}
    if name not in known_rules():
        return about
    rule = rule_named(name)
    first = (rule.__doc__ or "").strip().split("\n")[0]
    return {**about, "about": first, "sentences": dict(rule.sentences), "evidence": rule.evidence.name}


def _texts(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Words and prompts once each, and what the probe of each hook says of them."""
    if "held_out" in tables:
        held_out = tables["held_out"]
        texts = held_out.drop_duplicates("row")[["row", "word", "prompt"]]
        return {"texts": texts, "held_out": held_out.drop(columns=["word", "prompt"])}
    words = tables["words"].drop_duplicates("row")
    return {"texts": words[[name for name in ("row", "word", "prompt") if name in words]]}


def _by_sae(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {str(name): of_sae for name, of_sae in table.groupby("sae")}


def _tables_of(
    name: str, by_sae: Mapping[str, Mapping[str, pd.DataFrame]], tables: Mapping[str, pd.DataFrame]
) -> dict[str, pd.DataFrame]:
    """What the page shows of one SAE; verdicts by rule, so that evidence that rules share is kept once."""
    words = by_sae["words"].get(name, tables["words"].iloc[:0])
    found = {
        f"words {rule}": of_rule[[column for column in _OF_WORD if column in of_rule and of_rule[column].notna().any()]]
        for rule, of_rule in words.groupby("rule", sort=False)
    }
    if "firings" in by_sae:
        letters = tables["letters"]
        mains = letters.loc[letters["sae"] == name, "main_latents"]
        shown = {int(latent) for latents in mains if latents is not None for latent in latents}
        shown |= set(words["top_latent"].dropna().astype(int))
        firings = by_sae["firings"].get(name, tables["firings"].iloc[:0])
        found["firings"] = firings.loc[firings["latent"].isin(shown), ["row", "latent", "activation"]]
    for table in _TABLES_OF_SAE:
        if name in by_sae.get(table, {}):
            found[table] = by_sae[table][name].drop(columns=["sae", "hook_name"], errors="ignore")
    training = tables.get("training", pd.DataFrame(columns=["name"]))
    return {**found, "training": training[training["name"] == name].drop(columns="name")}


def _html(title: str, blocks: Mapping[str, str]) -> str:
    assets = files("absorb_pl.reports.page") / "assets"

    def asset(name: str) -> str:
        return assets.joinpath(name).read_text(encoding="utf-8")

    def script(kind: str, text: str, name: str = "") -> str:
        return f'<script type="{kind}"{f" id={name}" if name else ""}>{text}</script>'

    modules = {f"#{name}": _as_address(asset(f"{name}.js")) for name in _MODULES}
    parts = {
        "title": escape(title),
        "style": asset("vendor/tabulator.min.css") + asset("page.css"),
        "libraries": "".join(script("text/javascript", asset(f"vendor/{name}")) for name in _LIBRARIES),
        "data": "".join(script("text/plain", text, f"data-{name}") for name, text in blocks.items()),
        "modules": script("importmap", json.dumps({"imports": modules})) + script("module", asset("main.js")),
    }
    page = asset("page.html")
    for name, text in parts.items():
        page = page.replace(f"<!-- {name} -->", text)
    return page


def _as_address(code: str) -> str:
    """A module as an address that holds it, as scripts of one file can only so import each other."""
    return f"data:text/javascript;base64,{base64.b64encode(code.encode()).decode('ascii')}"
