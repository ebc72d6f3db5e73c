"""Which rows of a call of the UNet are conditional, as far as the host tells."""
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_models.adapter import conditional_rows


@dataclass
class Rows:
    """One evaluation's rows, in as many calls as the host likes: the first `conditional` of `total` are conditional."""
    conditional: int = 0
    total: int = 0
    seen: int = 0

    @classmethod
    def of(cls, params: Any) -> "Rows":
        """From what `on_cfg_denoiser` gets: `x` holds all rows in A1111; Forge says in the call which are which."""
        cond = params.text_cond
        cond = cond.get("crossattn") if isinstance(cond, dict) else cond
        return cls(0 if cond is None else len(cond), len(params.x))

    def of_call(self, x: Tensor, options: dict | None) -> Tensor | None:
        """bool [rows] of the next call; options: its transformer_options. None when that cannot be told."""
        cond_or_uncond = (options or {}).get("cond_or_uncond")
        return conditional_rows(len(x), cond_or_uncond, x.device) if cond_or_uncond else self._take(x)

    def has_other(self, x: Tensor, options: dict | None) -> bool:
        """Whether some rows of the next call are not conditional."""
        cond_or_uncond = (options or {}).get("cond_or_uncond")
        return any(cond_or_uncond) if cond_or_uncond else self.seen + len(x) > self.conditional

    def _take(self, x: Tensor) -> Tensor | None:
        first, self.seen = self.seen, self.seen + len(x)
        if self.seen > self.total:
            return None
        return torch.arange(first, self.seen, device=x.device) < self.conditional
