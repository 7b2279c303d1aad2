"""The absorption calculator against what the published one gave on the micro models."""

import json

import pytest
import torch
from sae_lens import SAE
from safetensors.torch import load_file

from absorb_pl.attribution import word_integrated_gradients
from absorb_pl.evaluators import FeatureAbsorptionCalculator
from absorb_pl.functional import letter_metric
from absorb_pl.models import load_language_model
from absorb_pl.words import LETTERS, SpellingPrompt, first_letter_formatter, tokenize_prompts

CASES = [(model, sae) for model in ("gpt2-micro", "gemma2-micro") for sae in ("standard_A", "jumprelu_A")]


def metric_for(tokenizer, letter):
    answers = torch.tensor([tokenizer.encode(f" {name.upper()}")[-1] for name in LETTERS])
    label = torch.tensor([LETTERS.index(letter)])

    def metric_fn(logits):
        return letter_metric(logits[:, -1], label.expand(len(logits)), answers)

    return metric_fn


def score_rounding(model, sae, result, score, metric_fn):
    """Eight units of float32 rounding in the two factors of a score, activation and decoder row · gradient.

    A float64 run is as far from the recorded scores as a float32 one: this rounding is in the record.
    """
    prompt = SpellingPrompt(result.prompt, "", result.word, result.prompt.rindex(result.word) + len(result.word))
    tokens = tokenize_prompts(model.tokenizer, [prompt], prepend_bos=True)
    found = word_integrated_gradients(model, sae, tokens, lambda logits, _: metric_fn(logits[:, None]))
    terms = sae.W_dec[score.feature_id].norm() * found.gradients.norm() * abs(score.activation)
    slope = abs(score.ablation_score / score.activation) if score.activation else 0.0
    return float(8 * torch.finfo(torch.float32).eps * (terms + slope * found.activations.abs().max()))


@pytest.mark.parametrize(("model_name", "sae_name"), CASES)
def test_agrees_with_the_published_calculator(golden, model_name, sae_name):
    folder = golden / model_name
    expected = json.loads((folder / f"expected_absorption_paper_{sae_name}.json").read_text())
    model = load_language_model(str(folder))
    sae = SAE.load_from_disk(folder / f"sae_{sae_name}")
    probe = load_file(folder / "probe_inputs.safetensors")["weight"]
    calculator = FeatureAbsorptionCalculator(
        model,
        expected["icl_words"],
        base_template=expected["template"],
        answer_formatter=first_letter_formatter(capitalize=True),
        shuffle_examples=False,
        probe_cos_sim_threshold=expected["probe_cos_sim_threshold"],
        ablation_delta_threshold=expected["ablation_delta_threshold"],
    )
    for letter, words in expected["words"].items():
        found = calculator.calculate_absorption_sampled(
            sae,
            words,
            probe[LETTERS.index(letter)],
            metric_for(model.tokenizer, letter),
            expected["main_latents"][letter],
            show_progress=False,
        )
        recorded = [result for result in expected["results"] if result["letter"] == letter]
        assert [result.word for result in found.sample_results] == [result["word"] for result in recorded]
        for ours, theirs in zip(found.sample_results, recorded, strict=True):
            assert ours.is_absorption == theirs["is_absorption"]
            for kind, scores in (("main", ours.main_feature_scores), ("top", ours.top_ablation_feature_scores)):
                assert [score.feature_id for score in scores] == [score["feature_id"] for score in theirs[kind]]
                for field in ("activation", "probe_cos_sim"):
                    # Float32 keeps the rounding of the largest of the sums that cancel in a small entry, in the
                    # recorded figures as in ours, so 1e-5 is of the word's largest value.
                    largest = max(abs(record[field]) for record in theirs["top"])
                    assert [getattr(score, field) for score in scores] == pytest.approx(
                        [record[field] for record in theirs[kind]], rel=1e-5, abs=1e-5 * largest
                    )
                for score, record in zip(scores, theirs[kind], strict=True):
                    rounding = score_rounding(model, sae, ours, score, metric_for(model.tokenizer, letter))
                    assert score.ablation_score == pytest.approx(
                        record["ablation_score"], rel=1e-5, abs=1e-8 + rounding
                    )


def test_samples_at_most_the_words_asked_for(golden):
    folder = golden / "gpt2-micro"
    expected = json.loads((folder / "expected_absorption_paper_standard_A.json").read_text())
    model = load_language_model(str(folder))
    calculator = FeatureAbsorptionCalculator(
        model, expected["icl_words"], base_template=expected["template"], shuffle_examples=False
    )
    arguments = (
        SAE.load_from_disk(folder / "sae_standard_A"),
        expected["words"]["a"],
        torch.ones(48),
        metric_for(model.tokenizer, "a"),
        expected["main_latents"]["a"],
    )
    every = calculator.calculate_absorption_sampled(*arguments, show_progress=False)
    some = calculator.calculate_absorption_sampled(*arguments, max_ablation_samples=3, show_progress=False)
    assert len(some.sample_results) == 3
    assert some.sample_portion == pytest.approx(3 / len(every.sample_results))
    assert {result.word for result in some.sample_results} <= {result.word for result in every.sample_results}
