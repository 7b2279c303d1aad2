"""The tables of a study, put together from its stages."""

from collections.abc import Mapping, Sequence

import pandas as pd

from absorb_pl.data.forks import forks_for, in_forks
from absorb_pl.evaluators.evaluation import sae_tables, with_texts
from absorb_pl.evaluators.firings import held_out_table
from absorb_pl.evaluators.sae_probing import EvaluationRows
from absorb_pl.evaluators.shuffles import shuffles_table
from absorb_pl.models.processing import describe_processing, model_processing
from absorb_pl.rules.children import children_table, with_children
from absorb_pl.rules.judgement import judge
from absorb_pl.rules.rates import RateSettings
from absorb_pl.rules.rule import AbsorptionRule
from absorb_pl.schema import HELD_OUT, ordered_words, stacked
from absorb_pl.study.stages import StudyStages
from absorb_pl.words.tasks import Task


def study_tables(
    stages: StudyStages, names: Sequence[str], rules: Sequence[AbsorptionRule], rates: RateSettings
) -> dict[str, pd.DataFrame]:
    """Judge SAEs by rules and put the tables of a study together (see `absorb_pl.schema.TABLES`).

    Args:
        stages: The finished stages.
        names: The SAEs.
        rules: The rules to judge the words by.
        rates: How rates are summed up.

    Returns:
        `summary`, `letters`, `words`, `sensitivity`, `latents`, `k_sparse`, `candidates`, `held_out`, `firings`,
        `training`, `children` for a task with finer labels, `shuffles` if there are shuffled copies, and `crossfit`,
        `crossfit_letters` and `crossfit_words` if the study cross-fits.
    """

    def tables_of(name: str) -> dict[str, pd.DataFrame]:
        return _tables_of(name, stages, rules, rates)

    subject = stages.subject
    parts = list(in_forks(tables_of, names, forks_for(len(names))))
    found = join_tables(parts)
    hooks = dict.fromkeys(subject.saes[name].hook_name for name in names)
    curves = [_curve(stages.probes.curve(hook), "linear_probe", hook) for hook in hooks]
    held_out = [_held_out(hook, stages) for hook in hooks]
    return {**found, "training": stacked([found["training"], *curves]), "held_out": stacked(held_out)}


def _tables_of(
    name: str, stages: StudyStages, rules: Sequence[AbsorptionRule], rates: RateSettings
) -> dict[str, pd.DataFrame]:
    """The tables of one SAE."""
    subject = stages.subject
    words, task = subject.words, subject.words.task
    sae, found = subject.saes[name], stages.probing.result(name)
    judgements = [
        judge(
            rule,
            with_children(stages.evidence(name, rule.needs), task),
            found.letters,
            found.latents,
            rates,
            task.classes,
            stages.one_main(name, rule.needs),
        )
        for rule in rules
    ]
    about = {
        "model": words.language_model.cfg.model_name,
        "hook_name": sae.hook_name,
        "layer": sae.layer,
        "architecture": sae.architecture,
        "control": sae.control,
        "neuronpedia": sae.neuronpedia,
        "hedging": sae.hedging,
        "folded": sae.folded,
        "processing": describe_processing(model_processing(words.language_model)),
        **found.statistics,
        "shared_context": words.config.shared_context,
    }
    tables = sae_tables(name, found, judgements, about, sae.hook_name)
    tables["candidates"] = with_texts(tables["candidates"], words.texts)
    tables["firings"] = stages.firings.table(name)
    tables["firings"].insert(0, "sae", name)
    if task.children:
        held_out = held_out_children(stages.probes.held_out(sae.hook_name), task)
        of_rules = [
            children_table(judgement.words, judgement.letters, held_out).assign(rule=judgement.figures["rule"])
            for judgement in judgements
        ]
        children = pd.concat(of_rules, ignore_index=True)
        children.insert(0, "rule", children.pop("rule"))
        children.insert(0, "sae", name)
        tables["children"] = children
    if stages.shuffles is not None:
        figures = [judgement.figures for judgement in judgements]
        tables["shuffles"] = shuffles_table(stages.shuffles.table(name), figures, rates.confidence)
        tables["shuffles"].insert(0, "sae", name)
    if stages.crossfit is not None:
        tables |= stages.crossfit.tables(name)
    return {**tables, "training": _curve(stages.probing.curve(name), "k_sparse_probe", name)}


def join_tables(parts: Sequence[Mapping[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    """Put the tables of several SAEs, or groups of them, below each other.

    Args:
        parts: Tables by name, the same in each part.
    """
    tables = {name: stacked(part[name] for part in parts) for name in parts[0]}
    tables["training"] = tables["training"].drop_duplicates(["probe", "name", "epoch"], ignore_index=True)
    if "held_out" in tables:
        tables["held_out"] = tables["held_out"].drop_duplicates(["hook_name", "row", "label"], ignore_index=True)
    tables["words"] = ordered_words(tables["words"])
    return tables


def held_out_children(rows: EvaluationRows, task: Task) -> pd.DataFrame:
    """How many held-out words each child has, and on how many of them the linear probe sees the class.

    Args:
        rows: The held-out words.
        task: The task.

    Returns:
        One row per class and child: `label, child, num_words, num_probe_true_positives`.
    """
    words = pd.DataFrame(
        {
            "label": [task.classes[number] for number in rows.y.int().argmax(dim=1).tolist()],
            "child": [task.children[row] for row in rows.index.tolist()],
            "seen": (rows.probe_logits[rows.y] > 0).tolist(),
        }
    )
    counts = words.groupby(["label", "child"], as_index=False)["seen"].agg(["size", "sum"])
    return counts.rename(columns={"size": "num_words", "sum": "num_probe_true_positives"})


def _held_out(hook: str, stages: StudyStages) -> pd.DataFrame:
    table = with_texts(held_out_table(stages.probes.held_out(hook)), stages.subject.words.texts)
    return table.assign(hook_name=hook)[list(HELD_OUT)]


def _curve(curve: pd.DataFrame, probe: str, name: str) -> pd.DataFrame:
    return curve.assign(probe=probe, name=name)
