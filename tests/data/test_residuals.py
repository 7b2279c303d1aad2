"""Reading contexts out of a model's wrappers gives what its hooks give."""

from functools import partial

import pytest
import torch
from tiny_models import ARCHITECTURES

from absorb_pl.data.residuals import read_contexts
from absorb_pl.engine import bare

NOT_READ = pytest.mark.xfail(
    raises=AttributeError, strict=True, reason="TransformerLens's wrapper calls a function that transformers dropped"
)
HOOKS = ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_post", "blocks.2.hook_mlp_out", "blocks.1.attn.hook_in"]


def by_hooks(model, ids, hooks):
    found = {}

    def keep(activation, name, **_):
        found[name] = activation.detach().flatten(2)

    with torch.no_grad(), model.hooks(fwd_hooks=[(name, partial(keep, name=name)) for name in hooks]):
        model.original_model(ids)
    return found


@pytest.mark.numeric
@pytest.mark.parametrize(
    "architecture",
    [pytest.param(name, marks=NOT_READ) if name == "Qwen3-Next" else name for name in ARCHITECTURES],
)
def test_contexts_are_read_as_hooks_read_them(load_tiny, float32_rounding, architecture):
    model = load_tiny(architecture)
    hooks = [name for name in HOOKS if name in model.hook_dict]
    ids = torch.randint(2, 296, (3, 17), generator=torch.Generator().manual_seed(0))
    expected = by_hooks(model, ids, hooks)
    found = read_contexts(model, ids, hooks)
    assert set(found) == set(hooks)
    for name in hooks:
        assert found[name].shape == expected[name].shape
        bound = float32_rounding(model) * expected[name].abs().max()
        assert (found[name] - expected[name]).abs().max() <= bound, name


@pytest.mark.numeric
def test_heads_lie_side_by_side(gpt2, float32_rounding):
    [hook] = hooks = ["blocks.1.attn.hook_z"]
    ids = torch.arange(2, 14)[None]
    with torch.no_grad():
        found, expected = read_contexts(gpt2, ids, hooks)[hook], by_hooks(gpt2, ids, hooks)[hook]
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= float32_rounding(gpt2) * expected.abs().max()


def test_what_is_hooked_in_by_transformer_lens_is_heard(gpt2):
    ids = torch.arange(2, 14)[None]
    clean = read_contexts(gpt2, ids, HOOKS[:2])
    with gpt2.hooks(fwd_hooks=[(HOOKS[0], lambda activation, hook: 2 * activation)]):  # noqa: ARG005
        changed = read_contexts(gpt2, ids, HOOKS[1:2])
    assert (changed[HOOKS[1]] - clean[HOOKS[1]]).abs().max() > 0.1


def test_hooks_are_used_where_a_model_cannot_do_without_wrappers(gpt2, monkeypatch):
    ids = torch.arange(2, 14)[None]
    hooks = HOOKS[:2]
    monkeypatch.setattr("absorb_pl.data.residuals.bare_model", lambda _: None)
    found = read_contexts(gpt2, ids, hooks)
    for name, expected in by_hooks(gpt2, ids, hooks).items():
        assert torch.equal(found[name], expected)


def test_it_is_the_bare_model_that_reads(gpt2):
    ids = torch.arange(2, 14)[None]
    read_contexts(gpt2, ids, HOOKS[:1])  # which tries whether it agrees
    made, ran = bare.bare_model(gpt2), []
    handle = made.module.register_forward_pre_hook(lambda *_: ran.append(True))
    read_contexts(gpt2, ids, HOOKS[:1])
    handle.remove()
    assert ran == [True]


def test_longer_contexts_are_tried_anew(gpt2):
    short, long = torch.arange(2, 8)[None], torch.arange(2, 30)[None]
    made = bare.bare_model(gpt2)
    made._sites.clear()
    tried = []
    passes = made._changed
    made._changed = lambda *args: tried.append(args[1].shape[1]) or passes(*args)
    for ids in (short, long, short, long):
        read_contexts(gpt2, ids, HOOKS[:1])
    del made._changed
    assert tried == [6, 28]
