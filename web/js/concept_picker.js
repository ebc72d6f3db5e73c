/**
 * The list of an SAE's concepts below the text `concepts`, with a tick and a strength each, and what became of it in
 * the last run.
 *
 * The text is ComfyUI's own multiline widget and the only state: a tick rewrites it, typing in it moves the ticks.
 * The list is a DOM widget that is never saved and stands last, so that it shifts no saved value.
 */
import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"
import { figures } from "./concept_figures.js"
import { firedLines, firedMark } from "./concept_fired.js"
import { byName, choose, drop, isStrength, key, near, parse } from "./concept_text.js"
import { onFired } from "./last_run.js"
import { followMode } from "./node_look.js"
import { after, chooserOf, findCheckpoint, findSae, graphs, LOADER, onFilesChanged, readSae } from "./sae_source.js"
import { retold, say } from "./words.js"

const PICKERS = ["SAEmnesiaErase", "SAEmnesiaConceptPicker", "SAEmnesiaConceptMap", "SAEmnesiaCompare"]
const WITHOUT_STRENGTH = "SAEmnesiaConceptMap"

const UNKNOWN = "Not in this SAE"
const NUMBERED = "Latents by number"
const KINDS = { object: "Objects", style: "Styles" }
const OTHER = "Other concepts"
const CHOSEN = "Chosen"
const STEP = 0.1 // of a strength, for an arrow key or a notch of the wheel

const FULL = { low: 0, high: 1, start: 1, usual: "1", hint: "Strength: 1 erases fully, 0 changes nothing" }
const SIGNED = { low: -100, high: 100, start: -1, usual: "-1",
  hint: "Strength: -1 erases, below -1 pushes further away, above 0 strengthens the concept" }
const AMOUNT = { low: -1, high: 2, start: 1, usual: "1", slides: true,
  hint: "Strength: 0 changes nothing, 1 erases fully, and between them the concept goes about evenly; " +
    "above 1 pushes further away, below 0 strengthens the concept" }
const EITHER = { low: -100, high: 100, start: 1, usual: "full",
  hint: "Strength; left empty it erases fully, whatever the actuator" }

const LIST_HEIGHT = 232
const HINT_HEIGHT = 40
const ERROR_HEIGHT = 72
const TEXT_HEIGHT = 84
const [LINE, LINES] = [17, 4] // of what is said of the last run: a line's height, and how many are seen at once
const MARGIN = 20 // what the canvas leaves free above and below a DOM widget, together

