// What changed, when, by whom, and what the mesh did about it.

import { amount, app, change, find, finder, now } from './app.js';
import { clusterLink, empty, limited, name, search, serviceLink, severityMark, time } from './bits.js';
import { h } from './dom.js';
import { age, counted, plain } from './format.js';
import { together } from './model.js';

/** @import { VNode } from './dom.js' */
/** @import { Event, State } from './contract.js' */

/** @param {State} state @returns {{ title: string, body: VNode[] }} */
export function eventsView(state) {
  const { kind, severity } = app.ui.events;
  const wanted = find('find-event');
  const found = state.events.filter((event) => (kind === '' || event.kind === kind) && atLeast(event.severity, severity) && said(event).includes(wanted)).reverse();
  const { shown, rest } = limited(together(found), amount('events', 60, 'event'));
  const kinds = [...new Set([...state.events.map((event) => event.kind), ...(kind === '' ? [] : [kind])])].sort();
  return {
    title: 'Events',
    body: [
      h('div', { key: 'head', class: 'head' }, h('h1', null, 'Events'), h('p', { class: 'quiet', role: 'status' }, found.length === state.events.length ? `the newest ${counted(found.length, 'event')}` : `${found.length} of the newest ${counted(state.events.length, 'event')}`)),
      h(
        'div',
        { key: 'filter', class: 'tools' },
        search(finder('find-event', 'Find a word, service, cluster or actor')),
        select('event-kind', 'Kind', kind, [['', 'All kinds'], ...kinds.map((one) => /** @type {[string, string]} */ ([one, one]))], (value) => change((it) => (it.ui.events.kind = value))),
        select('event-severity', 'Severity', severity, [['', 'All severities'], ['warning', 'Warnings and errors'], ['error', 'Errors']], (value) => change((it) => (it.ui.events.severity = value))),
      ),
      h('section', { key: 'list', class: 'panel', 'aria-label': 'Events, newest first' }, shown.length === 0 ? empty(state.events.length === 0 ? 'Nothing is remembered.' : 'No event is like that.') : h('ol', { class: 'events' }, shown.map((one) => eventRow(one, false))), rest),
    ],
  };
}

/** @param {string} id @param {string} label @param {string} value @param {[string, string][]} options @param {(value: string) => void} chosen */
function select(id, label, value, options, chosen) {
  return h('label', { class: 'select' }, h('span', { class: 'unseen' }, label), h('select', { id, prop: { value }, on: { change: (event) => chosen(event.target.value) } }, options.map(([one, words]) => h('option', { key: one, value: one }, plain(words)))));
}

/** @param {Event['severity']} severity @param {string} least */
function atLeast(severity, least) {
  const rank = { info: 0, warning: 1, error: 2 };
  return least === '' || rank[severity] >= (least === 'error' ? 2 : 1);
}

/** @param {Event} event */
function said(event) {
  return [event.reason, event.message, event.service, event.cluster, event.gateway, event.subject, event.actor, event.source].join(' ').toLowerCase();
}

/** @param {{ event: Event, sources: string[] }} told @param {boolean} brief @returns {VNode} */
export function eventRow({ event, sources }, brief) {
  const about = [event.service === null ? null : serviceLink(event.service), event.gateway !== null && sources.length === 1 ? name(event.gateway) : event.cluster === null ? null : clusterLink(event.cluster)].filter((part) => part !== null);
  const by = event.actor === null ? null : h('span', { key: 'by' }, 'by ', name(shortActor(event.actor)));
  const more = [...about.map((part, index) => h('span', { key: `about${index}` }, part)), by, event.revision === null ? null : h('span', { key: 'revision' }, `revision ${event.revision}`), saidBy(sources, brief)].filter((part) => part !== null);
  return h(
    'li',
    { key: event.key, class: `event ${event.severity}` },
    h('span', { class: 'when' }, brief ? h('time', { title: new Date(event.unixMs).toISOString() }, `${age(now() - event.unixMs)}`) : time(event.unixMs)),
    severityMark(event.severity),
    h('div', { class: 'told' }, h('p', null, h('strong', null, h('span', { class: 'unseen' }, `${event.severity}: `), h('bdi', null, plain(event.reason))), ' ', h('bdi', null, plain(event.message)), event.count > 1 ? h('span', { class: 'count', title: `since ${new Date(event.firstUnixMs).toISOString()}` }, ` ×${event.count}`) : null), more.length === 0 ? null : h('p', { class: 'about' }, more)),
  );
}

/** @param {string[]} sources @param {boolean} brief */
function saidBy(sources, brief) {
  const names = sources.map(plain).join(', ');
  if (brief) return sources.length === 1 ? null : h('span', { key: 'source', title: names }, `said by ${sources.length}`);
  return h('span', { key: 'source' }, 'said by ', h('bdi', null, names));
}

/** The end of an identity says who it is; the whole of it is in the title. @param {string} actor */
function shortActor(actor) {
  const operator = /^spiffe:\/\/[^/]+\/(.+)$/.exec(actor);
  return operator?.[1] ?? actor;
}
