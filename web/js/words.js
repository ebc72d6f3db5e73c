/**
 * The page's own sentences in the language of the page, English where nothing was given: an English sentence says which
 * one is meant, `{name}` in it is a place for a value.
 */

let known = {} // English sentence -> the same in the language of the page

/** From now on speak with these. */
export const speakWith = (sentences) => { known = sentences ?? {} }

export const say = (sentence, values = {}) =>
  (known[sentence] ?? sentence).replace(/\{(\w+)\}/g, (place, name) => values[name] ?? place)