const CSS = `
.saemnesia-picker { --fill: var(--comfy-input-bg); --line: var(--border-color); --round: 4px;
  --warning: color-mix(in srgb, #f59e0b 50%, var(--input-text));
  display: flex; flex-direction: column; gap: 4px; box-sizing: border-box; width: 100%; height: 100%;
  container-type: inline-size; font: 12px/1.4 Inter, Arial, sans-serif; color: var(--input-text); text-align: left; }
.lg-node .saemnesia-picker { --fill: var(--component-node-widget-background); --line: transparent; --round: 8px; }
.saemnesia-bar { display: flex; flex: none; gap: 6px; align-items: center; }
.saemnesia-picker :where(input[type="text"], button, .saemnesia-list) { box-sizing: border-box; min-width: 0; margin: 0;
  font: inherit; color: inherit; background: var(--fill); border: 1px solid var(--line); border-radius: var(--round); }
.saemnesia-picker :where(input[type="text"], button) { height: 24px; padding: 0 6px; }
.saemnesia-picker button { cursor: pointer; }
.saemnesia-picker button:disabled { opacity: 0.5; cursor: default; }
.saemnesia-picker .saemnesia-search { flex: 1; }
.saemnesia-count { color: var(--descrip-text); white-space: nowrap; }
.saemnesia-picker .saemnesia-list { flex: 1 1 0px; min-height: 0; overflow-y: auto; overscroll-behavior: contain;
  outline: none; }
.saemnesia-kind { display: flex; justify-content: space-between; padding: 4px 3px 1px 8px; font-size: 11px;
  color: var(--descrip-text); }
.saemnesia-unknown > .saemnesia-kind { color: var(--error-text); }
.saemnesia-row { display: flex; align-items: center; gap: 6px; min-height: 24px; padding: 0 3px 0 8px; }
.saemnesia-row:hover { background: color-mix(in srgb, var(--input-text) 8%, transparent); }
.saemnesia-row label { display: flex; flex: 1; align-items: center; gap: 6px; min-width: 0; min-height: 24px;
  margin: 0; cursor: pointer; }
.saemnesia-row input[type="checkbox"] { flex: none; width: 14px; height: 14px; margin: 0; cursor: pointer; }
.saemnesia-what { display: flex; flex-direction: column; min-width: 0; }
.saemnesia-fired { overflow: hidden; white-space: nowrap; text-overflow: ellipsis; font-size: 11px; line-height: 13px;
  color: var(--descrip-text); }
.saemnesia-picker .saemnesia-idle { color: var(--warning); }
.saemnesia-row:has(.saemnesia-idle) .saemnesia-name { opacity: 0.6; }
.saemnesia-picker > .saemnesia-last-run { flex: none; box-sizing: border-box; padding: 0 2px; overflow-y: auto;
  line-height: 17px; overflow-wrap: anywhere; color: var(--descrip-text); }
.saemnesia-name { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2; overflow: hidden;
  overflow-wrap: anywhere; line-height: 15px; }
.saemnesia-slides .saemnesia-name { -webkit-line-clamp: 4; }
.saemnesia-into { overflow: hidden; white-space: nowrap; text-overflow: ellipsis; color: var(--descrip-text); }
.saemnesia-note { flex: 0 1 auto; overflow: hidden; white-space: nowrap; text-overflow: ellipsis; font-size: 11px;
  color: var(--error-text); }
.saemnesia-nothing { padding: 6px 8px; color: var(--descrip-text); overflow-wrap: anywhere; }
.saemnesia-figures { display: flex; flex: none; gap: 6px; align-items: center; margin-left: auto; font-size: 11px; }
.saemnesia-removed { color: var(--descrip-text); font-variant-numeric: tabular-nums; }
.saemnesia-warning { padding: 0 6px; border-radius: 8px; background: color-mix(in srgb, currentColor 16%, #0000); }
.saemnesia-warning, .saemnesia-warning + .saemnesia-removed { color: var(--warning); }
.saemnesia-kind:not(:has(~ .saemnesia-row .saemnesia-figures)) > .saemnesia-measure { display: none; }
@container (min-width: 300px) { .saemnesia-row:has(.saemnesia-strength[hidden]) .saemnesia-figures,
  .saemnesia-measure { margin-right: 58px; } }
@container (max-width: 299px) { .saemnesia-warning { display: none; }
  .saemnesia-warning + .saemnesia-removed::before { content: "! "; } }
.saemnesia-picker .saemnesia-strength { flex: none; width: 52px; height: 20px; text-align: right;
  border-color: var(--border-color); border-radius: 4px; }
.saemnesia-slider { flex: none; width: 72px; height: 16px; margin: 0; cursor: pointer;
  accent-color: var(--descrip-text); }
@container (max-width: 299px) { .saemnesia-slider { display: none; } }
@container (min-width: 300px) { .saemnesia-slides :is(.saemnesia-measure,
  .saemnesia-row:has(.saemnesia-strength[hidden]) .saemnesia-figures) { margin-right: 136px; } }
.saemnesia-picker .saemnesia-strength[aria-invalid="true"] { color: var(--error-text); border-color: currentColor; }
.saemnesia-picker :focus-visible { outline: 1px solid var(--input-text); outline-offset: -1px; }
.saemnesia-message { padding: 2px; overflow-y: auto; overflow-wrap: anywhere; color: var(--descrip-text); }
.saemnesia-message[role="alert"] { color: var(--error-text); }
.saemnesia-picker [hidden] { display: none; }
`

// --- the list -------------------------------------------------------------------------------------------

/** An element with these properties, aria-label and children. */
function element(tag, { label, ...properties } = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties)
  if (label) made.setAttribute("aria-label", label)
  made.append(...children)
  return made
}

class Picker {
  asked = undefined // which file's concepts are shown, or why none are, and for which checkpoint
  known = new Map() // key of a concept of the SAE -> the concept
  rows = new Map() // key of a concept, or of another name in the text -> its row
  groups = new Map() // heading -> its part of the list
  fired = new Map() // key of a concept -> what became of it in the last run

