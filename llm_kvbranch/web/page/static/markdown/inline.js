// Parses Markdown within a block: emphasis, code and links, as positions in its text.
//
// The idea: one pass builds a list of items; a closing delimiter wraps the items since its
// opening one. No search is repeated and nesting is bounded, so no text takes long or makes
// a tree too deep to show.

const DEEPEST = 16
const SPECIAL = /[\\`*_~[\]!<&]|\bhttps?:\/\//g
const ENTITY = /&(?:(amp|lt|gt|quot|apos|nbsp)|#(\d{1,7})|#[xX]([\da-fA-F]{1,6}));/y
const ANGLE = /<((?:https?:\/\/|mailto:)[^\s<>]{1,1000})>/iy
const BREAK = /<br[ \t]*\/?>/iy
const URL_TEXT = /https?:\/\/[^\s<>"`*]{1,1000}/y
const TARGET =
  /\([ \t\n]{0,9}(?:<([^<>\n]{0,1000})>|([^\s()<>]{0,1000}(?:\([^\s()]{0,200}\)[^\s()<>]{0,200}){0,3}))(?:[ \t\n]{1,9}(?:"[^"]{0,300}"|'[^']{0,300}'|\([^()]{0,300}\)))?[ \t\n]{0,9}\)/y
const NAMES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" }
const PUNCTUATION = /[\p{P}\p{S}]/u

/** @typedef {{type: string, from: number, to: number, children?: Item[], href?: string,
 *   value?: string, depth?: number}} Item */

/** @param {string} text @returns {Item[]} */
export function inlineOf(text) {
  return new Reader(text).read()
}

class Reader {
  constructor(text) {
    this.text = text
    this.at = 0
    this.items = []
    this.runs = [] // runs of * _ ~ that may still open emphasis
    this.brackets = [] // [ that may still open a link
    this.failed = {} // how many runs were searched without a match, by kind of delimiter
    this.ticks = null
  }

  read() {
    const { text } = this
    while (this.at < text.length) {
      SPECIAL.lastIndex = this.at
      const found = SPECIAL.exec(text)
      const next = found ? found.index : text.length
      if (next > this.at) this.push("text", this.at, next)
      this.at = next
      if (found) this.special(found[0])
    }
    return joined(this.items)
  }

  push(type, from, to, more = {}) {
    this.items.push({ type, from, to, ...more })
    this.at = to
  }

  match(pattern) {
    pattern.lastIndex = this.at
    return pattern.exec(this.text)
  }

  special(sign) {
    const { text, at } = this
    const next = text[at + 1]
    if (sign === "\\") this.escape(next)
    else if (sign === "`") this.code()
    else if (sign === "*" || sign === "_" || sign === "~") this.run(sign)
    else if (sign === "[") this.bracket(at, 1)
    else if (sign === "!" && next === "[") this.bracket(at, 2)
    else if (sign === "]") this.close()
    else if (sign === "<") this.angle()
    else if (sign === "&") this.entity()
    else if (sign.length > 1) this.url()
    else this.push("text", at, at + 1)
  }

  escape(next) {
    const { at } = this
    if (next === "\n") this.push("skip", at, at + 1)
    else if (next !== undefined && /[!-/:-@[-`{-~]/.test(next)) {
      this.push("skip", at, at + 1)
      this.push("text", at + 1, at + 2)
    } else this.push("text", at, at + 1)
  }

  code() {
    const { text, at } = this
    this.ticks ??= tickRuns(text)
    let n = 1
    while (text[at + n] === "`") n += 1
    const places = this.ticks.get(n) ?? []
    while (places.length && places.at(-1) < at + n) places.pop()
    if (!places.length) {
      this.push("text", at, at + n)
      return
    }
    const end = places.at(-1)
    let [from, to] = [at + n, end]
    const padded = text[from] === " " && text[to - 1] === " "
    if (padded && text.slice(from, to).trim()) [from, to] = [from + 1, to - 1]
    this.push("code", from, to)
    this.at = end + n
  }

  entity() {
    const found = this.match(ENTITY)
    if (!found) return this.push("text", this.at, this.at + 1)
    const code = found[2] ? Number(found[2]) : parseInt(found[3], 16)
    const bad = !code || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)
    const value = NAMES[found[1]] ?? (bad ? "\ufffd" : String.fromCodePoint(code))
    return this.push("entity", this.at, this.at + found[0].length, { value })
  }

  angle() {
    const { at } = this
    const link = this.match(ANGLE)
    if (link) {
      const children = [{ type: "text", from: at + 1, to: at + 1 + link[1].length }]
      return this.push("link", at, at + link[0].length, { href: link[1], children })
    }
    const br = this.match(BREAK)
    if (br) return this.push("break", at, at + br[0].length)
    return this.push("text", at, at + 1)
  }

  url() {
    const { at } = this
    let [href] = this.match(URL_TEXT) ?? [this.text.slice(at, at + 7)]
    href = href.replace(/[.,;:!?'_~]+$/, "")
    while (/[)\]}]$/.test(href) && !balanced(href)) href = href.slice(0, -1)
    const children = [{ type: "text", from: at, to: at + href.length }]
    this.push("link", at, at + href.length, { href, children })
  }

  bracket(at, length) {
    this.brackets.push({ index: this.items.length, image: length === 2 })
    this.push("text", at, at + length)
  }

  close() {
    const { at } = this
    const open = this.brackets.pop()
    this.push("text", at, at + 1)
    const target = open && this.match(TARGET)
    if (!target) return
    const inside = this.items.splice(open.index)
    const children = joined(inside.slice(1, -1))
    const href = target[1] ?? target[2]
    const type = open.image ? "image" : "link"
    dropFrom(this.runs, open.index)
    this.push(type, inside[0].from, at + 1 + target[0].length, { href, children })
    this.items.at(-1).depth = 1 + deepest(children)
    if (!open.image) this.brackets = [] // no link within a link
  }

  /** A run of delimiters: it closes what it can, and the rest may open emphasis. */
  run(sign) {
    const { text, at } = this
    let to = at
    while (text[to] === sign) to += 1
    const length = to - at
    const run = { sign, length, left: length, from: at, ...flanks(text, at, to, sign) }
    while (run.closes && run.left && this.wrap(run)) continue
    if (!run.left) {
      this.at = to
      return
    }
    if (run.opens) this.runs.push({ ...run, index: this.items.length })
    this.push("text", to - run.left, to)
  }

  /** Let a run close the nearest matching one; returns whether there was one. */
  wrap(run) {
    const key = `${run.sign}${run.opens ? run.length % 3 : ""}`
    const floor = Math.min(this.failed[key] ?? 0, this.runs.length)
    for (let i = this.runs.length - 1; i >= floor; i--) {
      const open = this.runs[i]
      if (!fits(open, run)) continue
      const n = run.sign === "~" ? run.left : open.left >= 2 && run.left >= 2 ? 2 : 1
      const depth = 1 + deepest(this.items, open.index + 1)
      if (depth > DEEPEST) break // whatever opens before it is deeper still
      const children = joined(this.items.slice(open.index + 1))
      if (!children.length) return false
      const type = run.sign === "~" ? "del" : n === 2 ? "strong" : "em"
      const text = this.items[open.index]
      text.to -= n
      open.left -= n
      this.items.length = open.index + (open.left ? 1 : 0)
      this.runs.length = i + (open.left ? 1 : 0)
      dropFrom(this.brackets, this.items.length)
      run.left -= n
      run.from += n
      this.items.push({ type, from: text.to, to: run.from, children, depth })
      return true
    }
    this.failed[key] = this.runs.length
    return false
  }
}

function fits(open, close) {
  if (open.sign !== close.sign) return false
  if (open.sign === "~") return open.left === close.left && close.left <= 2
  const mixed = open.closes || close.opens
  const sum = open.length + close.length
  return !(mixed && sum % 3 === 0 && (open.length % 3 || close.length % 3))
}

/** Whether a run may open and close emphasis, by the characters on either side. */
function flanks(text, from, to, sign) {
  const before = before1(text, from)
  const after = text[to] === undefined ? " " : String.fromCodePoint(text.codePointAt(to))
  const [spaceBefore, spaceAfter] = [/\s/.test(before), /\s/.test(after)]
  const [signBefore, signAfter] = [PUNCTUATION.test(before), PUNCTUATION.test(after)]
  const left = !spaceAfter && (!signAfter || spaceBefore || signBefore)
  const right = !spaceBefore && (!signBefore || spaceAfter || signAfter)
  if (sign !== "_") return { opens: left, closes: right }
  return { opens: left && (!right || signBefore), closes: right && (!left || signAfter) }
}

function before1(text, at) {
  if (at === 0) return " "
  const low = text.charCodeAt(at - 1)
  return low >= 0xdc00 && low < 0xe000 ? text.slice(at - 2, at) : text[at - 1]
}

function balanced(text) {
  const n = (sign) => text.split(sign).length
  return n("(") === n(")") && n("[") === n("]") && n("{") === n("}")
}

function deepest(items, from = 0) {
  let depth = 0
  for (let i = from; i < items.length; i++) depth = Math.max(depth, items[i].depth ?? 0)
  return depth
}

/** Drop everything opened at some item or after it. */
function dropFrom(opened, index) {
  while (opened.length && opened.at(-1).index >= index) opened.pop()
}

/** The items with adjacent texts merged. */
function joined(items) {
  const out = []
  for (const item of items) {
    const last = out.at(-1)
    if (item.type === "skip" || item.from === item.to) continue
    if (item.type === "text" && last?.type === "text" && last.to === item.from)
      last.to = item.to
    else out.push(item.type === "text" ? { ...item } : item)
  }
  return out
}

/** The positions of runs of backticks by length, the last one first. */
function tickRuns(text) {
  const runs = new Map()
  for (const { 0: run, index } of text.matchAll(/`+/g)) {
    if (!runs.has(run.length)) runs.set(run.length, [])
    runs.get(run.length).push(index)
  }
  for (const places of runs.values()) places.reverse()
  return runs
}
