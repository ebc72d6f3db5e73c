"""ComfyUI's page in a browser: build a graph in it, look at the concept picker, run what is on the canvas."""
import time
from typing import Any, NamedTuple
from urllib.parse import urlencode

from playwright.sync_api import Browser, Locator, Page

from tools.comfy_host import ComfyHost

ERASE, PICKER, LOADER = "SAEmnesiaErase", "SAEmnesiaConceptPicker", "SAEmnesiaLoadSAE"
READY = "() => Boolean(window.app?.extensionManager && window.LiteGraph?.registered_node_types?.SAEmnesiaErase)"
EMPTY = {"last_node_id": 0, "last_link_id": 0, "nodes": [], "links": [], "version": 0.4}


BOX = """id => {
    const node = app.graph.getNodeById(id), html = document.querySelector(`.lg-node[data-node-id="${id}"]`)
    const { left, top } = app.canvas.canvas.getBoundingClientRect(), [dx, dy] = app.canvas.ds.offset
    const box = html?.getBoundingClientRect()
    return box ? [box.left, box.top, box.right, box.bottom] : [node.pos[0] + dx + left, node.pos[1] + dy + top,
        node.pos[0] + node.size[0] + dx + left, node.pos[1] + node.size[1] + dy + top]
}"""


class Shown(NamedTuple):
    """One concept as the list shows it."""
    name: str
    ticked: bool
    strength: str


def open_page(browser: Browser, host: ComfyHost, nodes2: bool, without: str = "") -> Page:
    """ComfyUI with an empty canvas, in a fresh browser.

    `nodes2`: the renderer that draws nodes in HTML; `without`: addresses that are not to be had.
    """
    host.post("/settings", {"Comfy.VueNodes.Enabled": nodes2, "Comfy.Minimap.Visible": False})
    page = browser.new_context(base_url=host.url, viewport={"width": 1400, "height": 1000}).new_page()
    if without:
        page.route(without, lambda route: route.abort())
    page.goto("/")
    page.wait_for_function(READY, timeout=120_000)
    page.wait_for_function("nodes2 => Boolean(LiteGraph.vueNodesMode) === nodes2", arg=nodes2)
    load(page, EMPTY)
    return page


def show_origin(page: Page) -> None:
    """Put the graph's corner a little below the menus, at full size, and wait until that is drawn."""
    page.evaluate("""async () => {
        Object.assign(app.canvas.ds, { scale: 1, offset: [60, 60] })
        app.canvas.setDirty(true, true)
        for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame)
    }""")


def add(page: Page, kind: str, x: int = 400, y: int = 60, **values: Any) -> int:
    """Put a node on the canvas with these widget values, and return its id."""
    return page.evaluate("""([kind, x, y, values]) => {
        const node = LiteGraph.createNode(kind)
        node.pos = [x, y]
        app.canvas.graph.add(node)
        for (const [name, value] of Object.entries(values)) node.widgets.find((w) => w.name === name).value = value
        return Number(node.id)
    }""", [kind, x, y, values])


def link(page: Page, source: int, target: int, name: str = "sae") -> None:
    """Wire the first output of one node to an input of another."""
    page.evaluate("""([source, target, name]) => {
        const [from, to] = [source, target].map((id) => app.canvas.graph.getNodeById(id))
        from.connect(0, to, name ? to.inputs.findIndex((input) => input.name === name) : 0)
    }""", [source, target, name])


def set_widget(page: Page, node: int, name: str, value: Any) -> None:
    """Change a widget as the front end does when a person has chosen: its value, then its callback."""
    page.evaluate("""([id, name, value]) => {
        const node = app.canvas.graph.getNodeById(id)
        const widget = node.widgets.find((candidate) => candidate.name === name)
        widget.value = value
        widget.callback?.(value, app.canvas, node)
    }""", [node, name, value])


def linked_picker(page: Page, sae: str, kind: str = ERASE, text: str = "") -> tuple[int, int]:
    """*Load SAE* wired to the one node on the canvas that lists concepts: their ids."""
    loader, node = add(page, LOADER, 60, sae_name=sae), add(page, kind, concepts=text)
    link(page, loader, node)
    wait_for_list(page)
    return loader, node


def wait_for_list(page: Page) -> None:
    page.locator(".saemnesia-list").wait_for()


def text_box(page: Page) -> Locator:
    """The text field `concepts`, in whichever renderer draws it."""
    return page.locator(".comfy-multiline-input, .lg-node textarea").locator("visible=true")


