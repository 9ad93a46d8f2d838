// What is around every view: the bar at the top, the truth about the connection, and signing in.

import { app, change, now } from './app.js';
import { mark, name } from './bits.js';
import { h, s } from './dom.js';
import { age, clock, plain } from './format.js';
import { lateness } from './live.js';
import { concerns } from './model.js';

/** @import { VNode } from './dom.js' */

/** @typedef {{ signIn: (secret: string) => void, signOut: () => void, reconnect: () => void }} Acts */

/** @type {{ view: string, words: string }[]} */
const VIEWS = [
  { view: 'overview', words: 'Overview' },
  { view: 'services', words: 'Services' },
  { view: 'clusters', words: 'Clusters' },
  { view: 'gateways', words: 'Gateways' },
  { view: 'events', words: 'Events' },
  { view: 'slow', words: 'Slow requests' },
];

/** @param {Acts} acts @returns {VNode} */
export function top(acts) {
  return h(
    'header',
    { key: 'top', class: 'top' },
    h('a', { class: 'skip', href: '#main', on: { click: skip } }, 'Skip to content'),
    h('div', { class: 'brand' }, logo(), h('span', { class: 'product' }, 'Archipelago'), h('span', { class: 'federation' }, name(app.state?.federation ?? app.me?.federation))),
    nav(),
    h('div', { class: 'right' }, connection(acts), who(), theme(), h('button', { type: 'button', class: 'plain', on: { click: acts.signOut } }, 'Sign out')),
  );
}

/** @param {Event} event */
function skip(event) {
  // The hash is the address of a view: following the link would lead to another one.
  event.preventDefault();
  document.getElementById('main')?.focus();
}

function nav() {
  const count = app.state ? concerns(app.state).filter((concern) => concern.severity !== 'info').length : 0;
  return h(
    'nav',
    { 'aria-label': 'Views' },
    h(
      'ul',
      null,
      VIEWS.map(({ view, words }) =>
        h(
          'li',
          { key: view },
          h(
            'a',
            { href: `#/${view}`, 'aria-current': app.route.view === view ? 'page' : undefined },
            words,
            view === 'overview' && count > 0 ? h('span', { class: 'badge' }, String(count), h('span', { class: 'unseen' }, ' need attention')) : null,
          ),
        ),
      ),
    ),
  );
}

/** @param {Acts} acts */
function connection(acts) {
  const { live } = app;
  const member = app.me ? `cp-${app.me.member}` : '';
  const late = lateness(live, performance.now());
  if (live.phase === 'open' && late === null) {
    return h('p', { class: 'connection', title: `States come from ${member}` }, mark('good'), 'Live');
  }
  return h(
    'p',
    { class: 'connection late' },
    mark('warning'),
    live.phase === 'waiting' ? 'Reconnecting' : live.phase === 'open' ? 'Late' : 'Connecting',
    live.phase === 'waiting' ? h('button', { type: 'button', class: 'plain', on: { click: acts.reconnect } }, 'Now') : null,
  );
}

/** Says how old everything is, when it is not live. @returns {VNode | null} */
export function staleness() {
  const { live, state } = app;
  const late = lateness(live, performance.now());
  if (!state || late === null) return null;
  const again = live.retryAt === null ? '' : ` Trying again in ${age(live.retryAt - performance.now())}.`;
  return h(
    'div',
    { key: 'stale', class: 'stale' },
    mark('warning'),
    h('p', null, h('strong', null, `This is how it was ${age(late)} ago, at ${clock(state.takenUnixMs)}.`), ` ${live.why || 'No state has come since.'}${again}`),
  );
}

function who() {
  if (!app.me) return null;
  return h('p', { class: 'who', title: plain(app.me.identity) }, name(app.me.name), h('span', { class: 'role' }, app.me.role));
}

function theme() {
  /** @type {Record<string, 'system' | 'light' | 'dark'>} */
  const next = { system: 'light', light: 'dark', dark: 'system' };
  const words = { system: 'Colours: as the system', light: 'Colours: light', dark: 'Colours: dark' }[app.ui.theme];
  const shape = {
    system: [s('circle', { cx: 8, cy: 8, r: 5.4, class: 'outline' }), s('path', { d: 'M8 2.6a5.4 5.4 0 0 1 0 10.8z' })],
    light: s('circle', { cx: 8, cy: 8, r: 4 }),
    dark: s('path', { d: 'M6 2.5a6 6 0 1 0 7.5 7.5A5 5 0 0 1 6 2.5z' }),
  }[app.ui.theme];
  const turn = () => setTheme(next[app.ui.theme] ?? 'system');
  return h('button', { type: 'button', class: 'plain icon', title: words, 'aria-label': words, on: { click: turn } }, s('svg', { viewBox: '0 0 16 16', width: 16, height: 16, 'aria-hidden': 'true' }, shape));
}

