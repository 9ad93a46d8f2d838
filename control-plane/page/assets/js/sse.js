// Server-sent events as a pure parser: text in, events out. https://html.spec.whatwg.org/multipage/server-sent-events.html §9.2.6
//
// Not EventSource: that hides the status of a refused connection, and the comments that show a connection to be alive.

/** @typedef {{ name: string, data: string }} ServerEvent */

// A state of a large federation takes about two megabytes. What is far beyond is no state.
const BYTES_MAX = 64 << 20;

/** @returns {{ take: (text: string) => ServerEvent[] }} */
export function parser() {
  let rest = '';
  let name = '';
  /** @type {string[]} */
  let data = [];
  return {
    take(text) {
      rest += text;
      if (rest.length > BYTES_MAX) throw new Error('an event of the stream is too large');
      /** @type {ServerEvent[]} */
      const out = [];
      for (;;) {
        const end = rest.search(/\r\n|\n|\r(?!$)/);
        if (end < 0) return out;
        const line = rest.slice(0, end);
        rest = rest.slice(end + (rest.startsWith('\r\n', end) ? 2 : 1));
        if (line === '') {
          if (data.length > 0) out.push({ name: name || 'message', data: data.join('\n') });
          name = '';
          data = [];
          continue;
        }
        const colon = line.indexOf(':');
        const field = colon < 0 ? line : line.slice(0, colon);
        const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '');
        if (field === 'event') name = value;
        if (field === 'data') data.push(value);
      }
    },
  };
}
