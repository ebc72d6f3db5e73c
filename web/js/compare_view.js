/**
 * What *Compare* painted, below its widgets: before and after in one picture with a slider between them, or their
 * difference; of a grid the sheet. All of it can be shown large.
 *
 * The view is a DOM widget that is never saved. It is there from the start, because Nodes 2.0 shows no widget that
 * comes later.
 */
import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"
import { keepFromCanvas } from "./concept_picker.js" // which so is there first, and its list above the view
import { followMode } from "./node_look.js"
import { after, afterLoading, keptOf } from "./sae_source.js"
import { say } from "./words.js"

const COMPARE = "SAEmnesiaCompare"
/** Parts of an output, each a list of pictures: of a grid the sheet, else the other three. */
const PARTS = { before: "Before", after: "After", difference: "Difference", sheet: "Sheet" }
const EMPTY = 46 // pixels of the view's height before a run, and at least after it
const FULL = 300
const MARGIN = 20 // what the canvas leaves free above and below a DOM widget, together
const MIDDLE = 50

const CSS = `
.saemnesia-compared { display: flex; flex-direction: column; width: 100%; height: 100%; }
.saemnesia-compare { display: flex; flex: 1 1 0px; flex-direction: column; gap: 4px; box-sizing: border-box; width: 100%;
  height: 100%; min-height: 0; font: 12px/1.4 Inter, Arial, sans-serif; color: var(--input-text); text-align: left; }
.saemnesia-compare > p { margin: 0; padding: 2px; color: var(--descrip-text); }
.saemnesia-frame { flex: 1 1 0px; min-height: 0; container-type: size; display: grid; place-items: center; }
.saemnesia-stage { position: relative; overflow: hidden; aspect-ratio: var(--ratio);
  width: min(100cqw, calc(100cqh * var(--ratio))); border-radius: 4px; }
.saemnesia-stage img { position: absolute; inset: 0; width: 100%; height: 100%; user-select: none; }
.saemnesia-stage .saemnesia-before { clip-path: inset(0 calc(100% - var(--at)) 0 0); }
.saemnesia-edge { position: absolute; top: 0; bottom: 0; left: var(--at); width: 2px; margin-left: -1px; background: #fff;
  box-shadow: 0 0 3px #000; pointer-events: none; }
.saemnesia-stage:has(:focus-visible) .saemnesia-edge { width: 4px; margin-left: -2px; background: #4aa3ff; }
.saemnesia-stage span { position: absolute; top: 6px; padding: 0 6px; border-radius: 8px; color: #fff; background: #000a;
  pointer-events: none; }
.saemnesia-stage span:first-of-type { left: 6px; }
.saemnesia-stage span:last-of-type { right: 6px; }
.saemnesia-stage input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0;
  cursor: ew-resize; appearance: none; }
.saemnesia-stage input::-webkit-slider-thumb { appearance: none; width: 1px; height: 100%; }
.saemnesia-stage input::-moz-range-thumb { width: 1px; height: 100%; border: 0; }
.saemnesia-tools { display: flex; flex: none; gap: 6px; align-items: center; }
.saemnesia-tools > span { flex: 1; min-width: 0; overflow-wrap: anywhere; line-height: 15px; color: var(--descrip-text); }
.saemnesia-tools button { flex: none; height: 24px; padding: 0 8px; font: inherit; color: inherit; cursor: pointer;
  background: var(--comfy-input-bg); border: 1px solid var(--border-color); border-radius: 4px; }
.saemnesia-tools button[aria-pressed="true"] { background: var(--input-text); color: var(--comfy-input-bg); }
.saemnesia-tools button:focus-visible { outline: 1px solid var(--input-text); outline-offset: 1px; }
.saemnesia-compare [hidden], .saemnesia-enlarged [hidden] { display: none; }
.saemnesia-enlarged { width: 96vw; height: 94vh; box-sizing: border-box; margin: auto; padding: 12px; color: var(--input-text);
  border: 1px solid var(--border-color); border-radius: 8px; background: var(--comfy-menu-bg); }
.saemnesia-enlarged::backdrop { background: rgb(0 0 0 / 70%); }
`

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties)
  made.append(...children)
  return made
}

const button = (text, onclick) => element("button", { type: "button", textContent: text, onclick })

const address = ({ filename, subfolder, type }) =>
  api.apiURL(`/view?${new URLSearchParams({ filename, subfolder: subfolder ?? "", type: type ?? "temp" })}`)

class View {
  output = null // what the last run showed
  number = 0 // which of several pictures is shown

  constructor(node) {
    this.node = node
    this.makeStage()
    this.makeTools()
    this.hint = element("p", { textContent: say("The pictures are shown here after a run.") })
    this.frame = element("div", { className: "saemnesia-frame" }, this.stage)
    this.content = element("div", { className: "saemnesia-compare" }, this.hint, this.frame, this.tools)
    this.root = element("div", { className: "saemnesia-compared widget-expands" }, element("style", { textContent: CSS }), this.content)
    keepFromCanvas(this.content, this.frame)
    this.draw()
  }

