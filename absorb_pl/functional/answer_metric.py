"""The letter metric: how far the right answer's logit stands above the others'."""

from jaxtyping import Float, Int
from torch import Tensor


def letter_metric(
    last_logits: Float[Tensor, "rows vocab"],
    labels: Int[Tensor, " rows"],
    answer_ids: Int[Tensor, " classes"],
    positive_ids: Int[Tensor, " classes"] | None = None,
) -> Float[Tensor, " rows"]:
    """`logit(answer of the row's label) − mean logit(answers of the other labels)`.

    Source: arXiv 2409.14507, section 3 (the metric of the ablation experiments), `letter_delta_metric` in the
    released code.

    Args:
        last_logits: Logits at the prompt's last position.
        labels: Class of each row.
        answer_ids: Token of each class's answer, e.g. `" A"` … `" Z"`.
        positive_ids: Token that counts as the right answer of each class, if it is not its `answer_ids` entry.

    Returns:
        One value per row, in float64: differences of metrics are small beside the logits.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[3.0, 1.0, 0.0]])
        >>> letter_metric(logits, torch.tensor([0]), torch.tensor([0, 1, 2]))
        tensor([2.5000], dtype=torch.float64)
    """
    answers = last_logits[:, answer_ids].double()
    own = answers.gather(1, labels[:, None]).squeeze(1)
    others = (answers.sum(dim=1) - own) / (len(answer_ids) - 1)
    if positive_ids is None:
        return own - others
    return last_logits.gather(1, positive_ids[labels][:, None]).squeeze(1).double() - others
