// The dialog in which a change is made: what, what that means, whether, and how far it is.

import { advance, ask, askDone, askPlan, course, hasForm, progress } from './action.js';
import { app, change } from './app.js';
import { mark, name } from './bits.js';
import { difference } from './diff.js';
import { h } from './dom.js';
import { counted, duration, plain } from './format.js';
import { form, titleOf, verbOf } from './forms.js';

/** @import { VNode } from './dom.js' */
/** @import { Course, Step } from './action.js' */
/** @import { Done, Plan, Refusal, Verb } from './contract.js' */

/** @param {Verb} verb @param {string} subject @param {Record<string, string>} [fields] */
export function open(verb, subject, fields) {
  const begun = course(verb, subject, fields);
  change((it) => (it.course = begun));
  if (begun.stage.is === 'planning') void run(askPlan);
}

/** @param {Step} step */
function take(step) {
  change((it) => {
    if (it.course) it.course = advance(it.course, step);
  });
}

/** Asks, and takes the answer if it is still wanted. @param {(course: Course) => Promise<Step>} what */
async function run(what) {
  const asked = app.course;
  if (!asked) return;
  const answer = await what(asked);
  // It may have been closed, and another begun, meanwhile.
  if (app.course === asked) take(answer);
}

function plan() {
  take({ is: 'asked' });
  void run(askPlan);
}

function confirm() {
  take({ is: 'confirmed', requestId: uuid() });
  void run(askDone);
}

/** A random UUID. `crypto.randomUUID` is there on secure origins only; a page on an address of a private network is none. */
function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = ((bytes[6] ?? 0) & 0x0f) | 0x40;
  bytes[8] = ((bytes[8] ?? 0) & 0x3f) | 0x80;
  return [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join('').replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-');
}

function close() {
  change((it) => (it.course = null));
}

/** @returns {VNode | null} */
export function dialog() {
  const is = app.course;
  if (!is) return null;
  const busy = is.stage.is === 'planning' || is.stage.is === 'doing';
  return h(
    'dialog',
    {
      key: 'dialog',
      class: 'dialog',
      'aria-labelledby': 'dialog-title',
      made: (element) => element.showModal(),
      on: {
        // What was asked for may be on its way: leaving now would hide what became of it.
        cancel: (event) => {
          if (is.stage.is === 'doing') event.preventDefault();
        },
        close,
      },
    },
    h('div', { class: 'card', 'aria-busy': busy ? 'true' : 'false' }, h('h2', { id: 'dialog-title', tabindex: -1 }, titleOf(is)), stage(is)),
  );
}

/** @param {Course} is @returns {(VNode | null)[]} */
function stage(is) {
  switch (is.stage.is) {
    case 'form':
      return [refusal(is.refusal), formStage(is)];
    case 'planning':
      return [h('p', { key: 'busy', class: 'busy', role: 'status' }, 'Asking what would change…'), buttons(is, null)];
    case 'planned':
      return [refusal(is.refusal), planned(is.stage.plan), buttons(is, is.refusal ? { words: 'Plan again', act: plan } : { words: verbOf(is), act: confirm })];
    case 'doing':
      return [planned(is.stage.plan), h('p', { key: 'busy', class: 'busy', role: 'status' }, 'Committing, and waiting for gateways…')];
    case 'lost':
      return [
        refusal(is.refusal),
        h('p', { key: 'lost' }, 'Whether it was done is not known. Asking again is safe: it is the same request, and is not done twice.'),
        buttons(is, { words: 'Ask again', act: confirm }),
      ];
    case 'done':
      return [doneStage(is.stage.plan, is.stage.done), h('div', { key: 'buttons', class: 'buttons' }, h('button', { key: 'close', type: 'button', class: 'primary', on: { click: shut } }, 'Close'))];
  }
}

/** @param {Event} event */
function shut(event) {
  /** @type {HTMLDialogElement | null} */ (/** @type {Element} */ (event.currentTarget ?? event.target).closest('dialog'))?.close();
}

/** @param {Course} is */
function formStage(is) {
  const submit = (/** @type {Event} */ event) => {
    event.preventDefault();
    plan();
  };
  return h(
    'form',
    { key: 'form', method: 'dialog', on: { submit } },
    form(is, (field, value) => take({ is: 'edited', field, value })),
    h('div', { class: 'buttons' }, h('button', { type: 'button', class: 'plain', on: { click: shut } }, 'Cancel'), h('button', { class: 'primary', 'aria-disabled': typeof ask(is) === 'string' ? 'true' : undefined }, 'See what changes')),
  );
}

