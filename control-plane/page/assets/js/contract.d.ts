// The contract between a member of the control plane and its page. Types of what goes over the wire, and the routes.
// Held against the types of `control-plane/page` by a test there. `null` is "not known" or "there is none", as said; never 0.
// Every name and text may hold any characters (`<`, quotes, bidi marks, escape sequences): put them into text nodes only.
//
// ROUTES (same origin only; anything else is refused)
//
//   GET  /                       index.html, with or without a session (the page asks /api/me and shows the sign-in hint on 401)
//   GET  /page.css  /js/*.js     assets
//   GET  /sign-in#SECRET         index.html too; the page takes the secret out of location.hash, removes it from the address at once
//                                (history.replaceState to "/"), and POSTs it
//   POST /api/sign-in            SignIn  -> Me, and the session's cookie (HttpOnly). 401: used, expired or unknown link
//   POST /api/sign-out           {}      -> 204
//   GET  /api/me                 -> Me; 401 without a session
//   GET  /api/live               server-sent events (EventSource): `state` (data: State, id: a number), `bye` (data: Bye). 401 without a session.
//                                A `state` comes at least every 2 s, changed or not. After `bye` nothing follows: do not connect again.
//   POST /api/actions/{Verb}     Ask<Verb>  -> Plan when dryRun, else Done.
//
// Every POST: `content-type: application/json` and the header `x-archipelago-page: 1`; body at most 64 KiB. Errors: `Refusal` with its status:
//   400 what was sent is wrong · 401 sign in again · 403 the role may not, or a foreign origin · 404 · 409 somebody wrote meanwhile: plan again
//   413 · 421 unknown Host · 422 the control plane refuses the change (problems) · 429 · 503 no leader, or full: try again

export interface SignIn {
  secret: string;
}

export interface Me {
  /** spiffe://… */
  identity: string;
  /** The last part of it. */
  name: string;
  /** A reader's actions are refused with 403. */
  role: "operator" | "reader";
  expiresUnixMs: number;
  /** The member that serves this page. */
  member: number;
  federation: string;
}

export interface Bye {
  reason: "signed-out" | "expired" | "revoked" | "stopping";
  message: string;
}

export interface Refusal {
  error: string;
  /** What to do. */
  hint: string | null;
  /** Of a change: each reason. */
  problems: string[];
}

/** The whole of it, each time. Lists are sorted by name unless it says otherwise. */
export interface State {
  /** By the clock of the member. Ages are counted from here, not from the browser's clock. */
  takenUnixMs: number;
  /** Trust domain. */
  federation: string;
  /** The member that says it. */
  member: number;
  /** Policy revision. */
  revision: number;
  members: Member[];
  clusters: Cluster[];
  links: Link[];
  services: Service[];
  /** Services beyond the 1,000 (busiest first) that are in the list. */
  servicesLeftOff: number;
  rollout: Rollout;
  /** Soonest to expire first, at most 200. */
  certificates: Certificate[];
  /** Newest last, at most 200. */
  events: Event[];
  /** Slowest first, at most 50, of the last five minutes. null: not known yet. */
  slowest: SlowRequest[] | null;
  /** Over how many seconds the rates and latencies are; null: not known yet (the first seconds). */
  windowSeconds: number | null;
  /** Who or what is missing in the above, and why. */
  missing: Missing[];
}

export interface Missing {
  about: "traffic" | "slowest" | "events" | "members" | "tunnels";
  /** "paris/gw-1", "cp-2". */
  who: string;
  why: string;
}

export interface Member {
  id: number;
  /** "cp-1" */
  name: string;
  role: "leader" | "follower" | "candidate" | "learner" | "unreachable";
  address: string;
  term: number | null;
  appliedIndex: number | null;
  /** What an operator must see to. */
  problem: string | null;
}

export interface Cluster {
  name: string;
  region: string;
  state: "active" | "drained" | "unreachable" | "pending";
  agent: "connected" | "disconnected" | "pending";
  gateways: Gateway[];
  /** Of all its gateways: requests that enter here, and that are served here. null: not known. */
  entering: Rate | null;
  serving: Rate | null;
  problems: string[];
}

