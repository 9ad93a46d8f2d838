// Two values as lines, and what differs between them. Pure.

/** @typedef {{ is: 'same' | 'gone' | 'new', text: string }} Line */

// The table below has as many fields as the product of both lengths.
const LINES_MAX = 400;

/** @param {unknown} before @param {unknown} after @returns {Line[]} */
export function difference(before, after) {
  const was = before === null ? [] : lines(before).slice(0, LINES_MAX);
  const now = after === null ? [] : lines(after).slice(0, LINES_MAX);
  // Longest common subsequence, from the end.
  const width = now.length + 1;
  const best = new Uint16Array((was.length + 1) * width);
  const at = (/** @type {number} */ i, /** @type {number} */ j) => best[i * width + j] ?? 0;
  for (let i = was.length - 1; i >= 0; i -= 1) {
    for (let j = now.length - 1; j >= 0; j -= 1) best[i * width + j] = was[i] === now[j] ? at(i + 1, j + 1) + 1 : Math.max(at(i + 1, j), at(i, j + 1));
  }
  /** @type {Line[]} */
  const out = [];
  let [i, j] = [0, 0];
  while (i < was.length || j < now.length) {
    const [old, fresh] = [was[i], now[j]];
    if (old !== undefined && old === fresh) {
      out.push({ is: 'same', text: old });
      i += 1;
      j += 1;
    } else if (old !== undefined && (fresh === undefined || at(i + 1, j) >= at(i, j + 1))) {
      out.push({ is: 'gone', text: old });
      i += 1;
    } else {
      out.push({ is: 'new', text: fresh ?? '' });
      j += 1;
    }
  }
  return out;
}

/** A value as lines, like YAML. @param {unknown} value @param {string} [indent] @returns {string[]} */
export function lines(value, indent = '') {
  if (Array.isArray(value)) {
    return value.flatMap((item) => {
      const [first, ...rest] = lines(item, `${indent}  `);
      return [`${indent}- ${(first ?? '').trimStart()}`, ...rest];
    });
  }
  if (typeof value === 'object' && value !== null) {
    return Object.entries(value).flatMap(([key, inner]) => {
      const nested = typeof inner === 'object' && inner !== null && Object.keys(inner).length > 0;
      return nested ? [`${indent}${key}:`, ...lines(inner, `${indent}  `)] : [`${indent}${key}: ${scalar(inner)}`];
    });
  }
  return [`${indent}${scalar(value)}`];
}

/** @param {unknown} value */
function scalar(value) {
  if (typeof value === 'object' && value !== null) return Array.isArray(value) ? '[]' : '{}';
  return typeof value === 'string' ? value : JSON.stringify(value);
}
