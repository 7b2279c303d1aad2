"""Make the documents that follow from the code: `docs/tables.md`, `docs/api`, and pictures in `docs/architecture.md`.

python scripts/document.py          # write them
python scripts/document.py --check  # only say whether they are up to date
"""

import ast
import inspect
import sys
from importlib import import_module
from pathlib import Path

import absorb_pl
from absorb_pl import schema
from absorb_pl.study.crossfit_stage import CrossfitStage
from absorb_pl.study.evidence_stages import GradientStage, ProjectionStage
from absorb_pl.study.firing_stage import FiringStage
from absorb_pl.study.fold_stages import FoldGradientStage, FoldMainsStage, FoldProbeStage
from absorb_pl.study.probing_stages import ActivationStage, LinearProbeStage, SaeProbingStage
from absorb_pl.study.shuffle_stage import ShuffleStage

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "absorb_pl"
STAGES = (
    ActivationStage,
    LinearProbeStage,
    SaeProbingStage,
    ProjectionStage,
    GradientStage,
    FiringStage,
    ShuffleStage,
    FoldProbeStage,
    FoldMainsStage,
    FoldGradientStage,
    CrossfitStage,
)
EXPERIMENTS = ("latent_evaluation", "k_sparse_probing", "feature_absorption", "common")
MARKS = ("<!-- made by scripts/document.py -->", "<!-- end -->")
ABOUT = {
    "summary": "One row per SAE and rule.",
    "letters": "One row per SAE, rule and class.",
    "words": "One row per SAE, rule and word that the rule judges. What a rule does not use is missing.",
    "sensitivity": "One row per SAE, rule, threshold and value.",
    "latents": "One row per SAE, class and rank: the latents nearest to the class's probe.",
    "k_sparse": "One row per SAE, class and k.",
    "candidates": "One row per SAE and candidate word of the paper's rules.",
    "held_out": "One row per hook, held-out word and class of it.",
    "firings": "One row per SAE, named latent and held-out word on which it fires.",
    "training": "One row per epoch of each probe; linear probes at their optimum have one.",
    "children": "One row per SAE, rule, class and finer label; only for tasks with finer labels.",
    "ablations": "One row per SAE, word and latent that fires (`AblationEvaluator`).",
    "spelling": "One row per setting (`SpellingSweep`).",
    "truth": "One row per SAE and sample of a known world; of `GroundTruthEvaluator`.",
    "edges": "One row per SAE, parent and finer feature of a known world; of `GroundTruthEvaluator`.",
    "checks": "One row per step, SAE and rule, while SAEs train; of `AbsorptionMonitor`.",
    "hedging": "One row per SAE in training and step at which it was measured; of `MeasureHedging`.",
    "shuffles": "One row per SAE, rule and amount; of a study with `shuffles`.",
    "crossfit": "One row per SAE and rule, and one per class; of a study with `crossfit`.",
    "crossfit_letters": "One row per SAE, rule, repeat and class; of a study with `crossfit`.",
    "crossfit_words": "One row per SAE, rule, repeat and word; of a study with `crossfit`.",
    "comparison": "One row per rule and pair of SAEs, and one per class (`absorb-pl compare`).",
    "power": "One row per SAE and rule (`absorb-pl power`).",
    "calibration": "One row per setting or SAE, seed and rule (`absorb-pl calibrate`).",
    "calibration_summary": "One row per planted setting, or world, and rule (`absorb-pl calibrate`).",
}


def tables() -> str:
    """The columns of all tables, as Markdown."""
    parts = [
        "# Tables\n\nThe columns of every table, with type, unit and meaning, from `absorb_pl/schema.py`. A study"
        "\nwrites `summary` to `children` as Parquet files to `tables/` in its run folder.\n"
    ]
    for name, columns in schema.TABLES.items():
        rows = [f"| `{column}` | {it.dtype} | {it.unit} | {it.meaning} |" for column, it in columns.items()]
        head = ["| column | type | unit | meaning |", "|---|---|---|---|"]
        parts.append("\n".join([f"## {name}\n\n{ABOUT[name]}\n", *head, *rows, ""]))
    return "\n".join(parts)


