// Parses Markdown into blocks, given as positions in the source.
//
// The idea: each kind of block reads its own lines and returns the next line's index. A
// block that has not ended, such as a fence in an answer that still grows, is a block, too.

import { dedent, indent, isDelimiters, linesOf, opening } from "./lines.js"

const DEEPEST = 12 // nested quotes and lists; deeper ones are text

/** The blocks of a source from some position on, each with its start (`at`).
 * @param {string} source @param {number} [from] */
export function blocksOf(source, from = 0) {
  return read(source, linesOf(source, from), 0)
}

function read(source, lines, depth) {
  const blocks = []
  for (let i = 0; i < lines.length;) {
    if (indent(source, lines[i]).blank) {
      i += 1
      continue
    }
    const { block, next } = readBlock(source, lines, i, depth)
    block.at = lines[i].at
    blocks.push(block)
    i = next
  }
  return blocks
}

function readBlock(source, lines, i, depth) {
  const open = opening(source, lines[i])
  const nests = depth < DEEPEST
  if (open?.kind === "fence") return fence(source, lines, i, open)
  if (open?.kind === "indented") return indented(source, lines, i)
  if (open?.kind === "heading") return heading(source, lines, i, open)
  if (open?.kind === "rule") return { block: { type: "rule" }, next: i + 1 }
  if (open?.kind === "quote" && nests) return quote(source, lines, i, depth)
  if (open?.kind === "list" && nests) return list(source, lines, i, open, depth)
  if (isTable(source, lines, i)) return table(source, lines, i)
  return paragraph(source, lines, i)
}

function fence(source, lines, i, open) {
  const marker = open.found[0]
  const info = source.slice(open.at + marker.length, lines[i].end).trim()
  const closing = new RegExp(`^ {0,3}${marker[0]}{${marker.length},}[ \\t]*$`)
  const own = []
  let next = i + 1
  let closed = false
  for (; next < lines.length && !closed; next++) {
    const line = lines[next]
    closed = line.end - line.at < 200 && closing.test(source.slice(line.at, line.end))
    if (!closed) own.push(dedent(source, line, open.columns))
  }
  const language = info.split(/\s/, 1)[0].slice(0, 40)
  return { block: { type: "code", language, lines: own, open: !closed }, next }
}

function indented(source, lines, i) {
  let last = i
  for (let n = i; n < lines.length; n++) {
    const { columns, blank } = indent(source, lines[n])
    if (!blank && columns < 4) break
    if (!blank) last = n
  }
  const own = lines.slice(i, last + 1).map((line) => dedent(source, line, 4))
  return { block: { type: "code", language: "", lines: own, open: false }, next: last + 1 }
}

function heading(source, lines, i, open) {
  const level = open.found[0].length
  let { end } = lines[i]
  let at = open.at + level
  while (at < end && /[ \t]/.test(source[at])) at += 1
  const closing = /[ \t]#+[ \t]*$/.exec(source.slice(Math.max(at, end - 100), end))
  if (closing) end -= closing[0].length
  return { block: { type: "heading", level, lines: [{ at, end }] }, next: i + 1 }
}

function quote(source, lines, i, depth) {
  const own = []
  let next = i
  for (; next < lines.length; next++) {
    const line = lines[next]
    const { at, blank, columns } = indent(source, line)
    if (source[at] === ">" && columns < 4 && !blank) {
      own.push(dedent(source, { at: at + 1, end: line.end }, 1))
    } else if (blank || opening(source, line)) break
    else own.push(line) // a lazy continuation line
  }
  return { block: { type: "quote", blocks: read(source, own, depth + 1) }, next }
}

function list(source, lines, i, open, depth) {
  const ordered = open.found[1] === undefined
  const mark = open.found[1] ?? open.found[3]
  const block = {
    type: "list",
    ordered,
    start: Number(open.found[2] ?? 1),
    tight: true,
    items: [],
  }
  let next = i
  while (next < lines.length) {
    let at = next
    while (at < lines.length && indent(source, lines[at]).blank) at += 1
    if (at === lines.length) break
    const begin = opening(source, lines[at])
    if (begin?.kind !== "list" || (begin.found[1] ?? begin.found[3]) !== mark) break
    if (at > next) block.tight = false
    const item = itemLines(source, lines, at, begin)
    const blocks = read(source, item.lines, depth + 1)
    if (item.loose && blocks.length > 1) block.tight = false
    block.items.push({ blocks, task: item.task, at: lines[at].at })
    next = item.next
  }
  return { block, next }
}

