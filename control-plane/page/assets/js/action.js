// A change, from its form to the moment it is in force everywhere: a pure state machine, and what runs it.
//
// Nothing is done that was not shown before: the plan comes from the control plane, and its `basis` goes with the request, so that a change of
// somebody else in between is refused, not overwritten.

import { Refused, carryOut, plan } from './api.js';

/** @import { Done, Plan, Refusal, Rollout, Verb } from './contract.js' */

/**
 * @typedef {{ is: 'form' }
 *   | { is: 'planning' }
 *   | { is: 'planned', plan: Plan }
 *   | { is: 'doing', plan: Plan }
 *   | { is: 'lost', plan: Plan, refusal: Refusal }
 *   | { is: 'done', plan: Plan, done: Done }} Stage
 */

/**
 * @typedef {object} Course
 * @property {Verb} verb
 * @property {string} subject           Service or cluster.
 * @property {Record<string, string>} fields
 * @property {Stage} stage
 * @property {Refusal | null} refusal   Why it is where it is.
 * @property {string} requestId
 */

/** @typedef {{ is: 'edited', field: string, value: string } | { is: 'asked' } | { is: 'planned', plan: Plan } | { is: 'back' } | { is: 'confirmed', requestId: string } | { is: 'done', done: Done } | { is: 'refused', status: number, refusal: Refusal }} Step */

/** Verbs without anything to choose begin with their plan. @type {Set<Verb>} */
const FORMLESS = new Set(['drain', 'undrain', 'undo-switch', 'clear-split']);

/** @param {Verb} verb @param {string} subject @param {Record<string, string>} [fields] @returns {Course} */
export function course(verb, subject, fields = {}) {
  return { verb, subject, fields, stage: { is: FORMLESS.has(verb) ? 'planning' : 'form' }, refusal: null, requestId: '' };
}

/** @param {Course} course @param {Step} step @returns {Course} */
export function advance(course, step) {
  const { stage } = course;
  switch (step.is) {
    case 'edited':
      return { ...course, fields: { ...course.fields, [step.field]: step.value }, refusal: null };
    case 'asked':
      return { ...course, stage: { is: 'planning' }, refusal: null };
    case 'planned':
      return { ...course, stage: { is: 'planned', plan: step.plan }, refusal: null };
    case 'back':
      return { ...course, stage: { is: 'form' }, refusal: null };
    case 'confirmed':
      // After a lost answer it is the same request again, under the same id: what was done is not done twice.
      if (stage.is === 'planned') return { ...course, stage: { is: 'doing', plan: stage.plan }, refusal: null, requestId: step.requestId };
      if (stage.is === 'lost') return { ...course, stage: { is: 'doing', plan: stage.plan }, refusal: null };
      return course;
    case 'done':
      return stage.is === 'doing' ? { ...course, stage: { is: 'done', plan: stage.plan, done: step.done }, refusal: null } : course;
    case 'refused':
      if (stage.is === 'doing' && (step.status === 0 || step.status === 503)) {
        return { ...course, stage: { is: 'lost', plan: stage.plan, refusal: step.refusal }, refusal: step.refusal };
      }
      if (stage.is === 'doing') return { ...course, stage: { is: 'planned', plan: stage.plan }, refusal: step.refusal };
      return { ...course, stage: { is: 'form' }, refusal: step.refusal };
  }
}

/** Whether there is a form to go back to. @param {Course} course */
export function hasForm(course) {
  return !FORMLESS.has(course.verb);
}

/**
 * What is sent, out of the fields of the form; a text instead: what is wrong with them.
 * @param {Course} course
 * @returns {Record<string, unknown> | string}
 */
export function ask({ verb, subject, fields }) {
  switch (verb) {
    case 'drain':
    case 'undrain':
      return { cluster: subject };
    case 'undo-switch':
    case 'clear-split':
      return { service: subject };
    case 'switch': {
      const [cluster, version] = readTarget(fields.target ?? '');
      if (!cluster) return 'Choose where all requests go.';
      return version === null ? { service: subject, cluster } : { service: subject, cluster, version };
    }
    case 'failover':
      return fields.cluster ? { service: subject, cluster: fields.cluster } : 'Choose the cluster that requests leave.';
    case 'release':
      return fields.cluster ? { service: subject, cluster: fields.cluster } : { service: subject };
    case 'split': {
      const backends = [];
      for (const [field, text] of Object.entries(fields)) {
        if (!field.startsWith('weight:')) continue;
        const [cluster, version] = readTarget(field.slice('weight:'.length));
        const weight = text.trim() === '' ? 0 : Number(text);
        if (!cluster) continue;
        if (!Number.isInteger(weight) || weight < 0 || weight > 1_000_000) return `A weight is a whole number from 0 on, not “${text}”.`;
        if (weight > 0) backends.push(version === null ? { cluster, weight } : { cluster, version, weight });
      }
      return backends.length > 0 ? { service: subject, backends } : 'Give at least one a weight above 0.';
    }
  }
}

/** A cluster, or a version of one, as one text: no name of a cluster or version has a line break. @param {string} cluster @param {string | null} version */
export function target(cluster, version) {
  return version === null ? cluster : `${cluster}\n${version}`;
}

/** @param {string} text @returns {[string, string | null]} */
export function readTarget(text) {
  const at = text.indexOf('\n');
  return at < 0 ? [text, null] : [text.slice(0, at), text.slice(at + 1)];
}

/**
 * How far a change is, as the answer and what came since say.
 * @param {Done} done
 * @param {Rollout | undefined} rollout
 */
export function progress(done, rollout) {
  // What is in force of a later revision is in force of this one as well.
  const latest = rollout && rollout.revision >= done.revision && rollout.acknowledged >= done.applied.acknowledged ? rollout : done.applied;
  const { expected, acknowledged, lagging, rejected } = latest;
  return { expected, acknowledged, lagging, rejected, everywhere: acknowledged >= expected };
}

/**
 * Asks for the plan of a course.
 * @param {Course} course
 * @returns {Promise<Step>}
 */
export async function askPlan(course) {
  const wanted = ask(course);
  if (typeof wanted === 'string') return { is: 'refused', status: 400, refusal: { error: wanted, hint: null, problems: [] } };
  try {
    return { is: 'planned', plan: await plan(course.verb, wanted) };
  } catch (error) {
    return refused(error);
  }
}

/**
 * Does what was planned.
 * @param {Course} course
 * @returns {Promise<Step>}
 */
export async function askDone(course) {
  const wanted = ask(course);
  if (course.stage.is !== 'doing' || typeof wanted === 'string') return { is: 'back' };
  try {
    return { is: 'done', done: await carryOut(course.verb, wanted, course.stage.plan.basis, course.requestId) };
  } catch (error) {
    return refused(error);
  }
}

/** @param {unknown} error @returns {Step} */
function refused(error) {
  if (error instanceof Refused) return { is: 'refused', status: error.status, refusal: error.refusal };
  throw error;
}
