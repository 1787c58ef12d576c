// Highlights code: comments, strings, numbers and common keywords.
//
// The idea: one regular expression is good enough for nearly any language; the language's
// name only decides how comments start. A mistake costs a colour, nothing else.

const WORDS =
  "abstract|and|as|assert|async|await|begin|break|case|catch|class|const|continue|def|default|" +
  "defer|del|delete|do|done|elif|else|elsif|end|enum|esac|except|export|extends|extern|false|False|" +
  "fi|finally|fn|for|foreach|from|func|function|go|goto|if|impl|implements|import|in|instanceof|" +
  "interface|is|lambda|let|loop|match|mod|module|mut|namespace|new|nil|None|nonlocal|not|null|" +
  "of|or|package|pass|private|protected|pub|public|raise|require|return|self|static|struct|super|" +
  "switch|then|this|throw|trait|true|True|try|type|typedef|typeof|undefined|union|unless|until|use|" +
  "using|var|void|when|where|while|with|yield|select|insert|update|create|table|group|order|by|" +
  "join|left|on|limit|having|values|into|set|SELECT|INSERT|UPDATE|DELETE|CREATE|TABLE|FROM|WHERE|" +
  "GROUP|ORDER|BY|JOIN|LEFT|ON|AND|OR|NOT|NULL|AS|LIMIT|HAVING|VALUES|INTO|SET|IN|IS"
const HASH =
  /^(py|python|python3|sh|bash|zsh|shell|console|rb|ruby|yaml|yml|toml|ini|r|perl|make|makefile|dockerfile|conf)$/i
const DASH = /^(sql|sqlite|lua|haskell|hs|elm|ada)$/i
const PLAIN = /^(|text|txt|plain|plaintext|markdown|md|output|log)$/i
const LONGEST = 20_000 // units; longer code stays plain

/** The parts of a text in order, without gaps, with the kind of each ("" for plain text).
 * @param {string} text @param {string} language
 * @returns {Iterable<{from: number, to: number, kind: string}>} */
export function* highlight(text, language) {
  let at = 0
  if (!PLAIN.test(language) && text.length <= LONGEST) {
    for (const found of text.matchAll(pattern(language))) {
      if (found.index > at) yield { from: at, to: found.index, kind: "" }
      at = found.index + found[0].length
      const kind = Object.keys(found.groups).find(
        (name) => found.groups[name] !== undefined,
      )
      yield { from: found.index, to: at, kind: `code-${kind}` }
    }
  }
  if (at < text.length) yield { from: at, to: text.length, kind: "" }
}

const patterns = new Map()

function pattern(language) {
  const line = HASH.test(language) ? "#.*" : DASH.test(language) ? "--.*" : "\\/\\/.*"
  if (!patterns.has(line)) {
    const string =
      '"""[\\s\\S]*?(?:"""|$)|"(?:[^"\\\\\\n]|\\\\.)*"|\'(?:[^\'\\\\\\n]|\\\\.)*\'|`(?:[^`\\\\]|\\\\.)*`'
    const parts = [
      `(?<comment>${line}|\\/\\*[\\s\\S]*?(?:\\*\\/|$))`,
      `(?<string>${string})`,
      "(?<number>\\b\\d[\\w.]*)",
      `(?<word>\\b(?:${WORDS})\\b)`,
      "(?<name>\\b[A-Za-z_]\\w*(?=\\())",
    ]
    patterns.set(line, new RegExp(parts.join("|"), "g"))
  }
  return patterns.get(line)
}
