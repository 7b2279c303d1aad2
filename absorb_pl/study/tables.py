"""The tables of a study, put together from its stages."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from absorb_pl.data import PromptDataModule
from absorb_pl.evaluators import SaeProbing
from absorb_pl.models import describe_processing, model_processing
from absorb_pl.rules import (
    SENSITIVITY_COLUMNS,
    AbsorptionRule,
    RateSettings,
    children_table,
    judge_words,
    order_columns,
    rate_tables,
    sensitivity_table,
    with_children,
)
from absorb_pl.saes import SaeSource
from absorb_pl.study.probing_stages import LinearProbeStage, SaeProbingStage

_OF_SAES = ("latents", "k_sparse", "candidates")
_OF_RULES = ("letters", "words", "sensitivity")


def study_tables(
    saes: Mapping[str, SaeSource],
    words: PromptDataModule,
    probes: LinearProbeStage,
    probing: SaeProbingStage,
    scored: Mapping[str, Callable[[str], pd.DataFrame]],
    rules: Sequence[AbsorptionRule],
    rates: RateSettings,
) -> dict[str, pd.DataFrame]:
    """Put the tables of a study together.

    Args:
        saes: The SAEs by name.
        words: The prompts.
        probes: The finished stage of the linear probes.
        probing: The finished stage that found main latents and candidates.
        scored: For each rule, gives the stored scores of an SAE's words.
        rules: The rules to judge the words by.
        rates: How rates are summed up.

    Returns:
        `summary` (a row an SAE and rule), `letters` (and label), `words` (and candidate word), `sensitivity` (and
        threshold and value), `latents`, `k_sparse`, `candidates` and `training` (a row an epoch of each probe); of a
        task with finer labels also `children` (a row an SAE, rule, label and child).
    """
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in (*_OF_RULES, *_OF_SAES, "training")}
    summary, hierarchy = [], bool(words.task.children)
    for name, sae in saes.items():
        found = probing.result(name)
        about = {
            "sae": name,
            "model": words.language_model.cfg.model_name,
            "hook_name": sae.hook_name,
            "layer": sae.layer,
            "architecture": sae.architecture,
            "control": sae.control,
            "folded": sae.folded,
            "processing": describe_processing(model_processing(words.language_model)),
            **found.statistics,
            "shared_context": words.config.shared_context,
        }
        held_out = held_out_children(probes, sae.hook_name) if hierarchy else None
        for rule in rules:
            stored = with_children(scored[rule.name](name), words.task)
            tables, row = judged(rule, name, stored, found.letters, found.latents, rates, words.task.classes)
            summary.append({**about, **row})
            if held_out is not None:
                children = children_table(tables["words"], tables["letters"], held_out)
                children.insert(0, "rule", rule.name)
                parts.setdefault("children", []).append(_with_sae(children, name))
            for table, frame in tables.items():
                parts[table].append(_with_hook(frame, sae.hook_name) if table == "letters" else frame)
        for table, frame in _of_sae(found, words).items():
            parts[table].append(_with_hook(_with_sae(frame, name), sae.hook_name))
        parts["training"].append(_curve(probing.curve(name), "k_sparse_probe", name))
    for hook in dict.fromkeys(sae.hook_name for sae in saes.values()):
        parts["training"].append(_curve(probes.curve(hook), "linear_probe", hook))
    tables = {name: _joined(frames) for name, frames in parts.items()}
    tables["words"] = order_columns(tables["words"])
    return {"summary": pd.DataFrame(summary), **tables}


def join_tables(parts: Sequence[Mapping[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    """Put the tables of several groups of SAEs below each other.

    Args:
        parts: From `study_tables`.
    """
    tables = {name: _joined([part[name] for part in parts]) for name in parts[0]}
    tables["training"] = tables["training"].drop_duplicates(["probe", "name", "epoch"], ignore_index=True)
    tables["words"] = order_columns(tables["words"])
    return tables


def judged(
    rule: AbsorptionRule,
    sae: str,
    stored: pd.DataFrame,
    letters: pd.DataFrame,
    latents: pd.DataFrame,
    rates: RateSettings,
    class_names: tuple[str, ...],
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Tables of one SAE by one rule.

    Args:
        rule: The rule.
        sae: Name of the SAE.
        stored: Stored scores of its words.
        letters: From `evaluate_sae`.
        latents: From `latent_table`.
        rates: How rates are summed up.
        class_names: All classes of the task.

    Returns:
        `letters`, `words` and `sensitivity`, and the row of the summary.
    """
    words = judge_words(rule, stored)
    of_letters, row = rate_tables(rule, letters, words, latents, rates, class_names)
    sensitivity = sensitivity_table(rule, stored, of_letters, row["letters"])
    return {
        "letters": _with_sae(of_letters, sae),
        "words": words,
        "sensitivity": _with_sae(sensitivity, sae).astype(SENSITIVITY_COLUMNS),
    }, row


def held_out_children(probes: LinearProbeStage, hook: str) -> pd.DataFrame:
    """How many held-out words each child has, and on how many of them the linear probe sees the class.

    Args:
        probes: The finished stage of the linear probes.
        hook: The hook.

    Returns:
        One row a class and child: `label, child, num_words, num_probe_true_positives`.
    """
    task = probes.data.words.task
    x, y, index = probes.data.split(hook, "test")
    weight, bias = probes.weights(hook)
    words = pd.DataFrame(
        {
            "label": [task.classes[number] for number in y.argmax(dim=1).tolist()],
            "child": [task.children[row] for row in index.tolist()],
            "seen": ((x @ weight.T + bias)[y.bool()] > 0).tolist(),
        }
    )
    counts = words.groupby(["label", "child"], as_index=False)["seen"].agg(["size", "sum"])
    return counts.rename(columns={"size": "num_words", "sum": "num_probe_true_positives"})


def _of_sae(found: SaeProbing, words: PromptDataModule) -> dict[str, pd.DataFrame]:
    texts = [words.texts[row] for row in found.candidates["row"]]
    candidates = found.candidates.assign(word=[t.word for t in texts], prompt=[t.base for t in texts])
    return {"latents": found.latents, "k_sparse": found.k_sparse, "candidates": candidates}


def _joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """Frames below each other; empty ones say nothing about the columns' types."""
    return pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)


def _with_sae(frame: pd.DataFrame, sae: str) -> pd.DataFrame:
    frame = frame.copy()
    frame.insert(0, "sae", sae)
    return frame


def _with_hook(frame: pd.DataFrame, hook_name: str) -> pd.DataFrame:
    frame = frame.copy()
    frame.insert(1, "hook_name", hook_name)
    return frame


def _curve(curve: pd.DataFrame, probe: str, name: str) -> pd.DataFrame:
    return curve.assign(probe=probe, name=name)
