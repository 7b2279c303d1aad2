"""The columns of every table: name, type, unit and meaning, each in one place.

`docs/tables.md` is made from this file by `scripts/document.py`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        dtype: Type of its values; `object` for lists.
        meaning: What it holds.
        unit: Unit of its values; empty if they have none.
    """

    dtype: str
    meaning: str
    unit: str = ""


Columns = Mapping[str, Column]

_SAE = {"sae": Column("str", "Name of the SAE.")}
_HOOK = {"hook_name": Column("str", "TransformerLens hook that the SAE reads.")}
_RULE = {"rule": Column("str", "Name of the absorption rule.")}
_LABEL = {"label": Column("str", "Class, such as the first letter.")}
_WORD = {
    "row": Column("int64", "Number of the word in the task."),
    "word": Column("str", "The word."),
    **_LABEL,
    "prompt": Column("str", "The prompt, up to the answer."),
}
_TOP = {
    "top_latent": Column("int64", "Latent that comes first by the score the rule ranks by."),
    "top_score": Column(
        "float64",
        "Its score: integrated gradients for the paper's rules, projection on the probe for SAEBench's, what it writes "
        "along the feature for `absorb-pl-1`.",
        "logits; activation",
    ),
    "top_probe_cos": Column(
        "float64",
        "Cosine of what it writes with the probe: of its decoder row, with the sign turned if it is negative. For "
        "`absorb-pl-1` with what the tracking latent writes.",
    ),
    "second_latent": Column("int64", "Latent that comes second."),
    "second_score": Column("float64", "Its score.", "logits; activation"),
    "main_activation": Column("float64", "Summed activation of the class's main latents.", "activation"),
    "main_max": Column("float64", "Largest size of one main latent's activation.", "activation"),
}
_CAUSAL = {
    "positive_token": Column("str", "Token of the right answer: `answer` (` X`) or `published` (the bare letter)."),
    "engine": Column("str", "`suffix` if only the tokens from the word on were run, `whole` if whole prompts were."),
}
_SCORED = {
    "latents": Column("object", "Latents with the most negative scores, most negative first."),
    "scores": Column("object", "Their scores.", "logits"),
    "activations": Column("object", "Their activations.", "activation"),
}
_RANKED = {
    "main_latents": Column("object", "The class's main latents."),
    "main_scores": Column("object", "Their integrated-gradient scores.", "logits"),
    **_SCORED,
    "probe_cos": Column("object", "Cosines of their decoder rows with the probe."),
}
_PROJECTED = {
    "probe_projection": Column("float64", "Projection of the activation on the probe.", "activation"),
    "main_projection": Column("float64", "What the main latents contribute to it.", "activation"),
    "all_projection": Column("float64", "What all latents contribute to it.", "activation"),
    "absorber_latents": Column("object", "Latents other than the main ones that contribute most to it."),
    "absorber_projections": Column("object", "Their contributions.", "activation"),
    "absorber_probe_cos": Column("object", "Cosines of what they write with the probe."),
}

_CARRIED = {
    "own_latents": Column(
        "object", "The feature's own latents: the one that tracks the class, then those aligned with it."
    ),
    "feature_size": Column(
        "float64",
        "Size of the feature along what its tracking latent writes, less its mean on other classes.",
        "activation",
    ),
    "own_part": Column("float64", "What the feature's own latents write along it.", "activation"),
    "others_part": Column(
        "float64", "What other latents write along it, less their mean on other classes.", "activation"
    ),
    "usual_part": Column("float64", "Part of the feature that its own latents usually write on words of the class."),
    "carrier_latents": Column("object", "Those of the others that write most along it."),
    "carrier_parts": Column("object", "What they write.", "activation"),
}

SCORES: Columns = {**_SAE, **_WORD, **_CAUSAL, **_SCORED}
"""Integrated gradients at words, whatever probes and main latents say of them."""

GRADIENTS: Columns = {**_SAE, **_WORD, **_CAUSAL, **_TOP, **_RANKED}
"""Evidence of the paper's rules: integrated gradients at the candidate words."""

