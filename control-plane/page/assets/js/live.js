// The connection that tells how things are, and the truth about it: live, late, away, or over.
//
// `step` is the state machine, without I/O; `follow` drives it. What is shown is never called live because nobody said otherwise: it is live
// while states keep coming.

import { parser } from './sse.js';

/** @import { Bye, State } from './contract.js' */

/**
 * @typedef {object} Live
 * @property {'connecting' | 'open' | 'waiting' | 'ended'} phase
 * @property {number | null} heardAt    When the latest state came, by the monotonic clock of the page.
 * @property {number} failures          In a row.
 * @property {number | null} retryAt
 * @property {string} why               Of waiting, or of the end.
 * @property {Bye['reason'] | null} bye
 */

/**
 * @typedef {{ is: 'connect' } | { is: 'heard' } | { is: 'cut', why: string, jitter: number, least?: number } | { is: 'bye', bye: Bye } | { is: 'refused' }} Happening
 */

// A state comes every second or two. Somebody who decides by what is shown must know when it is older than that.
export const LATE_AFTER_MS = 5_000;
// A connection on which nothing at all came for so long is dead: the member sends something every five seconds.
export const SILENT_AFTER_MS = 12_000;
const RETRY_FIRST_MS = 500;
const RETRY_MAX_MS = 15_000;

/** @returns {Live} */
export function begin() {
  return { phase: 'connecting', heardAt: null, failures: 0, retryAt: null, why: '', bye: null };
}

/**
 * @param {Live} live
 * @param {Happening} what
 * @param {number} now
 * @returns {Live}
 */
export function step(live, what, now) {
  if (live.phase === 'ended') return live;
  switch (what.is) {
    case 'connect':
      return { ...live, phase: 'connecting', retryAt: null };
    case 'heard':
      return { phase: 'open', heardAt: now, failures: 0, retryAt: null, why: '', bye: null };
    case 'cut': {
      // Half fixed, half random: pages that a member loses together do not come back together.
      const ceiling = Math.min(RETRY_MAX_MS, RETRY_FIRST_MS * 2 ** Math.min(live.failures, 10));
      const wait = Math.max(what.least ?? 0, ceiling / 2 + (ceiling / 2) * what.jitter);
      return { ...live, phase: 'waiting', failures: live.failures + 1, retryAt: now + wait, why: what.why };
    }
    case 'refused':
      return { ...live, phase: 'ended', retryAt: null, why: 'The session has ended.', bye: 'expired' };
    case 'bye':
      // A member that stops for an upgrade is back in a moment, or the one who started the page starts it again.
      if (what.bye.reason === 'stopping') return step(live, { is: 'cut', why: what.bye.message, jitter: 1 }, now);
      return { ...live, phase: 'ended', retryAt: null, why: what.bye.message, bye: what.bye.reason };
  }
}

/**
 * How old what is shown is, beyond what is usual; null: it is live.
 * @param {Live} live
 * @param {number} now
 */
export function lateness(live, now) {
  if (live.heardAt === null) return null;
  const age = now - live.heardAt;
  return live.phase === 'open' && age < LATE_AFTER_MS ? null : age;
}

/**
 * Keeps a connection, until the session ends.
 * @param {{ state: (state: State) => void, live: (live: Live) => void }} tell
 * @returns {{ stop: () => void, now: () => void }}   `now`: try again at once.
 */
export function follow(tell) {
  let live = begin();
  let stopped = false;
  /** @type {AbortController | null} */
  let connection = null;
  /** @type {(() => void) | null} */
  let wake = null;
  const happened = (/** @type {Happening} */ what) => {
    live = step(live, what, performance.now());
    tell.live(live);
  };
  const run = async () => {
    while (!stopped && live.phase !== 'ended') {
      happened({ is: 'connect' });
      connection = new AbortController();
      try {
        await stream(connection, happened, tell.state);
        // The last thing said may have been a farewell.
        if (live.phase === 'open' || live.phase === 'connecting') happened({ is: 'cut', why: 'The connection was closed.', jitter: Math.random() });
      } catch (error) {
        if (stopped) return;
        const why = error instanceof Unavailable ? error.message : 'The control plane cannot be reached.';
        happened({ is: 'cut', why, jitter: Math.random(), ...(error instanceof Unavailable ? { least: error.least } : {}) });
      }
      if (live.phase === 'waiting' && live.retryAt !== null) {
        const delay = Math.max(0, live.retryAt - performance.now());
        await new Promise((resolve) => {
          const timer = setTimeout(resolve, delay);
          wake = () => {
            clearTimeout(timer);
            resolve(undefined);
          };
        });
        wake = null;
      }
    }
  };
  void run();
  return {
    stop() {
      stopped = true;
      connection?.abort();
      wake?.();
    },
    now: () => wake?.(),
  };
}

class Unavailable extends Error {
  /** @param {string} message @param {number} least */
  constructor(message, least) {
    super(message);
    this.least = least;
  }
}

/**
 * One connection, to its end.
 * @param {AbortController} connection
 * @param {(what: Happening) => void} happened
 * @param {(state: State) => void} state
 */
async function stream(connection, happened, state) {
  let timer = setTimeout(() => connection.abort(), SILENT_AFTER_MS);
  try {
    const response = await fetch('/api/live', {
      headers: { accept: 'text/event-stream' },
      cache: 'no-store',
      credentials: 'same-origin',
      signal: connection.signal,
    });
    if (response.status === 401) {
      happened({ is: 'refused' });
      return;
    }
    if (!response.ok || !response.body) {
      const after = Number(response.headers.get('retry-after'));
      throw new Unavailable(`The control plane answered ${response.status}.`, Number.isFinite(after) ? Math.min(after * 1000, 60_000) : 0);
    }
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    const events = parser();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(() => connection.abort(), SILENT_AFTER_MS);
      for (const event of events.take(value)) {
        if (event.name === 'state') {
          state(JSON.parse(event.data));
          happened({ is: 'heard' });
        } else if (event.name === 'bye') {
          happened({ is: 'bye', bye: JSON.parse(event.data) });
          connection.abort();
          return;
        }
      }
    }
  } finally {
    clearTimeout(timer);
  }
}
