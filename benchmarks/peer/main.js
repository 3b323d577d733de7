// A process of mongodash that runs a no-op reactive task and notes each run, as project.py does.
//
// Started by peer.py: node main.js URL CONCURRENCY FILE. Prints "ready" once it plans, and ends on SIGTERM. A run is
// three 64-bit numbers at the end of FILE: the document's id, the time of the start in nanoseconds, and 0.

import fs from 'node:fs';
import mongodash from 'mongodash';

const [url, concurrency, file] = process.argv.slice(2);
const descriptor = fs.openSync(file, 'a');
const originNs = BigInt(Math.round(performance.timeOrigin * 1e3)) * 1000n;

function note(number) {
    const run = Buffer.alloc(24);
    run.writeBigInt64LE(BigInt(number), 0);
    run.writeBigInt64LE(originNs + BigInt(Math.round(performance.now() * 1e6)), 8);
    fs.writeSync(descriptor, run);
}

await mongodash.init({
    uri: url,
    ...(concurrency === 'default' ? {} : { reactiveTaskConcurrency: Number(concurrency) }),
    onInfo: ({ code }) => code === 'reactiveTaskPlannerStarted' && console.log('ready'),
    onError: (error) => console.error(error),
});
await mongodash.reactiveTask({
    task: 'noop',
    collection: 'orders',
    debounce: 0,
    watchProjection: { v: 1 },
    handler: async ({ docId }) => note(docId),
});
await mongodash.startReactiveTasks();
process.on('SIGTERM', async () => {
    await mongodash.stopReactiveTasks();
    process.exit(0);
});
