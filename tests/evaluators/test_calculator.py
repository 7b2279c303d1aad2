"""The absorption calculator against what the published one gave on the micro models."""

import json

import pytest
import torch
from sae_lens import SAE
from safetensors.torch import load_file

from absorb_pl.evaluators import FeatureAbsorptionCalculator
from absorb_pl.functional import letter_metric
from absorb_pl.models import load_language_model
from absorb_pl.saes import load_sae
from absorb_pl.words import LETTERS, first_letter_formatter

FIELDS = ("activation", "ablation_score", "probe_cos_sim")
CASES = [(model, sae) for model in ("gpt2-micro", "gemma2-micro") for sae in ("standard_A", "jumprelu_A")]


def metric_for(tokenizer, letter):
    answers = torch.tensor([tokenizer.encode(f" {name.upper()}")[-1] for name in LETTERS])
    label = torch.tensor([LETTERS.index(letter)])

    def metric_fn(logits):
        return letter_metric(logits[:, -1], label.expand(len(logits)), answers)

    return metric_fn


def judged(folder, sae_name, dtype):
    """What the calculator says of the recorded words, by letter, and the model it read."""
    record = json.loads((folder / f"expected_absorption_paper_{sae_name}.json").read_text())
    model = load_language_model(str(folder), dtype=dtype)
    probe = load_file(folder / "probe_inputs.safetensors")["weight"].to(getattr(torch, dtype))
    calculator = FeatureAbsorptionCalculator(
        model,
        record["icl_words"],
        base_template=record["template"],
        answer_formatter=first_letter_formatter(capitalize=True),
        shuffle_examples=False,
        probe_cos_sim_threshold=record["probe_cos_sim_threshold"],
        ablation_delta_threshold=record["ablation_delta_threshold"],
    )
    found = {
        letter: calculator.calculate_absorption_sampled(
            load_sae(str(folder / f"sae_{sae_name}"), dtype=dtype),
            words,
            probe[LETTERS.index(letter)],
            metric_for(model.tokenizer, letter),
            record["main_latents"][letter],
            show_progress=False,
        ).sample_results
        for letter, words in record["words"].items()
    }
    return found, record, model


def listed(result):
    return [*result.main_feature_scores, *result.top_ablation_feature_scores]


def largest(results, field):
    return max(abs(getattr(score, field)) for words in results.values() for word in words for score in listed(word))


@pytest.mark.parametrize(("model_name", "sae_name"), CASES)
def test_agrees_with_the_published_calculator(golden, recorded_to, float32_rounding, model_name, sae_name):
    exact, record, model = judged(golden / model_name, sae_name, "float64")
    size = {field: largest(exact, field) for field in FIELDS}
    for letter, found in exact.items():
        recorded = [result for result in record["results"] if result["letter"] == letter]
        assert [result.word for result in found] == [result["word"] for result in recorded]
        for ours, theirs in zip(found, recorded, strict=True):
            assert ours.is_absorption == theirs["is_absorption"]
            scores = [*theirs["main"], *theirs["top"]]
            assert [score.feature_id for score in listed(ours)] == [score["feature_id"] for score in scores]
            for field in FIELDS:
                assert [getattr(score, field) for score in listed(ours)] == pytest.approx(
                    [score[field] for score in scores], rel=0, abs=recorded_to(model_name) * size[field]
                )

    rounded = judged(golden / model_name, sae_name, "float32")[0]
    rounding = {field: float32_rounding(model) * size[field] for field in FIELDS}
    clear = 0
    for letter, found in exact.items():
        assert [result.word for result in rounded[letter]] == [result.word for result in found]
        for ours, single in zip(found, rounded[letter], strict=True):
            by_latent = {score.feature_id: score for score in listed(single)}
            for score in listed(ours):
                if score.feature_id in by_latent:
                    for field in FIELDS:
                        near = pytest.approx(getattr(score, field), rel=0, abs=rounding[field])
                        assert getattr(by_latent[score.feature_id], field) == near
            top, second = ours.top_ablation_feature_scores[:2]
            lead = abs(top.ablation_score) - abs(second.ablation_score)
            margins = {
                "ablation_score": min(abs(lead - record["ablation_delta_threshold"]), lead) / 2,
                "probe_cos_sim": abs(top.probe_cos_sim - record["probe_cos_sim_threshold"]),
            }
            if all(margin > rounding[field] for field, margin in margins.items()):
                clear += 1
                assert single.is_absorption == ours.is_absorption
                assert single.top_ablation_feature_scores[0].feature_id == top.feature_id
    assert clear > 0.8 * len(record["results"])


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
