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
SIDEBAR = words.SIDEBARS
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


def test_what_the_server_answers_is_what_the_code_says():
    assert list(read("en", "main")[words.ANSWERS]) == words.answers(), \
        "run `python -m tools.words`, then renew the other languages, then run it again"


@pytest.mark.parametrize(("name", "parts"), words.SAID.items())
def test_what_puts_answers_together_is_in_the_code(name, parts):
    source = code(name)
    assert all(re.search(rf"(def|class) {part}\b|^{part} = ", source, re.MULTILINE) for part in parts)


def test_the_sidebar_says_what_is_translated():
    sentences = set(json.loads((SIDEBAR / "de_DE.json").read_text("utf-8"))) - set(words.answers())
    source = code("saemnesia_webui/*.py", "javascript/*.mjs", "web/js/*.js")
    assert set(re.findall(r'\b(?:label|info)="([^"{]*)"', code("saemnesia_webui/*.py"))) <= sentences
    assert set(re.findall(r'\bsay\(\s*"([^"]*)"', code("javascript/*.mjs"))) <= sentences
    assert sentences <= set(QUOTED.findall(source)) | set(re.findall(r">([^<>]+)<", source))


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
    files = {path: json.loads(path.read_text("utf-8")) for path in sorted(SIDEBAR.glob("*.json"))}
    assert sorted(map(words.language_of, files)) == sorted(LANGUAGES)
    first = next(iter(files.values()))
    for path, sentences in files.items():
        assert sentences.keys() == first.keys() and all(sentences.values())
        assert read(words.language_of(path), "main")[words.ANSWERS].items() <= sentences.items(), \
            "run `python -m tools.words`"


REPORT = """
cat: 9% removed, others 0.0% touched, found in 9 s; this is little: say it in other words, or paint more pictures
cat (object): painting to learn from, step 3 of 48, about 2 min left
painting picture 13 of 16, about 5 min left, then it learns
my.safetensors, from 32 pictures: cat: 97% removed, others 0.0% touched, neurons: 2 at each of 6 places
SD 1.x, at 16 cross-attentions, with 10 concepts, made on cat
SD 1.x, at one place: cat, with 32 neurons without names
base model not said, block not said, with 1 concept"""


def retold(page, text: str) -> str:
    """What the server says, as the page says it."""
    return page.evaluate("""async (text) => (await import(
        "/extensions/comfyui-saemnesia/js/words.js")).retold(text)""", text)


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
        checkpoint, eraser = canvas.add(page, "CheckpointLoaderSimple", 40, 300), canvas.add(
            page, "SAEmnesiaEraseWords", 700, words="cat:much")
        for output, name in enumerate(("model", "clip")):
            page.evaluate("""([from, output, to, name]) => {
                const node = app.graph.getNodeById(to)
                app.graph.getNodeById(from).connect(output, node, node.inputs.findIndex((one) => one.name === name))
            }""", [checkpoint, output, eraser, name])
        with pytest.raises(AssertionError, match="is not a strength"):
            canvas.queue_and_wait(page)
        expect(page.locator(".saemnesia-report")).to_contain_text("'cat:much' 中的 'much' 不是强度：")
        assert not re.search("[a-z]{4}", re.sub("cat|object|safetensors", "", retold(page, REPORT)))
        title = page.evaluate("id => app.graph.getNodeById(id).title", picker)
        assert title == read("zh", "nodeDefs")["SAEmnesiaConceptPicker"]["display_name"]
        page.context.close()
