"""The absorption calculator of the paper's package, on the suffix engine."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from jaxtyping import Float
from rich.progress import track
from torch import Tensor

from absorb_pl.attribution.suffix import word_integrated_gradients
from absorb_pl.data.residuals import read_residuals
from absorb_pl.functional.absorption import SILENT, gradient_scores, most_negative_latents, paper_decisions
from absorb_pl.functional.precision import at_least_float32
from absorb_pl.functional.similarity import cosine_similarity_matrix
from absorb_pl.models.language_model import context_length
from absorb_pl.models.next_token import require_next_token_logits
from absorb_pl.ranges import Cosine, Count, CountOrZero, NotNegative, Range, Seed, check_ranges
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.processing import check_positions, check_processing, trained_positions
from absorb_pl.saes.properties import sae_hook_name
from absorb_pl.saes.rows import encode_rows
from absorb_pl.saes.scale import to_unit_norms
from absorb_pl.words.formatters import Formatter, first_letter_formatter
from absorb_pl.words.positions import TokenizedPrompts, prepends_bos, tokenize_prompts
from absorb_pl.words.prompting import SpellingPrompt, create_icl_prompt

_FIRST_LETTER = first_letter_formatter()
MetricFn = Callable[[Tensor], Tensor]
"""From logits `[prompts, tokens, vocab]`, of which only the last position is given, to one value per prompt."""


@dataclass
class FeatureScore:
    """One latent at one word.

    Attributes:
        feature_id: The latent.
        activation: Its activation at the word, in the scale in which its decoder row has unit norm.
        ablation_score: Its integrated-gradient score there.
        probe_cos_sim: Cosine of its decoder row with the probe.
    """

    feature_id: int
    activation: float
    ablation_score: float
    probe_cos_sim: float


@dataclass
class AbsorptionResult:
    """The verdict on one word.

    Attributes:
        word: The word.
        prompt: Its prompt.
        main_feature_scores: The main latents.
        top_ablation_feature_scores: The latents with the most negative scores, most negative first.
        is_absorption: Whether the word counts.
    """

    word: str
    prompt: str
    main_feature_scores: list[FeatureScore]
    top_ablation_feature_scores: list[FeatureScore]
    is_absorption: bool


@dataclass
class SampledAbsorptionResults:
    """The verdicts on a sample of words.

    Attributes:
        sample_portion: Judged words ÷ words whose main latents are silent.
        main_feature_ids: The main latents.
        sample_results: One result per judged word.
    """

    sample_portion: float
    main_feature_ids: list[int]
    sample_results: list[AbsorptionResult]


@dataclass
class FeatureAbsorptionCalculator:
    """Judges words one SAE and one letter at a time, with the names of the paper's package.

    `AbsorptionEvaluator` gives the same verdicts for many SAEs and letters in one pass.

    Attributes:
        model: The language model.
        icl_word_list: Words to draw in-context examples from.
        max_icl_examples: In-context examples of a prompt; all words when None.
        base_template: Text before an answer, with the placeholder `{word}`.
        answer_formatter: Gives the answer of a word.
        example_separator: What stands between two examples.
        shuffle_examples: Whether to draw the examples at random.
        word_token_pos: Position to read, counted from the prompt's end (-2 is the last but one); the word's last
            token, found from the token ids, when None.
        filter_prompts_batch_size: Prompts a forward pass while prompts are filtered.
        ig_interpolation_steps: Integrated-gradient steps.
        ig_batch_size: Most sequences in one run of the model.
        topk_feats: Latents kept a word.
        probe_cos_sim_threshold: Least cosine of the top latent's decoder row with the probe.
        ablation_delta_threshold: Least lead of the top latent's score over the second's.
        seed: Seed of the in-context draws and of the sample of words.

    Raises:
        NotCausalError: The model gives no next-token logits.
    """

    model: Any
    icl_word_list: list[str]
    max_icl_examples: CountOrZero | None = None
    base_template: str = "{word}:"
    answer_formatter: Formatter = _FIRST_LETTER
    example_separator: str = "\n"
    shuffle_examples: bool = True
    word_token_pos: Annotated[int, Range(most=-1)] | None = None
    filter_prompts_batch_size: Count = 20
    ig_interpolation_steps: Count = 6
    ig_batch_size: Count = 60
    topk_feats: Count = 10
    probe_cos_sim_threshold: Cosine = 0.025
    ablation_delta_threshold: NotNegative = 1.0
    seed: Seed = 42

    def __post_init__(self) -> None:
        """Refuse models whose answers are not next tokens."""
        check_ranges(FeatureAbsorptionCalculator, vars(self))
        require_next_token_logits(self.model, type(self).__name__)

    def calculate_absorption_sampled(
        self,
        sae: SparseAutoencoder,
        words: Sequence[str],
        probe_dir: Float[Tensor, " d_model"],
        metric_fn: MetricFn,
        main_feature_ids: list[int],
        max_ablation_samples: Count | None = None,
        filter_prompts: bool = True,
        show_progress: bool = True,
    ) -> SampledAbsorptionResults:
        """Judge words of one class (`sae_spelling.feature_absorption_calculator`).

        Args:
            sae: The SAE.
            words: Words on which the main latents may have failed.
            probe_dir: Weights of the class's probe.
            metric_fn: From logits, of which only the last position is given, to one value per prompt.
            main_feature_ids: The class's main latents.
            max_ablation_samples: Most words to judge; a seeded sample of those left is taken.
            filter_prompts: Whether to leave out words on which a main latent fires.
            show_progress: Whether to show a progress bar.
        """
        check_ranges(FeatureAbsorptionCalculator.calculate_absorption_sampled, locals())
        check_processing(self.model, sae)
        sae = to_unit_norms(sae)
        prompts = [self._prompt(word) for word in words]
        tokens = tokenize_prompts(
            self.model.tokenizer,
            prompts,
            prepend_bos=prepends_bos(self.model),
            max_length=context_length(self.model),
        )
        if self.word_token_pos is not None:
            tokens = replace(tokens, word_positions=tokens.lengths + self.word_token_pos)
        check_positions(trained_positions(sae), tokens.word_positions)
        rows = self._silent_rows(sae, tokens, main_feature_ids) if filter_prompts else list(range(len(prompts)))
        portion = 1.0
        if max_ablation_samples is not None and len(rows) > max_ablation_samples:
            portion = max_ablation_samples / len(rows)
            rows = sorted(random.Random(self.seed).sample(rows, max_ablation_samples))
        results: list[AbsorptionResult] = []
        words_a_run = max(1, self.ig_batch_size // self.ig_interpolation_steps)
        for start in track(range(0, len(rows), words_a_run), "Words", disable=not show_progress):
            part = rows[start : start + words_a_run]
            results += self._judge(sae, prompts, tokens, part, probe_dir, metric_fn, main_feature_ids)
        return SampledAbsorptionResults(portion, main_feature_ids, results)

    def _prompt(self, word: str) -> SpellingPrompt:
        return create_icl_prompt(
            word,
            self.icl_word_list,
            base_template=self.base_template,
            example_separator=self.example_separator,
            answer_formatter=self.answer_formatter,
            max_icl_examples=self.max_icl_examples,
            shuffle_examples=self.shuffle_examples,
            seed=self.seed,
        )

    def _silent_rows(self, sae: SparseAutoencoder, tokens: TokenizedPrompts, mains: list[int]) -> list[int]:
        hook = sae_hook_name(sae)
        silent: list[int] = []
        for rows in torch.arange(len(tokens)).split(self.filter_prompts_batch_size):
            batch = tokens.select(rows)
            found = read_residuals(self.model, batch.input_ids, batch.attention_mask, batch.word_positions, [hook])
            total = encode_rows(sae, found[hook])[:, mains].double().abs().sum(dim=-1).cpu()
            silent += rows[total < SILENT].tolist()
        return silent

    def _judge(
        self,
        sae: SparseAutoencoder,
        prompts: Sequence[SpellingPrompt],
        tokens: TokenizedPrompts,
        rows: list[int],
        probe_dir: Float[Tensor, " d_model"],
        metric_fn: MetricFn,
        mains: list[int],
    ) -> list[AbsorptionResult]:
        found = word_integrated_gradients(
            self.model,
            sae,
            tokens,
            lambda last_logits, _: metric_fn(last_logits.unsqueeze(1)),
            hook_name=sae_hook_name(sae),
            steps=self.ig_interpolation_steps,
            rows=rows,
            batch_size=self.ig_batch_size,
        )
        decoder = at_least_float32(sae.W_dec.detach())
        cosines = cosine_similarity_matrix(probe_dir.to(decoder)[None], decoder)[0]
        top_two = gradient_scores(found.scores, found.activations, cosines, mains)
        is_absorption = paper_decisions(
            top_two.top_score,
            top_two.second_score,
            top_two.top_probe_cos,
            top_two.main_max,
            delta_threshold=self.ablation_delta_threshold,
            cos_threshold=self.probe_cos_sim_threshold,
        )
        top, _ = most_negative_latents(found.scores, self.topk_feats)

        def describe(word: int, latents: Sequence[int]) -> list[FeatureScore]:
            return [
                FeatureScore(
                    feature_id=latent,
                    activation=float(found.activations[word, latent]),
                    ablation_score=float(found.scores[word, latent]),
                    probe_cos_sim=float(cosines[latent]),
                )
                for latent in latents
            ]

        return [
            AbsorptionResult(
                word=prompts[row].word,
                prompt=prompts[row].base,
                main_feature_scores=describe(word, mains),
                top_ablation_feature_scores=describe(word, top[word].tolist()),
                is_absorption=bool(is_absorption[word]),
            )
            for word, row in enumerate(rows)
        ]
