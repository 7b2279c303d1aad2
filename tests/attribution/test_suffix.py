import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformer_lens import HookedTransformer, HookedTransformerConfig

from absorb_pl.attribution import WordScores, compute_prefix, word_ablations, word_integrated_gradients
from absorb_pl.attribution.prefix import bucket_logits, replace_at
from absorb_pl.errors import AbsorbError, HookNotFoundError, PromptError, ShapeError
from absorb_pl.words import TokenizedPrompts

SAES = ("standard_A", "jumprelu_A", "topk_B")
HOOK = "blocks.1.hook_resid_post"
FLOAT32_EPS = torch.finfo(torch.float32).eps

LENGTHS = [12, 15, 12, 20, 15, 9]
POSITIONS = [6, 9, 6, 9, 8, 0]


class TinySae(nn.Module):
    """The least that counts as an SAE; `normalise` keeps a scale from encode for decode, as SAELens can."""

    def __init__(self, width: int = 32, latents: int = 80, normalise: bool = False):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.W_enc = nn.Parameter(torch.randn(width, latents, generator=generator) / 5)
        self.W_dec = nn.Parameter(torch.randn(latents, width, generator=generator) / 5)
        self.b_dec = nn.Parameter(torch.randn(width, generator=generator) / 5)
        self.normalise = normalise

    def encode(self, x: Tensor) -> Tensor:
        if self.normalise:
            self.scale = x.norm(dim=-1, keepdim=True)
            x = x / self.scale
        return torch.relu((x - self.b_dec) @ self.W_enc)

    def decode(self, feature_acts: Tensor) -> Tensor:
        decoded = feature_acts @ self.W_dec + self.b_dec
        if self.normalise:
            decoded = decoded * self.scale
            del self.scale
        return decoded


def margin(logits: Tensor, rows: Tensor) -> Tensor:
    """A metric that differs from prompt to prompt."""
    return logits.gather(1, 3 * rows[:, None])[:, 0] - logits.mean(dim=1)


@pytest.fixture(scope="session")
def mixed_prompts(prompts_of: Any) -> TokenizedPrompts:
    generator = torch.Generator().manual_seed(0)
    return prompts_of([torch.randint(2, 296, (n,), generator=generator) for n in LENGTHS], POSITIONS)


@pytest.fixture
def double_case(case: Any):
    case.cast(torch.float64)
    yield case
    case.cast(torch.float32)


def assert_scores_close(found: WordScores, row: int, latents: list[int], expected: Tensor, sae: Any) -> None:
    """To 1e-5, beside the float32 rounding of the recorded figures.

    A score is an activation times the dot product of decoder row and gradient. Both keep the rounding of their
    terms where these cancel: 8 units of it, in the product's terms and in the largest activation, cover all
    recorded scores, which are as far from a float64 run as from a float32 one.
    """
    activations, scores = found.activations[row], found.scores[row, latents]
    terms = sae.W_dec.detach()[latents].norm(dim=1) * found.gradients[row].norm() * activations[latents].abs()
    slope = torch.where(activations[latents] == 0, 0, scores / activations[latents]).abs()
    rounding = 8 * FLOAT32_EPS * (terms + slope * activations.abs().max())
    assert ((scores - expected).abs() <= 1e-5 * expected.abs() + 1e-8 + rounding).all()


@pytest.mark.parametrize("engine", ["suffix", "whole"])
@pytest.mark.parametrize("sae_name", SAES)
def test_integrated_gradients_equal_the_published_scores(case: Any, sae_name: str, engine: str):
    found = word_integrated_gradients(case.model, case.saes[sae_name], case.prompts, case.word_metric, engine=engine)
    expected = case.expected[f"{sae_name}/ig/word_s6/sae"][0, case.case["position"]]
    assert_scores_close(found, 0, list(range(160)), expected, case.saes[sae_name])