/** The lines of a list item, without its marker and indentation. */
function itemLines(source, lines, i, open) {
  const after = { at: open.at + open.found[0].length, end: lines[i].end }
  const gap = indent(source, after)
  const padding = gap.blank || gap.columns > 4 ? 1 : gap.columns
  const width = open.columns + open.found[0].length + padding
  const first = dedent(source, after, padding)
  const box = /^\[([ xX])\][ \t]+/.exec(source.slice(first.at, first.at + 8))
  if (box) first.at += box[0].length
  const own = [first]
  const task = box ? box[1] !== " " : null
  let loose = false
  let blanks = 0
  let next = i + 1
  for (let n = next; n < lines.length; n++) {
    const { columns, blank } = indent(source, lines[n])
    if (blank) {
      blanks += 1
      continue
    }
    const inside = columns >= Math.min(width, open.columns + 2)
    if (!inside && (blanks || opening(source, lines[n]))) break
    for (let b = n - blanks; b < n; b++) own.push({ at: lines[b].end, end: lines[b].end })
    loose ||= blanks > 0
    blanks = 0
    own.push(dedent(source, lines[n], width))
    next = n + 1
  }
  return { lines: own, next, loose, task }
}

function paragraph(source, lines, i) {
  const own = []
  let next = i
  let level = 0
  for (; next < lines.length; next++) {
    const line = lines[next]
    const { at, blank, columns } = indent(source, line)
    if (blank) break
    if (next > i && columns < 4) {
      const under = /^(=+|-+)[ \t]*$/.exec(source.slice(at, Math.min(line.end, at + 200)))
      if (under) {
        level = under[1][0] === "=" ? 1 : 2
        next += 1
        break
      }
      if (interrupts(source, line) || isTable(source, lines, next)) break
    }
    own.push({ at, end: line.end })
  }
  const block = level
    ? { type: "heading", level, lines: own }
    : { type: "paragraph", lines: own }
  return { block, next }
}

/** Whether a line ends the paragraph before it; of numbered items only number 1 does. */
function interrupts(source, line) {
  const open = opening(source, line)
  if (open === null || open.kind === "indented") return false
  if (open.kind !== "list") return true
  const empty = indent(source, { at: open.at + open.found[0].length, end: line.end }).blank
  return !empty && (open.found[1] !== undefined || open.found[2] === "1")
}

function isTable(source, lines, i) {
  if (i + 1 >= lines.length || !isDelimiters(source, lines[i + 1])) return false
  const head = cells(source, lines[i])
  return head.length > 0 && head.length === cells(source, lines[i + 1]).length
}

function table(source, lines, i) {
  const head = cells(source, lines[i])
  const align = cells(source, lines[i + 1]).map(({ at, end }) => {
    const [left, right] = [source[at] === ":", source[end - 1] === ":"]
    return left && right ? "center" : right ? "right" : ""
  })
  const rows = []
  let next = i + 2
  for (; next < lines.length; next++) {
    if (indent(source, lines[next]).blank || opening(source, lines[next])) break
    rows.push(cells(source, lines[next]).slice(0, head.length))
  }
  return { block: { type: "table", head, align, rows }, next }
}

/** The cells of a table row, trimmed. */
function cells(source, line) {
  const found = []
  const { at: first } = indent(source, line)
  let at = source[first] === "|" ? first + 1 : first
  for (let n = at; n <= line.end && found.length < 100; n++) {
    if (source[n] === "\\" && n < line.end) n += 1
    else if (n === line.end || source[n] === "|") {
      const cell = trimmed(source, at, n)
      if (n < line.end || cell.end > cell.at) found.push(cell)
      at = n + 1
    }
  }
  return found
}

function trimmed(source, at, end) {
  while (at < end && /\s/.test(source[at])) at += 1
  while (end > at && /\s/.test(source[end - 1])) end -= 1
  return { at, end }
}
