"""Whether intervals of cross-fitted rates hold what other seeds say, and how much less the rates move with the seed.

    python scripts/check_crossfit.py [--saes 'speller/*'] [--seeds 16] [--out lightning_logs/check_crossfit.csv]

Scores every SAE with each seed, once with a single split as published and once cross-fitted (5 folds, 3 repeats). For
each way and rule it prints in how many cases the 95 % interval of one seed holds the
mean over all seeds, and the standard deviation over seeds, as a share of the single split's. Then it compares each SAE
with itself under another seed, letter by letter, and prints how often that is called a difference at 5 %. Rows that
stand in the file already are not computed again, so it can be stopped and taken up.
"""

import argparse
import csv
import io
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pandas as pd
import torch

from absorb_pl.data import ActivationDataModule
from absorb_pl.data.drafts import whole_file
from absorb_pl.data.splits import stratified_split
from absorb_pl.evaluators.absorption import gather_gradients
from absorb_pl.evaluators.crossfit import ScoreWords, crossfit
from absorb_pl.evaluators.evaluation import evaluate_rules
from absorb_pl.evaluators.folds import CrossfitSettings, Folds
from absorb_pl.evaluators.gradients import GradientEvaluator
from absorb_pl.evaluators.sae_probing import EvaluationRows
from absorb_pl.evaluators.training import train_linear_probe, train_sae_probes
from absorb_pl.functional.paired import sign_flip_test
from absorb_pl.probes.settings import KSparseSettings, LinearProbeSettings
from absorb_pl.rules import configured_rules
from absorb_pl.rules.evidence import Gradients
from absorb_pl.saes import expand_sae_names
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.loading import unit_norm_sae
from absorb_pl.saes.properties import sae_hook_name

RULES = configured_rules(["absorb-pl-1", "saebench-0.6.0", "saebench-0.3.2", "paper"])
AMOUNTS = {
    "rate": ("absorption_rate", "ci_low", "ci_high"),
    "share": ("absorption_fraction", "fraction_ci_low", "fraction_ci_high"),
}
COLUMNS = ["sae", "seed", "way", "rule", "label", "amount", "value", "low", "high"]
LEVEL = 0.05
LETTERS_FOR_LEVEL = 6
"""Letters that must differ before flipped signs can give a p-value below the level: 2 of 2⁶ signs are 0.03."""


def rows_of(table: pd.DataFrame, way: str, sae: str, seed: int) -> Iterator[list[object]]:
    """Rate and share of an SAE by each rule, of all letters together and of each, as rows of the file."""
    for row in table.to_dict("records"):
        for amount, names in AMOUNTS.items():
            yield [sae, seed, way, row["rule"], row.get("label", ""), amount, *(row[name] for name in names)]


