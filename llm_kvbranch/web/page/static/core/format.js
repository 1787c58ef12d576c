// Numbers, durations and dates as people read them.

const NUMBER = new Intl.NumberFormat("en", { maximumFractionDigits: 0 })

/** @param {number} n */
export const number = (n) => NUMBER.format(n)

/** "3 tokens" @param {number} n @param {string} one */
export const counted = (n, one, many = `${one}s`) => `${number(n)} ${n === 1 ? one : many}`

/** "87 ms", "1.4 s", "2 min" @param {number} ms */
export function duration(ms) {
  if (ms < 1) return "<1 ms"
  if (ms < 999.5) return `${Math.round(ms)} ms`
  if (ms < 99_500) return `${(ms / 1000).toFixed(ms < 9950 ? 1 : 0)} s`
  return `${Math.round(ms / 60_000)} min`
}

/** "61 tok/s" @param {number} tps */
export const rate = (tps) => `${tps < 9.95 ? tps.toFixed(1) : Math.round(tps)} tok/s`

/** "5 min ago", or a day @param {string} iso */
export function since(iso, now = Date.now()) {
  const date = new Date(iso)
  const minutes = Math.floor((now - date) / 60_000)
  if (Number.isNaN(minutes)) return ""
  if (minutes < 1) return "just now"
  if (minutes < 60) return `${minutes} min ago`
  if (minutes < 24 * 60) return `${Math.floor(minutes / 60)} h ago`
  const sameYear = date.getFullYear() === new Date(now).getFullYear()
  const year = sameYear ? {} : { year: "numeric" }
  return date.toLocaleDateString("en", { day: "numeric", month: "short", ...year })
}

/** A piece of Markdown as plain text. @param {?string} text */
export function plain(text) {
  return (text ?? "")
    .replace(/`{1,3}\w*\s?|\*{1,3}|~~|\|/g, "")
    .replace(/(^|\s)(?:#{1,6}|>|[-+]|_{1,3}(?=\w))\s?/g, "$1")
    .replace(/(?<=\w)_{1,3}(?=\s|$)/g, "")
    .replace(/\[([^\]]*)\]\([^)]*\)/g, "$1")
}
