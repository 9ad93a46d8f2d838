// Pieces that several views are made of.

import { h, s } from './dom.js';
import { NOT_REPORTED, clock, counted, duration, known, moment, percent, plain, rate } from './format.js';
import { to } from './model.js';

/** @import { Child, VNode } from './dom.js' */
/** @import { Rate } from './contract.js' */
/** @import { Series } from './history.js' */
/** @import { Severity } from './model.js' */

/**
 * A name that others chose. Isolated, so that its direction turns nothing beside it.
 * @param {string | null | undefined} text
 */
export function name(text) {
  return h('bdi', { class: 'name', title: plain(text) }, plain(text));
}

/** @param {string} service */
export function serviceLink(service) {
  return h('a', { href: to('services', service) }, name(service));
}

/** @param {string} cluster */
export function clusterLink(cluster) {
  return h('a', { href: to('clusters', cluster) }, name(cluster));
}

/** What is not known. */
export function silent() {
  return h('span', { class: 'silent' }, NOT_REPORTED);
}

/** @param {number | null | undefined} value @param {(value: number) => string} write */
export function figure(value, write) {
  return known(value) ? write(value) : silent();
}

/** @type {Record<string, 'good' | 'warning' | 'error' | 'off'>} */
const TONES = {
  ready: 'good',
  active: 'good',
  synced: 'good',
  up: 'good',
  connected: 'good',
  leader: 'good',
  follower: 'good',
  degraded: 'warning',
  syncing: 'warning',
  candidate: 'warning',
  disconnected: 'warning',
  warning: 'warning',
  down: 'error',
  unreachable: 'error',
  rejected: 'error',
  error: 'error',
};

/** @param {string} state */
export function tone(state) {
  return TONES[state] ?? 'off';
}

/**
 * A state, as a shape and a word: never by colour alone.
 * @param {string} state
 * @param {string} [words]
 */
export function chip(state, words) {
  return h('span', { class: `chip ${tone(state)}` }, mark(tone(state)), words ?? state);
}

/** @param {'good' | 'warning' | 'error' | 'off'} how */
export function mark(how) {
  /** @type {Record<string, VNode>} */
  const shapes = {
    good: s('circle', { cx: 6, cy: 6, r: 4 }),
    warning: s('path', { d: 'M6 1 L11.5 11 L0.5 11 Z' }),
    error: s('path', { d: 'M1 1 H11 V11 H1 Z' }),
    off: s('circle', { cx: 6, cy: 6, r: 3.5, class: 'hollow' }),
  };
  return s('svg', { class: `mark ${how}`, viewBox: '0 0 12 12', width: 11, height: 11, 'aria-hidden': 'true', focusable: 'false' }, shapes[how]);
}

/** @param {Severity} severity */
export function severityMark(severity) {
  return mark(severity === 'info' ? 'off' : severity);
}

/**
 * A part of a view, with its heading.
 * @param {{ id: string, title: string, note?: Child, class?: string, more?: Child }} about
 * @param {...(Child | Child[])} inner
 */
export function panel(about, ...inner) {
  return h(
    'section',
    { key: about.id, class: `panel ${about.class ?? ''}`, 'aria-labelledby': `${about.id}-title` },
    h('header', null, h('h2', { id: `${about.id}-title` }, about.title), h('div', { class: 'note' }, about.note), about.more),
    ...inner,
  );
}

/**
 * @param {Rate | null} of
 * @returns {VNode[]}   Success, p50 and p99 as cells.
 */
export function rateCells(of) {
  return [
    h('td', { class: 'figure', role: 'cell' }, of ? rate(of.requestsPerSecond) : silent()),
    h('td', { class: `figure ${successTone(of)}`, role: 'cell' }, of && !known(of.successPercent) ? h('span', { class: 'silent' }, 'none ended') : success(of)),
    h('td', { class: 'figure wide', role: 'cell' }, latency(of, of?.p50Micros)),
    h('td', { class: 'figure wide', role: 'cell' }, latency(of, of?.p99Micros)),
  ];
}

/** @param {Rate | null} of @param {number | null | undefined} micros */
function latency(of, micros) {
  return of && !known(micros) ? h('span', { class: 'silent' }, 'none ended') : figure(micros, duration);
}

/** @param {Rate | null} of */
export function success(of) {
  return figure(of?.successPercent, (value) => percent(value / 100));
}

/** @param {Rate | null} of */
export function successTone(of) {
  const value = of?.successPercent;
  if (!known(value) || value >= 99) return '';
  return value < 90 ? 'bad' : 'poor';
}

/**
 * Headings of a table. A title that begins with `#` is of figures, one with `~` is left out on narrow screens.
 * @param {string} caption   For those who do not see where the table stands.
 * @param {string[]} titles
 */
