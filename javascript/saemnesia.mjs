/**
 * The sidebar's list of concepts in A1111 and Forge: ticks and strengths in step with the text, which is what counts;
 * and in how many steps each was there to be erased, as the text of the picture says that is shown beside it.
 */

import { figures } from "../web/js/concept_figures.js"
import { firedMark } from "../web/js/concept_fired.js"
import { byName, choose, drop, isStrength, key, parse } from "../web/js/concept_text.js"
import { retold, say, speakWith } from "../web/js/words.js"

const FULL = { low: 0, high: 1, usual: "1", hint: "1 or nothing erases fully, 0 changes nothing" }
const SIGNED = { low: -100, high: 100, usual: "-1", hint: "-1 erases, below pushes further away, above 0 strengthens" }
const AMOUNT = { low: -1, high: 2, usual: "1", slides: true,
  hint: "0 changes nothing, 1 erases fully, and between them the concept goes about evenly; above 1 pushes further away, " +
    "below 0 strengthens" }
const RANGES = { steer: SIGNED, amount: AMOUNT }
const SWAPPING = [undefined, "amount", "ablate"]
const IN_STEPS = /^(.*): in (?:(\d+) of (\d+) steps|none)$/
const FIRED = /SAEmnesia fired: (\x22(?:[^\x22\\]|\\.)*\x22)/ // quoted as JSON

const PLACE = /\{1\}/ // of a value: what the server answers, and not a label of any extension

const languageOf = (localization) =>
  speakWith(localization, Object.fromEntries(Object.entries(localization).filter(([english]) => PLACE.test(english))))

/** The sidebars of the page, each with its list, text and actuator. */
function sidebars() {
  return [...gradioApp().querySelectorAll(".saemnesia-picker")].map((list) => {
    const root = list.closest(".saemnesia-panel") ?? list.parentElement
    const of = (selector) => root.querySelector(selector)
    return { list, text: of(".saemnesia-text textarea, .saemnesia-text input"), on: of(".saemnesia-enabled input"), root }
  }).filter(({ text }) => text)
}

const sidebarOf = (element) => sidebars().find(({ list }) => list.contains(element))

function draw({ list, text, on, root }) {
  if (on?.checked && !root.classList.contains("saemnesia-on")) root.querySelector(":scope > .label-wrap:not(.open)")?.click()
  root.classList.toggle("saemnesia-on", Boolean(on?.checked))
  const items = parse(text.value)
  const search = key(list.querySelector(".saemnesia-search")?.value ?? "")
  const actuator = root.querySelector(".saemnesia-actuator input:checked")?.value
  const range = RANGES[actuator] ?? FULL
  const [chosen, fired] = [byName(items), firedIn(root)]
  list.querySelector(".saemnesia-list")?.classList.toggle("saemnesia-slides", Boolean(range.slides))
  for (const row of list.querySelectorAll(".saemnesia-row")) {
    const item = chosen.get(key(row.dataset.name))?.[0]
    drawRow(row, item, search, range)
    drawFired(row, item && fired.get(key(row.dataset.name)))
  }
  for (const group of list.querySelectorAll(".saemnesia-group")) {
    group.hidden = !group.querySelector(".saemnesia-row:not([hidden])")
  }
  write(list, ".saemnesia-count", say("{count} chosen", { count: chosen.size }))
  const unknown = unknownOf(list, items)
  const notes = [unknown.length && say("not in the list: {names}", { names: unknown.join(", ") }),
    !SWAPPING.includes(actuator) && items.some(({ into }) => into) && say("a swap needs amount or ablate")]
  write(list, ".saemnesia-unknown", notes.filter(Boolean).join("; "))
  for (const message of root.querySelectorAll(".saemnesia-message")) retell(message)
}

/** Put what the server says into the language of the page, where it stands. */
function retell(message) {
  for (const part of message.childNodes) {
    const said = part.nodeType === Node.TEXT_NODE ? retold(part.data) : part.data
    if (said !== part.data) part.data = said
  }
}

function write(list, selector, words) {
  const element = list.querySelector(selector)
  if (element && element.textContent !== words) element.textContent = words
}

/** The names that the listed file does not have; a number such as #12 is a neuron of it. */
function unknownOf(list, items) {
  const known = new Set([...list.querySelectorAll(".saemnesia-row")].map((row) => key(row.dataset.name)))
  const named = items.flatMap(({ name, into }) => (into ? [name, into.name] : [name]))
  return named.filter((name) => !known.has(key(name)) && !name.startsWith("#"))
}

