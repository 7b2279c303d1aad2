"""The rule `paper` with one or both of the choices that its released code makes differently."""

from collections.abc import Mapping
from typing import Any, ClassVar

from absorb_pl.rules.base import register_rule
from absorb_pl.rules.paper import Paper


@register_rule
class PaperPublishedToken(Paper):
    """The bare lower-case letter is the right answer."""

    name = "paper-published-token"
    fixed: ClassVar[Mapping[str, Any]] = {"positive_token": "published"}


@register_rule
class PaperPublishedLetters(Paper):
    """Letters without candidate words are left out of an SAE's rate."""

    name = "paper-published-letters"
    letters = "published"


@register_rule
class PaperPublished(Paper):
    """Both, as the released code computes it."""

    name = "paper-published"
    fixed: ClassVar[Mapping[str, Any]] = {"positive_token": "published"}
    letters = "published"
