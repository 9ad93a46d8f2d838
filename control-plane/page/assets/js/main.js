// Starts the page: who is signed in, the stream of states, and drawing.

import { me, Refused, signIn, signOut } from './api.js';
import { app, change, drawWith } from './app.js';
import { dialog } from './dialog.js';
import { h, patch } from './dom.js';
import { ending, signInView, staleness, top, waitingView } from './frame.js';
import { begin, follow, lateness } from './live.js';
import { concerns } from './model.js';
import { clusterView, clustersView } from './view-clusters.js';
import { eventsView } from './view-events.js';
import { gatewaysView } from './view-gateways.js';
import { overview } from './view-overview.js';
import { serviceView } from './view-service.js';
import { servicesView } from './view-services.js';
import { slowView } from './view-slow.js';

/** @import { VNode } from './dom.js' */
/** @import { State } from './contract.js' */

/** @type {{ stop: () => void, now: () => void } | null} */
let stream = null;

const acts = {
  signIn: enter,
  signOut: async () => {
    stream?.stop();
    try {
      await signOut();
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
    }
    leave('You have signed out.');
  },
  reconnect: () => stream?.now(),
};

/** @param {string} given   The secret, or the whole link. */
async function enter(given) {
  const secret = (given.split('#').at(-1) ?? '').trim();
  if (secret === '') {
    change((it) => (it.signIn.why = 'Paste the link that meshctl dashboard printed.'));
    return;
  }
  change((it) => (it.signIn = { busy: true, refusal: null, why: '', secret: '' }));
  try {
    const who = await signIn(secret);
    change((it) => {
      it.signIn.busy = false;
      it.session = 'in';
      it.me = who;
      it.live = begin();
    });
    watch();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    const { refusal } = error;
    change((it) => {
      it.session = 'out';
      it.signIn = { busy: false, refusal, why: '', secret: '' };
    });
  }
}

/** @param {string} why */
function leave(why) {
  change((it) => {
    it.session = 'out';
    it.me = null;
    it.state = null;
    it.course = null;
    it.live = { ...begin(), phase: 'ended', why };
  });
}

function watch() {
  stream?.stop();
  stream = follow({
    state: take,
    live: (live) => {
      change((it) => (it.live = live));
      if (live.phase === 'ended') leave(live.why);
    },
  });
}

/** @param {State} state */
function take(state) {
  change((it) => {
    it.state = state;
    it.receivedAt = performance.now();
    it.history.note(state);
  });
}

function route() {
  const [, view, ...rest] = location.hash.split('/');
  let name = null;
  try {
    name = rest.length > 0 ? decodeURIComponent(rest.join('/')) : null;
  } catch {
    // Not one of our addresses.
  }
  change((it) => (it.route = { view: view || 'overview', name }));
}

/** @returns {{ title: string, body: VNode[] }} */
function view() {
  const { state, route: at } = app;
  if (!state) return { title: '', body: [] };
  switch (at.view) {
    case 'services':
      return at.name === null ? servicesView(state) : serviceView(state, at.name);
    case 'clusters':
      return at.name === null ? clustersView(state) : clusterView(state, at.name);
    case 'gateways':
      return gatewaysView(state);
    case 'events':
      return eventsView(state);
    case 'slow':
      return slowView(state);
    default:
      return overview(state);
  }
}

let shown = '';

function draw() {
  const root = /** @type {HTMLElement} */ (document.getElementById('page'));
  if (app.session === 'asking') return;
  if (app.session === 'out' || !app.state) {
    patch(root, app.session === 'out' ? signInView(acts) : waitingView(acts));
    document.title = 'Archipelago';
    shown = '';
    return;
  }
  const { title, body } = view();
  const late = lateness(app.live, performance.now()) !== null;
  patch(root, [
    top(acts),
    staleness(),
    ending(),
    h('main', { key: 'main', id: 'main', class: late ? 'past' : undefined, tabindex: -1 }, body),
    dialog(),
    h('p', { key: 'said', class: 'unseen', role: 'status', 'aria-live': 'polite' }, spoken()),
  ]);
  document.title = `${title} · Archipelago`;
  const where = JSON.stringify(app.route);
  // Whoever follows a link within the page lands at the beginning of where it leads, as after any other link.
  if (shown !== '' && shown !== where) {
    scrollTo(0, 0);
    document.getElementById('main')?.focus({ preventScroll: true });
  }
  shown = where;
}

/** What changed, for those who cannot see it: the connection, and what is worst. Not every figure. */
function spoken() {
  const late = lateness(app.live, performance.now()) !== null;
  if (late) return 'The connection is lost. What is shown is old.';
  const loud = app.state ? concerns(app.state).filter((concern) => concern.severity !== 'info') : [];
  return loud.length === 0 ? 'Nothing needs attention.' : `${loud.length} need attention: ${loud.slice(0, 3).map((concern) => concern.title).join('. ')}`;
}

async function start() {
  drawWith(draw);
  const { theme } = document.documentElement.dataset;
  app.ui.theme = theme === 'light' || theme === 'dark' ? theme : 'system';
  const arriving = location.pathname === '/sign-in' && location.hash.length > 1 ? location.hash.slice(1) : null;
  // At once, so that the secret is in no history, no bookmark, and on no shared screen.
  if (location.pathname !== '/') history.replaceState(null, '', '/');
  route();
  addEventListener('hashchange', route);
  // Ages go on while nothing comes.
  setInterval(() => document.hidden || change(() => {}), 1_000);
  if (arriving !== null) {
    app.session = 'out';
    await enter(arriving);
    return;
  }
  for (;;) {
    try {
      const who = await me();
      change((it) => {
        it.me = who;
        it.session = who ? 'in' : 'out';
      });
      if (who) watch();
      return;
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      const { refusal } = error;
      change((it) => {
        it.session = 'in';
        it.live = { ...begin(), phase: 'waiting', why: refusal.error };
      });
      await new Promise((resolve) => setTimeout(resolve, 3_000));
    }
  }
}

void start();
