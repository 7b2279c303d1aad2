"""Paths of what ships inside the package: the speller and its suite of SAEs."""

from pathlib import Path

SPELLER = "speller"
"""Name of the bundled language model."""

ASSETS = Path(__file__).parent / "assets" / SPELLER


def speller_path() -> Path:
    """Return the folder of the bundled language model: Hugging Face weights, config and tokenizer.

    Example:
        >>> sorted(path.name for path in speller_path().glob("*.safetensors"))
        ['model.safetensors']
    """
    return ASSETS / "model"
