"""Prompts of different lengths on the micro model, and a Trainer for predict passes."""

import pytest
from lightning.pytorch import Trainer

from absorb_pl.data import PromptDataModule
from absorb_pl.words import TaskConfig, create_icl_prompt, tokenize_prompts


def make_trainer(callbacks, **settings):
    return Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        **settings,
    )


@pytest.fixture
def trainer_of():
    """Makes a Trainer from its callbacks."""
    return make_trainer


@pytest.fixture
def ragged(gpt2):
    """27 prompts with no to four examples, one of them about a word of several tokens, in batches of 8."""
    data = PromptDataModule(gpt2, TaskConfig(max_words=27, max_icl_examples=2), batch_size=8)
    words = list(data.task.words)
    data.texts = [
        create_icl_prompt(
            word + ":" * (place == 5),
            words,
            data.task.template,
            answer_formatter=data.task.answer_formatter,
            max_icl_examples=place % 5,
            seed=1,
        )
        for place, word in enumerate(words)
    ]
    data.prompts = tokenize_prompts(gpt2.tokenizer, data.texts, prepend_bos=True)
    return data
