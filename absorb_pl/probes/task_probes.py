"""The linear probe of a task's saved activations, under the names of the paper's package; nothing is pickled."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import one_hot

from absorb_pl.data.drafts import writing_to
from absorb_pl.errors import CacheCorruptedError, LabelError
from absorb_pl.functional.metrics import binary_metrics
from absorb_pl.probes.linear import LinearProbe, Solver
from absorb_pl.probes.training import train_multi_probe
from absorb_pl.ranges import Count, CountOrZero, Finite, NotNegative, Positive, check_ranges
from absorb_pl.words.vocab import LETTERS

_PROBE, _DATA = "probe.safetensors", "data.safetensors"


@dataclass
class ProbeStats:
    """How well a probe tells one class.

    Attributes:
        letter: The class.
        f1: F1.
        accuracy: Share of rows decided right.
        precision: Precision.
        recall: Recall.
    """

    letter: str
    f1: float
    accuracy: float
    precision: float
    recall: float


def train_linear_probe_for_task(
    train_df: pd.DataFrame,
    test_df: pd.DataFrame,
    device: torch.device | str,
    train_activations: np.ndarray,
    test_activations: np.ndarray,
    num_classes: Count = 26,
    batch_size: Count = 4096,
    num_epochs: Count = 50,
    lr: Positive = 1e-2,
    weight_decay: NotNegative = 1e-4,
    *,
    show_progress: bool = True,
    solver: Solver = "adam",
) -> tuple[LinearProbe, dict[str, Tensor]]:
    """Train a linear probe on saved activations (`sae_spelling.probing`).

    Args:
        train_df: Table with the column `answer_class`, from `gen_and_save_df_acts_probing`.
        test_df: The same of the words for evaluation.
        device: Where to train.
        train_activations: A row of activations for each row of `train_df`.
        test_activations: The same of the words for evaluation.
        num_classes: Number of classes.
        batch_size: Rows a step.
        num_epochs: Epochs.
        lr: Learning rate of the first epoch.
        weight_decay: Weight decay.
        show_progress: Show a progress bar.
        solver: `optimum` finds the optimum of the regularised objective, as studies do (see `LinearProbe`).

    Returns:
        The probe, and `X_train, X_test, y_train, y_test` on `device`.

    Raises:
        LabelError: Tables and activations differ in number, or a class is not below `num_classes`.
        NonFiniteError: An activation is NaN or infinite.

    Example:
        >>> df, x = pd.DataFrame({"answer_class": [0, 1] * 8}), np.eye(2, dtype="float32")[[0, 1] * 8]
        >>> probe, data = train_linear_probe_for_task(df, df, "cpu", x, x, num_classes=2, show_progress=False)
        >>> gen_probe_stats(probe, data["X_test"], data["y_test"], threshold=0.0)[1].f1
        1.0
    """
    check_ranges(train_linear_probe_for_task, locals())
    data = {
        "X_train": torch.tensor(np.asarray(train_activations), dtype=torch.float32, device=device),
        "X_test": torch.tensor(np.asarray(test_activations), dtype=torch.float32, device=device),
        "y_train": _classes(train_df, len(train_activations), num_classes, "train_df").to(device),
        "y_test": _classes(test_df, len(test_activations), num_classes, "test_df").to(device),
    }
    probe = train_multi_probe(
        data["X_train"],
        one_hot(data["y_train"], num_classes),
        batch_size=batch_size,
        num_epochs=num_epochs,
        lr=lr,
        weight_decay=weight_decay,
        show_progress=show_progress,
        device=device,
        solver=solver,
    )
    return probe, data


def save_probe_and_data(
    probe: LinearProbe, probe_data: Mapping[str, Tensor], probing_path: str | Path, layer: CountOrZero
) -> None:
    """Write a probe and what it was trained on below `probing_path/layer_L`, as safetensors.

    Args:
        probe: The probe.
        probe_data: Tensors by name, from `train_linear_probe_for_task`.
        probing_path: Folder of all layers.
        layer: The layer.

    Raises:
        OutputFolderError: The folder cannot be written.
    """
    check_ranges(save_probe_and_data, locals())
    folder = Path(probing_path) / f"layer_{layer}"
    parts = {_DATA: dict(probe_data), _PROBE: {"weight": probe.weights, "bias": probe.biases}}
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, tensors in parts.items():
            plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            save_file(plain, folder / f".{name}.part")
            (folder / f".{name}.part").replace(folder / name)


def load_probe_and_data(probing_path: str | Path, layer: CountOrZero) -> tuple[LinearProbe, dict[str, Tensor]]:
    """Read what `save_probe_and_data` wrote.

    Args:
        probing_path: Folder of all layers.
        layer: The layer.

    Returns:
        The probe in evaluation mode, and the tensors by name, on the CPU.

    Raises:
        CacheCorruptedError: A file is missing or no safetensors file.
    """
    check_ranges(load_probe_and_data, locals())
    folder = Path(probing_path) / f"layer_{layer}"
    read: dict[str, dict[str, Tensor]] = {}
    for name in (_PROBE, _DATA):
        try:
            read[name] = load_file(folder / name)
        except (OSError, SafetensorError) as error:
            raise CacheCorruptedError(
                str(folder / name),
                str(error),
                expected="a file that `save_probe_and_data` wrote",
                remedy="Train the probe again; pickled probes (`probe.pth`) are not read, since reading one runs code.",
            ) from error
    return LinearProbe.from_weights(read[_PROBE]["weight"], read[_PROBE]["bias"]), read[_DATA]


@torch.no_grad()
def gen_probe_stats(
    probe: LinearProbe,
    X_val: Float[Tensor, "rows d_model"],
    y_val: Int[Tensor, " rows"],
    threshold: Finite = 0.5,
    device: torch.device | str | None = None,
) -> list[ProbeStats]:
    """Score a probe on each class (`sae_spelling.probing`).

    Args:
        probe: The probe.
        X_val: Activations.
        y_val: Class number of each row.
        threshold: A row is said to be of a class where its *logit*, not its probability, is above.
        device: Where to compute; the probe's own by default.

    Returns:
        One entry per class, the 26 letters by name.

    Raises:
        NonFiniteError: A logit is NaN or infinite.
    """
    check_ranges(gen_probe_stats, locals())
    target = probe.weights.device if device is None else torch.device(device)
    logits = probe.to(target)(X_val.detach().to(target, probe.weights.dtype)).cpu()
    classes = logits.shape[1]
    truth = one_hot(y_val.cpu().long(), classes).bool()
    found = binary_metrics(logits, truth, threshold)
    accuracy = ((logits > threshold) == truth).double().mean(dim=0)
    names = list(LETTERS) if classes == len(LETTERS) else list(probe.class_names)
    return [
        ProbeStats(name, *(float(values[c]) for values in (found.f1, accuracy, found.precision, found.recall)))
        for c, name in enumerate(names)
    ]


def _classes(table: pd.DataFrame, rows: int, num_classes: int, argument: str) -> Tensor:
    labels = torch.tensor(table["answer_class"].to_numpy(np.int64))
    if len(labels) != rows or not bool(((labels >= 0) & (labels < num_classes)).all()):
        raise LabelError(
            argument,
            f"{len(labels)} rows with classes up to {max(labels.tolist(), default=0)}",
            expected=f"one class below {num_classes} for each of {rows} rows of activations",
            remedy="Pass table and activations of the same prompts.",
        )
    return labels
