// Reads server-sent events from a response as they arrive.

/** The data of each event, parsed; ends with the stream or at [DONE].
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<any>} */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader()
  let rest = ""
  try {
    while (true) {
      const { done, value } = await reader.read()
      if (done) return
      const lines = (rest + value).split("\n")
      rest = lines.pop()
      for (const line of lines) {
        if (!line.startsWith("data:")) continue
        const data = line.slice(5).trim()
        if (data === "[DONE]") return
        yield JSON.parse(data)
      }
    }
  } finally {
    reader.cancel().catch(() => {})
  }
}
