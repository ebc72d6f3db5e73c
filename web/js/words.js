/**
 * Sentences in the language of the page, English where nothing was given. The page's own are said by what they are in
 * English, `{name}` in it is a place for a value. What the server answers is put together already: it is recognized by
 * the words around its values, `{1}`, `{2}` ..., which may be sentences again.
 */

let known = {} // English sentence -> the same in the language of the page
let answers = [] // [words around the values in English, the same in the language of the page], most words first

const DEPTH = 6

/** From now on speak with these. */
export function speakWith(sentences, answered) {
  known = sentences ?? {}
  answers = Object.entries(answered ?? {}).map(([english, other]) => [english.split(/\{\d+\}/), other])
    .sort(([a], [b]) => b.join("").length - a.join("").length)
}

export const say = (sentence, values = {}) =>
  (known[sentence] ?? sentence).replace(/\{(\w+)\}/g, (place, name) => values[name] ?? place)

/** The values in a text that is made of these words around them, or undefined. */
function valuesIn(text, [first, ...rest]) {
  if (!text.startsWith(first)) return undefined
  const values = []
  let at = first.length
  for (const [i, words] of rest.entries()) {
    const end = i === rest.length - 1 ? text.length - words.length
      : words ? text.indexOf(words, at) : at + text.slice(at).search(/[,;( ]|$/) // a number, and what is put behind it
    if (end < at || !text.startsWith(words, end)) return undefined
    values.push(text.slice(at, end))
    at = end + words.length
  }
  return at === text.length ? values : undefined
}

/** A text as one of these answers, or undefined. */
function answered(text, depth, these) {
  for (const [english, other] of these) {
    const values = valuesIn(text, english)
    const named = !english[0] && values?.[0].includes(": ") // "cat: ..." is said of a cat
    if (values && !named) return other.replace(/\{(\d+)\}/g, (_, n) => sentence(values[n - 1], depth - 1))
  }
  return undefined
}

/** A text that ends with one of the answers that are put behind others: ", about 2 min left"; or undefined. */
function withTail(text, depth) {
  for (const tail of answers.filter(([[first]]) => /^[,; ]/.test(first))) {
    const start = text.lastIndexOf(tail[0][0])
    const other = start > 0 && answered(text.slice(start), depth, [tail])
    if (other) return sentence(text.slice(0, start), depth - 1) + other
  }
  return undefined
}

function inParts(text, depth) {
  const [, head, between, tail] = text.match(/^(.*?)(: |; )(.*)$/) ?? []
  return tail ? sentence(head, depth - 1) + between + sentence(tail, depth - 1) : text
}

function sentence(text, depth) {
  if (!depth || !text.includes(" ")) return text // a name
  return known[text] ?? answered(text, depth, answers) ?? withTail(text, depth) ?? inParts(text, depth)
}

/** What the server says, in the language of the page. */
export const retold = (text) =>
  answers.length ? text.split("\n").map((line) => sentence(line, DEPTH)).join("\n") : text