@pytest.mark.parametrize("sae_name", SAES)
def test_both_engines_agree_in_float64_and_with_the_published_scores(double_case: Any, sae_name: str):
    case = double_case
    sae, prompts = case.saes[sae_name], case.prompts
    suffix, whole = (
        word_integrated_gradients(case.model, sae, prompts, case.word_metric, engine=engine)
        for engine in ("suffix", "whole")
    )
    expected = case.expected[f"{sae_name}/ig/word_s6/sae"][0, case.case["position"]].double()
    assert_scores_close(suffix, 0, list(range(160)), expected, sae)
    if case.folder.name == "gpt2-micro":  # Gemma's norms compute in float32 whatever the model's type
        torch.testing.assert_close(suffix.scores, whole.scores, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("engine", ["suffix", "whole"])
@pytest.mark.parametrize("sae_name", SAES)
def test_ablations_equal_the_published_scores(case: Any, sae_name: str, engine: str):
    prompts = case.prompts
    found = word_ablations(case.model, case.saes[sae_name], prompts, case.word_metric, engine=engine)
    expected = case.expected[f"{sae_name}/ablation/scores"]
    assert found.latents.tolist() == case.expected[f"{sae_name}/ablation/ids"].long().tolist()
    # each recorded score is a difference of two metrics of float32 logits, and no finer than those
    spacing = FLOAT32_EPS * case.model(prompts.input_ids)[0, -1].abs().max()
    assert ((found.scores - expected).abs() <= 1e-5 * expected.abs() + 4 * spacing).all()
    torch.testing.assert_close(
        found.original, case.expected[f"{sae_name}/ablation/original_score"], rtol=1e-5, atol=1e-8
    )


@pytest.mark.parametrize("sae_name", ["standard_A", "jumprelu_A"])
def test_scores_of_many_words_at_once_equal_the_published_absorption_scores(case: Any, prompts_of: Any, sae_name: str):
    record = json.loads((case.folder / f"expected_absorption_paper_{sae_name}.json").read_text())
    context = [f"{word} has the first letter: {word.strip()[0].upper()}" for word in record["icl_words"]]
    texts = ["\n".join([*context, record["template"].format(word=result["word"])]) for result in record["results"]]
    ids = [case.model.to_tokens(text)[0] for text in texts]
    prompts = prompts_of(ids, [len(row) + record["position"] for row in ids])
    letters = torch.tensor([ord(result["letter"]) - ord("a") for result in record["results"]])
    found = word_integrated_gradients(
        case.model,
        case.saes[sae_name],
        prompts,
        lambda logits, rows: case.letter_margin(logits, letters[rows]),
        steps=record["interpolation_steps"],
    )
    for row, result in enumerate(record["results"]):
        listed = [*result["top"], *result["main"]]
        latents = [entry["feature_id"] for entry in listed]
        activations = torch.tensor([entry["activation"] for entry in listed])
        scores = torch.tensor([entry["ablation_score"] for entry in listed])
        torch.testing.assert_close(found.activations[row, latents], activations, rtol=1e-5, atol=1e-5)
        assert_scores_close(found, row, latents, scores, case.saes[sae_name])
        helping = [entry["feature_id"] for entry in result["top"] if entry["ablation_score"] < 0]
        assert found.scores[row].argsort()[: len(helping)].tolist() == helping


def nudged_scores(family: Any, prompts: TokenizedPrompts) -> Tensor:
    """Scores of whole sequences with every embedding one unit of rounding larger."""
    embeddings = next(w for name, w in family.original_model.named_parameters() if w.shape[0] == 296)
    before = embeddings.detach().clone()
    with torch.no_grad():
        embeddings.copy_(torch.nextafter(before, torch.tensor(torch.inf)))
    try:
        return word_integrated_gradients(family, TinySae(), prompts, margin, hook_name=HOOK, engine="whole").scores
    finally:
        with torch.no_grad():
            embeddings.copy_(before)


def test_suffix_and_whole_sequence_agree_for_every_family(family, mixed_prompts: TokenizedPrompts):
    """To 1e-6 of the largest score, or what two units of rounding in the embeddings do to the scores."""
    prefix = compute_prefix(family, mixed_prompts, [HOOK])
    assert prefix.engine == "suffix"
    fast = word_integrated_gradients(
        family, TinySae(), mixed_prompts, margin, hook_name=HOOK, prefix=prefix, batch_size=7
    )
    slow = word_integrated_gradients(family, TinySae(), mixed_prompts, margin, hook_name=HOOK, engine="whole")
    scale = slow.scores.abs().amax(dim=1, keepdim=True)
    assert scale.min() > 1e-2
    rounding = ((nudged_scores(family, mixed_prompts) - slow.scores).abs() / scale).max()
    assert rounding < 1e-5
    assert ((fast.scores - slow.scores).abs() / scale).max() < max(1e-6, 2 * rounding)
    removed_fast, removed_slow = (
        word_ablations(family, TinySae(), mixed_prompts, margin, hook_name=HOOK, engine=engine, batch_size=50)
        for engine in ("suffix", "whole")
    )
    assert torch.equal(removed_fast.latents, removed_slow.latents)
    assert torch.equal(removed_fast.rows, removed_slow.rows)
    torch.testing.assert_close(removed_fast.scores, removed_slow.scores, rtol=0, atol=5e-6)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"], indirect=True)
def test_suffix_and_whole_sequence_are_the_same_computation_in_float64(family, mixed_prompts: TokenizedPrompts):
    family.original_model.double()
    sae = TinySae().double()
    fast, slow = (
        word_integrated_gradients(family, sae, mixed_prompts, margin, hook_name=HOOK, engine=engine).scores
        for engine in ("suffix", "whole")
    )
    family.original_model.float()
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"], indirect=True)
def test_bfloat16_models_are_scored_in_float32(family, mixed_prompts: TokenizedPrompts):
    full = word_integrated_gradients(family, TinySae(), mixed_prompts, margin, hook_name=HOOK).scores
    family.original_model.to(torch.bfloat16)
    half = word_integrated_gradients(
        family, TinySae().to(torch.bfloat16), mixed_prompts, margin, hook_name=HOOK, engine="suffix"
    ).scores
    family.original_model.float()
    assert half.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(half.flatten(), full.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("family", ["gpt2"], indirect=True)
class TestOnOneModel:
    def test_scores_equal_a_direct_computation(self, family, mixed_prompts: TokenizedPrompts):
        for sae in (TinySae(), TinySae(normalise=True)):
            found = word_integrated_gradients(family, sae, mixed_prompts, margin, hook_name=HOOK, steps=3)
            for row in (0, 5):
                length, position = LENGTHS[row], POSITIONS[row]
                ids = mixed_prompts.input_ids[row : row + 1, :length]
                clean = family.run_with_cache(ids)[1][HOOK][:, position]
                gradients = []
                for step in range(3):
                    latents = sae.encode(clean).detach()
                    error = (clean - sae.decode(latents)).detach()
                    sae.encode(clean)
                    mixed_latents = ((1 - step / 3) * latents).requires_grad_()
                    point = sae.decode(mixed_latents) + (1 - step / 3) * error

                    def swap(value, point=point, position=position, **_):
                        value = value.clone()
                        value[:, position] = point
                        return value

                    logits = family.run_with_hooks(ids, fwd_hooks=[(HOOK, swap)])[:, -1]
                    metric = margin(logits, torch.tensor([row])).sum()
                    gradients.append(torch.autograd.grad(metric, mixed_latents)[0])
                expected = (torch.stack(gradients).mean(dim=0) * -latents)[0].detach()
                assert_scores_close(found, row, list(range(80)), expected, sae)

    def test_all_scores_of_a_word_sum_to_the_change_of_the_metric(self, family, mixed_prompts: TokenizedPrompts):
        sae = TinySae()
        prefix = compute_prefix(family, mixed_prompts, [HOOK])
        change = []
        for row, (length, position) in enumerate(zip(LENGTHS, POSITIONS, strict=True)):
            ids = mixed_prompts.input_ids[row : row + 1, :length]

            def empty(value, position=position, **_):
                value = value.clone()
                value[:, position] = sae.b_dec
                return value

            ends = [family(ids)[:, -1], family.run_with_hooks(ids, fwd_hooks=[(HOOK, empty)])[:, -1]]
            clean, emptied = (margin(logits, torch.tensor([row])) for logits in ends)
            change.append((emptied - clean).detach())
        change = torch.cat(change)
        gaps = []
        for steps in (16, 64, 256):
            found = word_integrated_gradients(
                family, sae, mixed_prompts, margin, hook_name=HOOK, steps=steps, prefix=prefix
            )
            gaps.append((found.scores.sum(dim=1) + found.error_scores - change).abs().max())
        # a left sum: four times the steps, a quarter of the error
        assert gaps[1] < 0.3 * gaps[0]
        assert gaps[2] < 0.3 * gaps[1]

    def test_asking_for_some_rows_gives_those_rows(self, family, mixed_prompts: TokenizedPrompts):
        prefix = compute_prefix(family, mixed_prompts, [HOOK, "blocks.3.hook_resid_pre"])
        everything = word_integrated_gradients(family, TinySae(), mixed_prompts, margin, hook_name=HOOK, prefix=prefix)
        some = word_integrated_gradients(
            family, TinySae(), mixed_prompts, margin, hook_name=HOOK, prefix=prefix, rows=[4, 0, 4]
        )
        torch.testing.assert_close(some.scores, everything.scores[[4, 0, 4]], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(some.activations, everything.activations[[4, 0, 4]])

    def test_a_context_shared_by_all_prompts_is_run_once(self, family, prompts_of: Any):
        generator = torch.Generator().manual_seed(3)
        context = torch.randint(2, 296, (8,), generator=generator)
        tail = torch.randint(2, 296, (3,), generator=generator)
        ids = [torch.cat([context, torch.tensor([word]), tail]) for word in range(20, 40)]
        prompts = prompts_of(ids, [8] * 20)
        prefix = compute_prefix(family, prompts, [HOOK])
        (bucket,) = prefix.buckets
        assert bucket.shared is not None
        assert {len(keys) for keys in bucket.shared.states.keys.values()} == {1}
        fast, slow = (
            word_integrated_gradients(
                family, TinySae(), prompts, margin, hook_name=HOOK, prefix=shared, engine="whole"
            ).scores
            for shared in (prefix, None)
        )
        assert ((fast - slow).abs() / slow.abs().amax(dim=1, keepdim=True)).max() < 5e-6

    def test_scoring_leaves_model_and_prefix_as_they_were(self, family, mixed_prompts: TokenizedPrompts):
        prefix = compute_prefix(family, mixed_prompts, [HOOK])
        states = [keys for b in prefix.buckets if b.shared for keys in b.shared.states.keys.values()]
        before = [keys.clone() for keys in states]
        wanted_grad = [parameter.requires_grad for parameter in family.parameters()]
        first, second = (
            word_integrated_gradients(family, TinySae(), mixed_prompts, margin, hook_name=HOOK, prefix=prefix)
            for _ in range(2)
        )
        assert torch.equal(first.scores, second.scores)
        assert len(states) == 4 * sum(position > 0 for position in POSITIONS[1:])
        assert all(torch.equal(x, y) for x, y in zip(before, states, strict=True))
        assert [parameter.requires_grad for parameter in family.parameters()] == wanted_grad
        assert all(parameter.grad is None for parameter in family.parameters())
        assert not any(point.has_hooks() for point in family.hook_dict.values())

    def test_removed_vectors_can_be_modified(self, family, mixed_prompts: TokenizedPrompts):
        kept = word_ablations(
            family,
            TinySae(),
            mixed_prompts,
            margin,
            [3, 7],
            hook_name=HOOK,
            modify_ablation_deltas_fn=lambda deltas, _: 0 * deltas,
        )
        assert kept.scores.abs().max() < 1e-5
        assert kept.rows.tolist() == [row for row in range(6) for _ in range(2)]
        assert kept.latents.tolist() == [3, 7] * 6

    def test_a_model_without_a_cache_takes_whole_sequences(self, family, mixed_prompts: TokenizedPrompts):
        class Plain:
            hook_dict, hooks, to_tokens = family.hook_dict, family.hooks, family.to_tokens

            def __call__(self, token_ids: Tensor) -> Tensor:
                return family(token_ids)

        assert compute_prefix(Plain(), mixed_prompts, [HOOK]).engine == "whole"
        found, expected = (
            word_integrated_gradients(model, TinySae(), mixed_prompts, margin, hook_name=HOOK).scores
            for model in (Plain(), family)
        )
        assert ((found - expected).abs() / expected.abs().amax(dim=1, keepdim=True)).max() < 5e-6
        with pytest.raises(AbsorbError, match="without hooks attached"):
            compute_prefix(Plain(), mixed_prompts, [HOOK], engine="suffix")

    def test_a_model_changed_by_hand_is_found_out(self, family, mixed_prompts: TokenizedPrompts):
        def scores(**options: Any) -> Tensor:
            return word_integrated_gradients(family, TinySae(), mixed_prompts, margin, hook_name=HOOK, **options).scores

        before = scores()
        query = family.blocks[3].attn.q.original_component.weight
        query.data = 1.5 * query  # no longer a view of the joint weights that the bare model has
        assert compute_prefix(family, mixed_prompts, [HOOK]).engine == "whole"
        changed = scores()
        torch.testing.assert_close(changed, scores(engine="whole"), rtol=0, atol=0)
        assert (changed - before).abs().max() > 1e-3
        query.data = query / 1.5
        assert compute_prefix(family, mixed_prompts, [HOOK]).engine == "suffix"

    def test_a_model_with_hooks_attached_runs_whole_sequences(self, family, mixed_prompts: TokenizedPrompts):
        with family.hooks(fwd_hooks=[("blocks.2.hook_mlp_out", lambda activation, **_: 2 * activation)]):
            prefix = compute_prefix(family, mixed_prompts, [HOOK])
        assert prefix.engine == "whole"

    @pytest.mark.parametrize(
        "hook_name",
        [
            "blocks.0.hook_resid_pre",
            "blocks.3.hook_resid_post",
            "blocks.2.attn.hook_z",
            "blocks.1.hook_attn_out",
            "blocks.2.hook_mlp_out",
            "blocks.1.ln2.hook_out",
        ],
    )
    def test_every_kind_of_hook_is_changed_as_the_hooked_model_changes_it(
        self, family, mixed_prompts: TokenizedPrompts, hook_name: str
    ):
        prefix = compute_prefix(family, mixed_prompts, [hook_name, HOOK], engine="suffix")
        generator = torch.Generator().manual_seed(5)
        for bucket in prefix.buckets:
            members = torch.arange(len(bucket.rows)).repeat_interleave(2)
            values = bucket.activations[hook_name][members]
            values = values + torch.randn(values.shape, generator=generator)
            found = bucket_logits(family, bucket, members, hook_name, values)[:, -1]
            for member, value, logits in zip(members.tolist(), values, found, strict=True):
                row = int(bucket.rows[member])
                hook = (hook_name, replace_at(POSITIONS[row], value[None]))
                expected = family.run_with_hooks(
                    mixed_prompts.input_ids[row : row + 1, : LENGTHS[row]], fwd_hooks=[hook]
                )
                torch.testing.assert_close(logits, expected[0, -1], rtol=1e-4, atol=2e-5)

    def test_bad_input_is_named(self, family, mixed_prompts: TokenizedPrompts, prompts_of: Any):
        def score(metric=margin, hook_name=HOOK, **options):
            return word_integrated_gradients(family, TinySae(), mixed_prompts, metric, hook_name=hook_name, **options)

        with pytest.raises(HookNotFoundError, match=r"Closest: .*blocks\.1\.hook_resid_post"):
            score(hook_name="blocks.1.hook_resid_pots")
        with pytest.raises(ShapeError, match="one value a prompt"):
            score(metric=lambda logits, _rows: logits.sum())
        with pytest.raises(PromptError, match="6 prompts"):
            score(rows=[6])
        with pytest.raises(AbsorbError, match="steps"):
            score(steps=0)
        with pytest.raises(HookNotFoundError, match="prefix"):
            score(prefix=compute_prefix(family, mixed_prompts, ["blocks.2.hook_resid_post"]))
        with pytest.raises(PromptError, match="prefix"):
            score(prefix=compute_prefix(family, mixed_prompts, [HOOK], rows=[0, 1]), rows=[2])
        outside = prompts_of([torch.arange(5), torch.arange(4)], [4, 4])
        with pytest.raises(PromptError, match="inside prompt 1"):
            word_integrated_gradients(family, TinySae(), outside, margin, hook_name=HOOK)
        with pytest.raises(AbsorbError, match="below 80"):
            word_ablations(family, TinySae(), mixed_prompts, margin, [80], hook_name=HOOK)
        with pytest.raises(HookNotFoundError, match=r"cfg\.metadata\.hook_name"):
            word_ablations(family, SimpleNamespace(W_dec=0, encode=0, decode=0), mixed_prompts, margin)


def test_a_hooked_transformer_takes_whole_sequences(prompts_of: Any):
    shape = {"n_layers": 2, "d_model": 32, "n_ctx": 64, "d_head": 8, "d_vocab": 296, "act_fn": "gelu"}
    model = HookedTransformer(HookedTransformerConfig(**shape, seed=0, init_weights=True, initializer_range=0.2))
    ids = torch.arange(2, 14)
    prompts = prompts_of([ids], [4])
    assert compute_prefix(model, prompts, [HOOK]).engine == "whole"
    sae = TinySae()
    found = word_ablations(model, sae, prompts, margin, hook_name=HOOK)
    clean = model.run_with_cache(ids[None])[1][HOOK]
    acts = sae.encode(clean[0, 4])
    assert found.latents.tolist() == acts.nonzero().flatten().tolist()
    latent = int(found.latents[found.scores.abs().argmax()])

    def remove(value, **_):
        value = value.clone()
        value[:, 4] -= acts[latent] * sae.W_dec[latent]
        return value

    rows = torch.tensor([0])
    without = margin(model.run_with_hooks(ids[None], fwd_hooks=[(HOOK, remove)])[:, -1], rows)
    change = (without - margin(model(ids[None])[:, -1], rows)).item()
    assert found.scores.abs().max().item() == pytest.approx(abs(change), rel=1e-4)
    scores = word_integrated_gradients(model, sae, prompts, margin, hook_name=HOOK)
    assert scores.scores[0, latent].item() == pytest.approx(change, rel=0.5)
