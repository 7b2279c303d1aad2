import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformer_lens import HookedTransformer, HookedTransformerConfig

from absorb_pl.attribution import calculate_individual_feature_ablations, word_ablations, word_integrated_gradients
from absorb_pl.engine import compute_prefix
from absorb_pl.engine.prefix import bucket_logits, replace_at
from absorb_pl.errors import AbsorbError, HookNotFoundError, PromptError, ShapeError
from absorb_pl.words import TokenizedPrompts

SAES = ("standard_A", "jumprelu_A", "topk_B")
HOOK = "blocks.1.hook_resid_post"

LENGTHS = [12, 15, 12, 20, 15, 9]
POSITIONS = [6, 9, 6, 9, 8, 0]


class TinySae(nn.Module):
    """The least that counts as an SAE; `normalise` keeps a scale from encode for decode, as SAELens can."""

    def __init__(self, width: int = 32, latents: int = 80, normalise: bool = False, dtype: torch.dtype = torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.W_enc = nn.Parameter(torch.randn(width, latents, generator=generator) / 5)
        self.W_dec = nn.Parameter(torch.randn(latents, width, generator=generator) / 5)
        self.b_dec = nn.Parameter(torch.randn(width, generator=generator) / 5)
        self.normalise = normalise
        self.to(dtype)

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
def exact(family: Any, float32_rounding: Any) -> float:
    """How closely two ways to compute in float64 must agree, in parts of the largest of their terms.

    RMS norms and softmaxes of the other families compute in float32 inside Hugging Face's modules, whatever the dtype.
    """
    in_float64 = family.cfg.architecture in ("GPT2LMHeadModel", "GPTNeoXForCausalLM")
    return 1e-9 if in_float64 else float32_rounding(family)


def assert_near(found: Tensor, expected: Tensor, tolerance: float, terms: Tensor | None = None) -> None:
    """To a part of the largest of each row, or of the terms that cancel in a difference."""
    assert found.shape == expected.shape
    scale = (expected if terms is None else terms).abs().amax(dim=-1, keepdim=True)
    assert (scale > 0).all()
    assert ((found - expected).abs() <= tolerance * scale).all()


@pytest.mark.parametrize("engine", ["suffix", "whole"])
@pytest.mark.parametrize("sae_name", SAES)
def test_integrated_gradients_equal_the_published_scores(
    case: Any, single_case: Any, recorded_to: Any, float32_rounding: Any, sae_name: str, engine: str
):
    found, rounded = (
        word_integrated_gradients(which.model, which.saes[sae_name], which.prompts, which.word_metric, engine=engine)
        for which in (case, single_case)
    )
    expected = case.expected[f"{sae_name}/ig/word_s6/sae"][0, case.case["position"]]
    assert_near(found.scores[0], expected, recorded_to(case.folder.name))
    assert_near(rounded.scores[0].double(), found.scores[0], float32_rounding(case.model))


@pytest.mark.parametrize("sae_name", SAES)
def test_both_engines_agree(case: Any, recorded_to: Any, sae_name: str):
    suffix, whole = (
        word_integrated_gradients(case.model, case.saes[sae_name], case.prompts, case.word_metric, engine=engine)
        for engine in ("suffix", "whole")
    )
    assert_near(suffix.scores, whole.scores, recorded_to(case.folder.name))


@pytest.mark.parametrize("engine", ["suffix", "whole"])
@pytest.mark.parametrize("sae_name", SAES)
def test_ablations_are_those_of_the_published_function(
    case: Any, single_case: Any, float32_rounding: Any, sae_name: str, engine: str
):
    """To float64; `test_published` holds that function itself to the recorded figures."""
    sae, position = case.saes[sae_name], case.case["position"]
    found, rounded = (
        word_ablations(which.model, which.saes[sae_name], which.prompts, which.word_metric, engine=engine)
        for which in (case, single_case)
    )
    published = calculate_individual_feature_ablations(case.model, case.case["clean"], case.metric, sae, position)
    assert found.latents.tolist() == list(published.ablation_scores)
    assert found.latents.tolist() == case.expected[f"{sae_name}/ablation/ids"].long().tolist()
    logits = case.model(case.prompts.input_ids)[0, -1].abs().max()
    rows_exact = 1e-12 if case.folder.name == "gpt2-micro" else 2e-6
    expected = torch.tensor(list(published.ablation_scores.values()), dtype=torch.float64)
    assert (found.scores - expected).abs().max() <= rows_exact * logits
    assert abs(found.original.item() - published.original_score) <= rows_exact * logits
    assert rounded.latents.tolist() == found.latents.tolist()
    assert (rounded.scores - found.scores).abs().max() <= float32_rounding(case.model) * logits


@pytest.mark.parametrize("sae_name", ["standard_A", "jumprelu_A"])
def test_scores_of_many_words_at_once_equal_the_published_absorption_scores(
    case: Any, prompts_of: Any, recorded_to: Any, sae_name: str
):
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
    ours: dict[str, list[Tensor]] = {"activation": [], "ablation_score": []}
    theirs: dict[str, list[float]] = {field: [] for field in ours}
    for row, result in enumerate(record["results"]):
        listed = [*result["top"], *result["main"]]
        latents = [entry["feature_id"] for entry in listed]
        for field, values in (("activation", found.activations), ("ablation_score", found.scores)):
            ours[field].append(values[row, latents])
            theirs[field] += [entry[field] for entry in listed]
        helping = [entry["feature_id"] for entry in result["top"] if entry["ablation_score"] < 0]
        assert found.scores[row].argsort()[: len(helping)].tolist() == helping
    for field, values in ours.items():
        recorded = torch.tensor(theirs[field], dtype=torch.float64)
        assert_near(torch.cat(values), recorded, recorded_to(case.folder.name))


def test_suffix_and_whole_sequence_agree_for_every_family(family, exact: float, mixed_prompts: TokenizedPrompts):
    prefix = compute_prefix(family, mixed_prompts, [HOOK])
    assert prefix.engine == "suffix"
    fast = word_integrated_gradients(
        family, TinySae(), mixed_prompts, margin, hook_name=HOOK, prefix=prefix, batch_size=7
    )
    slow = word_integrated_gradients(family, TinySae(), mixed_prompts, margin, hook_name=HOOK, engine="whole")
    assert slow.scores.abs().amax(dim=1).min() > 1e-2
    assert_near(fast.scores, slow.scores, exact)
    removed_fast, removed_slow = (
        word_ablations(family, TinySae(), mixed_prompts, margin, hook_name=HOOK, engine=engine, batch_size=50)
        for engine in ("suffix", "whole")
    )
    assert torch.equal(removed_fast.latents, removed_slow.latents)
    assert torch.equal(removed_fast.rows, removed_slow.rows)
    logits = family(mixed_prompts.input_ids).flatten()
    assert_near(removed_fast.scores, removed_slow.scores, exact, logits)


@pytest.mark.parametrize("name", ["GPT-2", "Gemma 2"])
def test_bfloat16_models_are_scored_in_float32(load_tiny: Any, mixed_prompts: TokenizedPrompts, name: str):
    full, half = (
        word_integrated_gradients(
            load_tiny(name, dtype), TinySae(dtype=dtype), mixed_prompts, margin, hook_name=HOOK, engine="suffix"
        ).scores
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert half.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(half.flatten(), full.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("family", ["GPT-2"], indirect=True)
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
                assert_near(found.scores[row], expected, 1e-9)

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
        assert_near(some.scores, everything.scores[[4, 0, 4]], 1e-9)
        assert_near(some.activations, everything.activations[[4, 0, 4]], 1e-9)

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
        assert_near(fast, slow, 1e-9)

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
        assert kept.scores.abs().max() < 1e-12
        assert kept.rows.tolist() == [row for row in range(6) for _ in range(2)]
        assert kept.latents.tolist() == [3, 7] * 6

    def test_a_model_without_a_cache_takes_whole_sequences(self, family, mixed_prompts: TokenizedPrompts):
        class Plain:
            hook_dict, hooks, to_tokens = family.hook_dict, family.hooks, family.to_tokens
            cfg, tokenizer = family.cfg, family.tokenizer

            def __call__(self, token_ids: Tensor) -> Tensor:
                return family(token_ids)

        assert compute_prefix(Plain(), mixed_prompts, [HOOK]).engine == "whole"
        found, expected = (
            word_integrated_gradients(model, TinySae(), mixed_prompts, margin, hook_name=HOOK).scores
            for model in (Plain(), family)
        )
        assert_near(found, expected, 1e-9)
        with pytest.raises(AbsorbError, match="without hooks attached"):
            compute_prefix(Plain(), mixed_prompts, [HOOK], engine="suffix")

    def test_a_model_changed_by_hand_is_found_out(self, family, mixed_prompts: TokenizedPrompts):
        def scores(**options: Any) -> Tensor:
            return word_integrated_gradients(family, TinySae(), mixed_prompts, margin, hook_name=HOOK, **options).scores

        before = scores()
        query = family.blocks[3].attn.q.original_component.weight
        joint = query.data
        query.data = 1.5 * joint  # no longer a view of the joint weights that the bare model has
        assert compute_prefix(family, mixed_prompts, [HOOK]).engine == "whole"
        changed = scores()
        torch.testing.assert_close(changed, scores(engine="whole"), rtol=0, atol=0)
        assert (changed - before).abs().max() > 1e-3
        query.data = joint
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
                assert_near(logits, expected[0, -1], 1e-9)

    def test_bad_input_is_named(self, family, mixed_prompts: TokenizedPrompts, prompts_of: Any):
        def score(metric=margin, hook_name=HOOK, **options):
            return word_integrated_gradients(family, TinySae(), mixed_prompts, metric, hook_name=hook_name, **options)

        with pytest.raises(HookNotFoundError, match=r"Closest: .*blocks\.1\.hook_resid_post"):
            score(hook_name="blocks.1.hook_resid_pots")
        with pytest.raises(ShapeError, match="one value per prompt"):
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
    options = {"seed": 0, "init_weights": True, "initializer_range": 0.2, "device": "cpu"}
    model = HookedTransformer(HookedTransformerConfig(**shape, **options))
    ids = torch.arange(2, 14)
    prompts = prompts_of([ids], [4])
    assert compute_prefix(model, prompts, [HOOK]).engine == "whole"
    sae = TinySae(dtype=torch.float32)
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


def test_whole_sequences_are_run_where_a_module_lays_tokens_side_by_side(load_tiny, mixed_prompts, caplog):
    model = load_tiny("OPT")  # its MLPs read a matrix of all tokens of all runs
    sae = TinySae(dtype=torch.float32)
    options = {"hook_name": "blocks.1.hook_mlp_out", "steps": 2}
    found = word_integrated_gradients(model, sae, mixed_prompts, margin, engine="auto", **options)
    assert "whole sequences are run instead" in caplog.text
    whole = word_integrated_gradients(model, sae, mixed_prompts, margin, engine="whole", **options)
    assert torch.equal(found.scores, whole.scores)
    assert whole.scores.abs().max() > 0
