"""torch.compile for the network of a VAE, restricted to the sizes that occur in training.

Each size is compiled once, before training begins and on all ranks at the same time. Other sizes that occur later (such
as fewer windows per call after a lack of memory) run uncompiled, because a rank that compiles for minutes in the middle
of an epoch would make the others wait.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from fvae_nnunet.vae import FrozenVAE
from fvae_nnunet.vae.checkout.vae import CheckoutVAE

MOST_SIZES = 4
"""Maximum number of sizes of encode and of decode; torch compiles a function at most eight times, then warns."""


class CompiledVAE:
    """Replaces the methods of a VAE's network by compiled ones.

    The VAEs of this package, of diffusers and of MONAI are one graph without breaks for any number of volumes. Code
    from a checkout may have breaks and is not compiled; nor is a VAE without a network.

    Args:
        vae: the VAE, changed in place.
        options: options of ``torch.compile``.
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
        """Number of sizes that are compiled, or will be when they first run."""
        return sum(len(method.known) for method in self._methods)

    def close(self) -> None:
        """Compile no further sizes."""
        for method in self._methods:
            method.closed = True


class _Method:
    def __init__(self, method: Callable[..., Any], options: dict[str, Any]) -> None:
        def call(*arguments: Any, **keywords: Any) -> Any:
            # torch 2.5 and 2.6 need ``torch`` in the module of the outermost function, which diffusers' module lacks
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