  constructor(node, text) {
    this.node = node
    this.text = text
    this.makeBar()
    this.list = element("div", { className: "saemnesia-list", role: "group", label: say("Concepts"), tabIndex: -1 })
    this.list.dataset.captureWheel = "true" // for Nodes 2.0, see keepWheel
    this.nothing = element("div", { className: "saemnesia-nothing", role: "status" })
    this.message = element("div", { className: "saemnesia-message" })
    this.lastRun = element("div", { className: "saemnesia-last-run", role: "status", hidden: true })
    // The front end's class `widget-expands` lets Nodes 2.0 give the list the height that is left.
    this.root = element("div", { className: "saemnesia-picker widget-expands" },
      element("style", { textContent: CSS }), this.bar, this.list, this.lastRun, this.message)
    this.listen()
  }

  makeBar() {
    this.search = element("input", { type: "text", className: "saemnesia-search", placeholder: say("Search concepts"),
      label: say("Search concepts"), spellcheck: false })
    this.count = element("span", { className: "saemnesia-count", role: "status" })
    this.clear = element("button", { type: "button", textContent: say("Clear"), title: say("Choose no concept") })
    this.bar = element("div", { className: "saemnesia-bar" }, this.search, this.count, this.clear)
  }

  listen() {
    this.search.addEventListener("input", () => this.draw())
    this.list.addEventListener("input", (event) => this.edit(event.target))
    this.list.addEventListener("change", rememberForUndo)
    this.clear.addEventListener("click", () => this.clearText())
    this.root.addEventListener("keydown", (event) => undo(event) || this.moveFocus(event) || this.nudge(event))
    this.root.addEventListener("wheel", (event) => this.nudge(event))
    for (const type of ["pointerleave", "focusout"]) {
      this.list.addEventListener(type, () => requestAnimationFrame(() => this.arrange()))
    }
    this.root.addEventListener("pointerenter", () => this.refresh())
    keepFromCanvas(this.root, this.list)
  }

  /** Look which SAE is meant, and read it if that has changed, or `again`. */
  async refresh(again = false) {
    const { name, hint, waiting } = findSae(this.node)
    const model = findCheckpoint(this.node)
    const asked = JSON.stringify([name, hint, model])
    if (!again && asked === this.asked) return
    this.asked = asked
    if (!name) return this.show([], hint)
    const { concepts = [], error, there, unfit } = await readSae(name, model)
    if (this.asked !== asked) return // another one was chosen meanwhile
    if (error && waiting && !there) return this.show([], waiting)
    const nameless = concepts.length ? "" : say("{name} has no concept names: write a latent's number such as #12.", { name })
    this.show(concepts, error ?? (unfit || nameless), Boolean(error || unfit))
  }

  /** Show these concepts, and a message, or one in their place. */
  show(concepts, message = "", isError = false) {
    this.known = new Map(concepts.map((concept) => [key(concept.name), concept]))
    this.message.textContent = retold(message)
    this.message.role = isError ? "alert" : null
    this.message.hidden = !message
    this.bar.hidden = this.list.hidden = !concepts.length
    this.fill()
    this.draw()
    this.fit()
  }

  /** Give the node the height that all needs. */
  fit() {
    this.root.style.minHeight = `${this.height()}px`
    this.node.expandToFitContent?.()
    this.node.setDirtyCanvas(true, true)
  }

  height() {
    const message = this.message.hidden ? 0 : this.message.role ? ERROR_HEIGHT : HINT_HEIGHT
    return message + (this.known.size ? LIST_HEIGHT : 0) + this.saidHeight()
  }

  /** An idle concept's reason takes two lines. */
  saidHeight() {
    const lines = [...this.lastRun.children].map((line) => (line.className ? 2 : 1)).reduce((a, b) => a + b, 0)
    return LINE * Math.min(LINES, lines)
  }

  /** What became of the concepts in the last run: short in their rows, and below them what is not seen there. */
  tell(concepts) {
    this.fired = new Map(concepts.map((concept) => [key(concept.name.replace(/^latent (\d+)$/, "#$1")), concept]))
    this.draw()
    this.fit()
  }

  drawLastRun(chosen) {
    const seen = [...this.fired].filter(([name, { count }]) => this.list.hidden || (!count && chosen.has(name)))
    this.lastRun.replaceChildren(...firedLines(seen.map(([, concept]) => concept)))
    this.lastRun.style.height = `${this.saidHeight()}px`
    this.lastRun.hidden = !seen.length
  }

