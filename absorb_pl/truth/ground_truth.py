"""What is true of an SAE in a known world, as a callback beside the evaluators that estimate it."""

import pandas as pd
import torch
from typing_extensions import override

from absorb_pl.data.labelled_datamodule import LabelledDataModule
from absorb_pl.evaluators.callbacks import Findings, SaeEvaluation
from absorb_pl.evaluators.sae_probing import EvaluationRows
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.truth.hierarchy import hierarchy_edges, hierarchy_truth
from absorb_pl.truth.hierarchy_datamodule import HierarchyDataModule


class GroundTruthEvaluator(SaeEvaluation):
    """The true absorption of one SAE, on `test` of a `LinearProbe` on a `HierarchyDataModule`.

    Logs `test/truth/absorption_rate` and `test/truth/absorption_fraction`, means over parents on the held-out samples,
    and `test/truth/gap`, the mean of the eligible edges' gaps, with `test/truth/eligible_edges` and `test/truth/edges`;
    writes the tables `truth` and `edges` (see `absorb_pl.schema`). Beside `Evaluate` it shows how far a rule is off.

    Args:
        sae: Name for `load_sae`, or an SAE.
        sae_dtype: Dtype of an SAE loaded by name.
    """

    data_type = HierarchyDataModule

    def __init__(self, sae: str | SparseAutoencoder, sae_dtype: str = "float32") -> None:
        super().__init__(sae, sae_dtype)

    @override
    def evaluate(self, rows: EvaluationRows, data: LabelledDataModule, device: torch.device) -> Findings:
        assert isinstance(data, HierarchyDataModule)
        sae, sizes, x = self.sae.to("cpu"), data.sizes(rows.index), rows.x
        truth, edges = hierarchy_truth(data.hierarchy, sae, sizes, x), hierarchy_edges(data.hierarchy, sae, sizes, x)
        truth["row"] = rows.index[torch.tensor(truth["row"].tolist())].numpy()
        by_parent = truth.groupby("label")[["is_absorbed", "share"]].mean().mean()
        figures = {
            "truth/absorption_rate": float(by_parent["is_absorbed"]),
            "truth/absorption_fraction": float(by_parent["share"]),
            "truth/eligible_edges": float(edges["eligible"].sum()),
            "truth/edges": float(len(edges)),
        }
        if edges["eligible"].any():
            figures["truth/gap"] = float(edges["gap"].mean())
        return {"truth": _of(self.sae_name, truth), "edges": _of(self.sae_name, edges)}, figures


def _of(sae: str, table: pd.DataFrame) -> pd.DataFrame:
    table.insert(0, "sae", sae)
    return table
