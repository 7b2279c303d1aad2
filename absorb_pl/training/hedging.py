"""Train an SAE on with and without new latents, side by side, to see how much it had hedged."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from lightning.pytorch import LightningDataModule, Trainer
from sae_lens import TrainingSAE
from torch import Tensor, nn

from absorb_pl.functional.hedging import Hedging, hedging_degree
from absorb_pl.ranges import Count, check_ranges
from absorb_pl.training.sae_module import SparseAutoencoderModule


def measure_hedging(
    module: SparseAutoencoderModule,
    name: str,
    data: LightningDataModule,
    make_trainer: Callable[[], Trainer],
    new_latents: Count = 64,
) -> Hedging:
    """Measure how much one SAE of a finished training hedges.

    The SAE is trained on twice from where it is, as it is and with new latents, on the same batches and with the
    learning rate that it began with.

    Args:
        module: The finished training, which is left as it is.
        name: Name of the SAE.
        data: What it was trained on.
        make_trainer: Makes the Trainer that trains on; its `max_steps` says how long.
        new_latents: How many latents to add.

    Returns:
        How far the old latents moved towards the new ones, and the degree of hedging.

    Raises:
        RangeError: There are to be no new latents.
    """
    check_ranges(measure_hedging, locals())
    settings, number = module.settings[name], module.names.index(name)
    wider = replace(settings, d_sae=settings.d_sae + new_latents)
    constant = replace(module.optimisation, lr_scheduler="constant", lr_warm_up_steps=0, lr_decay_steps=0)
    onward = SparseAutoencoderModule(
        {"control": settings, "extended": wider}, module.hook_widths, constant, module.seed
    )
    for sae in onward.saes:
        copy_latents(module.saes[number], sae)
    onward.scales.fill_(module.scales[number])
    make_trainer().fit(onward, data)
    control, extended = (cast(TrainingSAE[Any], sae).W_dec.detach() for sae in onward.saes)
    return hedging_degree(control, extended)


@torch.no_grad()
def copy_latents(source: nn.Module, target: nn.Module) -> None:
    """Copy an SAE into one of the same kind with as many latents or more; the further latents stay as they are.

    Args:
        source: The SAE.
        target: The SAE that is written to.

    Example:
        >>> from absorb_pl.training import SaeSettings
        >>> small = SaeSettings("topk", 2, settings={"k": 1}).build(d_in=4, seed=0)
        >>> wide = SaeSettings("topk", 3, settings={"k": 1}).build(d_in=4, seed=1)
        >>> copy_latents(small, wide)
        >>> torch.equal(wide.W_dec[:2], small.W_dec), torch.equal(wide.W_enc[:, :2], small.W_enc)
        (True, True)
    """
    found = target.state_dict()
    for key, tensor in source.state_dict().items():
        _leading_part(found[key], tensor.shape).copy_(tensor)


def _leading_part(tensor: Tensor, shape: torch.Size) -> Tensor:
    for dimension, size in enumerate(shape):
        tensor = tensor.narrow(dimension, 0, size)
    return tensor
