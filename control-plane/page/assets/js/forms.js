// What is asked before a change is planned.

import { target } from './action.js';
import { app } from './app.js';
import { mark, name, wholePercent } from './bits.js';
import { h } from './dom.js';
import { plain } from './format.js';

/** @import { VNode } from './dom.js' */
/** @import { Course } from './action.js' */
/** @import { Service, Verb } from './contract.js' */

/** @typedef {(field: string, value: string) => void} Edit */

/** @param {Course} course */
export function titleOf({ verb, subject }) {
  const whose = plain(subject);
  /** @type {Record<Verb, string>} */
  const titles = {
    split: `Split ${whose}`,
    'clear-split': `Clear the split of ${whose}`,
    switch: `Switch ${whose}`,
    'undo-switch': `Undo the switch of ${whose}`,
    drain: `Drain ${whose}`,
    undrain: `End the drain of ${whose}`,
    failover: `Fail over ${whose}`,
    release: `Release ${whose}`,
  };
  return titles[verb];
}

/** What the button says that does it. @param {Course} course */
export function verbOf({ verb }) {
  /** @type {Record<Verb, string>} */
  const words = { split: 'Split now', 'clear-split': 'Clear now', switch: 'Switch now', 'undo-switch': 'Undo now', drain: 'Drain now', undrain: 'End the drain now', failover: 'Fail over now', release: 'Release now' };
  return words[verb];
}

/** @param {Course} course @param {Edit} edit @returns {VNode} */
export function form(course, edit) {
  const service = app.state?.services.find((one) => one.name === course.subject);
  if (!service) return h('p', null, 'This service is not known any more.');
  switch (course.verb) {
    case 'split':
      return splitForm(course, service, edit);
    case 'switch':
      return switchForm(course, service, edit);
    default:
      return clusterForm(course, service, edit);
  }
}

/** Where requests can go: clusters, and their versions if there are several. @param {Service} service */
function targets(service) {
  const out = [];
  const all = new Set(service.clusters.flatMap((at) => at.versions));
  for (const at of service.clusters) {
    out.push({ at, cluster: at.cluster, version: /** @type {string | null} */ (null) });
    if (all.size > 1) for (const version of at.versions) out.push({ at, cluster: at.cluster, version });
  }
  return out;
}

/** @param {string} cluster @param {string | null} version */
function targetName(cluster, version) {
  return version === null ? [name(cluster)] : [name(cluster), ' ', h('span', { class: 'version' }, name(version))];
}

/** @param {Course} course @param {Service} service @param {Edit} edit */
function splitForm(course, service, edit) {
  const offered = targets(service);
  const value = (/** @type {{ cluster: string, version: string | null }} */ one) => course.fields[`weight:${target(one.cluster, one.version)}`] ?? '';
  const weights = offered.map((one) => Math.max(0, Number(value(one)) || 0));
  const sum = weights.reduce((total, weight) => total + weight, 0);
  return h(
    'fieldset',
    null,
    h('legend', null, 'Weights'),
    h('p', { class: 'quiet', id: 'weights-how' }, 'In proportion to each other. Empty is nothing. A cluster that cannot serve is left out, whatever its weight.'),
    h(
      'ul',
      { class: 'weights' },
      offered.map((one, index) => {
        const id = `weight-${index}`;
        return h(
          'li',
          { key: id, class: one.version === null ? undefined : 'of-version' },
          h('label', { for: id }, targetName(one.cluster, one.version), one.version === null && one.at.state !== 'ready' ? h('span', { class: 'quiet' }, ` ${one.at.state}`) : null),
          h('input', { id, type: 'text', inputmode: 'numeric', maxlength: 7, autocomplete: 'off', 'aria-describedby': 'weights-how', prop: { value: value(one) }, on: { input: (event) => edit(`weight:${target(one.cluster, one.version)}`, event.target.value) } }),
          h('output', { for: id }, (weights[index] ?? 0) > 0 ? wholePercent((weights[index] ?? 0) / sum) : '–'),
        );
      }),
    ),
  );
}

/** The fields of the split as it is. @param {Service} service @returns {Record<string, string>} */
export function splitFields(service) {
  const now = service.split?.backends ?? [];
  return Object.fromEntries(now.map((one) => [`weight:${target(one.cluster, one.version)}`, String(one.weight)]));
}

/** @param {Course} course @param {Service} service @param {Edit} edit */
function switchForm(course, service, edit) {
  return choices(
    'Where all requests go, from everywhere, at once',
    'target',
    targets(service).map((one) => ({ value: target(one.cluster, one.version), indented: one.version !== null, words: targetName(one.cluster, one.version), note: one.version === null ? stateNote(one.at) : '' })),
    course.fields.target ?? '',
    edit,
  );
}

/** @param {Course} course @param {Service} service @param {Edit} edit */
function clusterForm(course, service, edit) {
  const away = service.failover?.avoid ?? [];
  if (course.verb === 'release') {
    const options = [{ value: '', indented: false, words: ['Everywhere'], note: 'all of them' }, ...away.map((cluster) => ({ value: cluster, indented: false, words: [name(cluster)], note: '' }))];
    return choices('Where requests may return to', 'cluster', options, course.fields.cluster ?? '', edit);
  }
  const options = service.clusters.filter((at) => !away.includes(at.cluster)).map((at) => ({ value: at.cluster, indented: false, words: [name(at.cluster)], note: stateNote(at) }));
  return choices('The cluster that requests leave, until it is released', 'cluster', options, course.fields.cluster ?? '', edit);
}

/** @param {Service['clusters'][number]} at */
function stateNote(at) {
  return `${at.state}, ${at.ready} of ${at.total} ready`;
}

/** @param {string} legend @param {string} field @param {{ value: string, indented: boolean, words: import('./dom.js').Child[], note: string }[]} options @param {string} chosen @param {Edit} edit */
function choices(legend, field, options, chosen, edit) {
  return h(
    'fieldset',
    null,
    h('legend', null, legend),
    options.length === 0 ? h('p', null, mark('off'), ' There is none.') : null,
    h(
      'ul',
      { class: 'choices' },
      options.map((option, index) =>
        h(
          'li',
          { key: option.value, class: option.indented ? 'of-version' : undefined },
          h('label', null, h('input', { type: 'radio', name: field, id: `choice-${index}`, value: String(index), prop: { checked: option.value === chosen }, on: { change: () => edit(field, option.value) } }), h('span', null, option.words), h('span', { class: 'quiet' }, option.note)),
        ),
      ),
    ),
  );
}