  fill() {
    this.rows.clear()
    const own = [...this.known.values()].map(({ kind }) => headingOf(kind)).filter((heading) => heading !== OTHER)
    const headings = [UNKNOWN, CHOSEN, ...Object.values(KINDS), ...own, OTHER, NUMBERED]
    this.groups = new Map([...new Set(headings)].map((heading) => [heading, element("div",
      { role: "group", label: say(heading), className: heading === UNKNOWN ? "saemnesia-unknown" : "" }, element("div", { className: "saemnesia-kind" }, say(heading),
        element("span", { className: "saemnesia-measure", textContent: say("removed") })))]))
    this.list.replaceChildren(this.nothing, ...this.groups.values())
    for (const concept of this.known.values()) this.addRow(concept, headingOf(concept.kind))
  }

  addRow({ name, description = "", measured }, heading) {
    const tick = element("input", { type: "checkbox" })
    const arrow = element("span", { className: "saemnesia-into" })
    const note = element("span", { className: "saemnesia-note" })
    const strength = element("input", { type: "text", inputMode: "decimal", className: "saemnesia-strength",
      label: say("Strength of {name}", { name }), spellcheck: false })
    const slider = element("input", { type: "range", step: "0.05", className: "saemnesia-slider", tabIndex: -1,
      ariaHidden: "true" }) // for the mouse: the number beside it says the same
    const what = element("span", { className: "saemnesia-what" },
      element("span", { className: "saemnesia-name", textContent: name }))
    const label = element("label", { title: [name, description].filter(Boolean).join("\n") }, tick, what, arrow, note,
      figures(measured))
    const root = element("div", { className: "saemnesia-row" }, label, slider, strength)
    this.groups.get(heading).append(root)
    this.rows.set(key(name), { name, heading, words: key(`${name} ${description}`), root, tick, what, arrow, note,
      slider, strength })
  }

  /** Bring the list in line with the text, the search box and the actuator. */
  draw() {
    const items = parse(this.text.value)
    this.drawOthers(items)
    const [chosen, search] = [byName(items), key(this.search.value)]
    this.list.classList.toggle("saemnesia-slides", Boolean(this.range().slides))
    for (const [name, row] of this.rows) this.drawRow(row, chosen.get(name) ?? [], search)
    this.drawLastRun(chosen)
    this.arrange()
    this.count.textContent = say("{count} chosen", { count: chosen.size })
    this.clear.disabled = !items.length
  }

  /** Put what is chosen first, unless someone is at work in the list: a row does not go from under the hand. */
  arrange() {
    const atWork = this.list.matches(":hover") || this.list.contains(document.activeElement)
    for (const row of this.rows.values()) {
      const first = row.tick.checked && this.known.has(key(row.name))
      if (!atWork) this.place(row, this.groups.get(first ? CHOSEN : row.heading))
    }
    for (const group of this.groups.values()) group.hidden = !group.querySelector(".saemnesia-row:not([hidden])")
    this.nothing.hidden = [...this.groups.values()].some((group) => !group.hidden)
    this.nothing.textContent = this.notFound()
  }

  /** Move a row into a group, in the order of the file. */
  place(row, group) {
    if (row.root.parentElement === group) return
    const all = [...this.rows.values()]
    const later = all.slice(all.indexOf(row) + 1).find(({ root }) => root.parentElement === group)
    group.insertBefore(row.root, later?.root ?? null)
  }

  notFound() {
    const alike = near(this.search.value, [...this.rows.values()].map(({ name }) => name))
    return alike.length ? say("Nothing is called '{name}'; nearest: {near}.",
      { name: this.search.value, near: alike.join(", ") }) : say("Nothing is called '{name}'.", { name: this.search.value })
  }

