"""How many rows of latents are held at once, so that wide SAEs fit."""

CHUNK_BYTES = 2**29
"""Most bytes of one matrix of latents, 512 MiB; SAEs work with two to four such matrices at a time."""


def rows_at_once(num_latents: int, itemsize: int = 4, matrices: int = 1) -> int:
    """How many rows of latents take at most `CHUNK_BYTES`, at least one.

    Args:
        num_latents: Width of the SAE.
        itemsize: Bytes of a latent; 4 in float32.
        matrices: Matrices of rows × latents that are held at the same time.

    Returns:
        A number of rows.

    Example:
        >>> rows_at_once(2**20), rows_at_once(2**20, matrices=16), rows_at_once(2**40)
        (128, 8, 1)
    """
    return max(1, CHUNK_BYTES // (itemsize * num_latents * matrices))