/** @param {Course} is @param {{ words: string, act: () => void } | null} next */
function buttons(is, next) {
  const back = is.stage.is === 'planned' && hasForm(is) ? h('button', { key: 'back', type: 'button', class: 'plain', on: { click: () => take({ is: 'back' }) } }, 'Back') : null;
  return h(
    'div',
    { key: 'buttons', class: 'buttons' },
    h('button', { key: 'cancel', type: 'button', class: 'plain', on: { click: shut } }, 'Cancel'),
    back,
    next ? h('button', { key: 'next', type: 'button', class: 'primary', made: (element) => element.focus(), on: { click: next.act } }, next.words) : null,
  );
}

/** @param {Refusal | null} why */
function refusal(why) {
  if (!why) return null;
  return h(
    'div',
    { key: 'refusal', class: 'refusal', role: 'alert' },
    h('p', null, h('strong', null, h('bdi', null, plain(why.error)))),
    why.problems.length > 0 ? h('ul', null, why.problems.map((problem, index) => h('li', { key: String(index) }, h('bdi', null, plain(problem))))) : null,
    why.hint ? h('p', null, h('bdi', null, plain(why.hint))) : null,
  );
}

/** What would change: which resources, and how. @param {Plan} plan */
function planned(plan) {
  const changes = plan.changes.filter((one) => one.what !== 'unchanged');
  return h(
    'div',
    { key: 'plan', class: 'plan' },
    changes.length === 0 ? h('p', null, 'Nothing would change: it is like that already.') : h('ul', { class: 'changes' }, changes.map((one, index) => h('li', { key: String(index) }, `${plain(one.kind)} `, name(one.namespace === '' ? one.name : `${one.namespace}/${one.name}`), ` is ${one.what}`))),
    diff(plan),
    warnings(plan.warnings),
    h('p', { class: 'quiet' }, `From revision ${plan.revision}. At the command line: `, h('code', null, h('bdi', null, plain(plan.command)))),
  );
}

/** @param {Plan} plan */
function diff(plan) {
  const lines = difference(plan.before, plan.after);
  if (lines.every((line) => line.is === 'same')) return null;
  const words = { same: 'unchanged', gone: 'removed', new: 'added' };
  return h(
    'div',
    { class: 'diff', role: 'region', 'aria-label': 'Before and after', tabindex: 0 },
    lines.map((line, index) => h('div', { key: String(index), class: line.is }, h('span', { class: 'unseen' }, `${words[line.is]}: `), h('span', { class: 'sign', 'aria-hidden': 'true' }, { same: ' ', gone: '−', new: '+' }[line.is]), h('bdi', null, plain(line.text)))),
  );
}

/** @param {string[]} all */
function warnings(all) {
  if (all.length === 0) return null;
  return h('ul', { class: 'reasons', 'aria-label': 'Warnings' }, all.map((warning, index) => h('li', { key: String(index), class: 'warning' }, mark('warning'), h('bdi', null, plain(warning)))));
}

/** @param {Plan} plan @param {Done} done */
function doneStage(plan, done) {
  const now = progress(done, app.state?.rollout);
  const { firstAckMicros, lastAckMicros } = done.applied;
  const last = lastAckMicros !== null && done.applied.acknowledged >= done.applied.expected ? `, the last after ${duration(lastAckMicros)}` : '';
  return h(
    'div',
    { key: 'done', class: 'done' },
    h(
      'p',
      { class: now.everywhere ? 'everywhere' : 'underway', role: 'status', tabindex: -1, made: (element) => element.focus() },
      mark(now.everywhere ? 'good' : 'warning'),
      now.everywhere ? `In force at all ${counted(now.expected, 'gateway')}${last}.` : `In force at ${now.acknowledged} of ${counted(now.expected, 'gateway')}.`,
    ),
    h('progress', { max: Math.max(1, now.expected), value: now.acknowledged, 'aria-label': 'Gateways in which it is in force' }),
    h('p', { class: 'quiet' }, `Revision ${done.revision}, committed in ${duration(done.commitMicros)}${firstAckMicros === null ? '' : `, first acknowledged after ${duration(firstAckMicros)}`}.`),
    now.lagging.length > 0 ? h('ul', { class: 'reasons', 'aria-label': 'Gateways that lag' }, now.lagging.slice(0, 10).map((one) => h('li', { key: one.gateway, class: 'warning' }, mark('warning'), name(one.gateway), ' ', h('bdi', null, plain(one.why))))) : null,
    now.rejected.length > 0 ? h('ul', { class: 'reasons', 'aria-label': 'Gateways that reject it' }, now.rejected.slice(0, 10).map((one, index) => h('li', { key: String(index), class: 'error' }, mark('error'), name(one.gateway), ' ', h('bdi', null, plain(one.why))))) : null,
    warnings(done.warnings),
    done.changes.every((one) => one.what === 'unchanged') && plan.changes.length > 0 ? h('p', null, 'Nothing had to be changed.') : null,
  );
}
