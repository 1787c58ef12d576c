// Sets the chosen theme before anything is painted. A plain script, because modules run too
// late for that; see widgets/theme.js.
;(() => {
  let theme = null
  try {
    theme = JSON.parse(localStorage.getItem("kvbranch:theme"))
  } catch {
    // storage is not allowed here
  }
  const isLight = matchMedia("(prefers-color-scheme: light)").matches
  document.documentElement.dataset.theme = theme ?? (isLight ? "light" : "dark")
})()