  /** Rows for what the text names and the SAE does not. */
  drawOthers(items) {
    const others = new Map(items.map((item) => [key(item.name), item]).filter(([name]) => !this.known.has(name)))
    for (const [name, row] of this.rows) {
      if (!this.known.has(name) && !others.has(name)) this.removeRow(name, row)
    }
    for (const [name, item] of others) {
      if (!this.rows.has(name)) this.addRow(item, /^#\d+$/.test(name) ? NUMBERED : UNKNOWN)
    }
  }

  removeRow(name, row) {
    if (row.root.contains(document.activeElement)) this.search.focus()
    row.root.remove()
    this.rows.delete(name)
  }

  drawRow(row, items, search) {
    const range = this.range()
    const strength = items[0]?.strength ?? ""
    row.tick.checked = items.length > 0
    row.arrow.textContent = items[0]?.into ? `\u2192 ${items[0].into.name}` : ""
    row.note.textContent = items.length > 1 ? say("listed twice")
      : row.heading === UNKNOWN ? this.nearest(row.name) : this.swapNote(items[0])
    row.strength.hidden = !items.length || this.node.comfyClass === WITHOUT_STRENGTH
    row.strength.placeholder = say(range.usual)
    row.strength.title = say(range.hint)
    row.strength.ariaInvalid = String(!isStrength(strength, range))
    if (row.strength !== document.activeElement) row.strength.value = strength
    this.drawSlider(row, range, strength)
    this.drawFired(row, items.length > 0)
    row.root.hidden = !row.words.includes(search)
  }

  drawSlider({ slider, strength: { hidden, title } }, { low, high, start, slides }, strength) {
    Object.assign(slider, { hidden: hidden || !slides, min: low, max: high, title })
    slider.value = isStrength(strength, { low, high }) && strength ? strength : start
  }

  drawFired({ what, name }, ticked) {
    const [known, mark] = [this.fired.get(key(name)), what.querySelector(".saemnesia-fired")]
    mark?.remove()
    if (known && ticked) what.append(firedMark(known))
  }

  /** Why the node would not take a swap; "" where it would, or there is none. */
  swapNote(item) {
    const into = item?.into
    if (!into) return ""
    if (item.refused && isStrength(item.strength, this.range())) return say("not a swap")
    if (!this.known.has(key(into.name)) && !/^#\d+$/.test(into.name)) {
      return [say("no {name}", { name: into.name }), this.nearest(into.name)].filter(Boolean).join("; ")
    }
    return [undefined, "amount", "ablate"].includes(this.actuator()) ? "" : say("a swap needs amount or ablate")
  }

  nearest(name) {
    const [best] = near(name, [...this.known.values()].map((concept) => concept.name), 1)
    return best ? say("nearest: {name}", { name: best }) : ""
  }

  /** Which strengths make sense: that depends on the actuator, where the node has one. */
  range() {
    if (!this.actuator()) return EITHER
    return { steer: SIGNED, amount: AMOUNT }[this.actuator()] ?? FULL
  }

  actuator() {
    return this.node.widgets.find((widget) => widget.name === "actuator")?.value
  }

  /** Write into the text what was changed in a row. What was put in its place comes back with its tick. */
  edit(input) {
    const row = [...this.rows.values()].find(({ tick, slider, strength }) => [tick, slider, strength].includes(input))
    const { value } = this.text
    if (input === row.slider) row.strength.value = input.value
    if (input === row.tick && !input.checked) {
      row.into = parse(value).find((item) => key(item.name) === key(row.name))?.into?.raw
      this.text.value = drop(value, row.name)
    } else {
      this.text.value = choose(value, row.name, row.strength.value, row.into)
      row.into = undefined
    }
  }

  clearText() {
    this.text.value = ""
    for (const row of this.rows.values()) row.into = undefined
    rememberForUndo()
    this.search.focus()
  }

  /** Up and down go from tick to tick. */
  moveFocus(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key]
    const shown = [...this.list.querySelectorAll("input[type=checkbox]")].filter((tick) => tick.checkVisibility())
    const stops = [this.search, ...shown]
    const place = stops.indexOf(event.target)
    if (!step || place < 0) return false
    event.preventDefault()
    stops[place + step]?.focus()
    return true
  }

  /** In a strength, arrow keys and the wheel make it more or less. */
  nudge(event) {
    const up = { ArrowUp: 1, ArrowDown: -1 }[event.key] ?? -Math.sign(event.deltaY ?? 0)
    const field = event.target
    if (!up || !field.classList?.contains("saemnesia-strength") || field !== document.activeElement) return
    if (event.ctrlKey || event.metaKey) return
    event.preventDefault()
    event.stopImmediatePropagation()
    const { low, high, start } = this.range()
    const now = field.value.trim() ? Number(field.value.replace(",", ".")) : start
    const next = Math.min(high, Math.max(low, (Number.isFinite(now) ? now : start) + up * STEP))
    field.value = String(Number(next.toFixed(2)))
    this.edit(field)
    rememberForUndo()
  }
}

/** Objects, styles, and what someone calls a kind of their own. */
const headingOf = (kind) => KINDS[kind] ?? (kind ? kind[0].toUpperCase() + kind.slice(1) : OTHER)

/** ComfyUI looks for changes when a mouse button comes up, which is before a tick is set: tell it. */
function rememberForUndo() {
  app.canvas?.emitBeforeChange?.()
  app.canvas?.emitAfterChange?.()
}

