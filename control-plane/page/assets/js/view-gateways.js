// Which revision runs where and who lags, the members of the control plane, and certificates.

import { amount, find, finder, now } from './app.js';
import { chip, clusterLink, empty, figure, headings, limited, mark, name, panel, search, silent, time } from './bits.js';
import { h } from './dom.js';
import { age, counted, known, plain } from './format.js';

/** @import { VNode } from './dom.js' */
/** @import { Gateway, State } from './contract.js' */

/** @param {State} state @returns {{ title: string, body: VNode[] }} */
export function gatewaysView(state) {
  const all = state.clusters.flatMap((cluster) => cluster.gateways);
  const wanted = find('find-gateway');
  const found = all.filter((gateway) => `${gateway.key} ${gateway.state} ${gateway.softwareVersion ?? ''}`.toLowerCase().includes(wanted));
  const order = [...found].sort((x, y) => rank(x, state) - rank(y, state) || (x.key < y.key ? -1 : 1));
  const { shown, rest } = limited(order, amount('gateways', 40, 'gateway'));
  return {
    title: 'Gateways',
    body: [
      h('div', { key: 'head', class: 'head' }, h('h1', null, 'Gateways'), h('p', { class: 'quiet' }, counted(all.length, 'gateway')), search(finder('find-gateway', 'Find a gateway, state or version'))),
      h(
        'div',
        { key: 'grid', class: 'grid' },
        h(
          'div',
          { key: 'left', class: 'column' },
          rollout(state),
          panel({ id: 'gateways', title: 'Revision by gateway', note: 'who lags first' }, shown.length === 0 ? empty(wanted === '' ? 'No gateway has joined yet.' : 'No gateway is called that.') : gatewaysTable(state, shown), rest),
        ),
        h('div', { key: 'right', class: 'column' }, members(state), certificates(state)),
      ),
    ],
  };
}

/** @param {Gateway} gateway @param {State} state */
function rank(gateway, state) {
  if (gateway.state === 'rejected') return 0;
  if (gateway.state === 'disconnected') return 1;
  if (gateway.state === 'syncing' || gateway.revision !== state.revision) return 2;
  return gateway.problems.length > 0 ? 3 : 4;
}

/** @param {State} state */
function rollout(state) {
  const { revision, expected, acknowledged, lagging, rejected } = state.rollout;
  const { shown, rest } = limited(lagging, amount('lagging', 8, 'gateway'));
  return panel(
    { id: 'rollout', title: `Revision ${revision}`, note: expected === 0 ? 'no gateway is known' : acknowledged >= expected ? `runs at all ${counted(expected, 'gateway')}` : `runs at ${acknowledged} of ${counted(expected, 'gateway')}` },
    expected > 0 ? h('div', { class: 'inner' }, h('progress', { max: expected, value: acknowledged, 'aria-label': `Gateways that run revision ${revision}` })) : null,
    shown.length > 0 ? h('ul', { class: 'reasons', 'aria-label': 'Gateways that lag' }, shown.map((one) => h('li', { key: one.gateway, class: 'warning' }, mark('warning'), h('strong', null, name(one.gateway)), ' ', h('bdi', null, plain(one.why))))) : null,
    rest,
    rejected.length > 0
      ? h('ul', { class: 'reasons', 'aria-label': 'Gateways that reject something' }, rejected.map((one, index) => h('li', { key: `${one.gateway}/${index}`, class: 'error' }, mark('error'), h('strong', null, name(one.gateway)), ' rejects ', one.resource === null ? 'the revision' : name(one.resource), ': ', h('bdi', null, plain(one.why)))))
      : null,
  );
}

/** @param {State} state @param {Gateway[]} gateways */
export function gatewaysTable(state, gateways) {
  return h(
    'table',
    { class: 'gateways' },
    headings('Gateways', ['Gateway', 'State', '#Revision', 'Heard of~', 'Build~', '#Workers~']),
    h('tbody', null, gateways.map((gateway) => row(state, gateway))),
  );
}

/** @param {State} state @param {Gateway} gateway */
function row(state, gateway) {
  const behind = known(gateway.revision) ? state.revision - gateway.revision : 0;
  const words = [...(gateway.error === null ? [] : [gateway.error]), ...gateway.problems].map(plain);
  const [cluster] = gateway.key.split('/');
  return h(
    'tr',
    { key: gateway.key },
    h('th', { scope: 'row' }, clusterLink(cluster ?? ''), '/', name(gateway.name), words.length > 0 ? h('div', { class: 'under problem' }, words.map((word, index) => h('bdi', { key: String(index) }, word))) : null),
    h('td', null, chip(gateway.state)),
    h('td', { class: 'figure' }, known(gateway.revision) ? String(gateway.revision) : h('span', { class: 'silent' }, 'never'), behind > 0 ? h('span', { class: 'poor' }, ` −${behind}`, h('span', { class: 'unseen' }, ' behind')) : null),
    h('td', { class: 'wide' }, known(gateway.lastSeenUnixMs) ? `${age(now() - gateway.lastSeenUnixMs)} ago` : silent()),
    h('td', { class: 'wide' }, gateway.softwareVersion === null ? silent() : name(gateway.softwareVersion)),
    h('td', { class: 'figure wide' }, figure(gateway.workers, String)),
  );
}

/** @param {State} state */
function members(state) {
  return panel(
    { id: 'members', title: 'Control plane', note: 'changes need a majority, traffic does not' },
    h(
      'table',
      null,
      headings('Members of the control plane', ['Member', 'Role', '#Term~', '#Applied']),
      h(
        'tbody',
        null,
        state.members.map((member) =>
          h(
            'tr',
            { key: String(member.id) },
            h('th', { scope: 'row' }, name(member.name), member.id === state.member ? h('span', { class: 'quiet' }, ' serves this page') : null, member.problem === null ? null : h('div', { class: 'under problem' }, h('bdi', null, plain(member.problem)))),
            h('td', null, chip(member.role)),
            h('td', { class: 'figure wide' }, figure(member.term, String)),
            h('td', { class: 'figure' }, figure(member.appliedIndex, String)),
          ),
        ),
      ),
    ),
  );
}

/** @param {State} state */
function certificates(state) {
  const { shown, rest } = limited(state.certificates, amount('certificates', 12, 'certificate'));
  return panel(
    { id: 'certificates', title: 'Certificates', note: 'soonest to expire first' },
    shown.length === 0
      ? empty('None is known.')
      : h(
          'table',
          null,
          headings('Certificates', ['Whose', 'Expires', '#In']),
          h(
            'tbody',
            null,
            shown.map(({ who, expiresUnixMs }) => {
              const left = expiresUnixMs - now();
              return h('tr', { key: who }, h('th', { scope: 'row' }, name(who)), h('td', null, time(expiresUnixMs)), h('td', { class: `figure ${left < 12 * 3_600_000 && !who.startsWith('operator/') ? 'bad' : ''}` }, left <= 0 ? 'expired' : age(left)));
            }),
          ),
        ),
    rest,
  );
}