export function headings(caption, titles) {
  const cells = titles.map((title) => {
    const kind = `${title.includes('#') ? 'figure' : ''} ${title.includes('~') ? 'wide' : ''}`.trim();
    return h('th', { scope: 'col', role: 'columnheader', class: kind || undefined }, title.replace(/[#~]/g, ''));
  });
  return [h('caption', { class: 'unseen' }, caption), h('thead', { role: 'rowgroup' }, h('tr', { role: 'row' }, cells))];
}

/**
 * Shares of a whole as one bar, with its words beside it.
 * @param {{ key: string, label: string, share: number, class: string }[]} parts   Shares of 0 to 1.
 * @param {{ legend?: boolean }} [how]
 */
export function shares(parts, how = {}) {
  const seen = parts.filter((part) => part.share > 0);
  const words = seen.map((part) => `${part.label} ${wholePercent(part.share)}`);
  return h(
    'div',
    { class: 'shares' },
    h(
      'div',
      { class: 'bar', role: 'img', 'aria-label': words.join(', ') || 'nothing' },
      seen.map((part) =>
        h('span', { key: part.key, class: part.class, style: { 'flex-grow': part.share.toFixed(4) }, title: `${part.label} ${wholePercent(part.share)}` }),
      ),
    ),
    how.legend === false
      ? null
      : h(
          'div',
          { class: 'legend', 'aria-hidden': 'true' },
          seen.map((part) => h('span', { key: part.key, class: 'entry' }, h('i', { class: part.class }), h('bdi', null, part.label), ` ${wholePercent(part.share)}`)),
        ),
  );
}

/** @param {number} share */
export function wholePercent(share) {
  const value = share * 100;
  if (value > 0 && value < 1) return '<1\u00a0%';
  if (value < 100 && value > 99) return '>99\u00a0%';
  return `${Math.round(value)}\u00a0%`;
}

/**
 * A line of what was seen since the page was opened. Gaps are where nothing was known.
 * @param {Series} series
 * @param {{ label: string, width?: number, height?: number, floor?: number }} how
 */
export function spark(series, how) {
  const width = how.width ?? 120;
  const height = how.height ?? 28;
  const values = series.map((point) => point.value).filter(known);
  const top = Math.max(...values, 1e-9);
  const bottom = Math.min(how.floor ?? 0, ...values);
  // The right end is now, the left end two minutes ago, whether or not there was anybody to look.
  const end = series.at(-1)?.at ?? 0;
  const start = end - SPAN_MS;
  let path = '';
  let pen = 'M';
  for (const point of series) {
    if (!known(point.value)) {
      pen = 'M';
      continue;
    }
    if (point.at < start) continue;
    const x = ((point.at - start) / SPAN_MS) * width;
    const y = height - 2 - ((point.value - bottom) / (top - bottom || 1)) * (height - 4);
    path += `${pen}${x.toFixed(1)} ${y.toFixed(1)}`;
    pen = 'L';
  }
  return s('svg', { class: 'spark', viewBox: `0 0 ${width} ${height}`, width, height, role: 'img', 'aria-label': how.label, preserveAspectRatio: 'none' }, s('path', { d: path || 'M0 0' }));
}

const SPAN_MS = 120_000;

/** @param {number | null} unixMs */
export function time(unixMs) {
  return known(unixMs) ? h('time', { datetime: moment(unixMs), title: moment(unixMs) }, clock(unixMs)) : silent();
}

/** @param {...Child} words */
export function empty(...words) {
  return h('p', { class: 'empty' }, ...words);
}

/**
 * @param {{ id: string, label: string, value: string, change: (value: string) => void }} field
 */
export function search(field) {
  return h(
    'label',
    { class: 'search' },
    h('span', { class: 'unseen' }, field.label),
    h('input', {
      id: field.id,
      type: 'search',
      placeholder: field.label,
      autocomplete: 'off',
      spellcheck: 'false',
      prop: { value: field.value },
      on: { input: (event) => field.change(event.target.value) },
    }),
  );
}

/**
 * One of a few, as buttons.
 * @param {{ label: string, options: { value: string, words: string }[], value: string, change: (value: string) => void }} choice
 */
export function choose(choice) {
  return h(
    'div',
    { class: 'choose', role: 'group', 'aria-label': choice.label },
    choice.options.map(({ value, words }) =>
      h('button', { key: value, type: 'button', 'aria-pressed': String(value === choice.value), on: { click: () => choice.change(value) } }, words),
    ),
  );
}

/**
 * So many of a list, and the rest on demand: a thousand rows are a second of waiting for whoever searches one.
 * @template T
 * @param {T[]} items
 * @param {{ most: number, all: boolean, toggle: () => void, noun: string }} how
 * @returns {{ shown: T[], rest: VNode | null }}
 */
export function limited(items, how) {
  if (items.length <= how.most) return { shown: items, rest: null };
  const words = how.all ? 'Show fewer' : `Show all ${counted(items.length, how.noun)}`;
  return {
    shown: how.all ? items : items.slice(0, how.most),
    rest: h('p', { class: 'rest' }, h('button', { type: 'button', class: 'plain', on: { click: how.toggle } }, words)),
  };
}

/**
 * @param {{ words: string, act: () => void, forbidden: string | null, class?: string, id: string, describe?: string }} button
 */
export function action(button) {
  const forbidden = button.forbidden !== null;
  // Not `disabled`: whoever comes there by keyboard shall hear why nothing happens.
  return h(
    'button',
    {
      key: button.id,
      id: button.id,
      type: 'button',
      class: `action ${button.class ?? ''}`,
      'aria-disabled': forbidden ? 'true' : undefined,
      title: button.forbidden ?? button.describe,
      'aria-description': button.forbidden ?? undefined,
      on: { click: forbidden ? () => {} : button.act },
    },
    button.words,
  );
}
