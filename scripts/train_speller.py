"""Make the bundled speller from nothing: choose words, build the tokenizer, train the model, measure it.

    python scripts/train_speller.py --output absorb_pl/models/assets/speller/model

The model is a small Gemma-2 whose first two layers see one token back at most. It learns to spell first. It
may then have moved a word's letters to the next token, so that nothing behind the word's own residual would
depend on it; a second phase, interchange intervention training (Geiger et al. 2022, arXiv 2112.00826), teaches
its last layer to read them at the word.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from speller.vocabulary import build_tokenizer, choose_words
from torch import Tensor
from torch.nn import Module, functional
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerBase

from absorb_pl.training.spelling_mixture import TEMPLATES, SpellingMixture


def main(args: list[str] | None = None) -> dict[str, float]:
    """Train and save a speller; return the first and last training losses of both phases."""
    options = _parser().parse_args(args)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    vocabulary = choose_words(options.most_frequent, options.per_letter)
    tokenizer = build_tokenizer(vocabulary.words)
    print(f"{len(vocabulary.words)} words, {len(tokenizer)} tokens")
    model = Gemma2ForCausalLM(model_config(tokenizer, options.d_model, options.heads))
    model.set_attn_implementation("eager")
    losses: dict[str, float] = {}
    phases = [("spelling", options.steps, options.lr)]
    if options.interchange_steps:
        phases.append(("interchange", options.interchange_steps, options.interchange_lr))
    if options.spelled:
        earlier = json.loads((options.spelled / "training.json").read_text())
        losses |= {name: earlier[name] for name in ("spelling_first_loss", "spelling_last_loss")}
        model.load_state_dict(Gemma2ForCausalLM.from_pretrained(options.spelled).state_dict())
        del phases[0]
    for phase, steps, lr in phases:
        print(f"phase {phase}", flush=True)
        interchange = phase == "interchange"
        mixture = SpellingMixture(
            tokenizer,
            vocabulary,
            power=options.power,
            examples=options.examples,
            seed=options.seed + int(interchange),
        )
        first, last = train(model, mixture, steps=steps, rows=options.rows, lr=lr, interchange=interchange)
        losses |= {f"{phase}_first_loss": first, f"{phase}_last_loss": last}
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    record = {name: value for name, value in vars(options).items() if name not in ("output", "spelled")}
    (options.output / "training.json").write_text(json.dumps(record | losses, indent=2) + "\n")
    return losses


def model_config(tokenizer: PreTrainedTokenizerBase, d_model: int, heads: int) -> Gemma2Config:
    """Return the speller's shape: local, local, full, full attention, local meaning one token back."""
    return Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=d_model,
        intermediate_size=4 * d_model,
        num_hidden_layers=4,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=d_model // heads,
        query_pre_attn_scalar=d_model // heads,
        max_position_embeddings=512,
        sliding_window=2,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "full_attention"],
        attention_dropout=0.0,
        bos_token_id=tokenizer.get_vocab()["<bos>"],
        pad_token_id=tokenizer.get_vocab()["<pad>"],
        eos_token_id=None,
    )


def train(
    model: Gemma2ForCausalLM,
    mixture: SpellingMixture,
    *,
    steps: int,
    rows: int,
    lr: float,
    interchange: bool,
) -> tuple[float, float]:
    """Train on the answers of all examples; the learning rate warms up, then falls as a cosine.

    With `interchange`, every context with a template behind its words also runs with the residuals at its words
    taken from the next context, before the last layer, and must give that context's answers.

    Returns:
        The loss of the first step and the mean over the last tenth.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    warm_up = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.02, total_iters=warm_up),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - warm_up)),
        ],
        milestones=[warm_up],
    )
    history = []
    start = time.perf_counter()
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        losses = {}
        for template in TEMPLATES:
            with_bos = bool(mixture.rng.random() < 0.8)
            batch = mixture.batch(template, max(1, round(rows * template.share)), with_bos=with_bos)
            targets = batch.input_ids[:, batch.answer_positions]
            if interchange and template.after_word:
                hook = InterchangeHook(batch.word_positions)
                handle = model.model.layers[-1].register_forward_pre_hook(hook, with_kwargs=True)
                targets = torch.cat([targets, targets.roll(1, dims=0)])
            else:
                handle = None
            logits = model(input_ids=batch.input_ids, logits_to_keep=batch.answer_positions - 1, use_cache=False).logits
            if handle:
                handle.remove()
            loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
            (template.share * loss).backward()
            losses[template.name] = loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        history.append(sum(template.share * losses[template.name] for template in TEMPLATES))
        if step % 25 == 0 or step == steps - 1:
            shown = " ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
            print(f"step {step} ({time.perf_counter() - start:.0f} s): {shown}", flush=True)
    model.eval()
    tail = history[-max(1, steps // 10) :]
    return history[0], sum(tail) / len(tail)


class InterchangeHook:
    """Gives a layer its batch twice: as it is, and with the rows' residuals at `positions` moved on by a row."""

    def __init__(self, positions: Tensor) -> None:
        self.positions = positions

    def __call__(
        self, _layer: Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """Return the doubled arguments."""
        hidden, *rest = args
        moved = hidden.clone()
        moved[:, self.positions] = hidden.roll(1, dims=0)[:, self.positions]
        mask = kwargs["attention_mask"]
        doubled = mask if mask is None or len(mask) == 1 else mask.repeat(2, 1, 1, 1)
        return (torch.cat([hidden, moved]), *rest), kwargs | {"attention_mask": doubled}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the model and its tokenizer")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--interchange-steps", type=int, default=250, help="steps of the second phase")
    parser.add_argument("--interchange-lr", type=float, default=1e-3)
    parser.add_argument(
        "--spelled", type=Path, help="take the first phase from this folder, made with --interchange-steps 0"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="PyTorch threads; figures repeat for equal numbers")
    parser.add_argument("--rows", type=int, default=96, help="contexts a step, over all tasks")
    parser.add_argument("--examples", type=int, default=11, help="solved examples a context")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--most-frequent", type=int, default=4200, help="most frequent words taken")
    parser.add_argument("--per-letter", type=int, default=60, help="words that rare letters are topped up to")
    parser.add_argument("--power", type=float, default=0.6, help="words are drawn by frequency to this power")
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    return parser


if __name__ == "__main__":
    main()