export interface Gateway {
  /** "gw-1" */
  name: string;
  /** "paris/gw-1": its name everywhere else. */
  key: string;
  state: "synced" | "syncing" | "rejected" | "disconnected";
  /** Last acknowledged; null: never. */
  revision: number | null;
  /** null: unknown. */
  lastSeenUnixMs: number | null;
  softwareVersion: string | null;
  workers: number | null;
  /** Why it is rejected. */
  error: string | null;
  problems: string[];
}

export interface Rate {
  requestsPerSecond: number;
  /** Of those that ended, percent that did not fail; null: none ended. */
  successPercent: number | null;
  p50Micros: number | null;
  p99Micros: number | null;
}

/** What is between two clusters, both ways. a < b. One for every two clusters that have gateways. */
export interface Link {
  a: string;
  b: string;
  /** "degraded": some tunnels are not up. "not reported": no gateway of either says. */
  state: "up" | "degraded" | "down" | "not reported";
  tunnels: number;
  tunnelsUp: number;
  /** Of the slowest that is up. */
  rttMicros: number | null;
  /** Of the packets of the last minute, of the tunnel that is up and loses most; null: none of their gateways reports it, or too few were sent. */
  lossPercent: number | null;
  /** "quic" */
  transports: string[];
  aToB: Rate | null;
  bToA: Rate | null;
  /** Those that are not up, "paris/gw-1 to tokyo/gw-2 is dead"; at most 8. */
  broken: string[];
}

export interface Service {
  /** "shop/checkout" */
  name: string;
  hosts: string[];
  ports: Port[];
  headless: boolean;
  /** The worst that its clients can meet: "down": no cluster can serve. */
  state: "ready" | "degraded" | "down" | "unknown";
  clusters: ServiceCluster[];
  /** null: not known. Rates of services without requests are known, and 0. */
  rate: Rate | null;
  /** Where requests enter and who serves, now; most first. null: not known. */
  flows: Flow[] | null;
  /** Who serves, by version, as seen beside the endpoints; most first. null: not known. */
  versions: VersionShare[] | null;
  split: Split | null;
  failover: Failover | null;
  /** Why traffic is not where it would be otherwise, newest first, at most 8. */
  reasons: Reason[];
}

export interface Port {
  name: string;
  port: number;
  protocol: string;
  /** Who has it. */
  clusters: string[];
}

export interface ServiceCluster {
  cluster: string;
  state: "ready" | "degraded" | "down" | "unknown" | "drained" | "avoided";
  ready: number;
  total: number;
  /** Not asked yet. */
  unknown: number;
  versions: string[];
  /** Percent of the split; null: no split. */
  weightPercent: number | null;
  lastFailure: string | null;
}

export interface Flow {
  from: string;
  /** null: sent nowhere. */
  to: string | null;
  rate: Rate;
  /** Of what enters at `from`. */
  sharePercent: number;
}

export interface VersionShare {
  cluster: string;
  version: string | null;
  rate: Rate;
  sharePercent: number;
}

export interface Backend {
  cluster: string;
  version: string | null;
  weight: number;
  sharePercent: number;
}

export interface Split {
  name: string;
  /** Of its last write. */
  revision: number;
  /** Cluster whose users wrote it; null: an operator. Only there it can be changed. */
  origin: string | null;
  /** "header x-user" */
  sticky: string | null;
  routes: SplitRoute[];
  backends: Backend[];
  /** A switch that can be undone. */
  canUndo: boolean;
}

export interface SplitRoute {
  /** "header x-preview=pr-42, path /beta" */
  match: string;
  backends: Backend[];
}

export interface Failover {
  name: string;
  revision: number;
  origin: string | null;
  /** Tiers, first tried first: "clusters paris, tokyo" or "regions @same". Empty: local, same region, the rest. */
  order: string[];
  avoid: string[];
  /** Clusters and regions that may ever serve; null: all. */
  residency: string[] | null;
  failback: "auto" | "manual";
}

