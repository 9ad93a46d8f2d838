// How figures and names are written. What is not known is `null` and says so; it is never 0.

// Between a figure and its unit: they stay on one line.
const NARROW = '\u00a0';

/** What stands where a figure is not known. */
export const NOT_REPORTED = 'not reported';

/** @typedef {number | null | undefined} Figure */

/** @param {Figure} figure @returns {figure is number} */
export function known(figure) {
  return typeof figure === 'number' && Number.isFinite(figure);
}

/**
 * Requests per second, three digits.
 * @param {Figure} perSecond
 */
export function rate(perSecond) {
  if (!known(perSecond)) return NOT_REPORTED;
  return `${short(perSecond)}/s`;
}

/**
 * A number in three digits or less, with k, M, G.
 * @param {number} value
 */
export function short(value) {
  if (value === 0) return '0';
  if (value < 0.01) return '<0.01';
  const units = ['', 'k', 'M', 'G', 'T'];
  let unit = 0;
  let rest = value;
  while (rest >= 999.5 && unit < units.length - 1) {
    rest /= 1000;
    unit += 1;
  }
  const digits = rest >= 99.95 ? 0 : rest >= 9.995 ? 1 : 2;
  return `${Number(rest.toFixed(digits))}${units[unit]}`;
}

/**
 * A length of time out of microseconds: 950 µs, 1.84 ms, 302 ms, 1.2 s.
 * @param {Figure} micros
 */
export function duration(micros) {
  if (!known(micros)) return NOT_REPORTED;
  if (micros < 999.5) return `${Math.round(micros)}${NARROW}µs`;
  if (micros < 999_500) return `${short(micros / 1000)}${NARROW}ms`;
  if (micros < 120_000_000) return `${short(micros / 1_000_000)}${NARROW}s`;
  return age(micros / 1000);
}

/**
 * A share in percent that is never rounded up to all: 99.9999 % is 99.99 %.
 * @param {Figure} share   0 to 1
 */
export function percent(share) {
  if (!known(share)) return NOT_REPORTED;
  const floored = Math.floor(share * 10_000 + 1e-6) / 100;
  return `${floored >= 100 ? '100' : floored.toFixed(2)}${NARROW}%`;
}

/**
 * How long ago, or how long still, in one unit.
 * @param {Figure} milliseconds
 */
export function age(milliseconds) {
  if (!known(milliseconds)) return NOT_REPORTED;
  const seconds = Math.max(0, milliseconds) / 1000;
  if (seconds < 90) return `${Math.round(seconds)}${NARROW}s`;
  if (seconds < 90 * 60) return `${Math.round(seconds / 60)}${NARROW}min`;
  if (seconds < 72 * 3600) return `${Math.round(seconds / 3600)}${NARROW}h`;
  return `${Math.round(seconds / 86_400)}${NARROW}d`;
}

/**
 * Time of day where the reader is, with the day if that is not today.
 * @param {Figure} unixMs
 */
export function clock(unixMs) {
  if (!known(unixMs)) return NOT_REPORTED;
  const date = new Date(unixMs);
  const two = (/** @type {number} */ n) => String(n).padStart(2, '0');
  const hours = `${two(date.getHours())}:${two(date.getMinutes())}`;
  if (date.toDateString() === new Date().toDateString()) return `${hours}:${two(date.getSeconds())}`;
  return `${date.toLocaleDateString('en', { month: 'short', day: 'numeric' })}, ${hours}`;
}

/**
 * Date and time in full, for a `datetime` or a title.
 * @param {Figure} unixMs
 */
export function moment(unixMs) {
  if (!known(unixMs)) return NOT_REPORTED;
  const date = new Date(unixMs);
  return Number.isNaN(date.getTime()) ? NOT_REPORTED : date.toISOString().replace(/\.\d+Z$/, 'Z');
}

/**
 * @param {number} count
 * @param {string} one
 * @param {string} [many]
 */
export function counted(count, one, many) {
  return `${count} ${count === 1 ? one : (many ?? `${one}s`)}`;
}

// Characters that show nothing, or turn what stands around them: a name with one of them would look like another name.
// eslint-disable-next-line no-control-regex
const INVISIBLE = /[\u0000-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202f\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\uffff]/g;

/**
 * A text that others chose, with what would be invisible made visible.
 * @param {string | null | undefined} text
 */
export function plain(text) {
  return (text ?? '').replace(INVISIBLE, (char) => `\\u{${(char.codePointAt(0) ?? 0).toString(16)}}`);
}
