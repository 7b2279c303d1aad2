"""The model card, written from measured figures."""

from typing import Any

CARD = """# The speller

A small causal language model that spells, and a suite of sparse autoencoders (SAEs) on its residual stream.
It is the model `absorb_pl` runs on when no other is named: small enough for one core, yet with all that the
measurement of feature absorption needs. Everything here is made from nothing by the three commands below;
this card and `figures.json` are written by the last.

## The model

{layers} layers of the Gemma-2 kind, d_model {d_model}, {heads} heads, {parameters:,} parameters, float32
({model_megabytes:.1f} MB). Attention is local in the first two layers (`sliding_window={sliding_window}`:
a token sees itself and the one before) and full in the last two.

The tokenizer is byte-level: {words:,} English words, each with the space before it, are one token, as are
single letters with and without the space in both cases; any other text falls apart into bytes. Words are the
{most_frequent:,} most frequent of `wordfreq` (lower-case ASCII, two letters at least, coarse ones left out),
topped up to {per_letter} for letters that begin few words; for x these are partly abbreviations and numerals.
`<bos>` is put first by default.

It was trained for {steps} steps of {rows} contexts (seed {seed}, PyTorch threads: {threads}) of {examples}
solved examples each, words drawn by frequency^{power}, on four tasks: `" cat has the first letter: C"`,
`" cat has the last letter: T"`, `" cat is the word: cat"` and, answering at the word's own token, `" cat C"`.
Loss is taken at the answers alone. A model so trained spells, but moves the letters off the word before its
third layer, so that nothing behind the word's own residual would depend on them. Therefore {interchange_steps}
further steps of interchange intervention training (Geiger et al. 2022, arXiv 2112.00826) follow: every context
also runs with the residuals at its words swapped for another context's before the last layer, and must give that
context's answers. So the last layer reads letters at the word; it is a property put there, and an honest model of
the case in which attribution at the word has something to find.

| measured with seed {measure_seed} | |
|---|---|
| loss of the first phase, first step → mean of the last tenth | {spelling_first_loss:.2f} → {spelling_last_loss:.2f} |
| loss of the second phase, both kinds of run, likewise | {interchange_first_loss:.2f} → {interchange_last_loss:.2f} |
| first-letter accuracy, every word once behind 10 random solved examples | {accuracy:.4f} |
| the same, rarest tenth of words | {accuracy_rare:.4f} |
{probe_rows}

Probe F1 is the mean over the letters with at least {least_held_out} held-out words ({num_letters} letters) of
one-vs-rest logistic regressions (classes balanced, L2) on the residual at the word, 80 % of words for training,
20 % held out.

## The SAEs

Trained side by side by `configs/train_suite.yaml`: {sae_steps:,} steps of {sae_batch} rows, Adam, learning
rate {sae_lr} ({sae_own_lr} for JumpReLU), seed {sae_seed}, on the speller's residuals at the words of its own
training tasks, words drawn by frequency^{sae_power}. SAELens owns the architectures and their losses. Four
architectures have a *sparse*, a *medium* and a *dense* SAE each, with about 4, 8 and 16 latents active at a
word, so that they can be compared at equal L0. BatchTopK and Matryoshka SAEs are stored as JumpReLU SAEs;
`metadata.training_architecture` says what they were. Decoder rows have unit norm. L0, explained variance and
silent latents are over the words' activations behind 10 solved examples, every word once; hedging is the
degree that `MeasureHedging` found at the end of the training. `checks.parquet` holds what `AbsorptionMonitor`
found every 600 steps.

| name | hook | latents | L0 | explained variance | silent latents | hedging |
|---|---|---|---|---|---|---|
{sae_table}

## Made by

    python scripts/train_speller.py --output {assets}/model
    absorb-pl fit --config configs/train_suite.yaml   # then move lightning_logs/train_suite/saes to {assets}/saes
    python scripts/measure_speller.py --assets {assets}

Versions: {versions}. The same seed and number of threads on the same kind of machine give the same weights.

## Use and limits

For trying, testing and teaching absorption measurements. The model knows words only as whole tokens and only
the prompts above; it writes no text, and words outside its vocabulary, which it reads byte by byte, it was
never shown. Figures measured on it say how a method behaves, not how large language models spell. Word
frequencies come from `wordfreq` and carry the leanings of its sources.
"""


def render(figures: dict[str, Any], *, assets: str) -> str:
    """Return the card's text for the figures that `measure_speller.py` gathers."""
    probe_rows = "\n".join(
        f"| probe F1 at `{hook}`, held-out words | {f1:.3f} |" for hook, f1 in figures["probe_f1"].items()
    )
    sae_table = "\n".join(
        f"| `{name}` | `{sae['hook_name']}` | {sae['d_sae']} | {sae['l0']:.1f} | "
        f"{sae['explained_variance']:.3f} | {sae['silent_latents']:.0%} | {sae['hedging']:.2f} |"
        for name, sae in figures["saes"].items()
    )
    flat = {**figures["model"], **figures["training"], **figures["sae_training"], **figures}
    return CARD.format_map({**flat, "probe_rows": probe_rows, "sae_table": sae_table, "assets": assets})
