// Calls functions of a program: their names are read, a line of JSON is written.

import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

console.log = console.info = console.error; // what a client prints is not an answer
const program = await import(pathToFileURL(process.argv[2]));
for await (const line of createInterface({ input: process.stdin })) {
  let error = null;
  try {
    await program[line.trim()]();
  } catch (raised) {
    error = `${raised?.stack ?? raised}\n${JSON.stringify(raised, null, 1) ?? ""}`;
  }
  process.stdout.write(JSON.stringify({ error }) + "\n");
}
