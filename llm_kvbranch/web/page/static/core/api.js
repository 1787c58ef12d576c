// Requests to the server: JSON in and out, and errors as the server words them.

/** A refused request, with the server's message. `retryAfter` is in seconds. */
export class ApiError extends Error {
  constructor(words, status = 0, retryAfter = null) {
    super(words)
    this.status = status
    this.retryAfter = retryAfter
  }
}

export class Api {
  /** @param {object} config of the page, see config_of in pages.py */
  constructor(config) {
    this.config = config
  }

  /** The address to GET something from this log. */
  url(name, parameters = {}) {
    const url = new URL(this.config.urls[name], location.href)
    url.searchParams.set("db", this.config.db)
    for (const [key, value] of Object.entries(parameters)) {
      for (const each of [value].flat()) {
        if (each !== null && each !== undefined) url.searchParams.append(key, each)
      }
    }
    return url
  }

  /** The address of a response's page, in the same log as this page. */
  page(id) {
    const db = new URLSearchParams(location.search).get("db")
    const query = db === null ? "" : `?${new URLSearchParams({ db })}`
    return `${this.config.urls.home}/${encodeURIComponent(id)}${query}`
  }

  async get(name, parameters, signal) {
    const headers = { accept: "application/json" }
    const response = await reach(this.url(name, parameters), { headers, signal })
    return response.json()
  }

  async post(name, body) {
    return (await this.send(name, body)).json()
  }

  /** POST, for callers that read the body themselves. */
  send(name, body, signal) {
    const headers = { "content-type": "application/json" }
    if (this.config.csrf) headers["x-csrftoken"] = this.config.csrf
    const sent = { method: "POST", headers, body: JSON.stringify(body), signal }
    return reach(new URL(this.config.urls[name], location.href), sent)
  }
}

async function reach(url, sent) {
  let response
  try {
    response = await fetch(url, { credentials: "same-origin", ...sent })
  } catch (error) {
    if (error.name === "AbortError") throw error
    throw new ApiError("The server cannot be reached. Is llm kvbranch serve still running?")
  }
  if (response.ok) return response
  const after = Number(response.headers.get("retry-after")) || null
  throw new ApiError(await message(response), response.status, after)
}

async function message(response) {
  if (response.status === 401) return "You are logged out. Reload this page to log in."
  try {
    const { error } = await response.json()
    return error.message ?? String(error)
  } catch {
    return `The server answered ${response.status} ${response.statusText}`.trim()
  }
}
