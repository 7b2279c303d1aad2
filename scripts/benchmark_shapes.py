"""The sizes that the benchmarks run language models at: the bundled speller, and random weights of published shapes.

All of them read the same first-letter prompts, made with the speller's tokenizer, so that prompts are equally long.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from sae_lens import TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, GPT2Config, PretrainedConfig
from transformers.utils.logging import disable_progress_bar

from absorb_pl.functional import letter_metric
from absorb_pl.models import load_language_model, speller_path
from absorb_pl.models.bundled import SPELLER
from absorb_pl.saes import list_bundled_saes, load_sae
from absorb_pl.words import AnswerTokens, Task, TokenizedPrompts, answer_token_ids, first_letter_task, tokenize_prompts
from absorb_pl.words.positions import prepends_bos

FIRING = 32


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and its SAEs.

    Attributes:
        hook_name: Where the SAEs read.
        latents: Latents of an SAE.
        words: Words that this code does in a turn.
        plain_words: Words that the plain way does in a turn.
        config: Configuration of a model with random weights; None for the bundled one.
    """

    hook_name: str
    latents: int
    words: int
    plain_words: int
    config: PretrainedConfig | None = None


SHAPES = {
    SPELLER: Shape("blocks.1.hook_resid_post", latents=1024, words=64, plain_words=8),
    "gpt2-small": Shape("blocks.6.hook_resid_post", latents=24_576, words=16, plain_words=1, config=GPT2Config()),
    "gemma2-2b-slice": Shape(
        "blocks.1.hook_resid_post",
        latents=16_384,
        words=4,
        plain_words=1,
        config=Gemma2Config(vocab_size=8192, num_hidden_layers=4, pad_token_id=0, bos_token_id=1, eos_token_id=2),
    ),
}


@dataclass(frozen=True)
class Setting:
    """A shape brought to life.

    Attributes:
        name: Name of the shape.
        shape: Its sizes.
        model: The language model.
        folder: Its folder in Hugging Face format.
        task: Words and their labels.
        answers: Tokens that the letter metric reads.
        device: Where it runs.
    """

    name: str
    shape: Shape
    model: Any
    folder: Path
    task: Task
    answers: AnswerTokens
    device: str

    def prompts(self, count: int, *, shared_context: bool) -> TokenizedPrompts:
        """Prompts of the task's first words.

        Args:
            count: Number of words.
            shared_context: Whether all words have the same solved examples before them.
        """
        texts = self.task.prompts(self.task.words[:count], seed=0, shared_context=shared_context)
        tokenizer = self.model.tokenizer
        return tokenize_prompts(tokenizer, texts, prepend_bos=prepends_bos(self.model)).to(self.device)

    def metric(self, last_logits: Tensor, rows: Tensor) -> Tensor:
        """The letter metric of words by their number, as the suffix engine asks for it."""
        labels = torch.tensor(self.task.labels, device=last_logits.device)[rows]
        return letter_metric(last_logits, labels, self.answers.answers)

    def saes(self, count: int) -> list[Any]:
        """Different SAEs on the shape's hook: bundled ones, or top-k SAEs with random directions.

        Args:
            count: How many.
        """
        if self.shape.config is None:
            layer = self.shape.hook_name.split(".")[1]
            here = [name for name in list_bundled_saes() if name.startswith(f"{SPELLER}/l{layer}-")]
            here.sort(key=lambda name: f"-w{self.shape.latents}-" not in name)
            return [load_sae(name, device=self.device) for name in here[:count]]
        width = self.model.cfg.d_model
        return [_random_sae(width, self.shape, seed, self.device) for seed in range(count)]


@contextmanager
def open_shape(
    name: str, device: str, dtype: str = "float32", shapes: Mapping[str, Shape] = SHAPES
) -> Iterator[Setting]:
    """Load the model of a shape, or make it with random weights for the length of a `with` block.

    Args:
        name: A key of `shapes`.
        device: Where it runs.
        dtype: Dtype of the model's weights.
        shapes: The shapes to choose from.

    Yields:
        The setting.
    """
    shape = shapes[name]
    disable_progress_bar()
    with TemporaryDirectory() as temporary:
        folder = speller_path()
        if shape.config is not None:
            folder = Path(temporary)
            torch.manual_seed(0)
            with torch.device(device):
                made = AutoModelForCausalLM.from_config(shape.config, dtype=getattr(torch, dtype))
            made.eval().save_pretrained(folder)
            del made
            AutoTokenizer.from_pretrained(speller_path()).save_pretrained(folder)
        model = load_language_model(str(folder), device=device, dtype=dtype)
        task = first_letter_task(model.tokenizer, only_start_of_word=True)
        answers = answer_token_ids(task, model.tokenizer)
        on_device = AnswerTokens(answers.answers.to(device), answers.positives.to(device))
        yield Setting(name, shape, model, folder, task, on_device, device)


def hooks_up_to(setting: Setting) -> list[str]:
    """The residual stream after every block down to the shape's own hook.

    Args:
        setting: The setting.
    """
    names = [f"blocks.{number}.hook_resid_post" for number in range(setting.model.cfg.n_layers)]
    return names[: names.index(setting.shape.hook_name) + 1]


def _random_sae(width: int, shape: Shape, seed: int, device: str) -> TopKSAE:
    metadata = SAEMetadata(hook_name=shape.hook_name)
    sae = TopKSAE(TopKSAEConfig(d_in=width, d_sae=shape.latents, k=FIRING, device=device, metadata=metadata))
    generator = torch.Generator(device).manual_seed(seed)
    directions = torch.randn(shape.latents, width, generator=generator, device=device)
    with torch.no_grad():
        sae.W_dec.copy_(directions / directions.norm(dim=1, keepdim=True))
        sae.W_enc.copy_(sae.W_dec.T)
    sae.requires_grad_(False)
    return sae.eval()