PROJECTIONS: Columns = {"row": _WORD["row"], **_LABEL, **_TOP, **_PROJECTED}
"""Evidence of SAEBench's rules: projections at the words on which the probe sees the class."""

CARRIED: Columns = {"row": _WORD["row"], **_LABEL, **_TOP, **_CARRIED}
"""Evidence of `absorb-pl-1`: what latents carry of a feature, at the words on which the probe sees the class."""

WORDS: Columns = {
    **_SAE,
    **_RULE,
    "row": _WORD["row"],
    "word": _WORD["word"],
    **_LABEL,
    "child": Column("str", "Finer label of the word, for tasks that have such labels."),
    "prompt": _WORD["prompt"],
    "is_absorption": Column("bool", "Whether the rule says that the feature was absorbed at this word."),
    "unmet": Column("str", "First condition of the rule that the word does not meet; empty if it counts."),
    "absorption_fraction": Column("float64", "Share of the feature that was absorbed, for rules that say so."),
    **_CAUSAL,
    **_TOP,
    **_RANKED,
    **_PROJECTED,
    **_CARRIED,
}
"""Verdicts with the evidence they rest on; what a rule does not use is missing."""

_INTERVAL = {
    "absorption_rate": Column("float64", "Absorbed words ÷ words on which the probe sees the class."),
    "ci_low": Column("float64", "Lower end of its interval."),
    "ci_high": Column("float64", "Upper end of its interval."),
    "se_words": Column("float64", "Standard error of the rate from the words, each by itself."),
    "se_absorbers": Column("float64", "What is added, in squares, because one latent absorbs several words."),
    "se_sampling": Column("float64", "What is added, in squares, because a sample of the candidates was judged."),
    "evaluable": Column("bool", "Whether there is a rate."),
    "reason": Column("str", "Why not."),
    "absorption_fraction": Column("float64", "Mean absorbed share of the feature per such word."),
    "fraction_ci_low": Column("float64", "Lower end of its interval."),
    "fraction_ci_high": Column("float64", "Upper end of its interval."),
}
FOUND_BY_RULE: Columns = {
    **_RULE,
    "num_judged": Column("int64", "Words that were judged.", "words"),
    "num_absorbed": Column("int64", "Judged words that count.", "words"),
    "sum_fraction": Column("float64", "Summed absorbed share of judged words.", "words"),
    **_INTERVAL,
}
"""What a rule adds to the table of letters."""

LETTERS: Columns = {
    **_SAE,
    **_HOOK,
    **_LABEL,
    "main_latents": Column("object", "The class's main latents, best first."),
    "num_splits": Column("int64", "Main latents beyond the first.", "latents"),
    "num_words": Column("int64", "Held-out words of the class.", "words"),
    "num_probe_true_positives": Column("int64", "Those on which the linear probe sees the class.", "words"),
    "num_candidates": Column("int64", "Those that the rule could judge.", "words"),
    "sample_portion": Column("float64", "Share of the candidates that were judged."),
    "probe_f1": Column("float64", "F1 of the linear probe."),
    "probe_precision": Column("float64", "Its precision."),
    "probe_recall": Column("float64", "Its recall."),
    "main_latent_recall": Column("float64", "Share of the class's words on which a main latent fires."),
    "main_f1": Column("float64", "F1 of the k-sparse probe on the main latents, on held-out words."),
    "tracking_latent": Column("int64", "Latent that tells the class best on training words, at its best threshold."),
    "tracking_f1": Column("float64", "Its F1 there."),
    "sae_fires": Column("bool", "Whether any latent of the SAE fires on any held-out word."),
    **FOUND_BY_RULE,
}
"""One row per SAE, rule and class."""

