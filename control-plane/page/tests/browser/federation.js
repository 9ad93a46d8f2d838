// A whole federation under `meshctl up`, with traffic through it.

import { execFile, spawn } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { Agent, get } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** @param {string} meshctl   Its program, with all others beside or in it. */
export async function up(meshctl) {
  const folder = await mkdtemp(join(tmpdir(), 'archipelago-page-'));
  const state = join(folder, 'state');
  const ran = (...args) =>
    new Promise((resolve) => execFile(meshctl, ['--state', state, ...args], { maxBuffer: 64 << 20 }, (error, stdout, stderr) => resolve({ code: error ? (error.code ?? 1) : 0, stdout, stderr })));
  const ok = async (...args) => {
    const { code, stdout, stderr } = await ran(...args);
    if (code !== 0) throw new Error(`meshctl ${args.join(' ')} ended with ${code}: ${stderr}${stdout}`);
    return stdout;
  };
  // Ends the federation when this process is gone, however it went: its end of the pipe is closed then.
  const guardian = spawn('sh', ['-c', 'cat >/dev/null; "$0" --state "$1" down >/dev/null 2>&1', meshctl, state], { stdio: ['pipe', 'ignore', 'ignore'], detached: true });
  for (let attempt = 0; ; attempt += 1) {
    // Below what systems give to clients, in blocks, so that two tests are rarely in each other's way.
    const port = 20_000 + 1_000 * Math.floor(Math.random() * 12);
    const { code, stderr } = await ran('up', '--detach', '--base-port', String(port));
    if (code === 0) break;
    if (!stderr.includes('ports are not free') || attempt >= 10) throw new Error(`no federation: ${stderr}`);
  }
  const status = JSON.parse(await ok('status', '-o', 'json'));
  const doors = status.clusters.map((cluster) => ({ cluster: cluster.name, url: cluster.gateways[0].http }));
  return {
    ran,
    ok,
    doors,
    json: async (...args) => JSON.parse(await ok(...args, '-o', 'json')),
    async down() {
      await ran('down');
      guardian.stdin.end();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

/**
 * Requests for a service at these doors, about fifty per second, until stopped.
 * @param {{ cluster: string, url: string }[]} doors
 * @param {string} host
 */
export function traffic(doors, host) {
  const agent = new Agent({ keepAlive: true, maxSockets: 32 });
  const seen = { answered: 0, failed: /** @type {string[]} */ ([]) };
  let turn = 0;
  let open = 0;
  let stopped = false;
  const timer = setInterval(() => {
    const door = doors[(turn += 1) % doors.length];
    // A machine that does not keep up gets less, not a queue.
    if (!door || open >= 64) return;
    open += 1;
    const fail = (/** @type {string} */ why) => {
      open -= 1;
      if (!stopped) seen.failed.push(`${door.cluster}: ${why}`);
    };
    get(door.url, { agent, headers: { host } }, (response) => {
      response.resume();
      response.on('end', () => {
        open -= 1;
        seen.answered += 1;
        if (response.statusCode !== 200) seen.failed.push(`${door.cluster}: ${response.statusCode}`);
      });
      response.on('error', (error) => fail(error.message));
    }).on('error', (error) => fail(error.message));
  }, 20);
  return {
    seen,
    stop() {
      stopped = true;
      clearInterval(timer);
      agent.destroy();
    },
  };
}
