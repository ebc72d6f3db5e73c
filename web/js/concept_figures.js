/** How well a concept is erased, as measured when it was found: short for its row, in full for whoever points at it. */
import { say } from "./words.js"

const WEAK = 0.4 // removing less warns
const TOUCHES = 0.05 // touching more warns
const SEEN = "Measured by switching it off, on pictures of the model it was found on. " +
  "A strength pushed beyond 1 (with 'steer' beyond -1) can remove more than these figures see."

/** A label of { removed, touched }, shares; "" where they were not measured. */
export function figures(measured) {
  if (![measured?.removed, measured?.touched].every(Number.isFinite)) return ""
  const warnings = warningsOf(measured)
  const label = span("saemnesia-figures", span("saemnesia-removed", percent(measured.removed, 0)))
  label.title = [inWords(measured), ...warnings.map(({ sentence }) => say(sentence)), say(SEEN)].join("\n")
  if (warnings.length) label.prepend(span("saemnesia-warning", warnings.map(({ word }) => say(word)).join(", ")))
  return label
}

function warningsOf({ removed, touched }) {
  return [
    removed < WEAK && { word: "weak", sentence: "Weak: it may still show." },
    touched > TOUCHES && { word: "touches others", sentence: "Touches others: pictures without it change too." },
  ].filter(Boolean)
}

const inWords = ({ removed, touched }) =>
  say("{removed} of it removed, others touched {touched}.", { removed: percent(removed, 0), touched: percent(touched, 1) })

/** A share as `94 %` that is never broken into two lines. */
const percent = (share, digits) => `${Number((100 * share).toFixed(digits))}\u00a0%`.replace("-", "\u2212")

function span(className, ...children) {
  const made = Object.assign(document.createElement("span"), { className })
  made.append(...children)
  return made
}
