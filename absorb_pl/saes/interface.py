"""What an object must have to be measured as an SAE."""

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class SparseAutoencoder(Protocol):
    """What an object must have to be measured as an SAE; it need be no `nn.Module`.

    Members beyond these are looked for and may be missing:

    * `hook_name`, or `cfg.metadata.hook_name`: the TransformerLens hook that it reads. Without one, give the hook with
      its name (`my_saes:load@blocks.3.hook_resid_post`) or to the function called.
    * `W_enc` `[d_in, latents]`, `b_enc` and `threshold` `[latents]`: for the latent evaluation, which takes the rows of
      `W_dec` if there is no `W_enc`, and zeros if there is no `b_enc`.
    * `identity`: a text that changes whenever the SAE does. By default the SAE's tensors are hashed: its `state_dict`,
      or its tensor attributes, with numbers and texts among its attributes.
    * `to(device, dtype)`: moves it. By default its tensor attributes are moved.
    * `architecture`: what tables call its kind; by default the name of its class.
    * `reads_sequences`: true where latents at a token depend on earlier tokens, which studies refuse.

    """

    @property
    def W_dec(self) -> Tensor:
        """Decoder rows, `[latents, d_in]`."""
        ...

    def encode(self, x: Tensor, /) -> Tensor:
        """Latents `[..., latents]` of activations `[..., d_in]`."""
        ...

    def decode(self, latents: Tensor, /) -> Tensor:
        """Reconstructions `[..., d_in]` from latents; differentiable."""
        ...
