"""How much of a feature other latents carry in place of its own: the definitions of the rule `absorb-pl-1`.

The feature of a class is what its tracking latent writes: the unit decoder row `d` of the latent whose activation tells
the class best. At a word with activation `x`,

- the feature's size is `P = ⟨x, d⟩` less what is along `d` without the feature: the mean over words x' of other classes
  of `⟨x', d⟩`, but for what the feature's own latents and those of other classes (see below) write there;
- its own latents are the tracking latent and those whose decoder rows point the same way; they write `m` along `d`;
- the other latents write `A` along `d`, less what they write on average on words of other classes. Latents that fire
  mostly on words of one other class say nothing here and do not count (*latents of other classes*);
- others carry `min(A, P − m) / P` of it, cut to [0, 1]: the feature only as far as it is not there already. A word is
  absorbed if the feature's own latents are silent and that is at least one half;
- the absorbed share is `min(A, u P − m) / P`, cut to [0, 1], with `u` the part that the own latents usually write: the
  upper quartile of `m / P` over the words on which they fire, at most 1. What other latents write on every word of the
  class, such as a second latent of the same feature, is no absorption.

The direction is the latent's and not the linear probe's, because a probe also reads whatever goes along with the class
in the words it was trained on, above all the finer features that absorb; `docs/calibration.md` shows what that costs.

Shapes: w words, l latents, c classes.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from absorb_pl.functional.absorption import SILENT
from absorb_pl.functional.conditions import all_met
from absorb_pl.functional.similarity import unit_rows
from absorb_pl.functional.validation import require_finite, require_latents
from absorb_pl.ranges import Cosine, CountOrZero, Fraction, Positive, check_ranges


def aligned_latents(
    decoder: Float[Tensor, "latents d_model"], tracking: CountOrZero, min_alignment: Cosine = 0.95
) -> list[int]:
    """The latents that write the same direction as a tracking latent; further ones are a split of its feature.

    Args:
        decoder: Decoder rows.
        tracking: The tracking latent.
        min_alignment: Least cosine of two decoder rows that write one feature.

    Returns:
        Their ids, the tracking latent first, the others in order.

    Raises:
        ShapeError: There is no such latent.

    Example:
        >>> aligned_latents(torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.1]]), tracking=2)
        [2, 0]
    """
    check_ranges(aligned_latents, locals())
    require_latents("tracking", [tracking], len(decoder))
    rows = unit_rows(decoder)
    close = (rows @ rows[tracking] >= min_alignment).nonzero().squeeze(1).tolist()
    return [tracking, *(latent for latent in close if latent != tracking)]


def of_other_classes(
    fired: Int[Tensor, "classes latents"], in_all: Int[Tensor, " latents"], own: CountOrZero
) -> Bool[Tensor, " latents"]:
    """Mark the latents that fire mostly on words of one other class.

    Args:
        fired: On how many words of each class a latent fires; words that are of the class `own` as well left out.
        in_all: On how many words it fires.
        own: Number of the class that is asked about.

    Returns:
        True where more than half of the words on which a latent fires are of one class that is not `own`.

    Example:
        >>> of_other_classes(torch.tensor([[0, 2, 4], [3, 2, 1]]), torch.tensor([3, 4, 5]), own=0)
        tensor([ True, False, False])
    """
    check_ranges(of_other_classes, locals())
    others = fired.clone()
    others[own] = 0
    return 2 * others.amax(dim=0) > in_all


def carried_share(
    size: Float[Tensor, " words"],
    own: Float[Tensor, " words"],
    others: Float[Tensor, " words"],
    usual: Float[Tensor, " words"] | None = None,
) -> Float[Tensor, " words"]:
    """The part of a feature that latents other than its own carry in their place.

    Args:
        size: Size of the feature at each word, less its mean on words of other classes.
        own: What the feature's own latents write along its direction.
        others: What the others write, less their mean on words of other classes.
        usual: The part that the own latents usually write (`usual_part`); all of the feature when None.

    Returns:
        Shares from 0 to 1, in float64; 0 where the feature has no size above 0.

    Raises:
        NonFiniteError: Something is NaN or infinite.

    Example:
        >>> carried_share(torch.tensor([2.0, 2.0, 2.0]), torch.tensor([0.0, 1.5, 2.0]), torch.tensor([1.8, 0.5, 0.4]))
        tensor([0.9000, 0.2500, 0.0000], dtype=torch.float64)
    """
    require_finite(size=size, own=own, others=others)
    whole, mains, taken = size.double(), own.double(), others.double()
    missing = whole * (1.0 if usual is None else usual.double()) - mains
    share = torch.minimum(taken, missing) / torch.where(whole > 0, whole, 1.0)
    return torch.where(whole > 0, share.clamp(0.0, 1.0), 0.0)


def usual_part(
    size: Float[Tensor, " words"],
    own: Float[Tensor, " words"],
    own_max: Float[Tensor, " words"],
    silent: Positive = SILENT,
) -> float:
    """The part of a feature that its own latents usually write where they fire.

    Args:
        size: Size of the feature at each word of the class.
        own: What the feature's own latents write along its direction.
        own_max: Largest size of activation of these latents.
        silent: Size of activation below which a latent counts as silent.

    Returns:
        The upper quartile of `own / size` over the words on which they fire, at most 1; 1 if they fire on none.

    Example:
        >>> usual_part(torch.full((4,), 2.0), torch.tensor([1.5, 1.5, 1.5, 0.0]), torch.tensor([1.0, 1.0, 1.0, 0.0]))
        0.75
    """
    check_ranges(usual_part, locals())
    firing = (own_max.double() >= silent) & (size.double() > 0)
    if not bool(firing.any()):
        return 1.0
    return min(1.0, float((own.double() / size.double())[firing].quantile(0.75)))


def carried_absorption(
    share: Float[Tensor, " words"],
    own_max: Float[Tensor, " words"],
    *,
    least_share: Fraction = 0.5,
    silent: Positive = SILENT,
) -> Bool[Tensor, " words"]:
    """Tell on which words a feature was absorbed.

    Args:
        share: From `carried_share`, of all of the feature.
        own_max: Largest size of activation of the feature's own latents.
        least_share: Share of the feature that others must carry.
        silent: Size of activation below which a latent counts as silent.

    Returns:
        Whether each word counts.

    Example:
        >>> carried_absorption(torch.tensor([0.9, 0.9, 0.3]), torch.tensor([0.0, 1.0, 0.0]))
        tensor([ True, False, False])
    """
    conditions = carried_conditions(share, own_max, least_share=least_share, silent=silent)
    return all_met(conditions)


def carried_conditions(
    share: Float[Tensor, " words"],
    own_max: Float[Tensor, " words"],
    *,
    least_share: Fraction = 0.5,
    silent: Positive = SILENT,
) -> dict[str, Bool[Tensor, " words"]]:
    """What `absorb-pl-1` asks of a word, one by one (see `carried_absorption`, which takes the same).

    Returns:
        Whether each word meets it, by name: `silent`, the feature's own latents; `share`, others carry enough of it.

    Example:
        >>> carried_conditions(torch.tensor([0.3]), torch.tensor([0.0]))
        {'silent': tensor([True]), 'share': tensor([False])}
    """
    check_ranges(carried_conditions, locals())
    return {"silent": own_max.double() < silent, "share": share.double() >= least_share}