SUMMARY: Columns = {
    **_SAE,
    "model": Column("str", "Name of the language model."),
    **_HOOK,
    "layer": Column("int64", "Number of the block in the hook's name; -1 if there is none."),
    "architecture": Column("str", "Architecture of the SAE."),
    "control": Column("str", "Which control of an SAE it is; empty for an SAE itself."),
    "neuronpedia": Column("str", "Where Neuronpedia shows its latents; empty if its metadata do not say."),
    "hedging": Column("float64", "Degree of hedging, if it was measured when the SAE was trained (its metadata say)."),
    "folded": Column("str", "Where norms of decoder rows went: `weights`, `latents`, or empty if they were 1."),
    "processing": Column("str", "How the model's weights and prompts were processed for the SAE."),
    "d_sae": Column("int64", "Width of the SAE.", "latents"),
    "l0": Column("float64", "Latents that fire per held-out word.", "latents"),
    "explained_variance": Column("float64", "Share of the activations' variance that the SAE reconstructs."),
    "dead_fraction": Column("float64", "Share of latents that fire on no held-out word."),
    "shared_context": Column("bool", "Whether all words have the same in-context examples."),
    **_RULE,
    "positive_token": Column("str", "Token of the right answer, for rules on gradients."),
    "letters": Column("str", "Whether classes without candidate words count as 0 or are left out."),
    **{
        f"{of}_{name}": Column("float64", f"Mean {name} of {who} over classes.")
        for of, who in (("probe", "the linear probe"), ("top_latent", "the latent nearest to the probe"))
        for name in ("f1", "precision", "recall")
    },
    "main_latent_recall": Column("float64", "Mean over classes of the share of words on which a main latent fires."),
    "num_splits": Column("float64", "Mean over classes of main latents beyond the first.", "latents"),
    "weak_mains": Column("int64", "Classes that their main latents tell with an F1 below 0.5.", "classes"),
    **_INTERVAL,
    "pooled_rate": Column("float64", "Absorbed words ÷ words on which the probe sees the class, over all classes."),
    "pooled_ci_low": Column("float64", "Lower end of its interval."),
    "pooled_ci_high": Column("float64", "Upper end of its interval."),
    "num_words": Column("int64", "Words that the rate is over.", "words"),
    "rate_one_main": Column(
        "float64",
        "Rate if each class had its first main latent alone, for rules on projections. What is absorbed lies between "
        "the rate and this, as further main latents may be absorbers, or a split. Missing in what `rescore` writes.",
    ),
}
"""One row per SAE and rule."""

SENSITIVITY: Columns = {
    **_SAE,
    **_RULE,
    "threshold": Column("str", "Setting of the rule that is varied."),
    "value": Column("float64", "Its value."),
    "is_default": Column("bool", "Whether that is the value that the rule's own rates use."),
    "absorption_rate": Column("float64", "Rate at this value."),
    "absorption_fraction": Column("float64", "Fraction at this value, for rules that have one."),
}
"""One row per SAE, rule, threshold and value."""

_SCORES = {
    name: Column("float64", f"{title} of it as a classifier of the class.")
    for name, title in (("f1", "F1"), ("precision", "Precision"), ("recall", "Recall"), ("auroc", "AUROC"))
}
LATENTS: Columns = {
    **_SAE,
    **_HOOK,
    **_LABEL,
    "rank": Column("int64", "0 for the latent nearest to the probe."),
    "latent": Column("int64", "The latent."),
    "cos_encoder": Column("float64", "Cosine of its encoder direction with the probe."),
    "cos_decoder": Column("float64", "Cosine of its decoder row with the probe."),
    **_SCORES,
    **{f"probe_{name}": Column("float64", f"The same of the linear probe ({name}).") for name in _SCORES},
}
"""One row per SAE, class and rank: the latents nearest to the class's probe by encoder cosine."""

K_SPARSE: Columns = {
    **_SAE,
    **_HOOK,
    **_LABEL,
    "k": Column("int64", "Number of latents of the k-sparse probe.", "latents"),
    **_SCORES,
    "best_f1": Column("float64", "F1 at the best threshold."),
    "best_f1_threshold": Column("float64", "That threshold.", "logits"),
    "latents": Column("object", "Its latents, best first."),
}
"""One row per SAE, class and k."""

CANDIDATES: Columns = {
    **_SAE,
    **_HOOK,
    "row": _WORD["row"],
    **_LABEL,
    "probe_logit": Column("float64", "Logit of the linear probe.", "logits"),
    "k_sparse_logit": Column("float64", "Logit of the k-sparse probe on the main latents.", "logits"),
    "word": _WORD["word"],
    "prompt": _WORD["prompt"],
}
"""One row per SAE and candidate word that was kept."""

