/**
 * The text `cat, noto style:0.8, rose -> key` that says which concepts are chosen: the only state of the picker.
 *
 * It is read as `sae_models/concepts.py` reads it; tests/choices.json has cases that both are held to.
 */

const LINE_BREAKS = "\\n\\v\\f\\r\\x1c-\\x1e\\x85\\u2028\\u2029"
const SEPARATOR = new RegExp(`[,${LINE_BREAKS}]|;(?=[ \\t])`)
const ARROW = /->|\u2192/
const DECIMAL_COMMA = new RegExp(`(:[ \\t]*[+-]?[0-9]+),(?=[0-9]+[ \\t]*(?:[,;${LINE_BREAKS}]|${ARROW.source}|$))`, "g")
const SPACE = "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]"
const SPACES = new RegExp(SPACE)
const NUMBER = /^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?$/i
const UNSEEN = /[\p{Cc}\p{Cs}]/u
const KINDS = ["object", "style"]

/** What makes two names the same concept: case does not matter, as Python's casefold has it: `STRASSE` is `straße`. */
export const key = (name) => [...strip(name)].map(fold).join("")

const fold = (letter) => letter === "ı" ? letter : letter.toLowerCase().toUpperCase().toLowerCase()

/**
 * [{ raw, name, kind, strength, into, refused }] in the order of the text. A strength is text too, "" where none is
 * said, as a kind is; into: { raw, name, kind } of what is put in its place, or null; refused: the node would not take
 * it.
 */
export function parse(text) {
  return text.replace(DECIMAL_COMMA, "$1.").split(SEPARATOR).map(strip).filter(Boolean).map(parseItem)
}

/** Map from each name's key to its items. */
export function byName(items) {
  const found = new Map()
  for (const item of items) {
    const name = key(item.name)
    if (!found.has(name)) found.set(name, [])
    found.get(name).push(item)
  }
  return found
}

/** `text` without the space at its edges that Python takes for space; trim() takes other characters. */
function strip(text) {
  let [start, end] = [0, text.length]
  while (start < end && SPACES.test(text[start])) start++
  while (end > start && SPACES.test(text[end - 1])) end--
  return text.slice(start, end)
}

function parseItem(raw) {
  const [said, ...put] = raw.split(ARROW).map(strip)
  const colon = said.indexOf(":")
  const [name, kind] = splitKind(strip(colon < 0 ? said : said.slice(0, colon)))
  const strength = colon < 0 ? "" : strip(said.slice(colon + 1))
  const into = put.length ? parseInto(put[0]) : null
  const swaps = put.length < 2 && (!into || (into.name && !into.raw.includes(":") && key(into.name) !== key(name)))
  const refused = !name || !swaps || UNSEEN.test(raw) || (colon >= 0 && !isNumber(strength))
  return { raw, name, kind, strength, into, refused }
}

function parseInto(raw) {
  const [name, kind] = splitKind(raw)
  return { raw, name, kind }
}

/** A name and its kind: `ink (style)`; any other bracket is part of the name. */
function splitKind(text) {
  const bracket = text.lastIndexOf("(")
  const name = strip(text.slice(0, Math.max(0, bracket)))
  const kind = strip(text.slice(bracket + 1, -1)).toLowerCase()
  return name && text.endsWith(")") && KINDS.includes(kind) ? [name, kind] : [text, ""]
}

const isNumber = (text) => NUMBER.test(text) && Number.isFinite(Number(text))

/**
 * `text` with the concept chosen, at a strength or ("") the default; into: what is put in its place, what stands there
 * already unless it is given. What else is written stays as it is.
 */
export function choose(text, name, strength = "", into = undefined) {
  const number = strength.trim().replaceAll(",", ".")
  const items = parse(text)
  const chosen = items.find((item) => key(item.name) === key(name))
  const put = into ?? chosen?.into?.raw
  const raw = (number ? `${name}:${number}` : name) + (put ? ` -> ${put}` : "")
  return join(text, chosen ? items.map((item) => (item === chosen ? { raw } : item)) : [...items, { raw }])
}

/** `text` without the concept, however often it was listed. */
export function drop(text, name) {
  return join(text, parse(text).filter((item) => key(item.name) !== key(name)))
}

function join(text, items) {
  const separator = text.trim().includes("\n") ? "\n" : ", "
  return items.map((item) => item.raw).join(separator)
}

/** Whether `strength` is a number from `low` to `high`, or left out. */
export function isStrength(strength, { low, high }) {
  if (!strength) return true
  return isNumber(strength) && Number(strength) >= low && Number(strength) <= high
}

/** The names most like `name`, best first: those that share most pairs of letters with it. */
export function near(name, names, most = 3) {
  const wanted = pairs(name)
  const scored = names.map((other) => ({ other, score: likeness(wanted, pairs(other)) }))
  return scored.filter(({ score }) => score > 0.2).sort((a, b) => b.score - a.score).slice(0, most)
    .map(({ other }) => other)
}

const pairs = (name) => new Set([...` ${key(name)} `].map((letter, i, all) => letter + (all[i + 1] ?? "")).slice(0, -1))

const likeness = (one, two) => 2 * [...one].filter((pair) => two.has(pair)).length / (one.size + two.size)
