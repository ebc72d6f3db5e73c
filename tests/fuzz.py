"""Files, texts and headers that are broken at random: each is read, or refused with one short sentence (SaeError).

`tests/core/test_fuzz.py` runs some hundred of them. For hours: `python -m tests.fuzz --long` (or `--seconds 600`), from
the repository's root, in the host's environment. What fails is printed with the number that makes it again:
`python -m tests.fuzz --only header 4711`.
"""
import argparse
import json
import logging
import random
import shutil
import struct
import sys
import tempfile
import time
import unicodedata
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "tests")) if path not in sys.path]

import torch  # noqa: E402
from layouts import FILES, as_safetensors, publish, random_sae  # noqa: E402
from made_maps import D_IN, SUBJECTS, make_maps  # noqa: E402

from sae_models import Actuator, Concept, Header, SaeError, Statistics, parse, read_sae, write  # noqa: E402
from sae_models.adapter import LoadedSae, build_edits  # noqa: E402
from sae_models.concepts import format_choices  # noqa: E402
from sae_models.convert import papers, read_any  # noqa: E402
from sae_models.formats import Part, Weights, read_rows, write_places  # noqa: E402
from sae_models.learning.maps import Shards, Window  # noqa: E402
from sae_models.learning.origin import Origin, stored  # noqa: E402
from sae_models.learning.prompts import default_templates, expand, parse_subjects  # noqa: E402
from sae_models.learning.report import as_svg, evaluate, from_json  # noqa: E402
from sae_models.learning.training import Trainer, TrainSettings  # noqa: E402
from sae_models.sae import SaeConfig  # noqa: E402
from sae_models.table import add, read_tables  # noqa: E402

LONGEST = 810
"""Characters of a sentence."""
SLOW = 5.0
"""Seconds that one case may take."""
LETTERS = ["cat", "dog", "Straße", "noto style", "(style)", "(object)", " (", ")", ",", ";", "; ", ":", "=", "|", "#",
           "0.5", "1,5", "-1", "1e999", "9" * 5000, "nan", "\n", "\r\n", "\t", " ", "\u2028", "\x85", "\x00", "\x07",
           "\u202e", "\ud800", "\udfff", "\ufeff", "\U0001f600", "{}", "{object}", "{style}", "{", "}", "<", "&", "'",
           '"', "\\", "ß", "İ", "ﬁ", " " * 300, "a" * 2000]
PLAIN = ["cat", "dog", "noto style", " (style)", ", ", ",", ":0.5", "\n", "; ", "{}", "{object}", " = ", "a "]
VALUES = [None, True, False, 0, 1, -1, 3, 10**30, 0.5, float("nan"), float("inf"), -1e308, "", "cat", "x" * 5000,
          "\ud800", "\u2028", " cat ", "a\x00b", [], [0], [[0, [1]]], {}, {"a": 1}, [None], "1", "9" * 4301]


def text(dice: random.Random, most: int = 12) -> str:
    """Mostly what people type, with something odd in it now and then."""
    odd = dice.choice([0.0, 0.1, 1.0])
    return "".join(dice.choice(LETTERS if dice.random() < odd else PLAIN) for _ in range(dice.randrange(most)))


def changed(dice: random.Random, data: Any) -> Any:
    """JSON with one thing in it another, gone, or there twice."""
    if dice.random() < 0.15 or not isinstance(data, dict | list) or not data:
        return dice.choice([*VALUES, text(dice)])
    keys = list(data) if isinstance(data, dict) else range(len(data))
    key, copy = dice.choice(keys), data.copy()
    what = dice.random()
    if what < 0.1:
        del copy[key]
    elif what < 0.15 and isinstance(copy, list):
        copy += [copy[key]] * dice.choice([1, 1, 3000])
    elif what < 0.2 and isinstance(copy, dict):
        copy[text(dice, 3)] = copy.pop(key)
    else:
        copy[key] = changed(dice, copy[key])
    return copy


def flipped(dice: random.Random, data: bytes, within: int | None = None) -> bytes:
    """Bytes with some of them others, cut off, or doubled."""
    copy, end = bytearray(data), min(len(data), within or len(data))
    what = dice.random()
    if what < 0.15:
        return bytes(copy[:dice.randrange(len(copy))])
    if what < 0.25:
        at = dice.randrange(end)
        return bytes(copy[:at] + copy[at:at + dice.randrange(1, 200)] + copy[at:])
    for _ in range(dice.choice([1, 1, 3, 30])):
        copy[dice.randrange(end)] = dice.randrange(256)
    return bytes(copy)


# --- whole files, made once ------------------------------------------------------------------------------