HELD_OUT: Columns = {
    **_HOOK,
    "row": _WORD["row"],
    "word": _WORD["word"],
    **_LABEL,
    "prompt": _WORD["prompt"],
    "probe_logit": Column("float64", "Logit of the linear probe of the class; it sees the class if above 0.", "logits"),
}
"""One row per hook, held-out word and class of it."""

FIRINGS: Columns = {
    **_SAE,
    "row": _WORD["row"],
    "latent": Column(
        "int64",
        "A latent that the other tables name: a main or tracking latent, one of the nearest to a "
        "probe, or one that comes first or second on a word.",
    ),
    "activation": Column("float64", "Its activation.", "activation"),
}
"""One row per SAE, named latent and held-out word on which it fires."""

TRAINING: Columns = {
    "probe": Column("str", "`linear_probe` or `k_sparse_probe`."),
    "name": Column("str", "Hook of a linear probe, SAE of k-sparse probes."),
    "epoch": Column("int64", "Epoch, from 0.", "epochs"),
    "train/loss": Column("float64", "Mean loss of the epoch."),
    "train/f1": Column("float64", "Macro F1 on the training words, for linear probes."),
}
"""One row per epoch of each probe."""

CHILDREN: Columns = {
    **_SAE,
    **_RULE,
    **_LABEL,
    "child": Column("str", "Finer label."),
    "num_words": Column("int64", "Held-out words of the finer label.", "words"),
    "num_probe_true_positives": Column("int64", "Those on which the linear probe sees the class.", "words"),
    "num_candidates": Column("int64", "Those that were judged.", "words"),
    "num_absorbed": Column("int64", "Those that count.", "words"),
    "absorption_rate": Column("float64", "Rate of the finer label; missing if the probe sees none of its words."),
}
"""One row per SAE, rule, class and finer label, for tasks that have such labels."""

ABLATIONS: Columns = {
    **_SAE,
    "row": _WORD["row"],
    "word": _WORD["word"],
    **_LABEL,
    "latent": Column("int64", "A latent that fires at the word."),
    "activation": Column("float64", "Its activation.", "activation"),
    "ig_score": Column("float64", "Its integrated-gradient score; negative if it helps the metric.", "logits"),
    "attribution": Column("float64", "Gradient × activation; positive if it helps the metric.", "logits"),
    "ablation_effect": Column("float64", "Metric without the latent − metric; negative if it helps.", "logits"),
    "probe_cos": Column("float64", "Cosine of its decoder row with the class's probe; missing without probes."),
    "engine": _CAUSAL["engine"],
}
"""One row per SAE, word and latent that fires: what removing the latent does, beside its cheap estimates."""

SPELLING: Columns = {
    "setting": Column("int64", "Number of the setting in the sweep."),
    "word_length": Column("int64", "Length of the words asked about.", "characters"),
    "num_icl_examples": Column("int64", "In-context examples per prompt.", "examples"),
    "casing": Column("str", "Case of the answers: `upper` or `lower`."),
    "separator": Column("str", "What stands between two letters of a spelling."),
    "accuracy": Column("float64", "Share of right answers."),
    "answer_log_prob": Column("float64", "Mean log-probability of the right answers.", "nats"),
    "num_words": Column("int64", "Words asked about.", "words"),
}
"""One row per setting of a spelling sweep."""

COMPARISON: Columns = {
    **_RULE,
    "a": Column("str", "Name of the one SAE."),
    "b": Column("str", "Name of the other."),
    "label": Column("str", "Class; empty for the mean over classes."),
    "letters": Column("int64", "Classes that can be evaluated in both.", "classes"),
    "rate_a": Column("float64", "Absorption rate of the one."),
    "rate_b": Column("float64", "Absorption rate of the other."),
    "difference": Column("float64", "Rate of the one − rate of the other."),
    "ci_low": Column("float64", "Lower end of its interval, from the differences word by word."),
    "ci_high": Column("float64", "Upper end of its interval."),
    "p_value": Column("float64", "P-value of the difference, by flipped signs of letters; missing for single classes."),
    "p_holm": Column("float64", "The same, adjusted for all pairs and rules compared at once."),
}
"""One row per rule and pair of SAEs, and one per class of each."""

