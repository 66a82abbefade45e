// Talks to the node: one way to ask, one place for the token.

const PATIENCE_MS = 8000;

let token = sessionStorage.getItem("streamexit.token") ?? "";
let asking = null; // one dialog, however many requests were refused meanwhile
let skewMs = 0;

/** The node's clock: ages are wrong by minutes on machines whose own clock is. */
export const nodeNow = () => Date.now() + skewMs;

/** Asks for JSON; what goes wrong is thrown with a sentence for people. */
export async function ask(path, body) {
  const response = await request(path, body);
  const answer = await response.json().catch(() => null);
  if (answer?.error) throw new Error(answer.error.message);
  if (!response.ok) throw new Error(`error ${response.status} ${response.statusText}`);
  if (answer === null) throw new Error("its answer is no JSON");
  return answer;
}

/** The stream's latest picture. */
export async function askPicture(id) {
  const response = await request(`api/streams/${encodeURIComponent(id)}/snapshot.jpg`);
  if (response.ok) return response.blob();
  const answer = await response.json().catch(() => null);
  throw new Error(answer?.error?.message ?? `No picture: ${response.status}`);
}

async function request(path, body) {
  const used = token;
  const headers = used ? { Authorization: `Bearer ${used}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  const response = await fetch(path, {
    method: body ? "POST" : "GET",
    body: body && JSON.stringify(body),
    headers,
    cache: "no-store",
    signal: AbortSignal.timeout(PATIENCE_MS),
  }).catch((error) => {
    throw new Error(error.name === "TimeoutError" ? "it takes too long" : "no connection");
  });
  if (response.status !== 401) {
    setSkew(response.headers.get("Date"));
    return response;
  }
  if (used === token) await (asking ??= askToken(used !== "").finally(() => (asking = null)));
  return request(path, body);
}

function setSkew(date) {
  const skew = Date.parse(date) + 500 - Date.now(); // the header is cut to whole seconds
  skewMs = Math.abs(skew) > 3000 ? skew : 0; // NaN, without a header, gives 0
}

/** Resolves when the dialog is closed; closed without a token, the next refusal opens it again. */
function askToken(refused) {
  const dialog = document.getElementById("token");
  const input = dialog.querySelector("input");
  dialog.querySelector(".said").textContent = refused ? "The node does not accept this token." : "";
  input.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      token = input.value.trim();
      sessionStorage.setItem("streamexit.token", token);
      resolve();
    }, { once: true });
  });
}
