// Splits a source into lines, and tells which block a line may start.
//
// The idea: a line is {at, end}, positions in the source. A quote or list strips its prefix
// by moving `at`, so whatever is made of lines still knows its place in the source.

/** @typedef {{at: number, end: number}} Line */

/** @param {string} source @param {number} from @returns {Line[]} */
export function linesOf(source, from = 0) {
  const lines = []
  let at = from
  while (at < source.length) {
    let next = source.indexOf("\n", at)
    if (next < 0) next = source.length
    const end = next > at && source[next - 1] === "\r" ? next - 1 : next
    lines.push({ at, end })
    at = next + 1
  }
  return lines
}

/** A line's leading columns of white space, and where its text starts. */
export function indent(source, line) {
  let columns = 0
  let at = line.at
  for (; at < line.end; at++) {
    if (source[at] === " ") columns += 1
    else if (source[at] === "\t") columns += 4 - (columns % 4)
    else break
  }
  return { columns, at, blank: at === line.end }
}

/** A line without up to `columns` leading columns of white space. @returns {Line} */
export function dedent(source, line, columns) {
  let at = line.at
  for (let have = 0; at < line.end && have < columns; at++) {
    if (source[at] === " ") have += 1
    else if (source[at] === "\t") have += 4 - (have % 4)
    else break
  }
  return { at, end: line.end }
}

const FENCE = /(`{3,}(?=[^`]*$)|~{3,})/my
const HEADING = /#{1,6}(?=[ \t]|$)/my
const RULE = /(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/my
const ITEM = /(?:([-*+])|(\d{1,9})([.)]))(?=[ \t]|$)/my
const DELIMITERS = /\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/my

function match(pattern, source, at) {
  pattern.lastIndex = at
  return pattern.exec(source)
}

/** The block that a line starts, unless that is a paragraph. The line is not blank.
 * @returns {{kind: string, at: number, columns: number, found?: RegExpExecArray}|null} */
export function opening(source, line) {
  const { columns, at } = indent(source, line)
  if (columns >= 4) return { kind: "indented", at, columns }
  const first = source[at]
  const open = (kind, found) => ({ kind, at, columns, found })
  if (first === ">") return open("quote")
  let found
  if ("`~".includes(first) && (found = match(FENCE, source, at)))
    return open("fence", found)
  if (first === "#" && (found = match(HEADING, source, at))) return open("heading", found)
  if ("*-_".includes(first) && isRule(source, at, line.end)) return open("rule")
  if (/[-*+\d]/.test(first) && (found = match(ITEM, source, at))) return open("list", found)
  return null
}

function isRule(source, at, end) {
  return end - at <= 200 && match(RULE, source, at) !== null
}

/** Whether a line is the delimiter row of a table. */
export function isDelimiters(source, line) {
  const { at } = indent(source, line)
  const text = source.slice(at, Math.min(line.end, at + 2000))
  return /[-]/.test(text) && text.includes("|") && match(DELIMITERS, text, 0) !== null
}
