"""Which model something was learned from: some of every weight, and of what is laid over them."""
import hashlib
from collections.abc import Iterable, Mapping

from torch import Tensor

from ..made_on import some


def fingerprint(weights: Mapping[str, Tensor], laid_over: Iterable[bytes] = ()) -> str:
    """Of a UNet's weights as they come from the checkpoint; laid_over: what is known of the LoRAs on them."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(some(value))
    for part in laid_over:
        digest.update(part)
    return digest.hexdigest()[:16]