export interface Reason {
  sinceUnixMs: number | null;
  severity: "info" | "warning" | "error";
  /** "Failover", "Drained", "Avoided", … */
  reason: string;
  text: string;
}

/** How far the current revision got. */
export interface Rollout {
  revision: number;
  expected: number;
  acknowledged: number;
  /** At most 50. */
  lagging: Lagging[];
  rejected: Rejected[];
}

export interface Lagging {
  gateway: string;
  why: string;
}

export interface Rejected {
  gateway: string;
  /** null: the whole update was refused. */
  resource: string | null;
  why: string;
}

export interface Certificate {
  /** "paris/gw-1", "cp-1", "operator/admin" */
  who: string;
  expiresUnixMs: number;
}

export interface Event {
  /** Names it for ever. A repeated one comes again under the same key with a higher count. */
  key: string;
  unixMs: number;
  firstUnixMs: number;
  count: number;
  severity: "info" | "warning" | "error";
  kind: string;
  reason: string;
  message: string;
  service: string | null;
  cluster: string | null;
  gateway: string | null;
  subject: string | null;
  actor: string | null;
  revision: number | null;
  source: string;
}

export interface SlowRequest {
  service: string;
  totalMicros: number;
  endedUnixMs: number;
  /** null: its sender was gone before there was one. */
  status: number | null;
  flags: string;
  /** Gateway where it entered. */
  from: string;
  /** Cluster that served it, or was last tried. */
  cluster: string | null;
  endpoint: string | null;
  method: string;
  path: string;
  traceId: string | null;
  /** Where the time went, in order of travel, parts of zero left out; null: not told. */
  hops: Hop[] | null;
}

export interface Hop {
  /** As `meshctl slow` names it: "queue", "tunnel", "first-byte", … */
  hop: string;
  /** Gateway, endpoint or cluster that has it; null: not known. */
  at: string | null;
  micros: number;
}

// ACTIONS. First with dryRun: true; show the Plan; then the same with dryRun: false, the plan's `basis` and a requestId of the page's own
// (crypto.randomUUID(); the same again when it is repeated after a lost answer).

export interface AskBase {
  dryRun: boolean;
  basis?: string;
  requestId?: string;
}
export interface AskSplit extends AskBase {
  service: string;
  backends: AskBackend[];
}
export interface AskBackend {
  cluster: string;
  version?: string;
  weight: number;
}
export interface AskClearSplit extends AskBase {
  service: string;
}
export interface AskSwitch extends AskBase {
  service: string;
  cluster: string;
  version?: string;
}
export interface AskUndoSwitch extends AskBase {
  service: string;
}
export interface AskDrain extends AskBase {
  cluster: string;
}
export interface AskUndrain extends AskBase {
  cluster: string;
}
/** Away from `cluster`, as `meshctl failover trigger`. */
export interface AskFailover extends AskBase {
  service: string;
  cluster: string;
}
/** As `meshctl failover release`; without a cluster: all. */
export interface AskRelease extends AskBase {
  service: string;
  cluster?: string;
}
export type Verb = "split" | "clear-split" | "switch" | "undo-switch" | "drain" | "undrain" | "failover" | "release";

export interface Plan {
  /** The command that does the same. */
  command: string;
  changes: Change[];
  /** `spec` as it is and as it would be; null: there is none. */
  before: unknown;
  after: unknown;
  warnings: string[];
  /** Policy revision that it was made from. */
  revision: number;
  /** For the request that does it: refused with 409 if somebody wrote it meanwhile. */
  basis: string;
}

export interface Done {
  revision: number;
  changes: Change[];
  warnings: string[];
  commitMicros: number;
  /** Waited for at most 5 s; the rest is in `State.rollout`. */
  applied: Applied;
}

export interface Change {
  kind: string;
  namespace: string;
  name: string;
  what: "created" | "updated" | "unchanged" | "deleted";
}

export interface Applied {
  expected: number;
  acknowledged: number;
  /** After the commit. */
  firstAckMicros: number | null;
  lastAckMicros: number | null;
  lagging: Lagging[];
  rejected: Rejected[];
}