def measure(names: list[str], seeds: int, out: Path) -> None:
    """Score all SAEs with all seeds, hook by hook, so that SAEs share linear probes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if not out.exists():
        out.write_text(",".join(COLUMNS) + "\n")
    known = pd.read_csv(out)
    if list(known) != COLUMNS:
        raise SystemExit(f"{out} has other columns than {', '.join(COLUMNS)}; name another file with --out.")
    rules = known.groupby(["sae", "seed"])["rule"].agg(set)
    done = {pair for pair, judged in rules.items() if judged >= {rule.name for rule in RULES}}
    saes = {name: unit_norm_sae(name) for name in names}
    for hook in sorted({sae_hook_name(sae) for sae in saes.values()}):
        data = ActivationDataModule(hook_name=hook, val_fraction=0.0)
        data.prepare_data()
        data.setup("fit")
        x, y = data.rows(torch.arange(len(data.labels))), data.labels.bool()
        of_hook = {name: sae for name, sae in saes.items() if sae_hook_name(sae) == hook}
        scored = {name: word_scorer(sae, data) for name, sae in of_hook.items()}
        for seed in range(seeds):
            missing = {name: sae for name, sae in of_hook.items() if (name, seed) not in done}
            if not missing:
                continue
            split = stratified_split(data.label_numbers, (0.8, 0.2), seed)
            probe, _ = train_linear_probe(
                x[split[0]], y[split[0]].long(), LinearProbeSettings(), data.class_names, seed
            )
            weight, bias = probe.weights.detach(), probe.biases.detach()
            rows = EvaluationRows.of(x[split[1]], y[split[1]], split[1], weight, bias, data.class_names)
            folds = Folds(x, y, data.class_names, CrossfitSettings(), seed * 1_000)
            probes = folds.probe_of_fold()
            for name, sae in missing.items():
                single = single_split(sae, data, split[0], rows, seed)
                crossed = crossfit(sae, folds, RULES, probe_of_fold=probes, score_words=scored[name])["crossfit"]
                _append(out, [*rows_of(single, "single", name, seed), *rows_of(crossed, "crossfit", name, seed)])
                print(name, seed, flush=True)


def single_split(
    sae: SparseAutoencoder, data: ActivationDataModule, train: torch.Tensor, rows: EvaluationRows, seed: int
) -> pd.DataFrame:
    """Rates of an SAE by each rule, as a study with this seed has them."""
    x, y = data.rows(train), data.labels[train].long()
    [(sparse, _)] = train_sae_probes([sae], x, y, KSparseSettings(), data.class_names, seed)
    gather = gather_gradients(sae, data, rows.probe_weight, "auto", torch.device("cpu"))
    _, judgements = evaluate_rules(sae, sparse, rows, RULES, gather_gradients=gather)
    return pd.DataFrame([judgement.figures for judgement in judgements])


def word_scorer(sae: SparseAutoencoder, data: ActivationDataModule) -> ScoreWords:
    """Gives integrated gradients at words, each scored once: they do not depend on the seed."""
    known: dict[Gradients, list[pd.DataFrame]] = {}
    model = data.prompt_data.language_model

    def score_words(words: pd.DataFrame, evidence: Gradients) -> pd.DataFrame:
        tables = known.setdefault(evidence, [])
        new = words[~words["row"].isin({row for table in tables for row in table["row"]})]
        if len(new) or not tables:
            evaluator = GradientEvaluator(model, {"sae": sae}, new.assign(sae="sae"), evidence)
            tables.append(
                evaluator.tabulate_words(data.prompt_data, torch.tensor(sorted(new["row"]), dtype=torch.long))
            )
        return pd.concat(tables, ignore_index=True)

    return score_words


def _append(out: Path, rows: list[list[object]]) -> None:
    """Put an SAE's rows behind those of the file, which is replaced as a whole, so that none is there in part."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    with whole_file(out) as draft:
        draft.write_text(out.read_text() + text.getvalue())


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """Coverage and spread of each way and rule, over SAEs that every seed can score."""
    groups = found.dropna().groupby(["amount", "rule", "way", "sae"])
    found = found.join(groups["value"].mean().rename("mean"), on=["amount", "rule", "way", "sae"]).dropna()
    found["holds"] = (found["low"] <= found["mean"]) & (found["mean"] <= found["high"])
    by_sae = found.groupby(["amount", "rule", "way", "sae"]).agg(holds=("holds", "mean"), sd=("value", "std"))
    table = by_sae.groupby(["amount", "rule", "way"]).agg(holds=("holds", "mean"), sd=("sd", "mean"))
    table = table.reset_index()
    single = table[table["way"] == "single"].set_index(["amount", "rule"])["sd"]
    return table.assign(
        of_single=table["sd"] / single.loc[pd.MultiIndex.from_frame(table[["amount", "rule"]])].to_numpy()
    )


def against_itself(found: pd.DataFrame) -> pd.DataFrame:
    """How often an SAE is called different from itself under another seed, over all pairs of seeds."""
    rows = []
    for (amount, rule, sae), letters in found.groupby(["amount", "rule", "sae"]):
        by_seed = letters.pivot_table(index="label", columns="seed", values="value")
        for a, b in combinations(by_seed.columns, 2):
            differences = (by_seed[a] - by_seed[b]).dropna()
            p = sign_flip_test(differences.tolist())
            rows.append({"amount": amount, "rule": rule, "sae": sae, "letters": (differences != 0).sum(), "p": p})
    pairs = pd.DataFrame(rows)
    pairs["differs"] = pairs["p"] < LEVEL
    can_differ = pairs[pairs["letters"] >= LETTERS_FOR_LEVEL]
    return pd.DataFrame(
        {
            "pairs": pairs.groupby(["amount", "rule"]).size(),
            "differ": pairs.groupby(["amount", "rule"])["differs"].mean(),
            "pairs_that_can": can_differ.groupby(["amount", "rule"]).size(),
            "of_them_differ": can_differ.groupby(["amount", "rule"])["differs"].mean(),
        }
    ).reset_index()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saes", nargs="+", default=["speller/*"])
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("lightning_logs/check_crossfit.csv"))
    options = parser.parse_args()
    measure(expand_sae_names(options.saes), options.seeds, options.out)
    table = pd.read_csv(options.out, keep_default_na=False, na_values={"value": "nan", "low": "nan", "high": "nan"})
    whole = table["label"] == ""
    print(summary(table[whole].drop(columns="label")).round(4).to_string(index=False))
    if table["seed"].nunique() > 1:
        print(against_itself(table[~whole]).round(4).to_string(index=False))
