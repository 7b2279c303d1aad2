"""Every rule through its class: the published figures, its registry, and what must not change a verdict."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from absorb_pl.data import read_residuals
from absorb_pl.errors import RuleError
from absorb_pl.evaluators import AbsorptionEvaluator, AbsorptionInputs, gradients
from absorb_pl.evaluators.projections import score_projections
from absorb_pl.models import load_language_model
from absorb_pl.rules import (
    PaperRule,
    PaperSettings,
    SaeBenchSettings,
    configured_rules,
    known_rules,
    rule_named,
)
from absorb_pl.saes import load_sae, portions
from absorb_pl.schema import WORDS, ordered_words
from absorb_pl.words import (
    LETTERS,
    SpellingPrompt,
    Task,
    create_icl_prompt,
    first_letter_formatter,
    tokenize_prompts,
)

CASES = [(model, sae) for model in ("gpt2-micro", "gemma2-micro") for sae in ("standard_A", "jumprelu_A")]
# The SAEs of SAEBench's record had their norms folded in float32: a norm, a division and two products.
FOLDED_IN_FLOAT32 = 2 * torch.finfo(torch.float32).eps
HOOK = "blocks.1.hook_resid_post"


class Case:
    """Recorded inputs of one micro model and SAE."""

    def __init__(self, golden, model, sae):
        self.folder, self.name = golden / model, sae
        self.model = load_language_model(str(self.folder), dtype="float64")
        self.sae = load_sae(str(self.folder / f"sae_{sae}"), dtype="float64")
        self.probe = load_file(self.folder / "probe_inputs.safetensors")["weight"].double()
        self.paper = json.loads((self.folder / f"expected_absorption_paper_{sae}.json").read_text())
        self.mains = self.paper["main_latents"]

    def text(self, row, word):
        """A recorded prompt; those of the paper's rule are made of the first words, in order."""
        if "prompt" in row:
            return SpellingPrompt(row["prompt"], "", word, row["prompt"].rindex(word) + len(word))
        return create_icl_prompt(
            word,
            self.paper["icl_words"],
            base_template=self.paper["template"],
            answer_formatter=first_letter_formatter(capitalize=True),
            shuffle_examples=False,
        )

    def batch(self, rows):
        """Recorded prompts as a task, its texts and a batch of a `PromptDataModule`."""
        words = [row.get("word", row.get("token")) for row in rows]
        task = Task(
            name="first_letter",
            words=tuple(words),
            labels=tuple(LETTERS.index(row["letter"]) for row in rows),
            classes=tuple(LETTERS),
            answers=tuple(f" {letter.upper()}" for letter in LETTERS),
            template=self.paper["template"],
            answer_formatter=first_letter_formatter(capitalize=True),
        )
        texts = [self.text(row, word) for row, word in zip(rows, words, strict=True)]
        tokens = tokenize_prompts(self.model.tokenizer, texts, prepend_bos=True)
        return (
            task,
            texts,
            {
                "input_ids": tokens.input_ids,
                "attention_mask": tokens.attention_mask,
                "lengths": tokens.lengths,
                "word_positions": tokens.word_positions,
                "labels": torch.tensor([LETTERS.index(row["letter"]) for row in rows]),
                "index": torch.arange(len(rows)),
            },
        )

    def gradients(self, sae, mains, rows, thresholds, parts=1, tokens=(), **settings):
        """Scores of the evaluator and verdicts on them, the words in several batches."""
        task, texts, batch = self.batch(rows)
        labels = [row["letter"] for row in rows]
        inputs = AbsorptionInputs(
            letters=pd.DataFrame([{"sae": "sae", "label": name, "main_latents": ids} for name, ids in mains.items()]),
            candidates=pd.DataFrame({"sae": "sae", "row": range(len(rows)), "label": labels}),
            probe_weights={HOOK: self.probe},
        )
        rule = PaperRule(PaperSettings(**thresholds))
        asked = [replace(rule.needs, positive_token=token) for token in tokens or [rule.settings.positive_token]]
        evaluator = AbsorptionEvaluator(self.model, {"sae": sae}, inputs, asked, **settings)
        evaluator.prepare(task, texts)
        tables = [
            evaluator.tabulate({name: values[here] for name, values in batch.items()})
            for here in torch.arange(len(rows)).tensor_split(parts)
        ]
        evidence = pd.concat(tables, ignore_index=True)
        return rule.judge(evidence.sort_values(["positive_token", "row"], ignore_index=True))

    def residuals(self, rows):
        _, _, batch = self.batch(rows)
        return read_residuals(self.model, batch["input_ids"], batch["attention_mask"], batch["word_positions"], [HOOK])[
            HOOK
        ]

    def projections(self, sae, mains, x, labels, **settings):
        rows = range(len(labels))
        found = score_projections(sae, x, list(rows), labels, self.probe, LETTERS, mains, **settings)
        return found.sort_values("row", ignore_index=True)


@pytest.fixture(scope="module")
def cases(golden):
    return {names: Case(golden, *names) for names in CASES}