  makeStage() {
    this.images = Object.fromEntries(Object.entries(PARTS).map(([part, name]) =>
      [part, element("img", { className: `saemnesia-${part}`, draggable: false, alt: say(name) })]))
    this.images.after.onload = this.images.sheet.onload = ({ target }) => this.fit(target)
    this.slider = element("input", { type: "range", min: "0", max: "100", step: "any", value: String(MIDDLE),
      ariaLabel: say("How much of the picture shows it before") })
    this.slider.oninput = () => this.move()
    this.over = [element("div", { className: "saemnesia-edge" }), element("span", { textContent: say(PARTS.before) }),
      element("span", { textContent: say(PARTS.after) }), this.slider]
    const { before, after, difference, sheet } = this.images
    this.stage = element("div", { className: "saemnesia-stage" }, after, before, difference, sheet, ...this.over)
    this.move()
  }

  makeTools() {
    this.said = element("span", { role: "status" })
    this.toggle = button(say(PARTS.difference), () => this.press(this.toggle.ariaPressed !== "true"))
    this.toggle.ariaPressed = "false"
    this.next = button("", () => this.turn())
    this.large = button(say("Enlarge"), () => (this.dialog?.open ? this.dialog.close() : this.enlarge()))
    this.tools = element("div", { className: "saemnesia-tools" }, this.toggle, this.next, this.said, this.large)
  }

  /** Show what a run made: { before, after, difference } or { sheet }, each pictures, and { changed }. */
  show(output) {
    this.output = output
    this.number = 0
    this.root.style.minHeight = `${this.height()}px`
    this.draw()
    this.node.expandToFitContent?.()
    this.node.setDirtyCanvas(true, true)
  }

  height() {
    return this.output ? FULL : EMPTY
  }

  draw() {
    const { output, number } = this
    this.hint.hidden = Boolean(output)
    this.frame.hidden = this.tools.hidden = !output
    if (!output) return
    for (const [part, image] of Object.entries(this.images)) {
      const picture = output[part]?.[number]
      if (picture) image.src = address(picture)
      else image.removeAttribute("src")
    }
    this.images.sheet.hidden = !output.sheet
    this.toggle.hidden = Boolean(output.sheet)
    this.next.hidden = !(output.after?.length > 1)
    this.next.textContent = `${number + 1} / ${output.after?.length}`
    this.next.title = say("Show the next picture")
    this.said.textContent = output.sheet ? "" : this.inWords(output.changed?.[number])
    this.press(this.toggle.ariaPressed === "true")
  }

  inWords(share) {
    if (!Number.isFinite(share)) return ""
    if (!share) return say("Nothing visible has changed.")
    return say("{share} of the picture has changed.", { share: `${Number((100 * share).toFixed(1))}\u00a0%` })
  }

  /** Show the difference, or before and after with the slider between them. */
  press(difference) {
    const sheet = Boolean(this.output?.sheet)
    this.toggle.ariaPressed = String(difference)
    this.images.difference.hidden = sheet || !difference
    for (const part of [this.images.before, this.images.after]) part.hidden = sheet || difference
    for (const part of this.over) part.hidden = sheet || difference
  }

  turn() {
    this.number = (this.number + 1) % this.output.after.length
    this.draw()
  }

  move() {
    this.stage.style.setProperty("--at", `${this.slider.value}%`)
    this.slider.ariaValueText = `${Math.round(this.slider.value)}\u00a0%`
  }

  fit({ naturalWidth, naturalHeight }) {
    this.stage.style.setProperty("--ratio", naturalWidth / naturalHeight)
  }

  /** All of the view goes into a dialog as large as the window, and back when that is closed. */
  enlarge() {
    this.dialog ??= element("dialog", { className: "saemnesia-enlarged", onclose: () => this.shrink(), onkeydown })
    this.dialog.append(this.content)
    document.body.append(this.dialog)
    this.large.textContent = say("Close")
    this.dialog.showModal()
  }

  shrink() {
    this.root.append(this.content)
    this.large.textContent = say("Enlarge")
    this.dialog.remove()
  }
}

/** No shortcut of the canvas, which may take this one before the browser does. */
function onkeydown(event) {
  event.stopPropagation()
  if (event.key === "Escape") event.currentTarget.close()
}

// --- in the page ----------------------------------------------------------------------------------------

const views = new WeakMap() // node -> its view
let made = 0 // see concept_picker.js: a removed node's element must not come back under the same name

const isShown = (output) => Boolean(output?.sheet?.length || output?.after?.length)

function addView(node) {
  const view = new View(node)
  const widget = node.addDOMWidget(`compare_${++made}`, "saemnesia_compare", view.root, {
    serialize: false, // not in the API format; the next line: not in the workflow
    hideInPanel: true,
    getMinHeight: () => view.height() + MARGIN,
    getMaxHeight: () => (view.output ? undefined : view.height() + MARGIN),
  })
  widget.serialize = false
  views.set(node, view)
  followMode(node, view.root)
  after(node, "onExecuted", (output) => isShown(output) && view.show(output))
}

app.registerExtension({
  name: "SAEmnesia.Compare",
  nodeCreated(node) {
    if (node.comfyClass === COMPARE) addView(node)
  },
  afterConfigureGraph: () => afterLoading((node) => {
    const output = views.has(node) && keptOf(node)
    if (isShown(output)) views.get(node).show(output)
  }),
})
