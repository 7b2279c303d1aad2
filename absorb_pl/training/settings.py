"""What each SAE of a training run is, and how all of them are optimised."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any

import sae_lens
import torch
from sae_lens import TrainingSAE
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY, get_sae_training_class

from absorb_pl.errors import AbsorbError, SaeArchitectureError
from absorb_pl.ranges import Count, CountOrZero, Positive, Range, check_ranges

_OURS = {"d_in", "d_sae", "device", "metadata", "dtype"}
_NORMALISED = ("none", "layer_norm", "expected_average_only_in")
Beta = Annotated[float | int, Range(0, 1, below=True)]


@dataclass(frozen=True)
class SaeSettings:
    """One SAE to train. SAELens owns the architecture, its losses, its coefficients and their warm-up.

    Attributes:
        architecture: `standard`, `gated`, `topk`, `batchtopk`, `matryoshka_batchtopk`, `jumprelu`,
            `matching_pursuit`, or another one that SAELens trains on single rows.
        d_sae: Number of latents.
        hook_name: Hook that it reads; may be left out if the data have one hook.
        settings: What else SAELens's configuration of this architecture takes, by its names: `l1_coefficient`,
            `l0_coefficient`, `k`, `l1_warm_up_steps`, `matryoshka_widths`, `normalize_activations`, …
        lr: Its learning rate; that of the training when None.

    Raises:
        SaeArchitectureError: SAELens trains no such architecture, or it does not read single rows.
        AbsorbError: The architecture has no such setting, or SAELens refuses its value.

    Example:
        >>> SaeSettings("topk", 16, settings={"k": 4}).build(d_in=8, seed=0).W_dec.shape
        torch.Size([16, 8])
        >>> SaeSettings("topk", 16, settings={"l1_coefficient": 4})
        Traceback (most recent call last):
            ...
        absorb_pl.errors.AbsorbError: `settings` was 'l1_coefficient', expected settings of topk: ...
    """

    architecture: str
    d_sae: Count
    hook_name: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    lr: Positive | None = None

    def __post_init__(self) -> None:
        check_ranges(SaeSettings, vars(self))
        if self.architecture not in trainable_architectures():
            raise SaeArchitectureError(
                "architecture",
                self.architecture,
                expected=f"one of {', '.join(trainable_architectures())}",
                remedy="Choose one that SAELens trains on single rows of activations.",
            )
        self._check_settings()

    def build(self, d_in: int, seed: int) -> TrainingSAE[Any]:
        """An untrained SAE; its weights depend on these settings and the seed alone.

        Args:
            d_in: Width of the activations.
            seed: Seed of the weights.
        """
        kind, config = get_sae_training_class(self.architecture)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                sae = kind(config(d_in=d_in, d_sae=self.d_sae, **deepcopy(self.settings)))
            except (ValueError, TypeError, AssertionError) as error:
                raise self._refused(error) from error
        sae.cfg.sae_lens_training_version = str(sae_lens.__version__)
        return sae

    def _check_settings(self) -> None:
        config = get_sae_training_class(self.architecture)[1]
        known = {one.name for one in fields(config)} - _OURS
        for name in self.settings:
            if name not in known:
                raise AbsorbError(
                    "settings",
                    name,
                    expected=f"settings of {self.architecture}: {', '.join(sorted(known))}",
                    remedy="Use SAELens's names; width and number of latents are given beside the settings.",
                )
        for name in ("k", "l1_coefficient", "l0_coefficient"):
            value = self.settings.get(name, 1)
            if not isinstance(value, int | float) or not 0 < value <= (self.d_sae if name == "k" else 1e6):
                raise AbsorbError(
                    name,
                    value,
                    expected=f"above 0 and at most {self.d_sae if name == 'k' else 1e6:g}",
                    remedy="Set how sparse the SAE is to be.",
                )
        scaled = self.settings.get("normalize_activations", "none")
        if scaled not in _NORMALISED:
            raise AbsorbError(
                "normalize_activations",
                scaled,
                expected=f"one of {', '.join(_NORMALISED)}",
                remedy="`expected_average_only_in` scales activations to a mean norm of sqrt(d_model).",
            )
        try:  # of a copy, as SAELens adds to the lists that it is given
            config(d_in=1, d_sae=self.d_sae, **deepcopy(self.settings))
        except (ValueError, TypeError, AssertionError) as error:
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> AbsorbError:
        return AbsorbError(
            "settings", self.settings, expected=f"what SAELens takes for {self.architecture}", remedy=str(error)
        )


@dataclass(frozen=True)
class SaeOptimisation:
    """How SAEs are optimised, as SAELens's trainer does: Adam, gradients clipped SAE by SAE, a schedule of steps.

    Attributes:
        lr: Learning rate, of SAEs that have none of their own.
        lr_end: Learning rate that a schedule ends at before the last decay; a tenth of `lr` when None.
        lr_scheduler: `constant`, `cosineannealing` or `cosineannealingwarmrestarts`.
        lr_warm_up_steps: Steps in which the learning rate rises from zero.
        lr_decay_steps: Steps at the end in which it falls to zero.
        n_restart_cycles: Cycles of `cosineannealingwarmrestarts`.
        adam_beta1: Decay of Adam's mean of gradients.
        adam_beta2: Decay of Adam's mean of squared gradients.
        gradient_clip: Largest norm of an SAE's gradient.
        dead_after_steps: A latent that has not fired for more steps than this counts as dead.
        scale_batches: Batches that the mean norm of activations is estimated on, for SAEs that ask for it.
    """

    lr: Positive = 3e-4
    lr_end: Positive | None = None
    lr_scheduler: str = "constant"
    lr_warm_up_steps: CountOrZero = 0
    lr_decay_steps: CountOrZero = 0
    n_restart_cycles: Count = 1
    adam_beta1: Beta = 0.9
    adam_beta2: Beta = 0.999
    gradient_clip: Positive = 1.0
    dead_after_steps: Count = 1000
    scale_batches: Count = 20

    def __post_init__(self) -> None:
        check_ranges(SaeOptimisation, vars(self))
        if self.lr_scheduler not in (known := ("constant", "cosineannealing", "cosineannealingwarmrestarts")):
            raise AbsorbError(
                "lr_scheduler",
                self.lr_scheduler,
                expected=f"one of {', '.join(known)}",
                remedy="These are SAELens's schedules.",
            )


def trainable_architectures() -> list[str]:
    """Architectures that SAELens trains on single rows of activations.

    Example:
        >>> {"standard", "batchtopk", "jumprelu"} <= set(trainable_architectures())
        True
    """
    return sorted(
        name for name in SAE_TRAINING_CLASS_REGISTRY if "transcoder" not in name and not name.startswith("temporal")
    )


def sae_settings_of(saes: Mapping[str, SaeSettings | Mapping[str, Any]]) -> dict[str, SaeSettings]:
    """SAEs to train by name, from settings or from the plain values of a checkpoint.

    Args:
        saes: Settings by name.

    Raises:
        AbsorbError: There is none, or a name cannot be that of a folder.
    """
    if not saes or any(not name or set(name) & set("/\\#@:") or name.startswith(".") for name in saes):
        raise AbsorbError(
            "saes",
            list(saes or ()),
            expected="at least one SAE, each with a name that a folder can have",
            remedy="Name them by letters, digits, dots, dashes and underscores.",
        )
    return {name: one if isinstance(one, SaeSettings) else SaeSettings(**one) for name, one in saes.items()}


def plain_settings(saes: Mapping[str, SaeSettings]) -> dict[str, dict[str, Any]]:
    """Settings by name as plain values, for checkpoints."""
    return {name: asdict(one) for name, one in saes.items()}
