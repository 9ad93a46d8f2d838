// The first view: does traffic flow, where does it go, what needs somebody, what changed, what is slow.

import { amount, app, change, now, watchWidth, width } from './app.js';
import { clusterLink, empty, figure, headings, limited, mark, name, panel, severityMark, spark } from './bits.js';
import { h, s } from './dom.js';
import { age, counted, duration, percent, plain, rate } from './format.js';
import { CLUSTERS_DRAWN_MAX, map } from './map.js';
import { matrix } from './matrix.js';
import { concerns, illness, regions, slowestService, together, total } from './model.js';
import { steady } from './steady.js';
import { eventRow } from './view-events.js';
import { servicesTable, sorted } from './view-services.js';
import { slowRow } from './view-slow.js';

/** @import { VNode } from './dom.js' */
/** @import { State } from './contract.js' */
/** @import { Concern } from './model.js' */

/** @param {State} state @returns {{ title: string, body: VNode[] }} */
export function overview(state) {
  const all = concerns(state);
  return {
    title: headline(state, all),
    body: [
      h('div', { key: 'verdict', class: 'verdict' }, h('h1', null, headline(state, all)), needs(all)),
      figures(state),
      h(
        'div',
        { key: 'grid', class: 'grid' },
        h('div', { key: 'left', class: 'column' }, clusters(state), services(state)),
        h('div', { key: 'right', class: 'column' }, changes(state), slow(state), missing(state)),
      ),
    ],
  };
}

/** @param {State} state @param {Concern[]} all */
function headline(state, all) {
  const errors = all.filter((concern) => concern.severity === 'error').length;
  const warnings = all.filter((concern) => concern.severity === 'warning').length;
  if (errors > 0) return `${counted(errors, 'thing is', 'things are')} broken${warnings > 0 ? `, ${warnings} more to look at` : ''}`;
  if (warnings > 0) return `Traffic flows, ${counted(warnings, 'thing needs', 'things need')} a look`;
  const { requestsPerSecond } = total(state);
  if (requestsPerSecond === null) return 'All well, traffic not reported yet';
  return requestsPerSecond > 0 ? 'All well, traffic flows' : 'All well, no traffic';
}

/** @param {Concern[]} all */
function needs(all) {
  if (all.length === 0) return null;
  const { shown, rest } = limited(all, amount('needs', 6, 'thing'));
  return h(
    'div',
    { class: 'needs' },
    h('ul', { 'aria-label': 'What needs attention' }, shown.map((concern) => h('li', { key: concern.key, class: concern.severity }, need(concern)))),
    rest,
  );
}

/** @param {Concern} concern */
function need(concern) {
  const since = concern.sinceUnixMs === null ? '' : ` for ${age(now() - concern.sinceUnixMs)}`;
  return h(
    'a',
    { href: concern.href },
    severityMark(concern.severity),
    h('span', { class: 'what' }, h('span', { class: 'unseen' }, `${concern.severity}: `), h('strong', null, h('bdi', null, concern.title)), h('span', { class: 'since' }, since)),
    h('span', { class: 'why' }, concern.detail),
  );
}

/** @param {State} state */
function figures(state) {
  const sum = total(state);
  const slowest = slowestService(state);
  const { expected, acknowledged, revision } = state.rollout;
  const up = state.links.reduce((count, link) => count + link.tunnelsUp, 0);
  const tunnels = state.links.reduce((count, link) => count + link.tunnels, 0);
  const silent = sum.silent > 0 ? `${counted(sum.silent, 'cluster')} not reported` : `entering ${counted(state.clusters.length, 'cluster')}`;
  const over = state.windowSeconds === null ? '' : `, over ${Math.round(state.windowSeconds)} s`;
  return h(
    'dl',
    { key: 'figures', class: 'figures' },
    tile('Requests', figure(sum.requestsPerSecond, rate), silent + over, spark(app.history.requests, { label: 'Requests per second since the page was opened' })),
    tile('Success', figure(sum.success, percent), 'of requests that ended', spark(app.history.success, { label: 'Success since the page was opened', floor: 0.9 }), sum.success !== null && sum.success < 0.99 ? 'bad' : ''),
    tile('Slowest p99', slowest === null ? figure(null, duration) : duration(slowest.p99Micros), slowest === null ? 'no requests' : name(slowest.name)),
    tile('Revision', String(revision), expected === 0 ? 'no gateway is known' : acknowledged >= expected ? `at all ${counted(expected, 'gateway')}` : `at ${acknowledged} of ${counted(expected, 'gateway')}`, null, acknowledged < expected ? 'poor' : ''),
    tile('Tunnels up', state.links.length === 0 ? '0' : `${up} of ${tunnels}`, `between ${counted(state.clusters.length, 'cluster')}`, null, up < tunnels ? 'poor' : ''),
  );
}

/** @param {string} title @param {any} value @param {any} note @param {VNode | null} [line] @param {string} [tone] */
function tile(title, value, note, line, tone = '') {
  return h('div', { key: title, class: `tile ${tone}` }, h('dt', null, title), h('dd', null, h('span', { class: 'value' }, value), h('span', { class: 'note' }, note), line ?? null));
}