@cache
def made() -> Path:
    """A folder with a whole file of each kind."""
    folder = Path(tempfile.mkdtemp(prefix="saemnesia-fuzz-"))
    sae = random_sae().requires_grad_(False)
    concepts = (Concept("cat", (3,), "object", "a small cat", {"removed": 0.9, "touched": 0.01}),
                Concept("noto style", (1, 6), "style"))
    header = Header(sae.config, "up_blocks.1.attentions.1", "sd15", False, concepts, {"job": "1"}, "a checkpoint")
    statistics = Statistics((0.1, 1.0, 10.0), torch.rand(3, 3), torch.rand(3, 3))
    write(folder / "one.safetensors", sae, header, statistics)
    places = [f"up_blocks.{i}.attentions.1.transformer_blocks.0.attn2" for i in range(3)]
    weights = Weights(sae.encoder.weight, sae.encoder.bias, sae.W_dec, sae.b_dec)
    parts = [Part(Header(sae.config, place, "sd15", False, concepts), weights, statistics) for place in places]
    write_places(folder / "many.safetensors", parts, torch.float16)
    for library in FILES:
        is_pickle = not FILES[library][0].endswith(".safetensors")
        (publish if is_pickle else as_safetensors)(folder / library, library, random_sae())
    _store(folder / "acts")
    _train(folder)
    torch.save({"Cats": {"percentile": 99.0, "multiplier": -5.0}}, folder / "params.pth")
    return folder


def _store(folder: Path) -> None:
    origin = Origin(SUBJECTS, D_IN, "up_blocks.1.attentions.1", "sd15", False, 2, [9], {"model": "toy"})
    shards = Shards(folder, lambda number: make_maps(number, 8), origin.as_json())
    for number in (0, 1, 9):
        shards.make(number)


def trainer() -> Trainer:
    return Trainer(SaeConfig(D_IN, 24, 6), SUBJECTS, Window(lambda number: make_maps(number, 8), 2, 10**9),
                   TrainSettings(2, 2, batch=4), about={"model": "toy"})


def _train(folder: Path) -> None:
    run, last = trainer(), folder / "run.training"
    run.run(lambda step, numbers: step != 3 or run.save(last))
    held_out = make_maps(9, 8)
    concepts = [Concept(s.name, (latent,), s.kind) for s, latent in zip(SUBJECTS, run.latents, strict=True)]
    statistics = Statistics.unknown(len(concepts))
    report = evaluate(run.sae, concepts, statistics, held_out, run.first_scores, run.curve)
    (folder / "a.report.json").write_text(json.dumps(report.as_json()))


