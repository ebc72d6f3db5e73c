"""What nodes, page and sidebar say in other languages: nothing is missing, and nothing says another thing."""
import json
import re
from pathlib import Path
from typing import Any

import pytest
import widget_helpers as canvas
from playwright.sync_api import expect

from tools import words
from tools.comfy_host import NEWEST_FRONTEND, ComfyHost

REPO = Path(__file__).parents[2]
LANGUAGES = ("zh", "zh-TW", "ja", "ko", "fr", "de", "es", "ru")
SIDEBAR = REPO / "localizations"
QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


def read(language: str, name: str) -> dict[str, Any]:
    return json.loads((words.LOCALES / language / f"{name}.json").read_text("utf-8"))


def flat(tree: Any, path: str = "") -> dict[str, str]:
    """{path: sentence} of nested words."""
    if isinstance(tree, str):
        return {path: tree}
    return {key: value for name, part in tree.items() for key, value in flat(part, f"{path}/{name}").items()}


def code(*patterns: str) -> str:
    """Source in which a sentence over several lines is in one."""
    text = "\n".join(path.read_text("utf-8") for pattern in patterns for path in sorted(REPO.glob(pattern)))
    return re.sub(r'"\s*\+?\s*\n\s*"', "", text)


def test_the_english_words_are_those_of_the_nodes(host):
    assert read("en", "nodeDefs") == words.of_host(host), "run `python -m tools.words`, then renew the other languages"


def test_the_english_sentences_are_those_of_the_page():
    sentences, source = set(read("en", "main")["saemnesia"]), code("web/js/*.js")
    assert set(re.findall(r'\bsay\(\s*"([^"]*)"', source)) <= sentences
    assert sentences <= set(QUOTED.findall(source))


def test_the_sidebar_says_what_is_translated():
    sentences = json.loads((SIDEBAR / "de_DE.json").read_text("utf-8"))
    source = code("saemnesia_webui/*.py", "javascript/*.mjs", "web/js/*.js")
    assert set(re.findall(r'\b(?:label|info)="([^"{]*)"', code("saemnesia_webui/*.py"))) <= set(sentences)
    assert set(sentences) <= set(QUOTED.findall(source)) | set(re.findall(r">([^<>]+)<", source))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_lacks_nothing_and_keeps_what_is_filled_in(language):
    for name in ("nodeDefs", "main"):
        english, other = flat(read("en", name)), flat(read(language, name))
        assert other.keys() == english.keys()
        for path, sentence in english.items():
            slots = [set(re.findall(r"\{\w*\}", text)) for text in (sentence, other[path])]
            assert slots[0] == slots[1], path
            assert other[path] != sentence or len(sentence.split()) < 3, path


def test_every_sidebar_has_the_same_sentences():
    files = [json.loads(path.read_text("utf-8")) for path in sorted(SIDEBAR.glob("*.json"))]
    assert len(files) == len(LANGUAGES)
    assert all(one.keys() == files[0].keys() and all(one.values()) for one in files)


def test_the_page_speaks_chinese(browser):
    """In the newest front end; the pinned one forgets the names of custom nodes in all languages but English."""
    with ComfyHost("--front-end-root", str(NEWEST_FRONTEND)) as host:
        host.post("/settings", {"Comfy.Locale": "zh"})
        page = canvas.open_page(browser, host, nodes2=False)
        picker = canvas.add(page, canvas.PICKER)
        canvas.link(page, canvas.add(page, canvas.LOADER, 40), picker)
        canvas.show_origin(page)
        told = read("zh", "main")["saemnesia"]
        expect(page.get_by_placeholder(told["Search concepts"])).to_be_visible()
        title = page.evaluate("id => app.graph.getNodeById(id).title", picker)
        assert title == read("zh", "nodeDefs")["SAEmnesiaConceptPicker"]["display_name"]
        page.context.close()