/** @param {'system' | 'light' | 'dark'} chosen */
export function setTheme(chosen) {
  const root = document.documentElement;
  if (chosen === 'system') delete root.dataset.theme;
  else root.dataset.theme = chosen;
  try {
    if (chosen === 'system') localStorage.removeItem('theme');
    else localStorage.setItem('theme', chosen);
  } catch {
    // No storage: until the page is left.
  }
  change((it) => (it.ui.theme = chosen));
}

function logo() {
  return s(
    'svg',
    { class: 'logo', viewBox: '0 0 24 24', width: 22, height: 22, 'aria-hidden': 'true' },
    s('path', { d: 'M6 17L12 6L18 17Z', class: 'ties' }),
    s('circle', { cx: 12, cy: 6, r: 3.2 }),
    s('circle', { cx: 6, cy: 17, r: 3.2 }),
    s('circle', { cx: 18, cy: 17, r: 3.2 }),
  );
}

/** Before somebody is signed in, and after a session. @param {Acts} acts @returns {VNode} */
export function signInView(acts) {
  const { signIn, live } = app;
  const ended = live.phase === 'ended' ? live.why : '';
  const refusal = signIn.refusal;
  const submit = (/** @type {Event} */ event) => {
    event.preventDefault();
    acts.signIn(signIn.secret);
  };
  return h(
    'main',
    { key: 'sign-in', id: 'main', class: 'sign-in', tabindex: -1 },
    h(
      'div',
      { class: 'card' },
      h('div', { class: 'brand' }, logo(), h('span', { class: 'product' }, 'Archipelago')),
      h('h1', null, ended ? 'Session ended' : 'Sign in'),
      ended ? h('p', { class: 'why' }, plain(ended)) : null,
      refusal ? h('div', { class: 'refusal', role: 'alert' }, h('p', null, h('strong', null, plain(refusal.error))), refusal.hint ? h('p', null, plain(refusal.hint)) : null) : null,
      signIn.why ? h('p', { class: 'why', role: 'alert' }, signIn.why) : null,
      h('p', null, 'Run this where you use meshctl. It opens this page with a link that works once, for a short time:'),
      h('pre', { class: 'command' }, 'meshctl dashboard'),
      h(
        'form',
        { on: { submit } },
        h('label', { for: 'secret' }, 'Or paste the link here'),
        h('div', { class: 'line' }, [
          h('input', {
            key: 'secret',
            id: 'secret',
            type: 'password',
            autocomplete: 'off',
            spellcheck: 'false',
            prop: { value: signIn.secret },
            on: { input: (event) => change((it) => (it.signIn.secret = event.target.value)) },
          }),
          h('button', { key: 'go', class: 'primary', 'aria-disabled': signIn.busy ? 'true' : undefined }, signIn.busy ? 'Signing in…' : 'Sign in'),
        ]),
      ),
    ),
  );
}

/** While nothing is known yet. @param {Acts} acts @returns {VNode} */
export function waitingView(acts) {
  const { live } = app;
  const failed = live.phase === 'waiting';
  return h(
    'main',
    { key: 'waiting', id: 'main', class: 'sign-in', tabindex: -1 },
    h(
      'div',
      { class: 'card' },
      h('div', { class: 'brand' }, logo(), h('span', { class: 'product' }, 'Archipelago')),
      h('h1', null, failed ? 'Not connected' : 'Connecting'),
      h('p', null, failed ? `${plain(live.why)} Trying again${live.retryAt === null ? '' : ` in ${age(live.retryAt - performance.now())}`}.` : 'Waiting for the first state of the federation.'),
      failed ? h('button', { type: 'button', class: 'plain', on: { click: acts.reconnect } }, 'Try now') : null,
    ),
  );
}

/** How long the session still lasts, when that is soon. @returns {VNode | null} */
export function ending() {
  if (!app.me) return null;
  const left = app.me.expiresUnixMs - now();
  if (left > 10 * 60_000 || left <= 0) return null;
  return h('div', { key: 'ending', class: 'ending' }, h('p', null, `The session ends in ${age(left)}. `, h('code', null, 'meshctl dashboard'), ' begins another one.'));
}
