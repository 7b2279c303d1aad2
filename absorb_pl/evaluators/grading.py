"""How well a model spells: its greedy answers to ICL prompts, and the log-probabilities of the right ones.

Names, arguments and defaults are those of `sae_spelling.spelling_grader`, the released code of arXiv 2409.14507; `seed`
and `fwd_hooks` are ours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from absorb_pl.errors import AbsorbError, PromptError
from absorb_pl.models.next_token import require_next_token_logits
from absorb_pl.ranges import Count, CountOrZero, Seed, check_ranges
from absorb_pl.words.formatters import Formatter, spelling_formatter
from absorb_pl.words.positions import prepends_bos, tokenize_prompts
from absorb_pl.words.prompting import SpellingPrompt, create_icl_prompt

HookFn = Callable[..., Any]
"""From an activation, and the hook point as `hook`, to what takes its place."""
Hooks = Sequence[tuple[str | Callable[..., Any], HookFn]]
"""Pairs of hook name and function."""
_SPELLED = spelling_formatter()
HookGenerator = Callable[[list[int]], Hooks]
"""Makes the hooks of a batch from the index of the last token of each prompt's own word."""


@dataclass(frozen=True)
class SpellingGrade:
    """What a model made of one word's prompt (named as in `sae_spelling.spelling_grader`).

    Attributes:
        word: The word asked about.
        prompt: The prompt, up to the answer.
        answer: The right answer.
        prediction: The most likely token at each place of the answer, given the right tokens before it.
        is_correct: Whether the two are the same tokens.
        answer_log_prob: Sum over the answer's tokens of their log-probabilities, natural logarithm.
        prediction_log_prob: The same for the predicted tokens.

    Example:
        >>> SpellingGrade(" cat", " cat:", " c", " c", True, -0.1, -0.1).is_correct
        True
    """

    word: str
    prompt: str
    answer: str
    prediction: str
    is_correct: bool
    answer_log_prob: float
    prediction_log_prob: float


