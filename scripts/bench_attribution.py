"""Integrated gradients and ablations of many words on the suffix engine, against one whole sequence per step.

The plain way is that of the published code, one prompt after another: integrated gradients run the whole sequence for
each step with the SAE in the graph at every token and call `backward` on model and SAE as libraries load them, so that
parameters receive gradients too; a second comparison spares it those. Ablations run the whole sequence for 25 latents
at a time with a hook. Prompts either have their own solved examples each or share them; several SAEs either share
prefixes or run their own. Times are per word, as the ways do different numbers of words in a turn.

    python scripts/bench_attribution.py --shapes speller --json attribution.json
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from benchmark_shapes import SHAPES, Setting, open_shape
from benchmarking import Report, Way, compare, new_report, parse_arguments, peak_memory
from torch import Tensor

from absorb_pl.attribution import word_ablations, word_integrated_gradients
from absorb_pl.engine import apply_saes_and_run, compute_prefix
from absorb_pl.words import TokenizedPrompts

STEPS = 6
PLAIN_ABLATIONS = 25
FIRES = 1e-8
NUM_SAES = 8
MULTIPLES = (1, 4, 16)
UNITS_OF_ROUNDING = 64


def main(args: list[str] | None = None) -> Report:
    """Run the benchmark, print its tables, and return its figures."""
    options = parse_arguments(__doc__, SHAPES, args)
    report = new_report("attribution", options.device)
    for name in options.shapes:
        words, plain_words = SHAPES[name].words, SHAPES[name].plain_words
        if options.quick:
            words, plain_words = 2, 1
        if options.words is not None:
            words, plain_words = options.words, min(options.words, plain_words)
        with open_shape(name, options.device) as setting:
            pair = partial(compare, name, item="word", repeats=options.repeats, device=options.device)
            _against_plain(report, setting, pair, words, plain_words)
            _many_saes(report, setting, pair, max(1, words // 2), 2 if options.quick else NUM_SAES)
        if not options.quick:
            _memory(report, name, options.device, max(1, words // 4))
    report.show()
    report.write(options.json)
    return report


def plain_integrated_gradients(setting: Setting, sae: Any, prompts: TokenizedPrompts, count: int) -> Tensor:
    """Integrated-gradient scores at the words, one prompt and one step at a time.

    Args:
        setting: The model, its hook and the metric.
        sae: The SAE.
        prompts: The prompts.
        count: How many of them to score.

    Returns:
        Scores, `[count, latents]`.
    """
    hook_name = setting.shape.hook_name
    scores = []
    for row in range(count):
        ids, position = _whole_prompt(prompts, row)
        with torch.no_grad():
            clean = apply_saes_and_run(setting.model, {hook_name: sae}, ids).sae_activations[hook_name]
        gradient = torch.zeros_like(clean.feature_acts[0, position])
        for step in range(STEPS):
            kept = torch.ones(ids.shape[1], 1, device=ids.device)
            kept[position] = 1 - step / STEPS
            spliced = Splice(sae, kept, clean.sae_error)
            logits = setting.model.run_with_hooks(ids, fwd_hooks=[(hook_name, spliced)])
            setting.metric(logits[:, -1], torch.tensor([row], device=ids.device)).sum().backward()
            gradient += spliced.gradient[0, position]
        scores.append(gradient / STEPS * -clean.feature_acts[0, position])
    return torch.stack(scores)


class Splice:
    """A hook that puts an SAE in place of the activation, its latents and error scaled at each token.

    Args:
        sae: The SAE.
        kept: Factor at each token, `[tokens, 1]`.
        error: The SAE's error.
    """

    def __init__(self, sae: Any, kept: Tensor, error: Tensor) -> None:
        self.sae, self.kept, self.error = sae, kept, error
        self.latents = torch.empty(0)

    @property
    def gradient(self) -> Tensor:
        """Gradient by the scaled latents, after a backward pass."""
        assert self.latents.grad is not None
        return self.latents.grad

    def __call__(self, activation: Tensor, **_: Any) -> Tensor:
        """Encode, scale, decode."""
        self.latents = self.kept * self.sae.encode(activation)
        self.latents.requires_grad_().retain_grad()
        return (self.sae.decode(self.latents) + self.kept * self.error).to(activation.dtype)


@contextmanager
def parameter_gradients(*modules: torch.nn.Module) -> Iterator[None]:
    """Let all parameters receive gradients inside a `with` block, as they do where libraries load them.

    Args:
        modules: Whose parameters.
    """
    parameters = [parameter for module in modules for parameter in module.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None


@torch.no_grad()
def plain_ablations(setting: Setting, sae: Any, prompts: TokenizedPrompts, count: int) -> Tensor:
    """What the metric loses with each firing latent, one prompt at a time and whole sequences.

    Args:
        setting: The model, its hook and the metric.
        sae: The SAE.
        prompts: The prompts.
        count: How many of them to score.

    Returns:
        metric without the latent - metric, 0 where it does not fire, `[count, latents]`.
    """
    hook_name = setting.shape.hook_name
    effects = torch.zeros(count, sae.W_dec.shape[0], dtype=torch.float64, device=prompts.input_ids.device)
    for row in range(count):
        ids, position = _whole_prompt(prompts, row)
        clean = apply_saes_and_run(setting.model, {hook_name: sae}, ids)
        rows = torch.tensor([row], device=ids.device)
        original = setting.metric(clean.model_output[:, -1], rows)
        latents = clean.sae_activations[hook_name].feature_acts[0, position]
        for part in (latents.abs() > FIRES).nonzero().flatten().split(PLAIN_ABLATIONS):
            remove = partial(_without, position, latents[part, None] * sae.W_dec[part])
            logits = setting.model.run_with_hooks(ids.expand(len(part), -1), fwd_hooks=[(hook_name, remove)])
            effects[row, part] = setting.metric(logits[:, -1], rows.expand(len(part))) - original
    return effects


def _against_plain(report: Report, setting: Setting, pair: Callable[..., Any], words: int, plain_words: int) -> None:
    model, hook_name = setting.model, setting.shape.hook_name
    [sae] = setting.saes(1)
    for shared_context in (False, True):
        prompts = setting.prompts(words, shared_context=shared_context)
        context = "shared context" if shared_context else "own contexts"

        def integrate(count: int, prompts: TokenizedPrompts = prompts) -> Tensor:
            few = prompts.select(slice(count))
            prefix = compute_prefix(model, few, [hook_name])
            return word_integrated_gradients(model, sae, few, setting.metric, steps=STEPS, prefix=prefix).scores

        def ablate(count: int, prompts: TokenizedPrompts = prompts) -> Tensor:
            few = prompts.select(slice(count))
            prefix = compute_prefix(model, few, [hook_name])
            found = word_ablations(model, sae, few, setting.metric, prefix=prefix)
            effects = torch.zeros(count, sae.W_dec.shape[0], dtype=torch.float64, device=found.scores.device)
            effects[found.rows, found.latents] = found.scores
            return effects

        def as_published(count: int, prompts: TokenizedPrompts = prompts) -> Tensor:
            with parameter_gradients(model.original_model, sae):
                return plain_integrated_gradients(setting, sae, prompts, count)

        plain = Way("whole sequence per step", as_published, plain_words)
        spared = Way(
            "without parameters' gradients", partial(plain_integrated_gradients, setting, sae, prompts), plain_words
        )
        this = Way("suffix engine", integrate, words)
        report.comparisons.append(pair(f"integrated gradients, {context}", plain=plain, this=this))
        report.comparisons.append(pair(f"integrated gradients, {context}", plain=spared, this=this))
        plain = Way("whole sequences, 25 latents", partial(plain_ablations, setting, sae, prompts), plain_words)
        this = Way("suffix engine", ablate, words)
        what = f"ablation of firing latents, {context}"
        report.comparisons.append(pair(what, plain=plain, this=this, rounding=_rounding(setting, sae, prompts)))


def _rounding(setting: Setting, sae: Any, prompts: TokenizedPrompts) -> float:
    """What float32 leaves uncertain in an effect, a difference of two metrics that may be much larger.

    In random models effects are thousandths of the metric; in float64 the two ways then agree to 1e-12 of the largest.
    """
    metrics = word_ablations(setting.model, sae, prompts.select(slice(1)), setting.metric).original
    return UNITS_OF_ROUNDING * torch.finfo(torch.float32).eps * float(metrics.abs().max())


def _many_saes(report: Report, setting: Setting, pair: Callable[..., Any], words: int, num_saes: int) -> None:
    model, saes = setting.model, setting.saes(num_saes)
    prompts = setting.prompts(words, shared_context=False)

    def score(count: int, *, share: bool) -> Tensor:
        few = prompts.select(slice(count))
        prefix = compute_prefix(model, few, [setting.shape.hook_name]) if share else None
        found = [
            word_integrated_gradients(model, sae, few, setting.metric, steps=STEPS, prefix=prefix).scores
            for sae in saes
        ]
        return torch.cat(found, dim=1)

    plain = Way("a run for each", partial(score, share=False), words)
    this = Way("shared prefix", partial(score, share=True), words)
    report.comparisons.append(pair(f"integrated gradients, {len(saes)} SAEs on a hook", plain=plain, this=this))

    prefix = compute_prefix(model, prompts, [setting.shape.hook_name])
    held = list(range(words))

    def suffixes(count: int) -> Tensor:
        rows = held[:count]
        return word_integrated_gradients(
            model, saes[0], prompts, setting.metric, steps=STEPS, prefix=prefix, rows=rows
        ).scores

    plain = Way("without parameters' gradients", partial(plain_integrated_gradients, setting, saes[0], prompts), 1)
    this = Way("suffix engine", suffixes, words)
    report.comparisons.append(pair("integrated gradients, prefix at hand", plain=plain, this=this))


def _memory(report: Report, name: str, device: str, portion: int) -> None:
    """Measure in a process of its own, where nothing larger has run before."""
    with get_context("spawn").Pool(1) as pool:
        growth = pool.apply(memory_growth, (name, device, portion, MULTIPLES))
    report.measurements += [
        {"shape": name, "words": portion * multiple, "in portions of": portion, "peak MiB above the model": peak}
        for multiple, peak in zip(MULTIPLES, growth, strict=True)
    ]


def memory_growth(name: str, device: str, portion: int, multiples: tuple[int, ...]) -> list[float]:
    """Peak memory of integrated gradients of more and more words, each portion's scores reduced to its top latents.

    Args:
        name: A key of `SHAPES`.
        device: Where it runs.
        portion: Words scored at once.
        multiples: How many portions to score, ascending.

    Returns:
        MiB above what the process held with model and SAE loaded, by multiple.
    """
    with open_shape(name, device) as setting:
        [sae] = setting.saes(1)
        prompts = setting.prompts(portion * multiples[-1], shared_context=False)
        loaded = peak_memory(device)
        peaks = []
        for multiple in multiples:
            for part in torch.arange(portion * multiple).split(portion):
                found = word_integrated_gradients(
                    setting.model, sae, prompts, setting.metric, steps=STEPS, rows=part.tolist()
                )
                found.scores.min(dim=1)
            peaks.append(round(peak_memory(device) - loaded, 1))
    return peaks


def _whole_prompt(prompts: TokenizedPrompts, row: int) -> tuple[Tensor, int]:
    return prompts.input_ids[row : row + 1, : int(prompts.lengths[row])], int(prompts.word_positions[row])


def _without(position: int, removed: Tensor, activation: Tensor, **_: Any) -> Tensor:
    changed = activation.clone()
    changed[:, position] -= removed
    return changed


if __name__ == "__main__":
    main()