// --- in the page ----------------------------------------------------------------------------------------

/** The host leaves Ctrl+Z alone while a tick or a slider has the focus, which has nothing of its own to undo. */
function undo(event) {
  const key = event.key.toLowerCase()
  const asked = (event.ctrlKey || event.metaKey) && ["z", "y"].includes(key)
  if (!asked || !["checkbox", "range"].includes(event.target.type)) return false
  event.preventDefault()
  app.extensionManager.command.execute(key === "y" || event.shiftKey ? "Comfy.Redo" : "Comfy.Undo")
  return true
}

/** What is done inside the list is not for the canvas or the node under it; shortcuts with Ctrl stay. */
export function keepFromCanvas(root, list) {
  for (const type of ["copy", "cut", "paste", "keydown"]) root.addEventListener(type, keepInput)
  root.addEventListener("pointerdown", (event) => drag(event, "processMouseDown"))
  root.addEventListener("pointermove", (event) => drag(event, "processMouseMove"))
  root.addEventListener("pointerup", (event) => drag(event, "processMouseUp"))
  root.addEventListener("wheel", (event) => wheel(event, list))
  keepWheel(list)
}

function keepInput(event) {
  const shortcut = event.type === "keydown" && (event.ctrlKey || event.metaKey)
  if (event.target.matches("input, button") && !shortcut) event.stopPropagation()
}

/** The list scrolls; where it cannot, and to zoom with Ctrl, the canvas gets the wheel. */
function wheel(event, list) {
  event.stopPropagation()
  const scrolls = list.contains(event.target) && list.scrollHeight > list.clientHeight
  if (scrolls && !event.ctrlKey && !event.metaKey) return
  event.preventDefault()
  app.canvas.processMouseWheel(event)
}

/** Nodes 2.0 leaves the wheel to an element with data-capture-wheel that has the focus: lend it while nobody types. */
function keepWheel(list) {
  list.addEventListener("pointerenter", () => {
    if (!document.activeElement?.closest("input, textarea, [contenteditable]")) list.focus({ preventScroll: true })
  })
  list.addEventListener("pointerleave", () => list.blur())
}

/** The middle button moves the canvas; other buttons do not move the node. */
function drag(event, method) {
  const middle = event.button === 1 || event.buttons & 4
  if (middle) app.canvas[method](event)
  if (middle || event.type === "pointerdown") event.stopPropagation()
}

const pickers = new WeakMap() // node -> its picker
let made = 0 // Nodes 2.0 goes on showing a removed node's element if the new node (after undo) has a widget of that name

function addPicker(node) {
  const text = node.widgets?.find((widget) => widget.name === "concepts")
  if (!text) return
  const picker = new Picker(node, text)
  const widget = node.addDOMWidget(`concept_picker_${++made}`, "saemnesia_concepts", picker.root, {
    serialize: false, // not in the API format; the next line: not in the workflow
    hideInPanel: true,
    getMinHeight: () => picker.height() + MARGIN,
    getMaxHeight: () => (picker.known.size ? undefined : picker.height() + MARGIN),
  })
  widget.serialize = false
  text.options.getMaxHeight = () => (picker.known.size ? TEXT_HEIGHT : undefined)
  for (const other of node.widgets) after(other, "callback", () => picker.draw())
  followMode(node, picker.root, ...[text.element].filter(Boolean))
  after(node, "onConnectionsChange", () => queueMicrotask(() => picker.refresh()))
  pickers.set(node, picker)
  picker.refresh()
}

function refreshAll(again = false) {
  for (const graph of graphs()) for (const node of graph.nodes) pickers.get(node)?.refresh(again)
}

app.registerExtension({
  name: "SAEmnesia.ConceptPicker",
  setup() {
    api.addEventListener("graphChanged", () => refreshAll())
    onFilesChanged(() => refreshAll(true))
    onFired((node, concepts) => pickers.get(node)?.tell(concepts))
    onFired((node, concepts) => chooserOf(node) !== node && pickers.get(chooserOf(node))?.tell(concepts))
  },
  nodeCreated(node) {
    if (PICKERS.includes(node.comfyClass)) addPicker(node)
    if (node.comfyClass === LOADER) for (const widget of node.widgets) after(widget, "callback", () => refreshAll())
  },
  afterConfigureGraph: () => refreshAll(),
  refreshComboInNodes: () => refreshAll(true),
})
