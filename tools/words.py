"""Write what is to be translated anew from the code: locales/en/nodeDefs.json, what the nodes say in the page, and in
locales/en/main.json what the server answers; the other languages follow it, and the sidebar's files those.

    .host/venv/bin/python -m tools.words

ComfyUI shows locales/<language>/nodeDefs.json in place of the former; the page itself looks up the latter, in which
{1}, {2} ... are places for values. tests/host/test_languages.py says what a language lacks.
"""
import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sae_models.storage import write_json, write_text
from tools.comfy_host import ComfyHost

REPO = Path(__file__).resolve().parents[1]
LOCALES = REPO / "locales"
SIDEBARS = REPO / "localizations"
ANSWERS = "saemnesia_answers"
COMMANDS = ("nodes/command", "sae_models/convert/", "sae_models/hub/card", "sae_models/hub/sharing",
            "sae_models/learning/find.", "sae_models/learning/maps", "sae_models/learning/origin",
            "sae_models/learning/parallel", "sae_models/learning/shard", "sae_models/learning/train.")
"""Modules whose sentences stand in a terminal only."""
SAID = {
    "nodes/concept_map.py": ("execute",), "nodes/export.py": ("execute",), "nodes/find.py": ("execute",),
    "nodes/progress.py": ("__call__",), "nodes/train.py": ("execute", "Shown"),
    "sae_models/adapter.py": ("idle", "elsewhere", "unfit", "NO_STEP", "about", "_where"),
    "sae_models/concepts.py": ("_no_strength",), "sae_models/formats/reading.py": ("pickle_advice",),
    "sae_models/learning/prompts.py": ("_refuse_unreadable",),
    "sae_models/hub/fetching.py": ("_sentences", "refusal"), "saemnesia_webui/job.py": ("NOTHING", "MIXED"),
    "saemnesia_webui/looking.py": ("CUT", "MIXED"),
    "sae_models/learning/measuring.py": ("in_words",), "sae_models/learning/words.py": ("report",),
    "sae_models/learning/pace.py": ("left",), "sae_models/learning/report.py": ("verdict", "in_words"),
    "sae_models/learning/search.py": ("_maps", "_chosen", "own_tables"),
    "saemnesia_webui/find.py": ("__call__", "_found"), "saemnesia_webui/panel.py": ("concept_list", "_about"),
}
"""Functions, classes and constants that put together what is said and is no literal of a refusal."""
LEAST = 5
"""Letters that a sentence has beside its values."""


def node_words(about: dict[str, Any]) -> dict[str, Any]:
    """The words of one node, of its entry in /object_info, in the layout of nodeDefs.json."""
    inputs = {name: {"name": name, "tooltip": options[0]["tooltip"]} if "tooltip" in (options[0] if options else {})
              else {"name": name}
              for group in ("required", "optional") for name, (_, *options) in about["input"].get(group, {}).items()}
    outputs = {str(i): {"name": name, "tooltip": tip} for i, (name, tip) in
               enumerate(zip(about["output_name"], about.get("output_tooltips") or [], strict=True))}
    return {"display_name": about["display_name"], "description": about["description"], "inputs": inputs,
            "outputs": outputs}


def of_host(host: ComfyHost) -> dict[str, Any]:
    """{node id: its words} of the extension's nodes."""
    return {name: node_words(about) for name, about in sorted(host.get_json("/object_info").items())
            if about["category"] == "SAEmnesia"}


def answers() -> list[str]:
    """What the server says: its refusals, and what is `SAID`; {1}, {2} ... where it fills in values."""
    found: set[str] = set()
    for path in sorted(path for folder in ("sae_models", "nodes", "saemnesia_webui")
                       for path in (REPO / folder).rglob("*.py")):
        name, tree = path.relative_to(REPO).as_posix(), ast.parse(path.read_text("utf-8"))
        if not name.startswith(COMMANDS):
            found.update(text for call in ast.walk(tree) if _is_refusal(call) for text in _texts(call))
        found.update(text for part in ast.walk(tree) if _name(part) in SAID.get(name, ()) for text in _texts(part))
    return sorted(text for text in found if _is_sentence(text))


def _is_sentence(text: str) -> bool:
    letters = re.sub(r"[\W\d]", "", re.sub(r"{\d*}", "", text))
    return len(letters) >= LEAST and " " in text and "%s" not in text and not text.startswith("{}")


def _name(part: ast.AST) -> str:
    """Of a function, a class, or a constant."""
    return part.targets[0].id if isinstance(part, ast.Assign) and isinstance(part.targets[0], ast.Name) else getattr(
        part, "name", "")


def _is_refusal(call: ast.AST) -> bool:
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "SaeError"


def _texts(tree: ast.AST) -> Iterator[str]:
    """The strings below a part of the code, but for its docstrings and what is inside of others."""
    if isinstance(tree, ast.JoinedStr):
        values = [part for part in tree.values if isinstance(part, ast.FormattedValue)]
        yield "".join(part.value if isinstance(part, ast.Constant) else f"{{{values.index(part) + 1}}}"
                      for part in tree.values)
        for value in values:
            yield from _texts(value.value)
    elif isinstance(tree, ast.Constant) and isinstance(tree.value, str):
        names = list(dict.fromkeys(re.findall(r"{(\w+)(?::\w*)?}", tree.value)))
        yield re.sub(r"{([^\W\d]\w*)(?::\w*)?}", lambda place: f"{{{names.index(place[1]) + 1}}}", tree.value)
    elif not (isinstance(tree, ast.Expr) and isinstance(tree.value, ast.Constant)):
        for part in ast.iter_child_nodes(tree):
            yield from _texts(part)


def renew() -> None:
    """The answers in English; and in the sidebar's files what locales/<language>/main.json says for them."""
    path = LOCALES / "en" / "main.json"
    write_json(path, _read(path) | {ANSWERS: {text: text for text in answers()}})
    for sidebar in SIDEBARS.glob("*.json"):
        own = {english: other for english, other in _read(sidebar).items() if not re.search(r"{\d+}", english)}
        both = own | _read(LOCALES / language_of(sidebar) / "main.json").get(ANSWERS, {})
        write_text(sidebar, json.dumps(both, indent=1, ensure_ascii=False) + "\n")


def language_of(sidebar: Path) -> str:
    """The folder of locales/ in the language of a file of localizations/: zh-TW for zh_TW.json, de for de_DE.json."""
    whole, part = sidebar.stem.replace("_", "-"), sidebar.stem[:2]
    return whole if (LOCALES / whole).exists() else part


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


if __name__ == "__main__":
    renew()
    with ComfyHost() as running:
        write_json(LOCALES / "en" / "nodeDefs.json", of_host(running))
