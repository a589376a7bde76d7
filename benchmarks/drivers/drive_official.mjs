// SPDX-License-Identifier: Apache-2.0
// Drive the official JavaScript client (0.5.2).  The same work as drive_official.py for the workloads that it names; the rest
// are left out because the client, not the machine, decides them (no streaming upload, no batch interface).
import fs from "node:fs";
import process from "node:process";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const args = Object.fromEntries(
  process.argv.slice(2).reduce((pairs, word, at, all) => (at % 2 ? pairs : [...pairs, [word.slice(2), all[at + 1]]]), []),
);
const require = createRequire(pathToFileURL(`${args.modules}/`));
const { PieClient } = await import(pathToFileURL(require.resolve("@pie-project/client")).href);
const WebSocket = require("ws");
const PROGRAM = "load@1.0.0";
const DEFAULTS = {
  runs: { n: 10000, limit: 256 },
  events: { processes: 64, events: 2000, size: 64 },
  latency_idle: { pings: 2000, launches: 500 },
};
const p = { ...DEFAULTS[args.workload], ...JSON.parse(args.params ?? "{}") };
const metrics = {};
const set = (name, value, unit) => { metrics[name] = { value, unit }; };
const quantile = (samples, share) => samples.sort((a, b) => a - b)[Math.min(samples.length - 1, Math.floor(share * samples.length))];

async function consume(proc) {
  let count = 0;
  for (;;) {
    const { event, value } = await proc.recv();
    if (event === "stdout" && value.length) count += 1;
    else if (event === "return" || event === "error") return count;
  }
}

async function work(count, limit, one) {
  let next = 0;
  const worker = async () => { while (next < count) await one(next++); };
  await Promise.all(Array.from({ length: Math.min(limit, count) }, worker));
}

let seconds = 0;
let cpu = 0;
async function timed(block) {
  const cpuBefore = process.cpuUsage();
  const before = performance.now();
  const result = await block();
  seconds = (performance.now() - before) / 1000;
  const used = process.cpuUsage(cpuBefore);
  cpu = (used.user + used.system) / 1e6;
  return result;
}

const client = new PieClient(args.url, { WebSocket, identity: "default/bench" });
await client.connect();
const runOnce = async () => consume(await client.launchProcess(PROGRAM, {}));
const flood = async (count) => {
  const script = { events: count, size: p.size, barrier: p.processes };
  const counts = await Promise.all(
    Array.from({ length: p.processes }, async () => consume(await client.launchProcess(PROGRAM, script))),
  );
  return counts.reduce((a, b) => a + b, 0);
};
const workloads = {
  async runs() {
    await work(500, p.limit, runOnce);
    await timed(() => work(p.n, p.limit, runOnce));
    set("runs_per_s", p.n / seconds, "/s");
  },
  async events() {
    await flood(Math.max(1, Math.min(50, Math.floor(p.events / 10))));
    const got = await timed(() => flood(p.events));
    if (got !== p.processes * p.events) throw new Error(`${got} events`);
    set("events_per_s", got / seconds, "/s");
  },
  async latency_idle() {
    const pings = [];
    const firsts = [];
    await timed(async () => {
      for (let at = 0; at < p.pings; at++) {
        const start = performance.now();
        await client.ping();
        pings.push((performance.now() - start) * 1000);
      }
      for (let at = 0; at < p.launches; at++) {
        const start = performance.now();
        const proc = await client.launchProcess(PROGRAM, { events: 1, size: 64 });
        await proc.recv();
        firsts.push((performance.now() - start) * 1000);
        await consume(proc);
      }
    });
    for (const [name, samples] of [["ping", pings], ["first_event", firsts]]) {
      set(`${name}_p50`, quantile(samples, 0.5), "us");
      set(`${name}_p99`, quantile(samples, 0.99), "us");
    }
  },
};
await workloads[args.workload]();
set("cpu_seconds", cpu, "s");
set("peak_rss", Number(/VmHWM:\s+(\d+)/.exec(fs.readFileSync("/proc/self/status", "utf8"))[1]) / 1024, "MiB");
const line = {
  peer: args.name ?? "official-js-0.5.2",
  workload: args.workload,
  params: p,
  seconds,
  metrics,
  extra: {},
  versions: { node: process.versions.node, "@pie-project/client": "0.5.2" },
};
console.log(JSON.stringify(line));
process.exit(0);
