"""How much of a language model's next-token loss survives an SAE's reconstruction: a figure while SAEs train."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Int
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from absorb_pl.errors import AbsorbError, NotCausalError
from absorb_pl.models.next_token import has_next_token_logits
from absorb_pl.models.placement import move_model
from absorb_pl.ranges import Count, check_ranges
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.training.sae_module import SparseAutoencoderModule
from absorb_pl.training.sources import ModelActivations
from absorb_pl.training.token_datamodule import TokenActivationDataModule

Replace = Callable[[Tensor], Tensor]


@torch.no_grad()
def next_token_loss(
    model: Any, input_ids: Int[Tensor, "contexts tokens"], hook_name: str, replace: Replace | None = None, skip: int = 0
) -> float:
    """A model's mean next-token loss on contexts without padding, with the activations at a hook replaced.

    Args:
        model: A `TransformerBridge` of a causal model.
        input_ids: Token ids.
        hook_name: TransformerLens hook name.
        replace: From activations `[contexts, tokens, width]` to what takes their place; nothing is replaced when None.
        skip: Tokens at the beginning whose activations are left as they are.

    Returns:
        Mean cross-entropy, in nats.
    """

    def splice(activation: Tensor, **_: Any) -> Tensor:
        if replace is None:
            return activation
        new = replace(activation[:, skip:].flatten(2)).reshape_as(activation[:, skip:])
        return torch.cat([activation[:, :skip], new.to(activation)], dim=1)

    logits = model.run_with_hooks(input_ids, fwd_hooks=[(hook_name, splice)], return_type="logits")
    return float(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).double(), input_ids[:, 1:].flatten()))


class LossRecovered(Callback):
    """The share of the loss that zeros would cost which each SAE's reconstruction saves, at every validation.

    Logs `val/loss_recovered/<sae>`, `(zeros − reconstruction) / (zeros − unchanged)` of the mean next-token losses on
    held-out contexts: 1 if the model does not notice, 0 if it does as badly as with zeros. Activations of the
    beginning-of-sequence token stay, as SAEs are not trained on them. Source: `ce_loss_score` of SAELens.

    Args:
        chunks: Held-out chunks that it is taken over.
    """

    def __init__(self, chunks: Count = 1) -> None:
        check_ranges(LossRecovered.__init__, locals())
        self.chunks = chunks

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there are a causal language model and as many held-out chunks.

        Raises:
            AbsorbError: The data come from no language model, or too few chunks are held out.
            NotCausalError: The model does not say what token comes next.
        """
        data = getattr(trainer, "datamodule", None)
        source = getattr(data, "source", None)
        if not isinstance(source, ModelActivations) or not isinstance(pl_module, SparseAutoencoderModule):
            raise AbsorbError(
                "callbacks",
                f"{type(self).__name__} with {type(pl_module).__name__} on {type(source).__name__}",
                expected="SAEs in training on activations that a language model makes",
                remedy="Drop the callback.",
            )
        if not has_next_token_logits(source.model):
            raise NotCausalError(
                "model", source.sae_metadata.get("model_name"), expected="a causal model", remedy="Drop the callback."
            )
        held_out = cast(TokenActivationDataModule, data).val_chunks
        if self.chunks > held_out:
            raise AbsorbError(
                "chunks",
                self.chunks,
                expected=f"at most the {held_out} chunks that are held out",
                remedy="Lower it, or raise the data's `val_chunks`.",
            )

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = cast(SparseAutoencoderModule, pl_module)
        source = cast(ModelActivations, cast(Any, trainer).datamodule.source)
        move_model(source.model, module.device)
        contexts = [source.token_ids(number).to(module.device) for number in range(self.chunks)]
        losses = partial(_mean_loss, source, contexts)
        without_sae: dict[str, tuple[float, float]] = {}
        for (name, sae), hook in zip(module.inference_saes().items(), module.hooks, strict=True):
            if hook not in without_sae:
                without_sae[hook] = losses(hook, None), losses(hook, torch.zeros_like)
            unchanged, zeros = without_sae[hook]
            module.log(
                f"val/loss_recovered/{name}",
                (zeros - losses(hook, _reconstruction_by(sae))) / (zeros - unchanged),
            )


def _mean_loss(source: ModelActivations, contexts: Sequence[Tensor], hook: str, replace: Replace | None) -> float:
    """Mean loss over the tokens of chunks, whose contexts may differ in length."""
    tokens = [ids[:, 1:].numel() for ids in contexts]
    losses = [next_token_loss(source.model, ids, hook, replace, int(source.starts_with_bos)) for ids in contexts]
    return sum(count * loss for count, loss in zip(tokens, losses, strict=True)) / sum(tokens)


def _reconstruction_by(sae: SparseAutoencoder) -> Replace:
    return lambda activations: sae.decode(sae.encode(activations))
