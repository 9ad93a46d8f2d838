// What the page asks of the member that serves it.

/** @import { Done, Me, Plan, Refusal, Verb } from './contract.js' */

/** Something was refused, or no answer came. */
export class Refused extends Error {
  /** @param {number} status   0: no answer came, what became of the request is not known. @param {Refusal} refusal */
  constructor(status, refusal) {
    super(refusal.error);
    this.status = status;
    this.refusal = refusal;
  }
}

/** Who is signed in; null: nobody. @returns {Promise<Me | null>} */
export async function me() {
  try {
    return await call('GET', '/api/me');
  } catch (error) {
    if (error instanceof Refused && error.status === 401) return null;
    throw error;
  }
}

/** @param {string} secret @returns {Promise<Me>} */
export function signIn(secret) {
  return call('POST', '/api/sign-in', { secret });
}

export async function signOut() {
  await call('POST', '/api/sign-out', {});
}

/** @param {Verb} verb @param {Record<string, unknown>} ask @returns {Promise<Plan>} */
export function plan(verb, ask) {
  return call('POST', `/api/actions/${verb}`, { ...ask, dryRun: true });
}

/**
 * @param {Verb} verb
 * @param {Record<string, unknown>} ask
 * @param {string} basis       The plan's.
 * @param {string} requestId   The same again after a lost answer: nothing is then done twice.
 * @returns {Promise<Done>}
 */
export function carryOut(verb, ask, basis, requestId) {
  return call('POST', `/api/actions/${verb}`, { ...ask, dryRun: false, basis, requestId });
}

// A write waits five seconds for gateways, and a member that lost its leader a few more for another one.
const ANSWER_MAX_MS = 30_000;

/** @param {string} method @param {string} path @param {unknown} [body] @returns {Promise<any>} */
async function call(method, path, body) {
  /** @type {RequestInit} */
  const request = { method, cache: 'no-store', credentials: 'same-origin', signal: AbortSignal.timeout(ANSWER_MAX_MS) };
  if (body !== undefined) {
    request.headers = { 'content-type': 'application/json', 'x-archipelago-page': '1' };
    request.body = JSON.stringify(body);
  }
  let response;
  let text;
  try {
    response = await fetch(path, request);
    text = await response.text();
  } catch {
    throw new Refused(0, { error: 'No answer came from the control plane.', hint: 'Is the member that serves this page running?', problems: [] });
  }
  const parsed = parse(text);
  if (response.ok) return parsed;
  throw new Refused(response.status, refusal(parsed, response.status));
}

/** @param {string} text @returns {any} */
function parse(text) {
  try {
    return text === '' ? null : JSON.parse(text);
  } catch {
    return null;
  }
}

/** @param {any} parsed @param {number} status @returns {Refusal} */
function refusal(parsed, status) {
  const problems = Array.isArray(parsed?.problems) ? parsed.problems.map(String) : [];
  if (typeof parsed?.error === 'string') return { error: parsed.error, hint: typeof parsed.hint === 'string' ? parsed.hint : null, problems };
  return { error: `The control plane answered ${status}.`, hint: null, problems };
}