def about(page: Page) -> Locator:
    """The line below *Load SAE*."""
    return page.locator(".saemnesia-about")


def boxes(page: Page) -> dict[str, list[float]]:
    """{title and id of a node: left, top, right and bottom of it, with its title}."""
    return page.evaluate("""() => Object.fromEntries(app.graph.nodes.map((node) => {
        const html = document.querySelector(`.lg-node[data-node-id="${node.id}"]`)?.getBoundingClientRect()
        const [x, y] = node.pos, [width, height] = node.size
        return [`${node.title} ${node.id}`, html ? [html.left, html.top, html.right, html.bottom]
            : [x, y - LiteGraph.NODE_TITLE_HEIGHT, x + width, y + height]]
    }))""")


def is_inside_its_node(one: Locator, page: Page, node: int) -> bool:
    """Whether an element is seen whole in its node, whichever renderer draws that, once the page has laid it out."""
    show_origin(page)
    end = time.monotonic() + 10
    while not (inside := _is_inside(one, page, node)) and time.monotonic() < end:
        page.wait_for_timeout(100)
    return inside


def _is_inside(one: Locator, page: Page, node: int) -> bool:
    one.wait_for()
    left, top, right, bottom = page.evaluate(BOX, node)
    box = one.bounding_box()
    uncut = one.evaluate("(it) => it.scrollHeight <= it.clientHeight + 1 && it.scrollWidth <= it.clientWidth + 1")
    return uncut and left <= box["x"] and box["x"] + box["width"] <= right and (
        top <= box["y"] and box["y"] + box["height"] <= bottom)


def offered(page: Page, node: int, nodes2: bool) -> list[str]:
    """What a person is offered who opens the list of a *Load SAE*."""
    if not nodes2:
        return page.evaluate("""id => app.graph.getNodeById(id).widgets.find((widget) => widget.name === 'sae_name')
            .options.values""", node)
    page.locator(f'.lg-node[data-node-id="{node}"]').get_by_role("combobox").first.click()
    options = page.get_by_role("option").all_inner_texts()
    page.keyboard.press("Escape")
    return options


def choose(page: Page, node: int, name: str, option: str, nodes2: bool) -> None:
    """Choose from a list as people do: click on it (in Nodes 2.0 on the node's first one), and on the option."""
    if nodes2:
        page.locator(f'.lg-node[data-node-id="{node}"]').get_by_role("combobox").first.click()
        page.get_by_role("option", name=option).click()
        return
    x, y = page.evaluate("""([id, name]) => {
        const node = app.graph.getNodeById(id), widget = node.widgets.find((candidate) => candidate.name === name)
        const { left, top } = app.canvas.canvas.getBoundingClientRect(), { scale, offset: [dx, dy] } = app.canvas.ds
        const x = node.pos[0] + node.size[0] / 2, y = node.pos[1] + widget.last_y + 10
        return [(x + dx) * scale + left, (y + dy) * scale + top]
    }""", [node, name])
    page.mouse.click(x, y)
    page.get_by_text(option, exact=True).click()


def opacity(one: Locator) -> float:
    """How much of an element is seen, with all that it is in."""
    return one.evaluate("""(element) => {
        let seen = 1
        for (let at = element; at; at = at.parentElement) seen *= Number(getComputedStyle(at).opacity)
        return seen
    }""")


def row(page: Page, name: str) -> Locator:
    exactly = page.locator(".saemnesia-name").get_by_text(name, exact=True)
    return page.locator(".saemnesia-row").filter(has=exactly)


def tick(page: Page, name: str) -> None:
    """Click the concept as a person does."""
    row(page, name).get_by_role("checkbox").click()


def strength(page: Page, name: str) -> Locator:
    return row(page, name).locator(".saemnesia-strength")


def figures(page: Page, name: str) -> Locator:
    return row(page, name).locator(".saemnesia-figures")


def measured(page: Page, name: str) -> tuple[str, str]:
    """The share and the warning in a concept's row, as they are seen."""
    seen = figures(page, name)
    warning = seen.locator(".saemnesia-warning")
    share = seen.locator(".saemnesia-removed").inner_text().replace("\u00a0", " ")
    return share, warning.inner_text() if warning.count() else ""


def figure_ends(page: Page, *names: str) -> list[int]:
    """Where in the page the shares of these concepts end on the right."""
    boxes = [figures(page, name).bounding_box() for name in names]
    return [round(box["x"] + box["width"]) for box in boxes]


