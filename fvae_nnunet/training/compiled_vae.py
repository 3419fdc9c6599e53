"""torch.compile for a VAE's own network, for the sizes that training will have and no others.

Each size is compiled once, before training begins and on all ranks at the same time. What comes in other sizes later
(where memory lacked, and fewer windows go through at once) runs as it is: a rank that compiles for minutes in the
middle of an epoch would let the others wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from fvae_nnunet.vae import FrozenVAE
from fvae_nnunet.vae.checkout.vae import CheckoutVAE

MOST_SIZES = 4
"""Of encode and of decode each: torch compiles a function eight times and then no more, with a warning."""


class CompiledVAE:
    """The compiled methods of a VAE's network, which take the place of its own.

    The VAEs of this package, of diffusers and of MONAI are one graph without breaks, whatever the number of volumes.
    Code from a checkout may not be, and is left alone; so is a VAE without a network.

    Args:
        vae: changed in place.
        options: of ``torch.compile``.
    """

    def __init__(self, vae: FrozenVAE, **options: Any) -> None:
        module = None if isinstance(vae, CheckoutVAE) else getattr(vae, "_module", None)
        self._methods: list[_Method] = []
        for name in ("encode", "decode"):
            if callable(method := getattr(module, name, None)):
                self._methods.append(_Method(method, options))
                setattr(module, name, self._methods[-1])

    def __bool__(self) -> bool:
        """Whether there is anything to compile."""
        return bool(self._methods)

    @property
    def sizes(self) -> int:
        """How many were compiled, or are when they are first run."""
        return sum(len(method.known) for method in self._methods)

    def close(self) -> None:
        """Compile no size any more that was not run before."""
        for method in self._methods:
            method.closed = True


class _Method:
    def __init__(self, method: Callable[..., Any], options: dict[str, Any]) -> None:
        def call(*arguments: Any, **keywords: Any) -> Any:
            # torch 2.5 and 2.6 need ``torch`` in the module of the outermost function; diffusers' has none
            return method(*arguments, **keywords)

        self._eager = method
        self._compiled = torch.compile(call, dynamic=False, **options)
        self.known: set[Hashable] = set()
        self.closed = False

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        size = tuple(x.shape for x in tree_leaves((arguments, keywords)) if isinstance(x, torch.Tensor))
        if size not in self.known:
            if self.closed or len(self.known) >= MOST_SIZES:
                return self._eager(*arguments, **keywords)
            self.known.add(size)
        return self._compiled(*arguments, **keywords)