@pytest.fixture(params=CASES, ids="-".join)
def case(request, cases):
    return cases[request.param]


def thresholds_of(recorded):
    return {
        "delta_threshold": recorded["ablation_delta_threshold"],
        "cos_threshold": recorded["probe_cos_sim_threshold"],
    }


def test_the_paper_rule_gives_the_recorded_verdicts(case):
    rows, thresholds = case.paper["results"], thresholds_of(case.paper)
    found = case.gradients(case.sae, case.mains, rows, thresholds, parts=3)
    judged = PaperRule(PaperSettings(**thresholds)).judge(found)
    recorded = [row["is_absorption"] for row in rows]
    assert judged["is_absorption"].tolist() == found["is_absorption"].tolist() == recorded
    assert found["top_latent"].tolist() == [row["top"][0]["feature_id"] for row in rows]
    for ours, theirs in zip(found.to_dict("records"), rows, strict=True):
        assert ours["latents"] == [latent["feature_id"] for latent in theirs["top"]]


@pytest.mark.parametrize("version", ["0.6.0", "0.3.2"])
def test_the_rules_of_saebench_give_the_recorded_verdicts(case, recorded_to, version):
    recorded = json.loads((case.folder / f"expected_absorption_saebench_{version}_{case.name}.json").read_text())
    rows = recorded if isinstance(recorded, list) else recorded["results"]
    found = case.projections(case.sae, case.mains, case.residuals(rows), [row["letter"] for row in rows])
    judged = rule_named(f"saebench-{version}")().judge(found)
    assert judged["rule"].unique().tolist() == [f"saebench-{version}"]
    assert judged["is_absorption"].tolist() == [row["is_full_absorption"] for row in rows]
    assert judged["top_latent"].tolist() == [row["top"][0] for row in rows]
    assert judged["second_latent"].tolist() == [row["top"][1] for row in rows]
    for ours, theirs in (("absorption_fraction", "absorption_fraction"), ("probe_projection", "probe_projection")):
        recorded = [row[theirs] for row in rows]
        within = (recorded_to(case.folder.name) + FOLDED_IN_FLOAT32) * max(map(abs, recorded))
        assert judged[ours].tolist() == pytest.approx(recorded, rel=0, abs=within)
    assert 0 < judged["absorption_fraction"].mean() < 1


def permuted(sae, mains):
    """The latents in another order, and the main latents' new numbers."""
    other, order = load_copy(sae), torch.randperm(sae.W_dec.shape[0], generator=torch.Generator().manual_seed(0))
    place = order.argsort()
    for name, weight in other.named_parameters():
        if name in ("W_dec", "b_enc", "threshold"):
            weight.data = weight.data[order]
    other.W_enc.data = other.W_enc.data[:, order]
    return other, {label: place[torch.tensor(ids)].tolist() for label, ids in mains.items()}


def folded(sae, mains):
    """Decoder rows of length one, and activations as much larger."""
    other = load_copy(sae)
    other.fold_W_dec_norm()
    torch.testing.assert_close(other.W_dec.norm(dim=1), torch.ones(len(other.W_dec), dtype=other.W_dec.dtype))
    return other, mains


def with_a_dead_latent(sae, mains):
    """One latent more, which never fires and points along the first letter's probe."""
    other = load_copy(sae)
    other.W_enc.data = torch.cat([other.W_enc.data, torch.zeros(len(other.W_enc), 1)], dim=1)
    other.W_dec.data = torch.cat([other.W_dec.data, other.W_dec.data[:1]])
    other.b_enc.data = torch.cat([other.b_enc.data, torch.tensor([-1.0])])
    if hasattr(other, "threshold"):
        other.threshold.data = torch.cat([other.threshold.data, torch.ones(1)])
    return other, mains


def load_copy(sae):
    other = type(sae)(sae.cfg)
    other.load_state_dict(sae.state_dict())
    return other.eval().requires_grad_(False)


@pytest.mark.parametrize("change", [permuted, folded, with_a_dead_latent], ids=lambda change: change.__name__)
def test_what_leaves_every_verdict_as_it_is(case, change, monkeypatch):
    other, mains = change(case.sae, case.mains)
    rows, thresholds = case.paper["results"][::4], thresholds_of(case.paper)
    before = case.gradients(case.sae, case.mains, rows, thresholds)
    after = case.gradients(other, mains, rows, thresholds, parts=4, batch_size=7)
    assert after["is_absorption"].tolist() == before["is_absorption"].tolist()
    x, labels = case.residuals(rows), [row["letter"] for row in rows]
    before = case.projections(case.sae, case.mains, x, labels)
    monkeypatch.setattr(portions, "CHUNK_BYTES", 8 * 4 * 2 * len(other.W_dec))
    after = case.projections(other, mains, x, labels)
    for name in ("saebench-0.6.0", "saebench-0.3.2"):
        one, two = (rule_named(name)().judge(words) for words in (before, after))
        assert two["is_absorption"].tolist() == one["is_absorption"].tolist()
        assert two["absorption_fraction"].tolist() == pytest.approx(one["absorption_fraction"].tolist(), abs=1e-4)