def split(path: Path) -> tuple[dict[str, Any], bytes]:
    """A safetensors file's header and the bytes behind it."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8:8 + size]), data[8 + size:]


def joined(header: Any, tensors: bytes) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + tensors


def described(dice: random.Random, path: Path, key: str = "saemnesia") -> bytes:
    """The file with another description, or another list of tensors."""
    header, tensors = split(path)
    about = header["__metadata__"]
    if dice.random() < 0.7:
        about[key] = json.dumps(changed(dice, json.loads(about[key])))
        if dice.random() < 0.05:
            about[key] = "[" * 100_000
    elif dice.random() < 0.5:
        name = dice.choice([name for name in header if name != "__metadata__"])
        header[name]["dtype"] = dice.choice(["F4", "F16", "I64", "BOOL", "C64", "F8_E4M3", "F6_E2M3", "U8", "X"])
    else:
        header = changed(dice, header)
    return joined(header, tensors)


# --- what is tried: each gets dice and a folder of its own -------------------------------------------------


def use(path: Path) -> None:
    """All that is done with a file."""
    sae = LoadedSae.read(path.name, path).at("")
    json.dumps(sae.listed(), ensure_ascii=False).encode()
    sae.about(), sae.unfit("sdxl"), sae.find("#1")
    for concept in sae.concepts:
        assert parse(concept.name)[0].name == concept.name
    if sae.concepts:
        edits = build_edits(sae, sae.concepts[0].name, Actuator.ABLATE)
        assert all(edit.rows.W_dec.isfinite().all() for _, edit in edits)
    add(path.with_name("few.safetensors"), read_tables(path, sae.choose([c.name for c in sae.concepts[:2]] or ["#1"])))
    read_sae(path)


def a_header(dice: random.Random, folder: Path) -> None:
    path = folder / "sae.safetensors"
    path.write_bytes(described(dice, made() / dice.choice(["one.safetensors", "many.safetensors"])))
    use(path)


def a_file(dice: random.Random, folder: Path) -> None:
    whole = (made() / dice.choice(["one.safetensors", "many.safetensors"])).read_bytes()
    path = folder / "sae.safetensors"
    path.write_bytes(flipped(dice, whole, dice.choice([2500, None])))
    use(path)


def a_number(dice: random.Random, folder: Path) -> None:
    """Weights that are absurd."""
    sae = random_sae()
    with torch.no_grad():
        for tensor in sae.parameters():
            tensor.flatten()[dice.randrange(tensor.numel())] = dice.choice([3e38, -3e38, 1e5, 1e30, 1e-45])
    path = as_safetensors(folder, "sparsify", sae)
    header = LoadedSae.read(path.name, path).headers[0]
    for latent in range(12):
        rows = read_rows(path, header, [Concept("some", (latent,))])
        assert all(part.half().isfinite().all() for part in (rows.W_enc, rows.bias, rows.W_dec))


def a_published_folder(dice: random.Random, folder: Path) -> None:
    library = dice.choice(list(FILES))
    shutil.copytree(made() / library, folder / library)
    name, sidecar = FILES[library]
    path = folder / library / ("any name.safetensors" if name.endswith(".safetensors") else name)
    config = path.with_name(sidecar)
    if dice.random() < 0.7:
        config.write_text(json.dumps(changed(dice, json.loads(config.read_text()))))
    else:
        config.write_bytes(flipped(dice, config.read_bytes()))
    if path.suffix == ".safetensors":
        use(path)
    else:
        read_any(path)


def a_pickle(dice: random.Random, folder: Path) -> None:
    source = made() / dice.choice(["dictionary_learning/ae.pt", "sdxl-unbox/state_dict.pth", "params.pth"])
    path, what = folder / source.name, dice.random()
    if what < 0.2:
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
            for part in old.infolist():
                new.writestr(part.filename, old.read(part))
    elif what < 0.4:
        torch.save({"W_dec": torch.zeros(1).expand(10**dice.randrange(1, 7), 10**6)}, path)
    else:
        path.write_bytes(flipped(dice, source.read_bytes()))
    papers.read_params(path) if source.name == "params.pth" else read_any(path)


def a_checkpoint(dice: random.Random, folder: Path) -> None:
    path, whole = folder / "run.training", made() / "run.training"
    another = dice.random() < 0.5
    path.write_bytes(described(dice, whole, "saemnesia-training") if another else flipped(dice, whole.read_bytes()))
    run = trainer()
    run.resume(path)
    run.run(lambda *_: None)


def stored_activations(dice: random.Random, folder: Path) -> None:
    acts = folder / "acts"
    shutil.copytree(made() / "acts", acts)
    if dice.random() < 0.6:
        index = acts / "index.json"
        index.write_text(json.dumps(changed(dice, json.loads(index.read_text()))))
    else:
        path = dice.choice(sorted(acts.glob("*.safetensors")))
        path.write_bytes(flipped(dice, path.read_bytes(), 700))
    origins, make = stored(acts)
    for number in (0, 1, *origins[0].held_out[:1]):
        make(number)


def a_report(dice: random.Random, folder: Path) -> None:
    path, whole = folder / "a.report.json", made() / "a.report.json"
    if dice.random() < 0.8:
        path.write_text(json.dumps(changed(dice, json.loads(whole.read_text()))))
    else:
        path.write_bytes(flipped(dice, whole.read_bytes()))
    report = from_json(path)
    report.as_text()
    as_svg(report).encode()


def chosen_text(dice: random.Random, folder: Path) -> None:
    choices = parse(text(dice))
    assert parse(format_choices(choices)) == choices
    sae = LoadedSae.read("one", made() / "one.safetensors")
    if dice.random() < 0.5:
        sae.choose([choice.name for choice in choices])


def listed_text(dice: random.Random, folder: Path) -> None:
    subjects = parse_subjects(text(dice))
    expand(dice.choice([text(dice), default_templates(subjects)]), subjects)


TARGETS: dict[str, Callable[[random.Random, Path], None]] = {
    "header": a_header, "file": a_file, "number": a_number, "published": a_published_folder, "pickle": a_pickle,
    "checkpoint": a_checkpoint, "stored": stored_activations, "report": a_report, "choices": chosen_text,
    "subjects": listed_text}


def attempt(name: str, number: int) -> bool:
    """Whether what was broken was read all the same. Raises AssertionError for any end but that and one sentence."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        try:
            TARGETS[name](random.Random(f"{name} {number}"), Path(folder))
            said = ""
        except SaeError as error:
            said = str(error)
            assert said and len(said) <= LONGEST, f"{name} {number}: {len(said)} characters: {said[:200]}"
            unseen = [c for c in said if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
            assert not unseen, f"{name} {number}: {said!r}"
        except Exception as error:
            raise AssertionError(f"{name} {number}: {type(error).__name__}: {str(error)[:300]}") from error
        took = time.monotonic() - began
        assert took < SLOW, f"{name} {number} took {took:.0f} s"
        return not said


def many(seconds: float, first: int) -> None:
    """One of each target after the other, until the time is over; counts and what failed are printed."""
    counts, failed, number, end = dict.fromkeys(TARGETS, 0), set(), first, time.monotonic() + seconds
    while time.monotonic() < end:
        for name in TARGETS:
            try:
                counts[name] += attempt(name, number)
            except AssertionError as error:
                failed.add(str(error))
                print(ascii(str(error)), flush=True)
        number += 1
    print(f"{number - first} of each: {len(failed)} failed; read all the same: {counts}")
    sys.exit(1 if failed else 0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--long", action="store_true", help="four hours")
    parser.add_argument("--first", type=int, default=10_000, help="the number of the first case")
    parser.add_argument("--only", nargs=2, metavar=("TARGET", "NUMBER"), help="one case, with its whole trace")
    given = parser.parse_args()
    logging.disable()
    if given.only:
        print("read" if attempt(given.only[0], int(given.only[1])) else "refused")
    else:
        many(4 * 3600 if given.long else given.seconds, given.first)


if __name__ == "__main__":
    main()
