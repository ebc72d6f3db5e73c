"""The model card of a shared concept file: what it erases, on what, how well, and how to use it."""
from collections.abc import Iterable
from pathlib import Path

from ..adapter import LoadedSae
from ..concepts import Concept
from ..errors import SaeError

TAGS = ("saemnesia", "sparse-autoencoder", "stable-diffusion", "concept-erasure")


def card(sae: LoadedSae, digest: str, picture: str = "", licence: str = "") -> str:
    """README.md for a repository with this file and, if it has a name, this picture.

    Raises SaeError for an SAE without named concepts, of which there would be nothing to say.
    """
    if not sae.concepts:
        raise SaeError(f"{sae.name} has no named concepts: share a file that Erase Words, Find Concept, Export Concept "
                       f"or Train has made")
    parts = [_front(licence), f"# {sae.path.stem}", _about(sae), _table(sae.concepts),
             f"![Without it, and with it]({picture})" if picture else "", _use(sae.path.name),
             f"SHA-256 of `{sae.path.name}`: `{digest}`"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(licence: str) -> str:
    """The part that the hub reads."""
    lines = [f"license: {licence}"] if licence else []
    return "\n".join(["---", *lines, "library_name: saemnesia", "tags:", *(f"- {tag}" for tag in TAGS), "---"])


def _about(sae: LoadedSae) -> str:
    blocks = ", ".join(f"`{header.hookpoint}`" if header.hookpoint else "a block that it does not say"
                       for header in sae.headers)
    made_on = sae.headers[0].made_on
    return "\n".join([
        "Neurons that take concepts out of pictures while Stable Diffusion paints: switched off, what they stand for "
        "is not painted.", "", f"- base model: {sae.base or 'not said'}{f', made on {made_on}' if made_on else ''}",
        f"- where: {blocks}", f"- neurons: {sum(len(header.latents) for header in sae.headers)}"])


def _table(concepts: Iterable[Concept]) -> str:
    rows = [f"| {_cell(c.name)} | {_cell(c.kind)} | {_share(c, 'removed', 0)} | {_share(c, 'touched', 1)} |"
            for c in concepts]
    return "\n".join(["| concept | kind | removed | others touched |", "|---|---|---|---|", *rows])


def _share(concept: Concept, what: str, digits: int) -> str:
    share = (concept.measured or {}).get(what)
    return "not measured" if share is None else f"{100 * share:.{digits}f} %"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _use(name: str) -> str:
    return (f"Put `{name}` into `models/sae` of ComfyUI, A1111 or Forge with the extension SAEmnesia; *Load SAE* lists "
            f"it. It fits the checkpoint it was made on, and its relatives more or less.")


def picture_name(picture: Path) -> str:
    """What the picture is called in the repository."""
    if picture.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise SaeError(f"{picture.name} is no picture that a card shows: give a .png, .jpg or .webp")
    return f"before-after{picture.suffix.lower()}"
