"""An SAE of a study: checked once, identified by content, loaded again where it is needed."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from typing import Any

import torch
from jaxtyping import Int
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from absorb_pl.errors import ManifestMismatchError
from absorb_pl.models.hooked_model import HookedModel
from absorb_pl.saes.controls import check_control, control_sae
from absorb_pl.saes.identity import sae_identity
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.loading import load_sae, own_sae
from absorb_pl.saes.name_parts import split_control
from absorb_pl.saes.processing import check_positions, check_processing, trained_positions
from absorb_pl.saes.properties import (
    check_sae_fits,
    hedging_of,
    layer_of_hook,
    neuronpedia_place,
    require_rows,
    sae_architecture,
    sae_hook_name,
)
from absorb_pl.saes.scale import Folding, decoder_norms, folding_of, to_unit_norms


@dataclass(frozen=True)
class SaeSource:
    """An SAE that fits the model.

    Attributes:
        name: What tables call it.
        given: Name for `load_sae`, or the SAE that it is or is a control of.
        dtype: Dtype to load it in.
        hook_name: Hook it reads.
        identity: Content hash of its weights and configuration.
        architecture: How it was trained, where its metadata say so, else how it infers.
        d_sae: Number of latents.
        control: Which control of an SAE it is; empty for an SAE itself.
        folded: Where norms of decoder rows went: `weights` or `latents`; empty if they were 1.
        positions: Positions of a text that it was trained on; None for all.
        neuronpedia: Where Neuronpedia shows its latents, such as `gemma-2-2b/12-gemmascope-res-16k`; empty if its
            metadata do not say.
        hedging: Degree of hedging that its training measured; NaN if its metadata do not say, and for controls.
    """

    name: str
    given: str | SparseAutoencoder
    dtype: str
    hook_name: str
    identity: str
    architecture: str
    d_sae: int
    control: str = ""
    folded: Folding = ""
    positions: range | None = None
    neuronpedia: str = ""
    hedging: float = nan

    @classmethod
    def check(
        cls,
        name: str,
        model: HookedModel,
        dtype: str = "float32",
        *,
        given: str | SparseAutoencoder | None = None,
        control: str = "",
        to_shuffle: bool = False,
    ) -> "SaeSource":
        """Load an SAE once to check it against the model.

        Args:
            name: What tables call it.
            model: The language model.
            dtype: Dtype to load it in.
            given: Name for `load_sae`, or an SAE; `name` when None.
            control: Which control of the SAE is meant, if any; of a name, the control that it ends with.
            to_shuffle: Whether its decoder rows will be shuffled.

        Raises:
            SaeNotFoundError: There is no such SAE.
            HookNotFoundError: The model has no such hook.
            ModelProcessingError: The model lacks the processing that the SAE asks for.
            SaeWidthError: The SAE reads activations of another width or split otherwise.
            SaeArchitectureError: Its latents at a word depend on the words before it, or it is a transcoder; or its
                decoder rows cannot be shuffled.
        """
        given = name if given is None else given
        if isinstance(given, str):
            control = split_control(given)[1] or ""
        sae = _loaded(name, given, control, "cpu", dtype)
        if to_shuffle:
            check_control(sae, "shuffled_decoder")
        require_rows(sae)
        check_processing(model, sae)
        check_sae_fits(model, sae)
        norms, identity, architecture = decoder_norms(sae.W_dec), sae_identity(sae), sae_architecture(sae)
        return cls(
            name,
            given,
            dtype,
            sae_hook_name(sae),
            identity,
            architecture,
            sae.W_dec.shape[0],
            control,
            folding_of(norms, to_unit_norms(sae, in_place=True)),
            trained_positions(sae),
            neuronpedia_place(sae),
            nan if control else hedging_of(sae),
        )

    def check_words(self, positions: Int[Tensor, " words"]) -> None:
        """Check that words stand where the SAE was trained to read.

        Args:
            positions: Position of each word in its prompt, the beginning-of-sequence token counted.

        Raises:
            ModelProcessingError: Some do not.
        """
        check_positions(self.positions, positions, self.name)

    @property
    def layer(self) -> int:
        """Number of the block in the hook's name; -1 if there is none."""
        layer = layer_of_hook(self.hook_name)
        return -1 if layer is None else layer

    def load(self, device: torch.device) -> Any:
        """Load the SAE onto a device, its latents in the scale in which decoder rows have unit norm.

        Raises:
            ManifestMismatchError: It is no longer the SAE that was checked, as when a training run has saved another.
        """
        sae = _loaded(self.name, self.given, self.control, str(device), self.dtype)
        if (found := sae_identity(sae)) != self.identity:
            raise ManifestMismatchError(
                self.name,
                found,
                expected=f"{self.identity}, as when the study began",
                remedy="Its weights or settings changed meanwhile. Copy it to a folder that stays, and run again.",
            )
        return to_unit_norms(sae, in_place=True)


def _loaded(name: str, given: str | SparseAutoencoder, control: str, device: str, dtype: str) -> Any:
    if isinstance(given, str):
        return load_sae(given, device=device, dtype=dtype)
    sae = own_sae(given, name, device=device, dtype=dtype)
    return control_sae(sae, control) if control else sae


def tell_equal_saes(saes: Mapping[str, SaeSource]) -> None:
    """Say which names mean SAEs with equal weights and settings; their rows in a study's tables are the same.

    Args:
        saes: SAEs by name.
    """
    equal: dict[tuple[str, str], list[str]] = {}
    for name, sae in saes.items():
        equal.setdefault((sae.identity, sae.hook_name), []).append(name)
    for names in equal.values():
        if len(names) > 1:
            rank_zero_warn(f"{' and '.join(names)} are the same SAE; it is scored under each name.")