def imports() -> dict[str, set[str]]:
    """Which rooms each room imports from."""
    rooms = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
    found: dict[str, set[str]] = {room: set() for room in rooms}
    for room in rooms:
        for file in (PACKAGE / room).glob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("absorb_pl."):
                    found[room].add(str(node.module).split(".")[1])
        found[room] &= set(rooms) - {room}
    return found


def without_detours(edges: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The imports that no chain of other imports stands for."""

    def reach(room: str) -> set[str]:
        return edges[room] | {far for near in edges[room] for far in reach(near)}

    return [
        (room, below)
        for room, direct in edges.items()
        for below in sorted(direct)
        if not any(below in reach(other) for other in direct - {below})
    ]


def pictures() -> str:
    """Rooms with their imports, and stages with what they keep, as Mermaid diagrams."""
    rooms = "\n".join(f"    {room} --> {below}" for room, below in without_detours(imports()))
    stages = [f'    {stage.name}["{stage.title}<br/><i>cache/{stage.name}</i>"]' for stage in STAGES]
    flow = [
        "    words([words and prompts]) --> activations",
        "    model([language model]) --> activations",
        "    activations --> linear_probes",
        "    linear_probes --> sae_probing",
        "    saes([SAEs]) --> sae_probing",
        "    sae_probing --> projections",
        "    sae_probing --> absorption",
        "    model --> absorption",
        "    projections --> firings",
        "    absorption --> firings",
        "    sae_probing --> shuffles",
        "    activations --> fold_probes",
        "    fold_probes --> fold_mains",
        "    saes --> fold_mains",
        "    fold_mains --> fold_gradients",
        "    model --> fold_gradients",
        "    fold_mains --> crossfit",
        "    fold_gradients --> crossfit",
        "    projections --> rules{{rules judge}}",
        "    absorption --> rules",
        "    rules --> tables([tables, figures, TensorBoard])",
        "    firings --> tables",
        "    shuffles --> tables",
        "    crossfit --> tables",
    ]
    return (
        f"Rooms; an arrow says who imports whom (only arrows that no chain of others stands for):\n\n"
        f"```mermaid\nflowchart TD\n{rooms}\n```\n\n"
        f"The way of the data through a study; boxes are stages, each kept in the cache:\n\n"
        f"```mermaid\nflowchart LR\n{chr(10).join(stages + flow)}\n```"
    )


def api() -> dict[Path, str]:
    """The pages of the API: the package's own names with their first lines, and a page for each room."""
    folder = ROOT / "docs/api"
    lines = ["# absorb_pl", "", "The names of the package itself, each with the room that has it.", ""]
    lines += ["| name | room | what it is |", "|---|---|---|"]
    for name in absorb_pl.__all__:
        room = absorb_pl._PLACES[name]
        about = str(inspect.getdoc(getattr(absorb_pl, name))).partition("\n\n")[0].replace("\n", " ")
        lines.append(f"| [`{name}`]({room}.md#absorb_pl.{room}.{name}) | `{room}` | {about} |")
    pages = {folder / "index.md": "\n".join([*lines, ""])}
    for file in sorted(PACKAGE.glob("*/__init__.py")):
        room = file.parent.name
        if room == "functional":  # `docs/definitions.md`
            continue
        names = [name for name in import_module(f"absorb_pl.{room}").__all__ if (file.parent / f"{name}.py").is_file()]
        names += EXPERIMENTS if room == "experiments" else ()
        parts = [f"## absorb_pl.{room}.{name}\n\n::: absorb_pl.{room}.{name}\n" for name in names]
        pages[folder / f"{room}.md"] = "\n".join([f"# absorb_pl.{room}\n\n::: absorb_pl.{room}\n", *parts])
    return pages


def documents() -> dict[Path, str]:
    """What each document should hold."""
    architecture = ROOT / "docs/architecture.md"
    before, _, rest = architecture.read_text(encoding="utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    return {
        ROOT / "docs/tables.md": tables(),
        **api(),
        architecture: f"{before}{MARKS[0]}\n{pictures()}\n{MARKS[1]}{after}",
    }


def main() -> None:
    """Write the documents, or say which are out of date."""
    old = [path for path, text in documents().items() if not path.is_file() or path.read_text("utf-8") != text]
    if "--check" in sys.argv:
        sys.exit(f"Out of date: {', '.join(map(str, old))}. Run scripts/document.py." if old else 0)
    for path, text in documents().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
