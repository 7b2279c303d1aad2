"""For the documentation site: docstrings have an `Example`, which the site's reader knows as `Examples`."""

from typing import Any

from griffe import Extension, Object


class Examples(Extension):
    """Gives the section the name that griffe looks for, so that its code is shown as code."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:  # noqa: ARG002, D102
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