def fits(one: Locator, part: str) -> bool:
    """Whether this part of a row is seen whole: uncut, on one line and inside its label."""
    return one.locator(part).evaluate("""(part) => {
        const [inner, outer] = [part, part.closest("label")].map((element) => element.getBoundingClientRect())
        const uncut = part.scrollWidth <= Math.ceil(inner.width) && inner.height < 20
        return uncut && inner.left >= outer.left && inner.right <= outer.right + 0.5
    }""")


def shown(page: Page) -> dict[str, list[Shown]]:
    """{heading: concepts} of what the list shows."""
    groups = page.locator(".saemnesia-list > [role=group]").locator("visible=true")
    return {group.get_attribute("aria-label"): [_shown(one) for one in _rows(group)] for group in groups.all()}


def _rows(group: Locator) -> list[Locator]:
    return group.locator(".saemnesia-row").locator("visible=true").all()


def _shown(one: Locator) -> Shown:
    field = one.locator(".saemnesia-strength")
    return Shown(one.locator(".saemnesia-name").inner_text(), one.get_by_role("checkbox").is_checked(),
                 field.input_value() if field.is_visible() else "")


def ticked(page: Page) -> list[str]:
    """What is ticked, with its strength as in the text."""
    found = [one for group in shown(page).values() for one in group if one.ticked]
    return [f"{one.name}:{one.strength}" if one.strength else one.name for one in found]


def drag_corner(page: Page, node: int, right: int, down: int) -> None:
    """Resize a node by its lower right corner."""
    _, _, x, y = page.evaluate(BOX, node)
    x, y = x - 3, y - 3
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + right, y + down, steps=5)
    page.mouse.up()


def keep_what_is_said(page: Page) -> None:
    """Note all that the page's one report says from now on."""
    page.evaluate("""() => {
        window.said = []
        const report = document.querySelector(".saemnesia-report")
        const changes = { childList: true, subtree: true }
        if (report) new MutationObserver(() => said.push(report.textContent)).observe(report, changes)
    }""")


def said(page: Page) -> list[str]:
    return page.evaluate("() => said")


def saved(page: Page) -> dict[str, Any]:
    """The workflow as it is saved."""
    return page.evaluate("() => JSON.parse(JSON.stringify((app.rootGraph ?? app.graph).serialize()))")


def values_of(workflow: dict[str, Any], kind: str) -> list[Any]:
    """What a workflow keeps of the widgets of its one node of that kind."""
    (node,) = [node for node in workflow["nodes"] if node["type"] == kind]
    return node["widgets_values"]


def load(page: Page, workflow: dict[str, Any]) -> None:
    page.evaluate("async (workflow) => { await app.loadGraphData(workflow, true, true) }", workflow)
    show_origin(page)


def prompt_of(page: Page, kind: str) -> dict[str, Any]:
    """The inputs that the API format gives the one node of that kind."""
    output = page.evaluate("async () => (await app.graphToPrompt()).output")
    (inputs,) = [node["inputs"] for node in output.values() if node["class_type"] == kind]
    return inputs


def queue_and_wait(page: Page, timeout: float = 600) -> list[bytes]:
    """Run what is on the canvas, as the Run button does: its pictures, or an error with the failing node's sentence."""
    answer = page.evaluate("""async (seconds) => {
        const { api } = await import("/scripts/api.js")
        const ended = new Promise((resolve) => {
            api.addEventListener("execution_success", ({ detail }) => resolve({ id: detail.prompt_id }), { once: true })
            api.addEventListener("execution_error", ({ detail }) =>
                resolve({ error: `${detail.node_type}: ${detail.exception_message}` }), { once: true })
            setTimeout(() => resolve({ error: `did not end within ${seconds} s` }), seconds * 1000)
        })
        await app.queuePrompt(0)
        const refused = Object.keys(app.lastNodeErrors ?? {}).length && JSON.stringify(app.lastNodeErrors)
        const { id, error } = refused ? { error: refused } : await ended
        if (error) return { error }
        // the end is told before the record is kept
        const kept = async () => (await (await api.fetchApi(`/history/${id}`)).json())[id]
        let record
        while (!(record = await kept())) await new Promise((resolve) => setTimeout(resolve, 100))
        return { images: Object.values(record.outputs).flatMap((output) => output.images ?? []) }
    }""", timeout)
    if "error" in answer:
        raise AssertionError(answer["error"])
    return [page.request.get("/view?" + urlencode(image)).body() for image in answer["images"]]
