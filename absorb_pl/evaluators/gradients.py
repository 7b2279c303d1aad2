"""Integrated gradients at words, for any number of SAEs in one pass over the words."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from typing_extensions import override

from absorb_pl.attribution.suffix import WordScores, word_integrated_gradients, words_at_once
from absorb_pl.engine.prefix import WordPrefix, compute_prefix
from absorb_pl.engine.run_size import RunSize
from absorb_pl.errors import AbsorbError
from absorb_pl.evaluators.causal import CausalEvaluator, batch_prompts
from absorb_pl.functional.absorption import most_negative_latents
from absorb_pl.functional.validation import require_finite
from absorb_pl.ranges import check_ranges
from absorb_pl.rules.evidence import Gradients
from absorb_pl.schema import SCORES, empty_table
from absorb_pl.words.answers import PositiveToken


class GradientEvaluator(CausalEvaluator):
    """Scores words by integrated gradients, for any number of SAEs in one pass over the words.

    Give batches of a `PromptDataModule`. The prefix of a batch is run once for all SAEs of all hooks, then each
    SAE's words in the batch are scored from it. Predicts one table per batch, with the columns of
    `absorb_pl.schema.SCORES`. Use a Trainer with `inference_mode=False`: scores are gradients.

    Args:
        model: A `TransformerBridge`, or a name for `load_language_model`.
        saes: SAEs by name, or a list of names for `load_sae`.
        words: The words to score of each SAE: `sae, row, label`; `row` is the word's number in the task.
        evidence: How to score; several ways share the prefixes.
        batch_size: Most sequences in one run of the model; `auto` takes what the device's memory allows.
        sae_dtype: Dtype of SAEs loaded by name.
        model_dtype: Dtype of a model loaded by name.

    Raises:
        NotCausalError: The model gives no next-token logits.
        AbsorbError: A word stands twice.
    """

    columns = SCORES

    def __init__(
        self,
        model: Any,
        saes: Sequence[str] | Mapping[str, Any],
        words: pd.DataFrame,
        evidence: Gradients | Sequence[Gradients],
        batch_size: RunSize = "auto",
        sae_dtype: str = "float32",
        model_dtype: str = "float32",
    ) -> None:
        check_ranges(GradientEvaluator.__init__, locals())
        if bool((twice := words.duplicated(["sae", "row"])).any()):
            raise AbsorbError(
                "words",
                words.loc[twice, ["sae", "row"]].iloc[0].to_dict(),
                expected="every word once for an SAE",
                remedy="Score the classes of such words one after the other.",
            )
        self.evidence = (evidence,) if isinstance(evidence, Gradients) else tuple(evidence)
        tokens: list[PositiveToken] = list(dict.fromkeys(each.positive_token for each in self.evidence))
        super().__init__(model, saes, tokens, batch_size, sae_dtype, model_dtype)
        self._labels = {name: rows.set_index("row")["label"] for name, rows in words.groupby("sae", sort=False)}

    @override
    def tabulate(self, batch: dict[str, Tensor]) -> pd.DataFrame:
        """Score the words among a batch of prompts, after `prepare`.

        Args:
            batch: A batch of a `PromptDataModule`.

        Returns:
            One row per SAE, evidence and word.
        """
        place = {row: number for number, row in enumerate(batch["index"].tolist())}
        wanted = {
            name: rows
            for name in self.saes
            if name in self._labels and (rows := [row for row in self._labels[name].index if row in place])
        }
        if not wanted:
            return empty_table(self.columns)
        with torch.enable_grad():
            prefix = compute_prefix(
                self.language_model,
                batch_prompts(batch),
                sorted({self.hooks[name] for name in wanted}),
                rows=sorted({place[row] for rows in wanted.values() for row in rows}),
                batch_size=self.sequences(batch),
            )
            tables = []
            for name, rows in wanted.items():
                at_once = words_at_once(self.saes[name])
                for evidence in self.evidence:
                    for start in range(0, len(rows), at_once):
                        part = rows[start : start + at_once]
                        found = self._scores(name, batch, prefix, [place[row] for row in part], evidence)
                        table = self.describe(name, part, found, evidence.top_latents)
                        table = table.assign(positive_token=evidence.positive_token, engine=prefix.engine)
                        tables.append(table[list(self.columns)])
        return pd.concat(tables, ignore_index=True)

    def describe(self, name: str, rows: Sequence[int], words: WordScores, top_latents: int) -> pd.DataFrame:
        """What was found of an SAE at some words, as a table.

        Args:
            name: Name of the SAE.
            rows: Numbers of the words in the task.
            words: Their scores.
            top_latents: How many of the best latents per word are kept.

        Raises:
            NonFiniteError: A score or activation is NaN or infinite.
        """
        require_finite(scores=words.scores, activations=words.activations)
        prompts = [self.texts[row] for row in rows]
        latents, scores = most_negative_latents(words.scores, top_latents)
        return pd.DataFrame(
            {
                "sae": name,
                "row": list(rows),
                "word": [prompt.word for prompt in prompts],
                "label": self._labels[name].loc[list(rows)].to_numpy(),
                "prompt": [prompt.base for prompt in prompts],
                "latents": latents.tolist(),
                "scores": scores.tolist(),
                "activations": words.activations.gather(1, latents).tolist(),
            }
        )

    def _scores(
        self, name: str, batch: dict[str, Tensor], prefix: WordPrefix, places: list[int], evidence: Gradients
    ) -> WordScores:
        return word_integrated_gradients(
            self.language_model,
            self.saes[name],
            batch_prompts(batch),
            self.metric(batch, evidence.positive_token),
            hook_name=self.hooks[name],
            steps=evidence.steps,
            prefix=prefix,
            rows=places,
            batch_size=self.sequences(batch),
        )
