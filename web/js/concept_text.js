/** The text `cat, noto style:0.8` that says which concepts are chosen: the only state of the picker. */

const SEPARATOR = /[,\n\r]/
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i

/** What makes two names the same concept: case does not matter. */
export const key = (name) => name.trim().toLowerCase()

/** [{ raw, name, strength }] in the order of the text; a strength is text too, "" where none is said. */
export function parse(text) {
  return text.split(SEPARATOR).map((item) => item.trim()).filter(Boolean).map(parseItem)
}

function parseItem(raw) {
  const [name, ...rest] = raw.split(":")
  return { raw, name: name.trim(), strength: rest.join(":").trim() }
}

/** `text` with the concept chosen, at a strength or ("") the default; what else is written stays as it is. */
export function choose(text, name, strength = "") {
  const number = strength.trim().replaceAll(",", ".")
  const raw = number ? `${name}:${number}` : name
  const items = parse(text)
  const chosen = items.find((item) => key(item.name) === key(name))
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
  return NUMBER.test(strength) && Number(strength) >= low && Number(strength) <= high
}
