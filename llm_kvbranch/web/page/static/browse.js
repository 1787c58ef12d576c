// The list of conversations: keys, a filter while one types, times as people say them.
// The list itself comes from the server and works without this.

import { h, isTyping, settled } from "./core/dom.js"
import { since } from "./core/format.js"
import { icon } from "./core/icons.js"
import { themeButton } from "./core/theme.js"

const trees = [...document.querySelectorAll(".tree")]
const search = document.querySelector(".filters input[type=search]")
const summary = document.querySelector(".summary")
const theme = themeButton()
let chosen = -1

/** Those that the filter leaves. */
const shown = () => trees.filter((tree) => !tree.hidden)

function choose(at) {
  const all = shown()
  if (!all.length) return
  chosen = Math.max(0, Math.min(all.length - 1, at))
  trees.forEach((tree) => tree.classList.toggle("is-chosen", tree === all[chosen]))
  all[chosen].querySelector(".tree-link").focus({ preventScroll: true })
  all[chosen].scrollIntoView({ block: "nearest" })
}

/** Hide what does not have the words that are typed; Enter looks in the whole log. */
function filter() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean)
  for (const tree of trees) {
    const text = tree.textContent.toLowerCase()
    tree.hidden = !words.every((word) => text.includes(word))
  }
  const n = shown().length
  if (!summary) return
  summary.dataset.all ??= summary.textContent
  const says = n ? `${n} of these ${n === 1 ? "fits" : "fit"}` : "None of these fits"
  summary.textContent =
    words.length && search.value !== search.defaultValue
      ? `${says}: Enter searches all that was said`
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
// A tree's first line, where it says the same as the title
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
      h("span", {}, h("kbd", {}, "j"), " ", h("kbd", {}, "k"), " walk"),
      h("span", {}, h("kbd", {}, "⏎"), " open"),
      h("span", {}, h("kbd", {}, "/"), " search"),
    ),
  )
