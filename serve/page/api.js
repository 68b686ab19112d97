/**
 * The endpoint as this page uses it: `GET v1/detectors`, `POST v1/inspect`, and what can go wrong with either.
 * Addresses are relative, so that the page also works below a path prefix.
 */

const TIMEOUT_S = 120;
const BUSY_WAIT_S = 5; // where a 429 or 503 says nothing of when to come back

/**
 * Why there is no answer. `kind` says what can be done about it:
 * "busy" (come back in `wait_s` seconds), "access" (a token is needed), "offline" (no server to be reached),
 * "request" (it will never do as it is) or "server".
 */
export class Refusal extends Error {
  constructor(kind, { title, detail = "", status = 0, code = "", requestId = "", wait_s = 0 }) {
    super(title);
    Object.assign(this, { kind, title, detail, status, code, requestId, wait_s });
  }
}

/** @returns {Promise<{default: string, detectors: object[]}>} */
export async function listDetectors(token) {
  const response = await request("v1/detectors", { headers: headers(token) });
  return (await answered(response)).answer;
}

/**
 * Inspect one image.
 *
 * @param {Blob} file sent as it is
 * @param {{detector: string, object: string, threshold: number | null, explain: boolean}} options null and "": the server's
 * @param {string} token "" for none
 * @param {AbortSignal} signal to give up
 * @returns {Promise<{answer: object, text: string}>} the answer, and its JSON as it came
 * @throws {Refusal} or an AbortError
 */
export async function inspect(file, options, token, signal) {
  const query = new URLSearchParams({ mask: "rle", map: "png" });
  if (options.detector) query.set("detector", options.detector);
  if (options.object) query.set("object", options.object);
  if (options.threshold !== null) query.set("threshold", options.threshold);
  if (options.explain) query.set("explain", "true");
  const type = file.type.startsWith("image/") ? file.type : "application/octet-stream"; // what it is, the server finds out
  const init = { method: "POST", body: file, headers: { ...headers(token), "Content-Type": type }, signal };
  return answered(await request(`v1/inspect?${query}`, init));
}

const headers = (token) => (token ? { Authorization: `Bearer ${token}` } : {});

async function request(address, init) {
  const limit = AbortSignal.timeout(TIMEOUT_S * 1000);
  const signal = init.signal ? AbortSignal.any([init.signal, limit]) : limit;
  try {
    return await fetch(address, { ...init, signal, cache: "no-store", credentials: "same-origin", redirect: "error" });
  } catch (error) {
    throw unanswered(error);
  }
}

function unanswered(error) {
  if (error.name === "AbortError") return error;
  if (error.name === "TimeoutError") {
    return new Refusal("server", { title: "The server did not answer", detail: `Nothing came within ${TIMEOUT_S} s.` });
  }
  const detail = navigator.onLine
    ? "It may be down, restarting, or have cut the connection, as it does with files above its size limit."
    : "This device has no network.";
  return new Refusal("offline", { title: "The server can't be reached", detail });
}

async function answered(response) {
  let text = "";
  try {
    text = await response.text();
  } catch (error) {
    throw unanswered(error);
  }
  const answer = parsed(text);
  if (!response.ok) throw refused(response, answer ?? {});
  if (!answer) throw new Refusal("server", { title: "The answer can't be read", detail: "It is not JSON.", status: response.status });
  return { answer, text };
}

function parsed(text) {
  try {
    const value = JSON.parse(text);
    return value && typeof value === "object" ? value : null;
  } catch {
    return null;
  }
}

function refused(response, problem) {
  const status = response.status;
  return new Refusal(kindOf(status), {
    status,
    title: UNREADABLE.has(problem.code) ? "This image can't be read" : (TITLES[status] ?? TITLES[kindOf(status)]),
    detail: problem.detail || problem.title || "The server did not say why.",
    code: problem.code || "",
    requestId: problem.request_id || response.headers.get("X-Request-ID") || "",
    wait_s: waitOf(response.headers.get("Retry-After")),
  });
}

const TITLES = {
  busy: "The server is busy",
  access: "An access token is needed",
  request: "The server refused this",
  server: "The server failed",
  413: "Too large",
};
const UNREADABLE = new Set(["empty", "truncated", "unknown_format", "too_small", "decode", "decode_timeout"]);

function kindOf(status) {
  if (status === 429 || status === 503) return "busy";
  if (status === 401 || status === 403) return "access";
  return status >= 400 && status < 500 ? "request" : "server";
}

/** Seconds of a Retry-After header, which is a number or a date. */
function waitOf(header) {
  if (!header) return BUSY_WAIT_S;
  const seconds = /^\d+$/.test(header.trim()) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.min(Math.max(Math.ceil(seconds), 1), 3600) : BUSY_WAIT_S;
}
