// A member as the page sees one, out of recorded states: the routes, headers and answers of the contract.
// `serve` gives a handle by which a test changes what it says.

import { createServer } from 'node:http';
import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { me, three } from './fixtures.js';

const ASSETS = fileURLToPath(new URL('../../assets/', import.meta.url));
const TYPES = { html: 'text/html; charset=utf-8', css: 'text/css; charset=utf-8', js: 'text/javascript; charset=utf-8', svg: 'image/svg+xml' };
// As the member sends it: a page that needs more than this fails here, not at a user's.
const POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'";
export const SECRET = 'recorded-secret';

/** @returns {Promise<any>} */
export async function serve() {
  const is = {
    url: '',
    state: three(),
    role: 'operator',
    session: true,
    asks: [],
    /** @type {Set<import('node:http').ServerResponse>} */
    streams: new Set(),
    /** What actions answer: (verb, ask, is) => [status, body]; status 0: the answer is lost. */
    answer: plan,
    refuseStreams: 0,
    /** No state but those that a test says. */
    quiet: false,
    /** Says the state to every page now. */
    say(state = is.state) {
      is.state = state;
      for (const stream of is.streams) stream.write(`event: state\ndata: ${JSON.stringify(state)}\n\n`);
    },
    bye(reason, message) {
      is.session = false;
      for (const stream of is.streams) stream.end(`event: bye\ndata: ${JSON.stringify({ reason, message })}\n\n`);
    },
    cut() {
      for (const stream of is.streams) stream.destroy();
    },
    close() {
      clearInterval(clock);
      is.cut();
      server.close();
      server.closeAllConnections();
    },
  };
  const server = createServer((request, response) => {
    void handle(is, request, response).catch((error) => {
      response.destroy(error);
      console.error(error);
    });
  });
  const clock = setInterval(() => {
    if (is.quiet || is.streams.size === 0) return;
    is.state.takenUnixMs += 1_000;
    is.say();
  }, 1_000);
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  is.url = `http://127.0.0.1:${server.address().port}`;
  return is;
}

async function handle(is, request, response) {
  const { pathname } = new URL(request.url, is.url);
  response.setHeader('content-security-policy', POLICY);
  response.setHeader('x-content-type-options', 'nosniff');
  response.setHeader('referrer-policy', 'no-referrer');
  const json = (status, body) => {
    response.writeHead(status, { 'content-type': 'application/json', 'cache-control': 'no-store' });
    response.end(body === null ? '' : JSON.stringify(body));
  };
  const refuse = (status, error, hint = null, problems = []) => json(status, { error, hint, problems });
  let body = null;
  if (request.method === 'POST') {
    if (request.headers['x-archipelago-page'] !== '1' || request.headers['content-type'] !== 'application/json') return refuse(403, 'not from the page');
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    body = JSON.parse(Buffer.concat(chunks).toString());
  }
  if (pathname === '/api/sign-in') {
    if (body.secret !== SECRET) return refuse(401, 'The link was used, or is too old.', 'meshctl dashboard makes another one.');
    is.session = true;
    return json(200, me(is.role));
  }
  if (pathname.startsWith('/api/') && !is.session) return refuse(401, 'Nobody is signed in.');
  if (pathname === '/api/me') return json(200, me(is.role));
  if (pathname === '/api/sign-out') {
    is.session = false;
    return json(204, null);
  }
  if (pathname === '/api/live') {
    if (is.refuseStreams > 0) {
      is.refuseStreams -= 1;
      return refuse(503, 'full');
    }
    response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' });
    is.streams.add(response);
    response.on('close', () => is.streams.delete(response));
    response.write(`: beat\n\nid: 1\nevent: state\ndata: ${JSON.stringify(is.state)}\n\n`);
    return undefined;
  }
  if (pathname.startsWith('/api/actions/')) {
    if (is.role !== 'operator') return refuse(403, 'A reader may not change anything.');
    const verb = pathname.slice('/api/actions/'.length);
    is.asks.push({ verb, ...body });
    const [status, answer] = await is.answer(verb, body, is);
    if (status === 0) {
      // An answer that breaks off: where nothing at all has come, browsers send the request again by themselves.
      response.writeHead(200, { 'content-type': 'application/json', 'content-length': '1000' });
      response.write('{');
      setImmediate(() => response.destroy());
      return undefined;
    }
    return json(status, answer);
  }
  const name = pathname === '/' || pathname === '/sign-in' ? 'index.html' : pathname.slice(1);
  if (!/^(index\.html|page\.css|icon\.svg|js\/[a-z-]+\.js)$/.test(name)) return refuse(404, 'There is no such thing.');
  response.writeHead(200, { 'content-type': TYPES[name.split('.').at(-1)], 'cache-control': 'no-store' });
  response.end(await readFile(ASSETS + name));
  return undefined;
}

/** A plan, and then the deed: what a member answers when all is well. */
export async function plan(verb, ask, is) {
  const about = ask.service ?? ask.cluster;
  const [namespace, name] = about.includes('/') ? about.split('/') : ['', about];
  const changes = [{ kind: ask.service ? 'TrafficSplit' : 'Cluster', namespace, name, what: 'updated' }];
  if (ask.dryRun) {
    return [200, { command: `meshctl ${verb} ${about}`, changes, before: { service: name, backends: [{ cluster: 'paris', weight: 90 }, { cluster: 'tokyo', weight: 10 }] }, after: { service: name, backends: ask.backends ?? [{ cluster: ask.cluster, weight: 1 }] }, warnings: [], revision: is.state.revision, basis: 'basis-1' }];
  }
  const gateways = is.state.rollout.expected;
  return [200, { revision: is.state.revision + 1, changes, warnings: [], commitMicros: 8_000, applied: { expected: gateways, acknowledged: gateways - 2, firstAckMicros: 6_100, lastAckMicros: 9_300, lagging: [{ gateway: 'tokyo/gw-1', why: 'at revision 13' }, { gateway: 'tokyo/gw-2', why: 'at revision 13' }], rejected: [] } }];
}