POWER: Columns = {
    **_SAE,
    **_RULE,
    "rate": Column("float64", "Pooled absorption rate."),
    "num_words": Column("int64", "Words that the rate is over.", "words"),
    "design_effect": Column("float64", "How many words stand or fall together, because one latent absorbs several."),
    "smallest_difference": Column("float64", "Difference of two rates that so many words tell apart."),
}
"""One row per SAE and rule: what difference a study can tell."""

CALIBRATION: Columns = {
    "family": Column("str", "`planted` for SAEs made to absorb, else the world that an SAE was trained in."),
    "setting": Column("str", "Planted setting, or name of the SAE."),
    "seed": Column("int64", "Seed of the planted world, or of the samples."),
    **_RULE,
    "num_words": Column("int64", "Words that were judged.", "words"),
    "num_absorbed": Column("int64", "Those that are absorbed in truth.", "words"),
    "num_classes": Column("int64", "Classes that can be evaluated."),
    "true_rate": Column("float64", "Share of the judged words that are absorbed in truth, mean over classes."),
    "absorption_rate": _INTERVAL["absorption_rate"],
    "ci_low": _INTERVAL["ci_low"],
    "ci_high": _INTERVAL["ci_high"],
    "all_rate": Column("float64", "Share of all words of these classes that are absorbed, judged or not."),
    "true_share": Column("float64", "Share of the feature that other latents carry in truth, mean over classes."),
    "absorption_fraction": _INTERVAL["absorption_fraction"],
    "word_auroc": Column("float64", "How well the rule orders words by whether they are absorbed."),
}
"""One row per setting, seed and rule: what the rule says beside what is true."""

CALIBRATION_SUMMARY: Columns = {
    "family": CALIBRATION["family"],
    "setting": Column("str", "Planted setting, or SAE in training; empty for all SAEs of a world together."),
    **_RULE,
    "evaluations": Column("int64", "Evaluations with a rate."),
    "not_evaluable": Column("int64", "Evaluations without one."),
    "true_rate": Column("float64", "Mean true rate."),
    "rate_bias": Column("float64", "Mean of rate − true rate."),
    "rate_rmse": Column("float64", "Root of the mean square of that."),
    "rate_spearman": Column(
        "float64", "Rank correlation of rate and true rate over SAEs; in `training`, of rate and steps."
    ),
    "coverage": Column("float64", "How often the interval of the rate holds the share of all words that are absorbed."),
    "true_share": Column("float64", "Mean true share."),
    "share_bias": Column("float64", "Mean of fraction − true share."),
    "share_rmse": Column("float64", "Root of the mean square of that."),
    "share_spearman": Column(
        "float64", "Rank correlation of fraction and true share over SAEs; in `training`, of fraction and steps."
    ),
    "word_auroc": Column("float64", "Mean of the evaluations' AUROC."),
    "absorbed_word_auroc": Column(
        "float64", "The same mean over absorbed words: evaluations count by how many of theirs are absorbed."
    ),
}
"""One row per planted setting, or world, and rule: how far the rule is from the truth."""

CROSSFIT: Columns = {
    **_SAE,
    **_RULE,
    "label": Column("str", "Class; empty for the mean over classes."),
    "folds": Column("int64", "Parts of the words, each held out once per repeat."),
    "repeats": Column("int64", "How often folds and seeds were drawn anew."),
    "num_words": Column("int64", "Words that the rate is over, mean over repeats.", "words"),
    **{name: column for name, column in _INTERVAL.items() if not name.startswith("se_")},
    **{name: column for name, column in _INTERVAL.items() if name.startswith("se_")},
    "se_selection": Column("float64", "What is added, in squares, by the choice of words and seeds."),
    "pooled_rate": Column("float64", "Absorbed words ÷ words on which the probe sees the class, over all classes."),
    "pooled_ci_low": Column("float64", "Lower end of its interval."),
    "pooled_ci_high": Column("float64", "Upper end of its interval."),
}
"""One row per SAE and rule, and one per class: rates over words that were all judged out of sample."""