/** Say in a row what was measured of its concept, unless it is said already. */
function measure(row) {
  const { measured } = row.dataset
  delete row.dataset.measured
  if (measured) row.lastElementChild.before(figures(JSON.parse(measured)))
}

/** A text in JSON; "" where it is none, as where a prompt says the same words. */
function unquoted(json) {
  try { return String(JSON.parse(json)) } catch { return "" }
}

/** Map from a concept's key to what became of it in the picture that the sidebar's tab shows. */
function firedIn(root) {
  const tab = /txt2img|img2img/.exec(root.id)?.[0]
  const [, said] = FIRED.exec(gradioApp().querySelector(`#html_info_${tab}`)?.textContent ?? "") ?? []
  const parts = unquoted(said ?? "").split(", ").map((part) => IN_STEPS.exec(part))
  return new Map(parts.filter(Boolean).map(([, label, count, steps]) =>
    [key(label.split(" -> ")[0]), { label, count: Number(count ?? 0), steps, why: "silent" }]))
}

function drawFired(row, fired) {
  const [mark, before] = [fired ? firedMark(fired) : null, row.querySelector(".saemnesia-fired")]
  const said = mark?.textContent // the host may put it into another language, where it stands
  if (said === before?.dataset.said) return
  before?.remove()
  if (!mark) return
  mark.dataset.said = said
  row.querySelector("label").append(mark)
}

const partsOf = (row) =>
  [".saemnesia-tick", ".saemnesia-slider", ".saemnesia-strength"].map((part) => row.querySelector(part))

function drawRow(row, chosen, search, range) {
  const [tick, slider, strength] = partsOf(row)
  measure(row)
  write(row, ".saemnesia-into", chosen?.into ? ` \u2192 ${chosen.into.name}` : "")
  tick.checked = Boolean(chosen)
  strength.hidden = !chosen
  strength.placeholder = range.usual
  strength.title = range.hint
  strength.ariaInvalid = String(!isStrength(chosen?.strength ?? "", range))
  if (strength !== document.activeElement) strength.value = chosen?.strength ?? ""
  drawSlider(slider, range, chosen)
  row.hidden = !key(`${row.dataset.name} ${tick.parentElement.title}`).includes(search)
}

function drawSlider(slider, range, chosen) {
  slider.hidden = !(chosen && range.slides)
  if (slider.hidden) return
  Object.assign(slider, { min: range.low, max: range.high, title: range.hint })
  slider.value = isStrength(chosen.strength, range) && chosen.strength ? chosen.strength : range.usual
}

/** What a row's tick put in its place before it was taken away; it comes back with the tick. */
const dropped = new WeakMap()

/** Write into the text, as if a person had typed it. */
function type(sidebar, value) {
  sidebar.text.value = value
  sidebar.text.dispatchEvent(new Event("input", { bubbles: true }))
  draw(sidebar)
}

function edited(event) {
  const sidebar = sidebarOf(event.target)
  if (!sidebar) return drawAll()
  const row = event.target.closest(".saemnesia-row")
  if (!row) return draw(sidebar)
  const [tick, slider, strength] = partsOf(row)
  const { value } = sidebar.text
  if (event.target === slider) strength.value = slider.value
  if (event.target === tick && !tick.checked) {
    dropped.set(row, parse(value).find((item) => key(item.name) === key(row.dataset.name))?.into?.raw)
    return type(sidebar, drop(value, row.dataset.name))
  }
  type(sidebar, choose(value, row.dataset.name, strength.value, dropped.get(row)))
  dropped.delete(row)
  switchOn(sidebar)
}

const switchOn = ({ on }) => on && !on.checked && on.click()

/** Someone types into the text; what we write into it ourselves is no reason to erase. */
function typed(event) {
  const sidebar = sidebars().find(({ text }) => text === event.target)
  if (event.isTrusted && sidebar?.text.value.trim()) switchOn(sidebar)
}

function clear(event) {
  const sidebar = event.target.matches?.(".saemnesia-clear") && sidebarOf(event.target)
  if (!sidebar) return
  for (const row of sidebar.list.querySelectorAll(".saemnesia-row")) dropped.delete(row)
  type(sidebar, "")
}

const drawAll = () => sidebars().forEach(draw)

document.addEventListener("input", (event) => {
  typed(event)
  if (event.target.closest?.(".saemnesia-picker, .saemnesia-text, .saemnesia-actuator")) edited(event)
})
document.addEventListener("click", clear)
document.addEventListener("saemnesia", drawAll)
languageOf(window.localization ?? {})
onAfterUiUpdate(drawAll)
drawAll()
