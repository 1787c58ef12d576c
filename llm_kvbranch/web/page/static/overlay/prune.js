// The dialog to prune a response and everything below it. It first says what that does.

import { h } from "../core/dom.js"
import { counted } from "../core/format.js"
import { openDialog, problem } from "../widgets/dialog.js"

/** @param {object} app @param {string} id */
export async function openPrune(app, id) {
  const { state } = app
  const below = state.tree.below(id)
  const says = h("div.prune-says", { role: "status" }, "Checking…")
  const go = h("button.danger", { type: "button", disabled: true }, "Drop the state")
  const choice = (what, title, about) =>
    h(
      "label",
      {},
      radio(what, what === "state"),
      h("span", {}, h("strong", {}, title), h("span", {}, about)),
    )
  const radios = h(
    "div.prune-what",
    { role: "radiogroup", "aria-label": "What to drop" },
    choice(
      "state",
      "KV state",
      "The conversation stays. The next branch reads it again.",
    ),
    choice("log", "State and log", "The responses are deleted. This cannot be undone."),
  )
  const dialog = openDialog({
    title: below
      ? `Prune this response and ${counted(below, "other")} below it`
      : "Prune this response",
    name: "prune",
    body: [radios, says],
    foot: [
      h("span.space"),
      h("button.quiet", { type: "button", on: { click: () => dialog.close() } }, "Cancel"),
      go,
    ],
  })
  const chosen = () => radios.querySelector("input:checked").value
  const look = () => dryRun(app, id, chosen(), says, go)
  radios.addEventListener("change", look)
  go.addEventListener("click", () => drop(app, id, chosen(), dialog, says, go))
  await look()
}

function radio(value, checked) {
  const input = h("input", { type: "radio", name: "prune-what", value })
  input.checked = checked
  return input
}

async function dryRun({ api }, id, what, says, go) {
  go.disabled = true
  go.textContent = what === "log" ? "Delete" : "Drop the state"
  try {
    const would = await api.post("prune", { id, what, dry_run: true })
    says.replaceChildren(...tell(would, what))
    go.disabled = what === "state" && would.states === 0
  } catch (error) {
    says.replaceChildren(problem(error))
  }
}

function tell({ responses, states, nbytes_text: size, kept }, what) {
  const reclaims = states
    ? `${size} (${counted(states, "state")}) will be freed.`
    : "There is no state to drop."
  const deletes =
    what === "log"
      ? h("p", {}, `${counted(responses, "response")} will be deleted from the log.`)
      : null
  return [
    deletes,
    h("p", {}, reclaims),
    ...kept.map((why) => h("p.kept", {}, `Kept: ${why}`)),
  ].filter(Boolean)
}

async function drop({ api, state, say }, id, what, dialog, says, go) {
  go.disabled = true
  const parent = state.tree.get(id)?.parent
  try {
    const did = await api.post("prune", { id, what, dry_run: false })
    dialog.close()
    const words =
      what === "log"
        ? `${counted(did.responses, "response")} deleted`
        : `${counted(did.states, "state")} dropped`
    say(`${words}, ${did.nbytes_text} freed`)
    if (what === "log") await afterDeletion(state, id, parent)
    else await state.loadTree()
    await state.loadPath()
  } catch (error) {
    says.replaceChildren(problem(error))
  }
}

/** Show the rest of the tree, or the list if nothing is left. */
async function afterDeletion(state, id, parent) {
  if (!parent) {
    location.assign(state.config.urls.home)
    return
  }
  const isGone = state.tree.path(state.selected).some((node) => node.id === id)
  if (state.tree.path(state.config.id).some((node) => node.id === id))
    state.config.id = parent
  state.compared = state.compared.filter(
    (each) => !state.tree.path(each).some((node) => node.id === id),
  )
  if (isGone) state.select(parent)
  await state.loadTree()
  state.emit("compared", state.compared)
}