CROSSFIT_LETTERS: Columns = {
    **_SAE,
    **_RULE,
    "repeat": Column("int64", "Number of the repeat."),
    **_LABEL,
    "main_latents": Column("object", "Main latents of the class's folds, those of most folds first."),
    "num_words": Column("int64", "Words of the class.", "words"),
    "num_probe_true_positives": Column(
        "int64", "Those on which the linear probe of their fold sees the class.", "words"
    ),
    "num_candidates": Column("int64", "Those of them that the rule looks at.", "words"),
    "sample_portion": Column("float64", "Share of the candidates that was judged."),
    "probe_f1": Column("float64", "F1 of the linear probes on the words held out, mean over folds."),
    "sae_fires": Column("bool", "Whether any latent of the SAE fires on any word."),
}
"""One row per SAE, rule, repeat and class: what its rate in `crossfit` is made of."""

CROSSFIT_WORDS: Columns = {
    **_SAE,
    **_RULE,
    "repeat": Column("int64", "Number of the repeat."),
    "fold": Column("int64", "Fold in which the word was held out."),
    "row": _WORD["row"],
    **_LABEL,
    "is_absorption": Column("bool", "Whether the rule says that the feature was absorbed at this word."),
    "absorption_fraction": Column("float64", "Share of the feature that was absorbed, for rules that say so."),
    "top_latent": _TOP["top_latent"],
}
"""One row per SAE, rule, repeat and word that the rule judged. On other words that the probe sees nothing is absorbed,
but for candidates that a sample left out (`sample_portion` in `crossfit_letters`)."""

SHUFFLES: Columns = {
    **_SAE,
    **_RULE,
    "amount": Column("str", "What is compared: `absorption_rate` or `absorption_fraction`."),
    "value": Column("float64", "That of the SAE."),
    "copies": Column("int64", "Copies of the SAE whose decoder rows were shuffled."),
    "shuffled_mean": Column("float64", "Mean of theirs."),
    "shuffled_rates": Column("object", "That of each copy."),
    "excess": Column("float64", "Value of the SAE less the mean of its copies."),
    "excess_ci_low": Column("float64", "Lower end of its interval."),
    "excess_ci_high": Column("float64", "Upper end of its interval."),
    "p_value": Column("float64", "Probability of such a value if latents pointed anywhere."),
    "exceeds": Column("bool", "Whether the p-value is small enough at the study's level of confidence."),
}
"""One row per SAE, rule and amount: rates held against those of copies that fire alike and point elsewhere."""

TRUTH: Columns = {
    **_SAE,
    "row": Column("int64", "Number of the sample."),
    "label": Column("str", "Its parent feature."),
    "is_absorbed": Column("bool", "Whether the parent is absorbed there."),
    "share": Column("float64", "Share of the parent that the latents of its finer features carry."),
    "tracking_latent": Column("int64", "Latent that tracks the parent."),
}
"""One row per SAE and sample of a known world: what is true of it."""

EDGES: Columns = {
    **_SAE,
    "label": Column("str", "The parent feature."),
    "child": Column("int64", "Number of the finer feature in its world."),
    "tracking_latent": Column("int64", "Latent that tracks the parent."),
    "rows_on": Column("int64", "Samples with both features.", "samples"),
    "fired_on": Column("int64", "Those on which the latent fires.", "samples"),
    "rows_off": Column("int64", "Samples with the parent and without the finer feature.", "samples"),
    "fired_off": Column("int64", "Those on which the latent fires.", "samples"),
    "eligible": Column("bool", "Whether there are samples of both kinds."),
    "gap": Column("float64", "Recall of the latent without the finer feature less recall with it; missing if unknown."),
}
"""One row per SAE, parent and finer feature of a known world."""