/** @param {State} state */
function clusters(state) {
  const many = state.clusters.length > CLUSTERS_DRAWN_MAX;
  const hint = many ? null : 'arrows: requests per second · labels: round trip through the tunnel';
  return panel(
    { id: 'map', title: 'Clusters', note: hint, more: h('a', { class: 'more', href: '#/clusters' }, 'All clusters') },
    h('div', { class: 'drawing', made: watchWidth('map') }, state.clusters.length === 0 ? empty('No cluster has joined yet: ', h('code', null, 'meshctl token create')) : drawing(state, 'map')),
    many ? regionTable(state) : null,
  );
}

/** @param {State} state @param {string} place */
export function drawing(state, place) {
  const wide = width(place, 640);
  if (state.clusters.length <= CLUSTERS_DRAWN_MAX) return map(state, wide);
  return matrix(state, wide, {
    shade: app.ui.shade,
    change: (shade) => change((it) => (it.ui.shade = shade)),
    over: app.ui.over,
    hover: (pair) => {
      const same = String(pair) === String(app.ui.over);
      if (!same) change((it) => (it.ui.over = pair));
    },
  });
}

/** Many clusters, region by region: how many, how they are, and the names of those that are not well. @param {State} state */
function regionTable(state) {
  return h(
    'table',
    { class: 'regions' },
    headings('Regions', ['Region', 'Clusters', '#Entering', 'Not well~']),
    h(
      'tbody',
      null,
      regions(state).map(({ region, clusters: inside }) => {
        const reporting = inside.filter((cluster) => cluster.entering !== null);
        const entering = reporting.length === 0 ? null : reporting.reduce((sum, cluster) => sum + (cluster.entering?.requestsPerSecond ?? 0), 0);
        const unwell = inside.filter((cluster) => cluster.state !== 'active');
        return h(
          'tr',
          { key: region },
          h('th', { scope: 'row' }, name(region)),
          h('td', null, squares(inside), h('span', { class: 'quiet' }, ` ${inside.length}`)),
          h('td', { class: 'figure' }, figure(entering, rate)),
          h('td', { class: 'wide' }, unwell.length === 0 ? '' : unwell.slice(0, 4).map((cluster, index) => [index > 0 ? ', ' : '', clusterLink(cluster.name), ` ${cluster.state}`]).flat(), unwell.length > 4 ? ` and ${unwell.length - 4} more` : ''),
        );
      }),
    ),
  );
}

/** @param {State['clusters']} inside */
function squares(inside) {
  const size = 9;
  const unwell = inside.filter((cluster) => cluster.state !== 'active').length;
  const label = unwell === 0 ? `${counted(inside.length, 'cluster')}, all active` : `${counted(inside.length, 'cluster')}, ${unwell} not active`;
  return s(
    'svg',
    { class: 'squares', viewBox: `0 0 ${inside.length * (size + 2)} ${size}`, width: inside.length * (size + 2), height: size, role: 'img', 'aria-label': label },
    inside.map((cluster, index) => s('rect', { key: cluster.name, class: cluster.state, x: index * (size + 2), y: 0, width: size, height: size, rx: 2 }, s('title', null, `${plain(cluster.name)}: ${cluster.state}`))),
  );
}

const SERVICES_SHOWN = 8;

/** @param {State} state */
function services(state) {
  // The unwell first, then the busiest: by name they would be found, not seen.
  const unwell = state.services.filter((service) => illness(service) < 2).map((service) => service.name);
  const order = steady('services-first', state.services, (service) => service.name, unwell.join('\n'), () => sorted(state.services, { by: 'rate', down: true }).sort((x, y) => illness(x) - illness(y)));
  const first = order.slice(0, SERVICES_SHOWN);
  const more = state.services.length + state.servicesLeftOff;
  return panel(
    { id: 'services', title: 'Services', note: first.length < more ? `${first.length} of ${more}: unwell, then busiest` : 'where their requests go now', more: h('a', { class: 'more', href: '#/services' }, 'All services') },
    first.length === 0 ? empty('No cluster offers a service yet. An export does: ', h('code', null, 'meshctl apply -f export.yaml')) : servicesTable(state, first, 'services-first'),
  );
}

const EVENTS_SHOWN = 10;

/** @param {State} state */
function changes(state) {
  const latest = together([...state.events].reverse()).slice(0, EVENTS_SHOWN);
  return panel(
    { id: 'changes', title: 'What changed', more: h('a', { class: 'more', href: '#/events' }, 'All events') },
    latest.length === 0 ? empty('Nothing is remembered.') : h('ol', { class: 'events brief' }, latest.map((one) => eventRow(one, true))),
  );
}

const SLOW_SHOWN = 5;

/** @param {State} state */
function slow(state) {
  const { slowest } = state;
  return panel(
    { id: 'slow', title: 'Slowest requests', note: 'of the last five minutes', more: h('a', { class: 'more', href: '#/slow' }, 'All') },
    slowest === null ? empty('Not known yet.') : slowest.length === 0 ? empty('None.') : h('ol', { class: 'slow brief' }, slowest.slice(0, SLOW_SHOWN).map((request, index) => slowRow(request, String(index), true))),
  );
}

/** Who or what the figures above leave out. @param {State} state */
export function missing(state) {
  if (state.missing.length === 0) return null;
  const { shown, rest } = limited(state.missing, amount('missing', 4, 'gap'));
  return panel(
    { id: 'missing', title: 'Left out', note: 'of the figures here' },
    h('ul', { class: 'missing' }, shown.map((gap) => h('li', { key: `${gap.about}/${gap.who}` }, mark('off'), h('span', null, name(gap.who), h('span', { class: 'quiet' }, ` · ${gap.about} · ${plain(gap.why)}`))))),
    rest,
  );
}