@dataclass
class SpellingGrader:
    """Grades a model's answers to ICL prompts (named as in `sae_spelling.spelling_grader`).

    Prompts of a batch are padded on the right, so that a causal model's grades do not depend on the batch
    size.

    Attributes:
        model: A TransformerLens model with its tokenizer.
        icl_word_list: Words to draw ICL examples from.
        max_icl_examples: How many examples to use; None for all.
        base_template: Text before an answer, with the placeholder `{word}`.
        answer_formatter: Gives a word's answer.
        example_separator: What stands between two examples.
        shuffle_examples: Whether to draw examples at random; otherwise the first ones are taken in their
            order.
        hook_generator: Makes the hooks that are active while a batch runs with `use_hooks`.
        check_contamination: Whether the word asked about is kept out of its own examples.
        max_attempts: As in `create_icl_prompt`.
        seed: Seed of the draws, as in `create_icl_prompt`.

    Raises:
        NotCausalError: The model gives no next-token logits.

    Example:
        >>> from absorb_pl import load_language_model
        >>> grade = SpellingGrader(load_language_model("speller"), [" dog", " emu"], seed=0).grade_word(" cat")
        >>> grade.answer, grade.is_correct
        (' C-A-T', False)
    """

    model: Any
    icl_word_list: Sequence[str]
    max_icl_examples: CountOrZero | None = None
    base_template: str = "{word}:"
    answer_formatter: Formatter = _SPELLED
    example_separator: str = "\n"
    shuffle_examples: bool = True
    hook_generator: HookGenerator | None = None
    check_contamination: bool = True
    max_attempts: Count = 1000
    seed: Seed | None = None

    def __post_init__(self) -> None:
        """Refuse models whose answers are not next tokens."""
        check_ranges(SpellingGrader, vars(self))
        require_next_token_logits(self.model, type(self).__name__)

    def grade_word(self, word: str) -> SpellingGrade:
        """Grade one word.

        Returns:
            Its grade.

        Raises:
            PromptError: As `grade_words`.
            ContextLengthError: As `grade_words`.
        """
        return self.grade_words([word], show_progress=False)[0]

    def grade_words(
        self,
        words: Sequence[str],
        batch_size: Count = 1,
        show_progress: bool = True,
        use_hooks: bool = False,
        *,
        fwd_hooks: Hooks | None = None,
    ) -> list[SpellingGrade]:
        """Grade words.

        Args:
            words: The words.
            batch_size: Prompts in one forward pass.
            show_progress: Whether to draw a progress bar.
            use_hooks: Whether the hooks of `hook_generator` act, made anew for each batch.
            fwd_hooks: Hooks that act on every batch.

        Returns:
            One grade per word, in order.

        Raises:
            PromptError: If a prompt cannot be built, or the tokenizer merges a prompt's end with its answer.
            RangeError: If `batch_size` is below 1.
            AbsorbError: If `use_hooks` is set and there is no `hook_generator`.
            ContextLengthError: If a prompt with its answer is longer than the model's context.
        """
        check_ranges(SpellingGrader.grade_words, locals())
        if use_hooks and self.hook_generator is None:
            raise AbsorbError(
                "hook_generator",
                None,
                expected="a function that makes hooks",
                remedy="Set it, or leave out `use_hooks`.",
            )
        prompts = [
            create_icl_prompt(
                word,
                self.icl_word_list,
                base_template=self.base_template,
                example_separator=self.example_separator,
                answer_formatter=self.answer_formatter,
                max_icl_examples=self.max_icl_examples,
                shuffle_examples=self.shuffle_examples,
                check_contamination=self.check_contamination,
                max_attempts=self.max_attempts,
                seed=self.seed,
            )
            for word in words
        ]
        starts = range(0, len(prompts), batch_size)
        batches = [prompts[start : start + batch_size] for start in starts]
        return [
            grade
            for batch in track(batches, description="Grading", disable=not show_progress)
            for grade in self._grade_batch(batch, fwd_hooks or (), self.hook_generator if use_hooks else None)
        ]

    @torch.no_grad()
    def _grade_batch(
        self, prompts: Sequence[SpellingPrompt], fwd_hooks: Hooks, hook_generator: HookGenerator | None
    ) -> list[SpellingGrade]:
        tokenizer = self.model.tokenizer
        prepend_bos = prepends_bos(self.model)
        answered = [SpellingPrompt(prompt.base + prompt.answer, "", prompt.word, prompt.word_end) for prompt in prompts]
        bases = tokenize_prompts(tokenizer, prompts, prepend_bos=prepend_bos)
        inputs = tokenize_prompts(tokenizer, answered, prepend_bos=prepend_bos, max_length=self.model.cfg.n_ctx)
        device = next(iter(self.model.parameters())).device
        made = hook_generator(inputs.word_positions.tolist()) if hook_generator is not None else ()
        with self.model.hooks(fwd_hooks=[*fwd_hooks, *made]):
            logits = self.model(inputs.input_ids.to(device))
        grades = []
        for row, prompt in enumerate(prompts):
            start, stop = int(bases.lengths[row]), int(inputs.lengths[row])
            ids = inputs.input_ids[row]
            if stop <= start or not torch.equal(ids[:start], bases.input_ids[row, :start]):
                raise PromptError(
                    "answer_formatter",
                    prompt.answer,
                    expected=f"an answer that the tokenizer keeps apart from the prompt of {prompt.word!r}",
                    remedy="Begin answers with a space.",
                )
            grades.append(self._grade(prompt, logits[row, start - 1 : stop - 1], ids[start:stop].to(device)))
        return grades

    def _grade(self, prompt: SpellingPrompt, logits: Tensor, answer: Tensor) -> SpellingGrade:
        log_probs = logits.log_softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        best, prediction = log_probs.max(dim=-1)
        return SpellingGrade(
            word=prompt.word,
            prompt=prompt.base,
            answer=self.model.tokenizer.decode(answer),
            prediction=self.model.tokenizer.decode(prediction),
            is_correct=torch.equal(prediction, answer),
            answer_log_prob=log_probs.gather(1, answer[:, None]).sum().item(),
            prediction_log_prob=best.sum().item(),
        )
