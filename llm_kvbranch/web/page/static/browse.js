// The list of conversations: keyboard shortcuts, a filter while one types, relative times.
// The server renders the list, which also works without this script.

import { h, isTyping, settled } from "./core/dom.js"
import { since } from "./core/format.js"
import { icon } from "./widgets/icons.js"
import { themeButton } from "./widgets/theme.js"

const trees = [...document.querySelectorAll(".tree")]
const search = document.querySelector(".filters input[type=search]")
const summary = document.querySelector(".summary")
const theme = themeButton()
let chosen = -1

/** The conversations that match the filter. */
const shown = () => trees.filter((tree) => !tree.hidden)

function choose(at) {
  const all = shown()
  if (!all.length) return
  chosen = Math.max(0, Math.min(all.length - 1, at))
  trees.forEach((tree) => tree.classList.toggle("is-chosen", tree === all[chosen]))
  all[chosen].querySelector(".tree-link").focus({ preventScroll: true })
  all[chosen].scrollIntoView({ block: "nearest" })
}

/** Hide conversations without the typed words; Enter searches the whole log. */
function filter() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean)
  for (const tree of trees) {
    const text = tree.textContent.toLowerCase()
    tree.hidden = !words.every((word) => text.includes(word))
  }
  const n = shown().length
  if (!summary) return
  summary.dataset.all ??= summary.textContent
  const says = n ? `${n} of these ${n === 1 ? "matches" : "match"}` : "None of these match"
  summary.textContent =
    words.length && search.value !== search.defaultValue
      ? `${says}. Press Enter to search the whole log.`
      : summary.dataset.all
}

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return
  if (event.key === "Escape" && event.target === search) search.blur()
  if (isTyping(event.target)) {
    if (event.target === search && event.key === "ArrowDown") choose(0)
    return
  }
  const step = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key]
  if (step) choose(chosen + step)
  else if (event.key === "/") {
    search.focus()
    search.select()
  } else if (event.key === "t") theme.click()
  else return
  event.preventDefault()
}

document.addEventListener("keydown", key)
search?.addEventListener("input", settled(filter, 60))
document.addEventListener("focusin", (event) => {
  const at = shown().indexOf(event.target.closest(".tree"))
  if (at < 0) return
  chosen = at
  trees.forEach((tree) => tree.classList.toggle("is-chosen", tree === shown()[at]))
})
for (const time of document.querySelectorAll("time[datetime]")) {
  time.title = time.textContent
  time.textContent = since(time.dateTime) || time.textContent
}
// Hide the first line of a tree where it repeats the title
for (const tree of trees) {
  const first = tree.querySelector(".outline li")
  const title = tree.querySelector(".title").textContent.trim()
  if (
    first &&
    !first.querySelector(".lead").textContent &&
    first.querySelector("a").textContent.trim() === title
  )
    first.hidden = true
}
document.querySelector(".home")?.prepend(icon("branch"))
document.querySelector(".top")?.append(theme)
document
  .querySelector(".browse-page main")
  ?.append(
    h(
      "p.browse-keys",
      {},
      h("span", {}, h("kbd", {}, "j"), " ", h("kbd", {}, "k"), " move"),
      h("span", {}, h("kbd", {}, "⏎"), " open"),
      h("span", {}, h("kbd", {}, "/"), " search"),
    ),
  )
