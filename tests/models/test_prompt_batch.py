from collections.abc import Iterator
from typing import Any

import pytest
import torch

from absorb_pl.errors import ContextLengthError, PromptError
from absorb_pl.models.prompt_batch import PromptBatch, check_causal, read_prompts
from absorb_pl.words import TokenizedPrompts

TEXTS = [" ocaz has the first letter:", " ocaz has the first letter: O\n ocaz has the first letter:"]
RAGGED = PromptBatch(torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0], [7, 8, 9, 0]]), (4, 2, 3))


def rows(batch: PromptBatch) -> list[list[int]]:
    return [ids[:length].tolist() for ids, length in zip(batch.token_ids, batch.lengths, strict=True)]


def test_ends_share_the_last_column():
    assert RAGGED.align(RAGGED.token_ids).tolist() == [[1, 2, 3, 4], [0, 0, 5, 6], [0, 7, 8, 9]]
    assert RAGGED.real.tolist() == [[True] * 4, [False, False, True, True], [False, True, True, True]]
    assert RAGGED.select([1, 1]).align(RAGGED.token_ids[[1, 1]]).tolist() == [[0, 0, 5, 6]] * 2


def test_restoring_changes_tokens_and_keeps_padding():
    values = torch.arange(24.0).view(3, 4, 2)
    restored = RAGGED.restore(-RAGGED.align(values), values)
    for row, length in enumerate(RAGGED.lengths):
        assert torch.equal(restored[row, :length], -values[row, :length])
        assert torch.equal(restored[row, length:], values[row, length:])


def test_no_gradient_passes_through_padding():
    values = torch.randn(3, 4, 5, requires_grad=True)
    # backwards, the softmax is NaN wherever padding is
    RAGGED.align(values, fill=torch.nan).log_softmax(dim=-1)[:, -1, 2].sum().backward()
    assert values.grad is not None
    read = torch.zeros(3, 4, dtype=torch.bool)
    read[range(3), [length - 1 for length in RAGGED.lengths]] = True
    assert (values.grad[read] != 0).all()
    assert (values.grad[~read] == 0).all()


def test_prompts_of_one_length_are_left_as_they_are():
    batch = PromptBatch(torch.tensor([[1, 2], [3, 4]]), (2, 2))
    values = torch.randn(2, 2, 3)
    assert batch.align(values) is values
    assert batch.restore(values, values + 1) is values


def test_every_form_gives_the_ids_of_single_texts(gpt2: Any):
    expected = [gpt2.to_tokens(text)[0] for text in TEXTS]
    width = len(expected[1])
    left = torch.stack([torch.nn.functional.pad(ids, (width - len(ids), 0), value=1) for ids in expected])
    right = torch.nn.utils.rnn.pad_sequence(expected, batch_first=True, padding_value=1)
    lengths = torch.tensor([len(ids) for ids in expected])
    tokenized = TokenizedPrompts(right, right != 1, lengths, lengths - 1)
    for given in (TEXTS, tuple(TEXTS), expected, left, tokenized):
        assert rows(read_prompts(gpt2, given)) == [ids.tolist() for ids in expected]
    for given in (TEXTS[0], TEXTS[:1], expected[0], expected[0][None]):
        assert rows(read_prompts(gpt2, given)) == [expected[0].tolist()]


@pytest.fixture
def shared_pad(gpt2: Any) -> Iterator[Any]:
    """A model whose tokenizer pads with the token that begins prompts, as GPT-2's does."""
    pad, gpt2.tokenizer.pad_token = gpt2.tokenizer.pad_token, gpt2.tokenizer.bos_token
    yield gpt2
    gpt2.tokenizer.pad_token = pad


def test_tensors_padded_on_the_right_are_refused(gpt2: Any):
    with pytest.raises(PromptError, match="ends in the pad token 1"):
        read_prompts(gpt2, gpt2.to_tokens(TEXTS))
    with pytest.raises(PromptError, match="corrupted_input"):
        read_prompts(gpt2, gpt2.to_tokens(TEXTS), "corrupted_input")


def test_tensors_that_leave_open_what_is_padding_are_refused(shared_pad: Any):
    left = shared_pad.to_tokens(TEXTS, padding_side="left")
    assert left[0, :2].tolist() == [0, 0]
    with pytest.raises(PromptError, match="begins with several"):
        read_prompts(shared_pad, left)
    begun = shared_pad.to_tokens(TEXTS[0])
    assert read_prompts(shared_pad, begun).lengths == (begun.shape[1],)
    with pytest.raises(PromptError, match="differently many"):
        read_prompts(shared_pad, torch.stack([begun[0, :-1], begun[0, 1:]]))


@pytest.mark.parametrize("given", [None, 3, [3, 4], torch.rand(1, 3), [torch.rand(3)], torch.ones(1, 2, 3).long()])
def test_what_is_no_prompt_is_refused(gpt2: Any, given: Any):
    with pytest.raises(PromptError, match="a list of texts"):
        read_prompts(gpt2, given)


@pytest.mark.parametrize("given", [[], [torch.tensor([4]), torch.tensor([]).long()], torch.ones(0, 3).long()])
def test_empty_prompts_are_refused(gpt2: Any, given: Any):
    with pytest.raises(PromptError, match="at least one token"):
        read_prompts(gpt2, given)


def test_texts_are_not_cut_short_in_silence(gpt2: Any):
    text = TEXTS[0] * gpt2.cfg.n_ctx
    assert gpt2.to_tokens(text).shape[1] == gpt2.cfg.n_ctx
    with pytest.raises(ContextLengthError, match=f"at most {gpt2.cfg.n_ctx}"):
        read_prompts(gpt2, [TEXTS[0], text])


def test_models_that_attend_to_both_sides_take_prompts_of_one_length(gpt2: Any, monkeypatch: pytest.MonkeyPatch):
    check_causal(gpt2, RAGGED)
    monkeypatch.setattr(gpt2.original_model.config, "use_bidirectional_attention", True, raising=False)
    check_causal(gpt2, RAGGED.select([0, 0]))
    with pytest.raises(PromptError, match="both sides"):
        check_causal(gpt2, RAGGED)
