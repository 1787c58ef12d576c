// The address: one for every response, so that back, forward and reload work.

const QUICKLY = 700 // ms between steps of a walk that is one step back

/** Keep the address as what is selected. @param {object} app */
export function keepPlace({ state, api }) {
  let last = 0
  const to = (id, replace) => {
    const url = api.page(id)
    if (replace) history.replaceState({ id }, "", url)
    else history.pushState({ id }, "", url)
  }
  history.replaceState({ id: state.selected }, "", location.href)

  state.on("select", ({ id, push, by }) => {
    const run = state.tree.get(id)?.run
    if (!push || (run && !run.isLogged)) return
    const now = performance.now()
    to(id, by === "key" && now - last < QUICKLY)
    last = by === "key" ? now : 0
  })
  state.on("logged", (run) => to(run.id, false))
  addEventListener("popstate", (event) => {
    const id = event.state?.id
    if (id && state.tree.get(id)) state.select(id, { push: false })
    else if (id) location.reload() // a response of another tree, or one that is gone
  })
}