CHECKS: Columns = {
    "step": Column("int64", "Training steps that had been taken.", "steps"),
    "activations_seen": Column("int64", "Activations that the SAE had been trained on.", "activations"),
    **_SAE,
    **_HOOK,
    **{name: SUMMARY[name] for name in ("architecture", "d_sae", "l0", "explained_variance", "dead_fraction")},
    **_RULE,
    **{name: SUMMARY[name] for name in ("probe_f1", "top_latent_f1", "num_splits", "weak_mains")},
    **_INTERVAL,
    **{name: SUMMARY[name] for name in ("num_words", "rate_one_main")},
}
"""One row per step at which SAEs in training were looked at, SAE and rule."""

HEDGING: Columns = {
    "step": Column("int64", "Step of the training at which it was measured.", "steps"),
    **_SAE,
    **_HOOK,
    **{name: SUMMARY[name] for name in ("architecture", "d_sae")},
    "new_latents": Column("int64", "Latents that were added.", "latents"),
    "steps": Column("int64", "Steps that it was trained on for, without them and with them.", "steps"),
    "moved": Column("float64", "Mean length of old decoder rows' movement within the space of the new ones."),
    "by_chance": Column("float64", "What a space of random directions would hold of it, on average."),
    "degree": Column("float64", "`(moved − by_chance) / (1 − by_chance)`, at least 0: 0 is no hedging."),
}
"""One row per SAE whose training measured how much it hedges, and step at which it did."""

TABLES: Mapping[str, Columns] = {
    "summary": SUMMARY,
    "letters": LETTERS,
    "words": WORDS,
    "sensitivity": SENSITIVITY,
    "latents": LATENTS,
    "k_sparse": K_SPARSE,
    "candidates": CANDIDATES,
    "held_out": HELD_OUT,
    "firings": FIRINGS,
    "training": TRAINING,
    "children": CHILDREN,
    "ablations": ABLATIONS,
    "spelling": SPELLING,
    "crossfit": CROSSFIT,
    "crossfit_letters": CROSSFIT_LETTERS,
    "crossfit_words": CROSSFIT_WORDS,
    "shuffles": SHUFFLES,
    "comparison": COMPARISON,
    "power": POWER,
    "truth": TRUTH,
    "edges": EDGES,
    "checks": CHECKS,
    "hedging": HEDGING,
    "calibration": CALIBRATION,
    "calibration_summary": CALIBRATION_SUMMARY,
}
"""The tables by name, as their files are called."""


def dtypes(columns: Columns) -> dict[str, str]:
    """Types of columns, as pandas takes them.

    Args:
        columns: Columns of a table.

    Example:
        >>> dtypes({"k": Column("int64", "Number of latents.")})
        {'k': 'int64'}
    """
    return {name: column.dtype for name, column in columns.items()}


def typed(table: pd.DataFrame, columns: Columns) -> pd.DataFrame:
    """A table with its columns in their order and of their types, rows counted anew.

    Args:
        table: The rows.
        columns: Its columns.

    Example:
        >>> list(typed(pd.DataFrame({"b": [2.0], "a": [1]}), {"a": Column("int64", "Number.")}))
        ['a']
    """
    return table.reindex(columns=list(columns)).astype(dtypes(columns)).reset_index(drop=True)


def empty_table(columns: Columns) -> pd.DataFrame:
    """A table without rows.

    Args:
        columns: Its columns.

    Example:
        >>> list(empty_table(SENSITIVITY))[:3]
        ['sae', 'rule', 'threshold']
    """
    return pd.DataFrame({name: pd.Series(dtype=column.dtype) for name, column in columns.items()})


def stacked(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Tables below each other; empty ones say nothing about the columns' types.

    Args:
        tables: At least one table.

    Example:
        >>> stacked([pd.DataFrame({"a": [1]}), pd.DataFrame({"a": []})])["a"].tolist()
        [1]
    """
    tables = list(tables)
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)


def ordered_words(words: pd.DataFrame) -> pd.DataFrame:
    """Words judged by one or several rules, with all columns of `WORDS` in their order; `child` only if they have it.

    A missing list is None, whether or not other words have one.

    Args:
        words: Verdicts.
    """
    words = words.reindex(columns=[name for name in WORDS if name != "child" or name in words])
    lists = [name for name, column in WORDS.items() if column.dtype == "object"]
    of_lists = words[lists].astype(object)
    words[lists] = of_lists.where(of_lists.notna(), None)
    return words
