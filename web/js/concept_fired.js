/** What became of a concept, { name, label, count, steps, why } as `nodes/feedback.py` has it, in words. */
import { say } from "./words.js"

const SHORT = { silent: "never fired", window: "left out by start and end", strength: "strength 0" }
const LONG = {
  silent: "{label} never fired: the prompt does not say it, or says it in a way that the SAE does not know.",
  window: "{label} was not erased: none of the steps lies between start and end.",
  strength: "{label} was not erased: its strength is 0.",
}

const steps = ({ count, steps }) => say("in {count} of {steps} steps", { count, steps })

const sentence = (concept) =>
  concept.count ? `${concept.label}: ${steps(concept)}` : say(LONG[concept.why], { label: concept.label })

/** Short for its row, in full for whoever points at it; marked where nothing was erased. */
export function firedMark(concept) {
  const mark = Object.assign(document.createElement("span"), { className: "saemnesia-fired" })
  mark.classList.toggle("saemnesia-idle", !concept.count)
  mark.textContent = concept.count ? steps(concept) : say(SHORT[concept.why])
  mark.title = sentence(concept)
  return mark
}

/** A line for each concept. */
export function firedLines(concepts) {
  return concepts.map((concept) => {
    const line = Object.assign(document.createElement("div"), { textContent: sentence(concept) })
    line.classList.toggle("saemnesia-idle", !concept.count)
    return line
  })
}
