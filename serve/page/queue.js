/**
 * One image after the other to the server, in the order they came. A refusal that passes (busy, no network, no token)
 * holds the queue at its image; any other costs that image alone.
 */

import { inspect } from "./api.js";

const MAX_RETRIES = 5; // of a busy server, before someone has to ask for it

/**
 * @param {{
 *   optionsOf: (item: object) => object, token: () => string,
 *   changed: (item: object) => void, held: (item: object, seconds: number | null, isFirst: boolean) => void,
 * }} page what the queue asks and tells: `held` says that it waits, for someone (null) or for so many seconds more
 */
export function makeQueue(page) {
  const waiting = [];
  let current = null; // { item, abort }
  let hold = null; // { refusal, timer }

  async function next() {
    if (current || hold || !waiting.length) return;
    const item = waiting[0];
    current = { item, abort: new AbortController() };
    Object.assign(item, { status: "running", refusal: null });
    page.changed(item);
    const outcome = await asked(item, current.abort.signal);
    current = null;
    settle(item, outcome);
    next();
  }

  async function asked(item, signal) {
    try {
      return await inspect(item.file, page.optionsOf(item), page.token(), signal);
    } catch (error) {
      return { refusal: error };
    }
  }

  function settle(item, { refusal, answer, text }) {
    if (refusal?.name === "AbortError") return;
    if (refusal && ["busy", "access", "offline"].includes(refusal.kind)) return holdAt(item, refusal);
    waiting.shift();
    Object.assign(item, refusal ? { status: "failed", refusal } : { status: "done", answer, text });
    page.changed(item);
  }

  function holdAt(item, refusal) {
    Object.assign(item, { status: "waiting", refusal, tries: (item.tries ?? 0) + 1 });
    hold = { refusal, timer: 0 };
    if (refusal.kind === "busy" && item.tries <= MAX_RETRIES) countDown(item, refusal.wait_s, true);
    else page.held(item, null, true);
  }

  function countDown(item, seconds, isFirst = false) {
    if (seconds <= 0) return resume();
    page.held(item, seconds, isFirst);
    hold.timer = setTimeout(() => countDown(item, seconds - 1), 1000);
  }

  function resume() {
    clearTimeout(hold?.timer);
    hold = null;
    next();
  }

  /** Forget these items; one that is on its way is given up. */
  function drop(items) {
    const held = hold && items.includes(waiting[0]);
    for (const item of items) if (waiting.includes(item)) waiting.splice(waiting.indexOf(item), 1);
    if (current && items.includes(current.item)) current.abort.abort();
    if (held) resume();
  }

  return {
    add: (items) => {
      waiting.push(...items);
      next();
    },
    resume,
    drop,
    heldFor: () => hold?.refusal.kind ?? null,
  };
}
