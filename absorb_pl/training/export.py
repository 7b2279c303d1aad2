"""From an SAE in training to one that encodes: the scale of activations folded in, thresholds fixed."""

import copy
from typing import Any

import torch
from sae_lens import SAE, TrainingSAE


@torch.no_grad()
def inference_sae(sae: TrainingSAE[Any], scale: float = 1.0) -> SAE[Any]:
    """The SAE that an SAE in training would be saved as, which is left as it is.

    Args:
        sae: The SAE in training.
        scale: Factor by which it is given activations; folded into the weights, so that activations are read as they
            are.

    Returns:
        An SAE of SAELens in evaluation mode: BatchTopK SAEs as JumpReLU ones with the threshold learnt so far.

    Example:
        >>> from absorb_pl.training import SaeSettings
        >>> in_training = SaeSettings("batchtopk", 8, settings={"k": 2}).build(d_in=4, seed=0)
        >>> inference_sae(in_training).cfg.architecture()
        'jumprelu'
    """
    folded = copy.deepcopy(sae)
    if sae.cfg.normalize_activations == "expected_average_only_in":
        folded.fold_activation_norm_scaling_factor(scale)
    weights = folded.state_dict()
    folded.process_state_dict_for_saving_inference(weights)
    found = SAE.from_dict(folded.cfg.get_inference_sae_cfg_dict())
    found.load_state_dict(weights)
    found.eval().requires_grad_(False)
    return found.to(sae.W_dec.device)
