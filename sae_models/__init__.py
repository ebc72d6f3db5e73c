"""SAEs and concept erasure for diffusion models, free of any host: file -> SAE -> concepts -> erasure."""
from .concepts import Choice, Concept, Statistics, parse
from .erasure import Actuator, Edit, Erased, Erasure
from .errors import SaeError
from .formats import Header, Rows, read_header, read_headers, read_rows, read_sae, write
from .sae import Latents, Sae, SaeConfig, fvu

__all__ = ["Actuator", "Choice", "Concept", "Edit", "Erased", "Erasure", "Header", "Latents", "Rows", "Sae",
           "SaeConfig", "SaeError", "Statistics", "fvu", "parse", "read_header", "read_headers", "read_rows",
           "read_sae", "write"]
