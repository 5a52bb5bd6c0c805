// Requests with the key of this tab. The key is sent in a header and kept in sessionStorage, never in a URL.

const KEY = "mmva-key";
const LONGEST_WAIT_S = 5;

/** An answer that is an error, in words. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let askForKey = async () => false;

/** Set who asks the person for a key: (why) => whether there is one to try again with. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;
export const setKey = (key) => (key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY));

/** JSON of a path below v1/explore. */
export async function getJson(path, parameters = {}, options = {}) {
  return (await request(address(path, parameters), options)).json();
}

/** Address of a path below v1/explore, relative to the page. */
export function address(path, parameters = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) for (const one of [value].flat()) query.append(name, one);
  return `v1/explore${path}${query.size ? `?${query}` : ""}`;
}

/** A response that is not an error; asks for a key on 401, waits once on 429 and 503. */
export async function request(url, options = {}, again = true) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(url, { ...options, headers, credentials: "omit", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The server cannot be reached.");
  }
  if (response.ok) return response;
  if (response.status === 401 && (await askForKey(key, "The server does not know this key."))) {
    return request(url, options, again);
  }
  const wait = Number(response.headers.get("Retry-After")) || 1;
  if ([429, 503].includes(response.status) && again && wait <= LONGEST_WAIT_S) {
    await new Promise((resolve) => setTimeout(resolve, wait * 1000));
    return request(url, options, false);
  }
  throw new Refused(response.status, await reason(response));
}

async function reason(response) {
  if (response.status === 401) return "A key is needed to look at this.";
  if (response.status === 403) return "This key may not do this.";
  try {
    return (await response.json()).error.message;
  } catch {
    // not JSON: the status has to do
  }
  return `The server answered with status ${response.status}.`;
}