def test_both_positive_tokens_are_scored_from_one_prefix(cases, monkeypatch):
    case = cases[CASES[0]]
    rows, thresholds = case.paper["results"][:8], thresholds_of(case.paper)
    apart = {
        token: case.gradients(case.sae, case.mains, rows, {**thresholds, "positive_token": token})
        for token in ("answer", "published")
    }
    calls, compute = [], gradients.compute_prefix
    monkeypatch.setattr(gradients, "compute_prefix", lambda *args, **how: calls.append(1) or compute(*args, **how))
    both = case.gradients(case.sae, case.mains, rows, thresholds, tokens=["answer", "published"])
    assert len(calls) == 1
    for token, alone in apart.items():
        found = both[both["positive_token"] == token].reset_index(drop=True)
        pd.testing.assert_frame_equal(found, alone)
    assert apart["answer"]["top_score"].tolist() != apart["published"]["top_score"].tolist()


def test_stored_absorbers_answer_other_thresholds(cases):
    case = cases[CASES[0]]
    rows = case.paper["results"]
    x, labels = case.residuals(rows), [row["letter"] for row in rows]
    stored = case.projections(case.sae, case.mains, x, labels, stored_absorbers=6)
    for most, cos in ((6, 0.0), (4, 0.3), (1, 0.05), (2, -1.0)):
        settings = SaeBenchSettings(max_absorbers=most, fraction_cos_threshold=cos, stored_absorbers=most)
        fresh = case.projections(case.sae, case.mains, x, labels, stored_absorbers=most)
        one, two = (rule_named("saebench-0.6.0")(settings).judge(words) for words in (stored, fresh))
        assert one["absorption_fraction"].tolist() == two["absorption_fraction"].tolist()
    assert stored["absorber_latents"].map(len).max() < case.sae.W_dec.shape[0] / 2


def test_rules_are_asked_for_by_name():
    assert {"paper", "paper-published", "saebench-0.6.0", "saebench-0.3.2"} <= set(known_rules())
    rules = configured_rules({"paper-published": {"steps": 9}, "saebench-0.6.0": {"max_absorbers": 2}})
    assert (rules[0].settings.steps, rules[0].settings.positive_token, rules[0].letters) == (
        9,
        "published",
        "published",
    )
    assert rules[1].settings.max_absorbers == 2
    for names in (["nonsense"], ["paper", "paper"], []):
        with pytest.raises(RuleError, match=r"saebench-0\.6\.0"):
            configured_rules(names)


def test_thresholds_that_a_rule_lacks_or_cannot_answer_are_named():
    with pytest.raises(RuleError, match="`max_absorbers` was 2, expected a threshold of the rule paper"):
        rule_named("paper")().with_thresholds({"max_absorbers": 2})
    with pytest.raises(RuleError, match=r"at most 5.*`stored_absorbers`"):
        rule_named("saebench-0.6.0")().with_thresholds({"max_absorbers": 6})
    with pytest.raises(RuleError, match=r"splits\.silent"):
        rule_named("paper")().with_thresholds({"silent": 0.5}).check_stored(1e-8)


def test_a_missing_list_is_none_whatever_stands_beside_it(tmp_path):
    alone = pd.DataFrame({"sae": ["a"], "row": [3]})
    beside = pd.concat([alone, pd.DataFrame({"sae": ["b"], "row": [4], "main_latents": [[1, 2]]})], ignore_index=True)
    for table in (alone, beside):
        ordered_words(table).to_parquet(tmp_path / "words.parquet")
        found = pd.read_parquet(tmp_path / "words.parquet").loc[0]
        assert tuple(found.index) == tuple(name for name in WORDS if name != "child")
        assert (found["main_latents"], found["scores"]) == (None, None)


def test_settings_that_a_rule_lacks_are_named():
    with pytest.raises(RuleError, match=r"`rules\.paper\.max_absorbers` was 2, expected a setting of this rule: steps"):
        configured_rules({"paper": {"max_absorbers": 2}})
    with pytest.raises(RuleError, match=r"`rules\.paper-published\.positive_token` was 'answer'"):
        configured_rules({"paper-published": {"positive_token": "answer"}})
    with pytest.raises(RuleError, match=r"`rules\.paper` was 2\.0, expected settings by their names"):
        configured_rules({"paper": 2.0})


def test_silent_mains_bound_the_full_absorption_of_saebench(case):
    rows = case.paper["results"]
    labels = [row["letter"] for row in rows]
    found = case.projections(case.sae, case.mains, case.residuals(rows), labels)
    firing = {**case.mains, labels[0]: [int(found["top_latent"][0])]}
    found = case.projections(case.sae, firing, case.residuals(rows), labels)
    bound, full = (rule_named(name)().judge(found)["is_absorption"] for name in ("silent-mains", "saebench-0.6.0"))
    assert bound[full].all()
    assert full.sum() < bound.sum() < len(bound)
    assert bound.tolist() == (found["main_max"] < 1e-8).tolist()
