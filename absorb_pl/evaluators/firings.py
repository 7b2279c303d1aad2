"""On which held-out words the latents that matter fire."""

from collections.abc import Iterable, Sequence

import pandas as pd
import torch

from absorb_pl.evaluators.sae_probing import EvaluationRows
from absorb_pl.probes.latents import encode_latents
from absorb_pl.saes.interface import SparseAutoencoder

_ONE_PER_WORD = ("top_latent", "second_latent")


def named_latents(letters: pd.DataFrame, latents: pd.DataFrame, evidence: Iterable[pd.DataFrame]) -> list[int]:
    """The latents of an SAE that its tables name one by one, in ascending order.

    They are the main latents and the tracking latent of each class, those nearest to the probes, and those that come
    first or second on a word by any rule.

    Args:
        letters: From `evaluate_sae`.
        latents: From `evaluate_sae`.
        evidence: What has been gathered for the rules.

    Example:
        >>> letters = pd.DataFrame({"main_latents": [[7, 3]], "tracking_latent": [7]})
        >>> nearest = pd.DataFrame({"latent": [5]})
        >>> named_latents(letters, nearest, [pd.DataFrame({"top_latent": [9, -1], "second_latent": [3, 9]})])
        [3, 5, 7, 9]
    """
    named = {int(latent) for mains in letters["main_latents"] for latent in mains}
    named |= {*map(int, letters["tracking_latent"]), *map(int, latents["latent"])}
    for words in evidence:
        for column in _ONE_PER_WORD:
            named |= {int(latent) for latent in words[column].dropna()}
    return sorted(latent for latent in named if latent >= 0)


def firings_table(sae: SparseAutoencoder, rows: EvaluationRows, latents: Sequence[int]) -> pd.DataFrame:
    """Where latents fire among held-out words.

    Args:
        sae: The SAE.
        rows: The held-out words.
        latents: The latents.

    Returns:
        One row per latent and word on which it fires: `row, latent, activation`, by latent, then by word.

    Example:
        >>> class Identity:
        ...     W_dec = torch.eye(2)
        ...     def encode(self, x):
        ...         return x.relu()
        >>> x = torch.tensor([[0.5, 0.0], [2.0, 1.0]])
        >>> words = EvaluationRows.of(x, torch.eye(2), torch.tensor([8, 9]), torch.eye(2), torch.zeros(2), ["a", "b"])
        >>> firings_table(Identity(), words, [0]).to_dict("list")
        {'row': [8, 9], 'latent': [0, 0], 'activation': [0.5, 2.0]}
    """
    ids = torch.tensor(list(latents), dtype=torch.long)
    activations = encode_latents(sae, rows.x, ids)
    fired = activations.T.nonzero()
    return pd.DataFrame(
        {
            "row": rows.index[fired[:, 1]].numpy(),
            "latent": ids[fired[:, 0]].numpy(),
            "activation": activations[fired[:, 1], fired[:, 0]].numpy(),
        }
    ).astype({"row": "int64", "latent": "int64", "activation": "float64"})


def held_out_table(rows: EvaluationRows) -> pd.DataFrame:
    """The linear probe's opinion of held-out words.

    Args:
        rows: The held-out words.

    Returns:
        One row per word and class of it: `row, label, probe_logit`.
    """
    place, label = rows.y.nonzero(as_tuple=True)
    return pd.DataFrame(
        {
            "row": rows.index[place].numpy(),
            "label": pd.Series([rows.class_names[number] for number in label.tolist()], dtype=str),
            "probe_logit": rows.probe_logits[place, label].double().numpy(),
        }
    )
